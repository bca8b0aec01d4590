"""Steps of several kinds, timed in turns within one process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Callable

import numpy as np


def timed(
    contestants: Mapping[str, Callable[[int], None]], turns: int, steps: int
) -> dict[str, np.ndarray]:
    """Milliseconds a step of every turn, shape [turns] for each contestant.

    Args:
        contestants: What makes so many steps, by name.
        turns: Of each contestant.
        steps: Of a turn.
    """
    names = list(contestants)
    ms: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        first = turn % len(names)  # nobody always comes after the same one
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            contestants[name](steps)
            ms[name].append(1000 * (time.perf_counter() - start) / steps)
    return {name: np.array(values) for name, values in ms.items()}
