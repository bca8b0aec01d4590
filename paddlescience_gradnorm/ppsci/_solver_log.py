"""What an aggregator adds to its Solver's logs: lines, numbers, and a picture of the weights."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

import numpy as np
from ppsci.utils import logger, misc

from paddlescience_gradnorm.training.history import History


class SolverLog:
    """What the Solver logs beside its losses, and the weights of all steps since ``start``."""

    def __init__(self) -> None:
        self.history = History()  # of the weights
        self.solver: Callable[[], Any] = lambda: None  # returns None if it is not known, or gone
        self._quantities: Mapping[str, Callable[[], np.ndarray]] = {}
        self._names: Sequence[str] = ()

    def start(self, solver: Any, quantities: Mapping[str, Callable[[], np.ndarray]]) -> None:
        """Log to this Solver from now on, which is not kept alive.

        Args:
            solver: The Solver. Its ``plot_loss_history`` will draw the weights too, from now until
                another Solver is logged to.
            quantities: What to log: kind -> function that returns a number for each loss.
        """
        self.history, self.solver, self._quantities = History(), weakref.ref(solver), quantities
        solver.plot_loss_history = functools.partial(
            _plot_losses_and_weights, self.solver, self.history
        )

    def enter(self, names: Sequence[str]) -> None:
        """Give the Solver the values to log, because it drops them after every epoch."""
        self._names, solver = names, self.solver()
        if solver is not None:
            for kind, values in self._quantities.items():
                for i, name in enumerate(names):
                    solver.train_output_info[f"{kind}/{name}"] = _Meter(values, i)

    def record(self, weights: np.ndarray) -> None:
        """Keep the weights of a step for the picture, shape [T]."""
        if self._quantities:
            # Losses that have not come yet have no name.
            unnamed = [f"losses[{i}]" for i in range(len(self._names), len(weights))]
            names = [*self._names, *unnamed]
            self.history.record(names, np.full(len(names), np.nan), weights)


def plot_weights(history: History, output_dir: str, smooth_step: int, use_semilogy: bool) -> None:
    """See ``GradNormAggregator.plot_weights``."""
    if not len(history):
        raise ValueError(
            "there are no weights to draw: call aggregator.log_to(solver) just before "
            "solver.train(), because the weights go to the last Solver that it was called with"
        )
    os.makedirs(output_dir, exist_ok=True)
    lasts = np.diff(history.steps, append=len(history))
    curves = {n: np.repeat(weights, lasts).tolist() for n, weights in history.weights.items()}
    misc.plot_curve(curves, "Iteration", "Weight", output_dir, smooth_step, use_semilogy)


def _plot_losses_and_weights(
    known: Callable[[], Any],
    history: History,
    by_epoch: bool = False,
    smooth_step: int = 1,
    use_semilogy: bool = True,
) -> None:
    """What ``solver.plot_loss_history`` does after ``SolverLog.start``."""
    solver = known()
    type(solver).plot_loss_history(solver, by_epoch, smooth_step, use_semilogy)
    steps = smooth_step * (solver.iters_per_epoch if by_epoch else 1)
    plot_weights(history, solver.output_dir, steps, use_semilogy)


class _Meter:
    """A number in the Solver's log, which is read when the log is written."""

    def __init__(self, values: Callable[[], np.ndarray], i: int) -> None:
        self._values, self._i = values, i

    @property
    def avg(self) -> float:
        return _Short(self._values()[self._i])


class _Short(float):
    """A number that the Solver's lines show with three digits: weights differ in size."""

    def __format__(self, spec: str) -> str:
        return f"{float(self):.3g}"


@contextlib.contextmanager
def said_by_the_solver() -> Iterator[None]:
    """Put what this package logs into the Solver's log, and nowhere twice."""
    ours = logging.getLogger("paddlescience_gradnorm")
    before = ours.level, ours.propagate
    handler = _ToTheSolversLog()
    ours.addHandler(handler)
    ours.propagate = False
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before[0])
        ours.propagate = before[1]


class _ToTheSolversLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logger.info(record.getMessage())
