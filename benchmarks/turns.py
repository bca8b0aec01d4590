"""Steps of several kinds, timed in turns within one process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Callable

import numpy as np


def timed(
    contestants: Mapping[str, Callable[[int], None]],
    turns: int,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Milliseconds a step of every turn, shape [turns] for each contestant.

    Args:
        contestants: What makes so many steps, by name.
        turns: Of each contestant.
        steps: Of a turn.
        clock: Tells seconds, such as ``time.process_time`` for those of the processor.
    """
    names = list(contestants)
    ms: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        first = turn % len(names)  # nobody always comes after the same one
        for name in names[first:] + names[:first]:
            start = clock()
            contestants[name](steps)
            ms[name].append(1000 * (clock() - start) / steps)
    return {name: np.array(values) for name, values in ms.items()}


def ratio(ms: np.ndarray, to: np.ndarray) -> str:
    """The median ratio of turns that followed each other, and its quartiles."""
    low, middle, high = np.quantile(ms / to, [0.25, 0.5, 0.75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"
