"""Checks of numbers that users pass: errors that name the argument and the value.

In calls ``number`` and ``integer``, and on a command line ``at_least``,
``non_negative`` and ``positive``, which are types for ``argparse``.
"""

from __future__ import annotations

import argparse
import math
import numbers
from typing import Any, Callable

_MOST = 2**31 - 1  # of the numbers that Paddle takes


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


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that takes an integer.

    Args:
        least: The smallest that it takes.

    Examples:
        >>> parser = argparse.ArgumentParser()
        >>> action = parser.add_argument("--steps", type=at_least(1))
        >>> parser.parse_args(["--steps", "20"]).steps
        20
    """

    def integer(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= _MOST:
            raise argparse.ArgumentTypeError(
                f"must be an integer from {least} to {_MOST}, got {text!r}"
            )
        return number

    return integer


def non_negative(text: str) -> float:
    """The type of an option that takes a number of at least 0, such as GradNorm's alpha."""
    number = _parsed(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text!r}")
    return number


def positive(text: str) -> float:
    """The type of an option that takes a number above 0, such as a learning rate."""
    number = _parsed(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text!r}")
    return number


def _parsed(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
