"""Checks of numbers that users pass: errors that name the argument and the value."""

from __future__ import annotations

import numbers
from typing import Any


def number(name: str, value: Any) -> float:
    """The value as a float, or a ``TypeError`` if it is no real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def integer(name: str, value: Any, at_least: int) -> int:
    """The value as an int; ``TypeError`` if it is none, ``ValueError`` if it is too small."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")
    return int(value)
