"""Which losses are residuals of equations: as the user says, or as their names say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Union

import numpy as np

from paddlescience_gradnorm import _arguments

Equations = Sequence[Union[int, str]]

# Words in names of losses. A name tells something only if all of its words are known, because an
# unknown word may change the meaning: "heat" is an equation, but "heat_flux" or "data_free" may be
# anything. A name with words of both kinds tells nothing, because "heat_boundary", for example, is
# an equation in PaddleScience.
_EQUATION = frozenset(
    "pde pdes ode odes ide ides dae fpde eq eqs eqn eqns equation equations governing "
    "residual residuals".split()
)
# Laws. With a field they tell nothing, because "u_continuity" may be a condition on u at an
# interface.
_LAW = frozenset(
    "res physics interior collocation continuity momentum vorticity energy conservation "
    "equilibrium divergence laplace laplacian poisson helmholtz biharmonic heat wave advection "
    "diffusion burgers navier stokes euler darcy maxwell schrodinger bloch allen cahn kdv "
    "volterra fredholm eikonal elasticity".split()
)
_MEASURED = frozenset(
    "data obs observation observations observed measured measurement measurements sensor "
    "sensors".split()
)
# With these the words above mean something else: "data_free", "pde_data".
_NO_DATA = _EQUATION | {"free"}
_CONDITION = _MEASURED | frozenset(
    "supervised label labels bc bcs boundary boundaries ic ics initial init dirichlet neumann "
    "robin periodic periodicity slope interface symmetry wall walls lid inlet outlet inflow "
    "outflow noslip slip edge edges end ends left right top bottom up down upper lower".split()
)
_NEUTRAL = frozenset("loss losses mse error term x y z t r mass".split())
_OF_FIELDS = frozenset("u v w p h".split())
_WITH_CONDITIONS = frozenset(
    "condition conditions no of at on velocity pressure temperature displacement field".split()
)
# "u0", "ut0": a field, or its derivative, at the start.
_AT_THE_START = re.compile(r"[uvwpThc]t?_?0")
# "u >= -50", "u(0) = 1": the value that a field is to have.
_VALUE_OF_A_FIELD = re.compile(r"[uvwpThc]\d?(\([^()]*\))? *(<=|>=|==?|<|>) *[-+.\deE]+")
_WORD = re.compile(r"[A-Z]{2,}s(?![a-z])|[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def checked(equations: Equations | None, n_loss: int | None) -> tuple[Union[int, str], ...] | None:
    """A balancer's ``equations``, checked before the losses' names are known.

    Raises:
        TypeError: ``equations`` is not a list of numbers and names.
        ValueError: No loss has one of the numbers.
    """
    if equations is None:
        return None
    if isinstance(equations, np.ndarray):
        equations = equations.tolist()
    if isinstance(equations, str) or not isinstance(equations, Sequence):
        hint = f"; pass [{equations!r}]" if isinstance(equations, str) else ""
        raise TypeError(
            f"equations must be a list of numbers or names of losses, got {equations!r}{hint}"
        )
    for equation in equations:
        if not isinstance(equation, str):
            _arguments.integer("equations", equation, at_least=0)
            if n_loss is not None and equation >= n_loss:
                raise ValueError(f"equations has {equation}, but n_loss is {n_loss}")
    return tuple(equations)


def are_equations(
    equations: Equations, names: Sequence[str], open_ended: bool = False
) -> list[bool]:
    """Whether each loss is one of these equations.

    Args:
        equations: Numbers or names of losses; duplicates count once.
        names: Names of all losses.
        open_ended: Whether more losses may join, so that a name need not be there yet.

    Raises:
        ValueError: No loss has one of the names or numbers.

    Examples:
        >>> are_equations(["pde", 2], ["bc", "pde", "flux"])
        [False, True, True]
    """
    numbers = set()
    for equation in equations:
        if isinstance(equation, str) and equation in names:
            numbers.add(names.index(equation))
        elif isinstance(equation, str):
            # The name may be of a loss that joins later, so only a close match is a mistake.
            alike = 0.75 if open_ended else 0.6
            hint = _arguments.did_you_mean(equation, names, cutoff=alike)
            if open_ended and not hint:
                continue
            parts = [name for name in names if name.startswith(f"{equation}.")]
            hint = f"; its losses are {parts}" if parts else hint
            raise ValueError(
                f"equations names {equation!r}, but there is no such loss, only {list(names)}{hint}"
            )
        else:
            if equation >= len(names):
                raise ValueError(f"equations has {equation}, but there are {len(names)} losses")
            numbers.add(equation)
    return [number in numbers for number in range(len(names))]


def is_equation(name: str) -> bool | None:
    """Whether a loss of this name is the residual of an equation; None if the name leaves doubt.

    Examples:
        >>> is_equation("momentum_x"), is_equation("lossBC"), is_equation("u")
        (True, False, None)
        >>> is_equation("heat"), is_equation("heat_flux"), is_equation("u >= -50")
        (True, None, False)
    """
    if _AT_THE_START.fullmatch(name) or _VALUE_OF_A_FIELD.fullmatch(name):
        return False
    words = {word.lower() for word in _WORD.findall(name)}
    if not name.isascii():  # a word that is not known
        return None
    if words & _CONDITION:
        known = _CONDITION | _NEUTRAL | _OF_FIELDS | _WITH_CONDITIONS
        return False if words <= known else None
    equation = words & _EQUATION
    if not equation and not words & _LAW:
        return None
    known = _EQUATION | _LAW | _NEUTRAL | (_OF_FIELDS if equation else frozenset())
    # "ode_x0" may be a value at the start, while "eq0" is the first equation.
    at_zero = len(words) > 1 and re.search(r"(?<!\d)0(?!\d)", name)
    return True if words <= known and not at_zero else None


def is_measured(name: str) -> bool:
    """Whether the name of a condition says that its values are measured.

    So does the name of DeepXDE's class for values at given points, ``PointSetBC``. PaddleScience's
    ``Sup`` does not, because its examples have boundary and initial values under this name.

    Examples:
        >>> is_measured("data"), is_measured("noisy_sensors.u"), is_measured("Sup.u")
        (True, True, False)
    """
    if name.startswith("PointSet"):
        return True
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & _MEASURED) and not words & _NO_DATA


def by_name(
    names: Sequence[str], rule: str, known: Mapping[str, bool | None] | None = None
) -> list[str]:
    """The equations among losses of these names.

    Args:
        names: Names of all losses.
        rule: Name of the rule that asks, for the error.
        known: Whether a loss is an equation, where that is known by other means. None if the loss
            is in doubt whatever its name. The names of these losses do not count.

    Raises:
        ValueError: A name leaves doubt.

    Examples:
        >>> by_name(["pde", "left"], "R"), by_name(["pde", "u"], "R", known={"u": False})
        (['pde'], ['pde'])
    """
    found = {name: is_equation(name) for name in names}
    found.update({name: is_one for name, is_one in (known or {}).items() if name in found})
    doubtful = [name for name, is_one in found.items() if is_one is None]
    equations = [name for name, is_one in found.items() if is_one]
    if not doubtful:
        return equations
    raise ValueError(
        f"{rule} treats equations and conditions differently, and of the losses "
        f"{', '.join(map(repr, names))} the names do not tell which {_are(doubtful)}. "
        f"Pass equations={equations}, with those of {doubtful} added that are residuals of "
        "equations"
    )


def without_names(n_loss: int, rule: str) -> ValueError:
    """The error for losses that have no names to tell by."""
    return ValueError(
        f"{rule} treats equations and conditions differently, and losses in a list have no names "
        f"to tell which of the {n_loss} are equations. Pass their numbers, equations=[0] if it is "
        'the first, or a dict of losses such as {"pde": ..., "boundary": ...}'
    )


def _are(doubtful: Sequence[str]) -> str:
    names = " and ".join(map(repr, doubtful))
    return f"{names} is" if len(doubtful) == 1 else f"{names} are"
