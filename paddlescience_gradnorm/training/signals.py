"""Stopping a run by SIGINT or SIGTERM at the end of a step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

import paddle


class StopOnSignals(paddle.callbacks.Callback):
    """While this is entered, SIGINT and SIGTERM let the running step come to its end.

    Among the callbacks of a ``Trainer`` it then stops the run. A loop of one's own looks at
    ``received`` after every step. A second signal acts at once, as it always does.

    Args:
        *signals: Which, if not these two.

    Examples:
        >>> import signal
        >>> with StopOnSignals() as stop:
        ...     for step in range(100):
        ...         if step == 2:
        ...             signal.raise_signal(signal.SIGTERM)
        ...         if stop.received:
        ...             break
        >>> step, stop.exit_code
        (2, 143)
    """

    def __init__(self, *signals: signal.Signals) -> None:
        super().__init__()
        self._signals = signals or (signal.SIGINT, signal.SIGTERM)
        self._before: dict[signal.Signals, Any] = {}
        self.received: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as in a shell; 0 if none has come."""
        return 0 if self.received is None else 128 + int(self.received)

    def __enter__(self) -> StopOnSignals:
        for number in self._signals:
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        """Stop the run if a signal has come."""
        if self.received is not None:
            self.model.stop_training = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            # Python did not set a handler that is None here, such as Paddle's for SIGTERM.
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before.clear()
