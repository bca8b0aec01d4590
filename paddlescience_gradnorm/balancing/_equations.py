"""Which losses are residuals of equations."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Union

from paddlescience_gradnorm import _arguments


def checked(equations: Sequence[Union[int, str]], n_loss: int) -> tuple[Union[int, str], ...]:
    """A balancer's ``equations``, checked before the losses' names are known.

    Raises:
        TypeError: ``equations`` is not a list of numbers and names.
        ValueError: No loss has one of the numbers.
    """
    if isinstance(equations, str) or not isinstance(equations, Sequence):
        raise TypeError(
            f"equations must be a list of numbers or names of losses, got {equations!r}"
        )
    for equation in equations:
        if not isinstance(equation, str):
            _arguments.integer("equations", equation, at_least=0)
            if equation >= n_loss:
                raise ValueError(f"equations has {equation}, but n_loss is {n_loss}")
    return tuple(equations)


def are_equations(equations: Sequence[Union[int, str]], names: Sequence[str]) -> list[bool]:
    """Whether each loss is one of these equations.

    Args:
        equations: Numbers or names of losses; duplicates count once.
        names: Names of all losses.

    Raises:
        ValueError: No loss has one of the names.

    Examples:
        >>> are_equations(["pde", 2], ["bc", "pde", "flux"])
        [False, True, True]
    """
    numbers = set()
    for equation in equations:
        if isinstance(equation, str) and equation not in names:
            near = difflib.get_close_matches(equation, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"equations names {equation!r}, but there is no such loss, only {list(names)}{hint}"
            )
        numbers.add(names.index(equation) if isinstance(equation, str) else equation)
    return [number in numbers for number in range(len(names))]
