"""Checks of user arguments, with errors that name the argument and the value."""

from __future__ import annotations

import difflib
import inspect
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, Callable


def number(name: str, value: Any) -> float:
    """The value as a float, or a ``TypeError`` if it is not a real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def integer(name: str, value: Any, at_least: int) -> int:
    """The value as an int; ``TypeError`` if it is not one, ``ValueError`` if it is too small."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")
    return int(value)


# Options of version 0.1 that have been renamed.
_RENAMED = {"lr": "weight_lr", "residuals": "equations", "num_losses": "n_loss"}


def refuse(taker: str, options: Mapping[str, Any], known: Callable[..., Any]) -> None:
    """Raise a ``TypeError`` for an unknown option, and suggest the one that was meant.

    Args:
        taker: What received the options.
        options: All options, or the unknown ones.
        known: A function whose arguments are the known options.

    Examples:
        >>> refuse("LossBalancer", {"residuals": [0]}, lambda equations: None)
        Traceback (most recent call last):
        TypeError: LossBalancer has no option 'residuals', which is called 'equations' now
    """
    parameters = inspect.signature(known).parameters
    for name in options:
        if name in parameters:
            continue
        if name in _RENAMED:
            raise TypeError(
                f"{taker} has no option {name!r}, which is called {_RENAMED[name]!r} now"
            )
        if name in _options_of_the_default_rule():
            hint = f", which is one of the default rule: pass rule=PinnRule({name}=...)"
        else:
            hint = did_you_mean(name, parameters)
        raise TypeError(f"{taker} has no option {name!r}{hint}")


def _options_of_the_default_rule() -> Mapping[str, Any]:
    from paddlescience_gradnorm.balancing.rules import PinnRule  # which imports this module

    return inspect.signature(PinnRule).parameters


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of an error about a name that is not known; empty if no known name is like it.

    Examples:
        >>> did_you_mean("relobrallo", ["pinn", "relobralo"]), did_you_mean("x", ["pinn"])
        ("; did you mean 'relobralo'?", '')
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""
