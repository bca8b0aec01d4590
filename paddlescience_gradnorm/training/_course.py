"""Course: what is measured of a run at some moments, so that runs can be compared."""

from __future__ import annotations

import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any, Callable, ClassVar

import numpy as np
import paddle

from paddlescience_gradnorm import _operators
from paddlescience_gradnorm.balancing.balancer import LossBalancer
from paddlescience_gradnorm.balancing.rules import Equal
from paddlescience_gradnorm.network._shared_layer import unwrapped_of_ranks
from paddlescience_gradnorm.network.grad_norm import GradNorm
from paddlescience_gradnorm.point_weights import held
from paddlescience_gradnorm.training.checkpoints import Checkpoints
from paddlescience_gradnorm.training.trainer import Trainer

MOMENTS = 50
CHECKPOINT_EVERY = 1000  # steps


class Course:
    """Step, seconds, error and conflict at some moments of a run.

    It belongs to the run's checkpoints, so a run that goes on from one has them all. Seconds are
    those of the training: the clocks stand while something is measured.

    Args:
        error: The error of a network; ``None`` if no solution is known.
        say: Called at each moment, with how much of the run is done, from 0 to 1.
    """

    def __init__(
        self,
        error: Callable[[paddle.nn.Layer], float] | None,
        say: Callable[[float], None] = lambda done: None,
    ) -> None:
        self.error, self.say = error, say
        self.points: list[list[float | None]] = []
        self.conflicts: list[float] = []
        self._before, self._since = np.zeros(2), _clocks()

    def seconds(self) -> float:
        """Of training so far."""
        return self._both_seconds()[0]

    def _both_seconds(self) -> list[float]:
        """Of training so far: that have passed, and of the CPU in this process."""
        both: list[float] = (self._before + _clocks() - self._since).tolist()
        return both

    def follow(
        self, trainer: Trainer, steps: int, folder: Path, every: int, keeps: bool = True
    ) -> None:
        """Train, from the last checkpoint in the folder if there is one.

        Args:
            trainer: It has this object among its ``extras``.
            steps: How many in all.
            folder: For checkpoints.
            every: Steps from one moment to the next.
            keeps: Whether there are checkpoints.
        """
        checkpoints = Checkpoints(folder, every=CHECKPOINT_EVERY) if keeps else None
        resume = "latest" if checkpoints and checkpoints.paths() else None

        def measure(net: paddle.nn.Layer) -> dict[str, float]:
            self.measure(trainer)
            self.say(trainer.step / steps)
            return {}

        trainer.fit(
            epochs=steps,
            validate=measure,
            validate_every=every,
            checkpoints=checkpoints,
            resume=resume,
        )

    def measure(self, trainer: Trainer) -> None:
        """Add the run's present moment."""
        self._before = np.array(self._both_seconds())
        with held():
            error = None if self.error is None else float(self.error(trainer.net))
        self.points.append([trainer.step, float(self._before[0]), error])
        self.conflicts.append(_smallest_cosine(trainer))
        self._since = _clocks()

    def results(self, trainer: Trainer) -> dict[str, Any]:
        """What is to be known of the run at its end, for JSON.

        ``curve`` has step, seconds and error of every moment, ``conflicts`` the smallest cosine
        between two losses' gradients. By the losses' names, ``loss_curves`` and ``weights`` have
        the losses and weights of the moments, and ``losses`` the last ones. ``cpu_seconds`` is
        None if the training is not on the CPU.
        """
        if not self.points or self.points[-1][0] != trainer.step:
            self.measure(trainer)
        history = trainer.history
        # The last row of a step before the moment: in a long run not each step has one.
        moments = np.array([point[0] for point in self.points], int)
        rows = np.searchsorted(history.steps, moments) - 1
        curves = {name: losses[rows].tolist() for name, losses in history.losses.items()}
        seconds, cpu_seconds = self._both_seconds()
        return {
            "error": self.points[-1][2],
            "steps": trainer.step,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds if paddle.get_device() == "cpu" else None,
            "curve": self.points,
            "conflicts": self.conflicts,
            "losses": {name: losses[-1] for name, losses in curves.items()},
            "loss_curves": curves,
            "weights": {name: w[rows].tolist() for name, w in history.weights.items()},
            "diagnosis": trainer.diagnose(),
            "paddle": paddle.__version__,
            "operators": _operators.loaded,
        }

    def state_dict(self) -> dict[str, str]:
        """All that has been measured."""
        # As text, for a checkpoint's arrays have the size of those that they replace.
        return {"course": json.dumps([self._both_seconds(), self.points, self.conflicts])}

    def set_state_dict(self, state: dict[str, str]) -> None:
        """Go on from what ``state_dict`` gave."""
        before, self.points, self.conflicts = json.loads(state["course"])
        self._before, self._since = np.array(before), _clocks()


def _clocks() -> np.ndarray:
    """Seconds that have passed, and seconds of the CPU in this process, each from some start."""
    return np.array([time.perf_counter(), time.process_time()])


class _Watched(Equal):
    """Measures gradients and changes nothing."""

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})


def _smallest_cosine(trainer: Trainer) -> float:
    """The smallest cosine of an angle between two losses' gradients on the network's parameters."""
    net = unwrapped_of_ranks(trainer.net)
    observer = LossBalancer(net.net if isinstance(net, GradNorm) else net, rule=_Watched())
    log = logging.getLogger("paddlescience_gradnorm")
    level = log.level
    try:  # what it would say is no news of the run
        log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with held():
                observer.backward(trainer.losses(net))
    finally:
        log.setLevel(level)
    for optimizer in trainer.optimizers:
        optimizer.clear_grad()
    cosines = observer.cosines
    return float(np.min(cosines[np.triu_indices(len(cosines), k=1)]))
