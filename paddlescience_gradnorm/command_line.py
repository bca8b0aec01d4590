"""What command lines share.

Types for ``argparse`` options, with errors that name the range and the value; and the published
rule's alpha where only its name is given.
"""

from __future__ import annotations

import argparse
import math
from typing import Callable

__all__ = ["at_least", "non_negative", "positive"]

ALPHA = 1.0  # the rule has no default of its own
_MOST = 2**31 - 1  # the largest number that Paddle takes


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that takes an integer.

    Args:
        least: The smallest integer allowed.

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
