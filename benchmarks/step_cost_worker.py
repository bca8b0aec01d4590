"""What the contestants of step_cost.py have in common: the problems and the conversation.

Needs numpy alone, for it runs in the peers' environment too.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable

import numpy as np

WIDTH, LAYERS = 50, 5  # FCNet(2, outputs, 5, 50): four hidden layers of 50
LEARNING_RATE = 1e-3
ALPHA = 0.12
WEIGHT_LR = 0.01  # of contestants that step the loss weights themselves
WARM_UP = 4  # steps; the first ones load kernels, compile, and grow the heap

Run = Callable[[int], None]  # trains that many steps and returns when they are done
Build = Callable[["Case", str], Run]


@dataclass(frozen=True)
class Case:
    """A training problem.

    "laplace": the interior points split over all losses but one, the last is the boundary.
    "navier_stokes": three residuals, all at the same points. Networks of another size than the
    usual one are on the Paddle side only.
    """

    equation: str
    points: int
    losses: int
    width: int = WIDTH
    layers: int = LAYERS

    def interior(self) -> list[np.ndarray]:
        """The points of each loss inside, float32, shape [n, 2] each."""
        points = np.random.default_rng(0).random((self.points, 2), dtype=np.float32)
        return np.array_split(points, self.losses - 1) if self.equation == "laplace" else [points]

    def boundary(self) -> tuple[np.ndarray, np.ndarray]:
        """A quarter as many points on two edges, and cos(x) cosh(y) there, shape [n, 1]."""
        points = np.random.default_rng(1).random((self.points // 4, 2), dtype=np.float32)
        points[::2, 0], points[1::2, 1] = 1, 0
        return points, np.cos(points[:, :1]) * np.cosh(points[:, 1:])


def serve(build: Build, about: dict[str, Any]) -> None:
    """Answer the driver's requests, a line of JSON each, until it closes the pipe."""
    # The frameworks print to stdout when they feel like it.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runs: dict[str, Run] = {}
    answer: dict[str, Any] = about
    while True:
        print(json.dumps(answer), file=replies, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        request = json.loads(line)
        if request["do"] == "prepare":
            runs = {}  # the last case's memory goes before this one's comes
            case = Case(**request["case"])
            runs = {mode: build(case, mode) for mode in request["modes"]}
            answer = {mode: _warm(run) for mode, run in runs.items()}
        elif request["do"] == "run":
            gc.collect()  # nobody pays for another's garbage
            answer = {"seconds": _seconds(runs[request["mode"]], request["steps"])}
        else:
            answer = {"megabytes": _megabytes(build, Case(**request["case"]), request["mode"])}


def _warm(run: Run) -> float:
    """Seconds a step, roughly, once warm."""
    run(WARM_UP)
    return _seconds(run, 2) / 2


def _seconds(run: Run, steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


def _megabytes(build: Build, case: Case, mode: str) -> float | None:
    """What the steps need at their peak beyond a process that is ready to make them."""
    if not Path("/proc/self/clear_refs").exists():
        return None  # not Linux
    # A small case first: code, kernels and threads are no memory of the step.
    build(replace(case, points=8 * case.losses), mode)(WARM_UP)
    run = build(case, mode)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # pages that a compiler left free would be used unseen
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew from VmRSS
    before = _status("VmRSS")
    run(WARM_UP)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A field of the kernel's account of this process, kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(f"/proc/self/status has no {field}")
