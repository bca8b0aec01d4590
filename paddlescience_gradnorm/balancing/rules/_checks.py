"""Checks of a rule's options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Callable

from paddlescience_gradnorm import _arguments


def _check(name: str, value: Any, what: str, is_valid: Callable[[float], bool]) -> None:
    if not is_valid(_arguments.number(name, value)):
        raise ValueError(f"{name} must be {what}, got {value}")


def check_share(name: str, value: Any) -> None:
    """Raise an error unless the option is a number in [0, 1)."""
    _check(name, value, "at least 0 and below 1", lambda x: 0 <= x < 1)


def check_probability(name: str, value: Any) -> None:
    """Raise an error unless the option is a number in [0, 1]."""
    _check(name, value, "at least 0 and at most 1", lambda x: 0 <= x <= 1)


def check_positive(name: str, value: Any) -> None:
    """Raise an error unless the option is a finite number above 0."""
    _check(name, value, "finite and above 0", lambda x: 0 < x < math.inf)


def check_not_negative(name: str, value: Any) -> None:
    """Raise an error unless the option is a finite number of at least 0."""
    _check(name, value, "finite and at least 0", lambda x: 0 <= x < math.inf)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise a ``ValueError`` unless the option is one of these words."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
