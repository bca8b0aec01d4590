"""Ending all processes of a distributed run if one of them fails."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import paddle

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.balancing import _ranks
from paddlescience_gradnorm.training import _watcher
from paddlescience_gradnorm.training.checkpoints import Checkpoints


class Watchdog(paddle.callbacks.Callback):
    """While this is entered, no process of a distributed run waits for one that has failed.

    If a process dies, hangs or raises an error, all others end, with a message on the standard
    error that names its rank, the step and the last good checkpoint. If a loss or a parameter is
    NaN or infinite, all processes raise an error that says the same, before a checkpoint is
    written. Started again, the run goes on from the checkpoint.

    Enter it after ``paddle.distributed.init_parallel_env()``, and pass it to a ``Trainer`` among
    the callbacks. A loop of one's own calls ``step`` after every step. In a single process it only
    looks for NaN.

    Beside each process runs a small one, which imports no Paddle and ends with it. They tell each
    other by files in the checkpoints' folder how their processes are.

    Args:
        checkpoints: Where the run's checkpoints are. All processes share the folder.
        seconds: How long a process may make no progress, at least 1. Choose more than the longest
            thing between two steps takes, such as a validation or writing a checkpoint.

    Raises:
        TypeError: ``seconds`` is no number.
        ValueError: It is below 1.

    Examples:
        >>> import tempfile
        >>> checkpoints = Checkpoints(tempfile.mkdtemp())
        >>> with Watchdog(checkpoints) as watchdog:  # doctest: +ELLIPSIS
        ...     watchdog.step(1, paddle.to_tensor(float("nan")))
        Traceback (most recent call last):
        FloatingPointError: rank 0 has a loss that is NaN or infinite in step 1, so all ...
    """

    def __init__(self, checkpoints: Checkpoints, seconds: float = 20.0) -> None:
        super().__init__()
        if not _arguments.number("seconds", seconds) >= 1:
            raise ValueError(f"seconds must be at least 1, got {seconds}")
        self.checkpoints, self.seconds = checkpoints, float(seconds)
        self._watcher: subprocess.Popen[bytes] | None = None
        self._told = {"step": 0, "count": 0}

    def __enter__(self) -> Watchdog:
        if _ranks.number() == 1:
            return self
        folder = self.checkpoints.folder / "ranks"
        folder.mkdir(parents=True, exist_ok=True)
        # The files of an earlier run have another token.
        token = _ranks.largest(secrets.randbits(60))
        numbers = (token, _ranks.rank(), _ranks.number(), self.seconds, os.getpid())
        # In a session of its own, so that no signal to its rank's group ends it first.
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(_watcher.__file__)), str(folder.resolve())]
            + [str(x) for x in numbers],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._watcher.stdin is not None
        os.set_blocking(self._watcher.stdin.fileno(), False)
        self._told = {"step": 0, "count": 0}
        _ranks.at_mark = self._mark
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._watcher is None:
            return
        _ranks.at_mark = None
        if error is None:
            self._tell(state="ended")
            self._watcher.communicate()
        else:
            self._tell(state="failed", why=f"has ended by {type(error).__name__}: {error}")
        self._watcher = None

    def step(
        self, step: int, total: paddle.Tensor, parameters: Iterable[paddle.Tensor] = ()
    ) -> None:
        """Say that a step has been made, and look for NaN. Every process must call this.

        Args:
            step: How many steps the run has made.
            total: The step's weighted sum of the losses, shape [].
            parameters: What the step has changed.

        Raises:
            FloatingPointError: Something is NaN or infinite in one of the processes.
        """
        self._told["step"] = step
        rank = _ranks.rank()
        faults = [("a loss", [total]), ("a parameter", parameters)]
        for what, tensors in faults:
            is_bad = not all(np.isfinite(tensor.numpy()).all() for tensor in tensors)
            bad = _ranks.largest(rank if is_bad else -1)
            if bad >= 0:
                last = self.checkpoints.last
                raise FloatingPointError(
                    f"rank {bad} has {what} that is NaN or infinite in step {step}, so all "
                    f"processes end. {_watcher.go_on(None if last is None else str(last))}"
                )

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        """The same in a ``Trainer``, before it writes a checkpoint."""
        self.step(self.model.step, logs["loss"], self.model.net.parameters())

    def _mark(self) -> None:
        """Say that this process has come as far as another mark, at which it may have to wait."""
        self._told["count"] += 1
        self._tell(**self._told)

    def _tell(self, **told: Any) -> None:
        assert self._watcher is not None and self._watcher.stdin is not None
        last = self.checkpoints.last
        line = json.dumps({**told, "checkpoint": None if last is None else str(last)}) + "\n"
        # A watcher that is behind or has gone must not make the training wait; the next line says
        # all again.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._watcher.stdin.fileno(), line.encode())
