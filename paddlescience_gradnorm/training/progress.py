"""A line in the terminal that shows how far a training is."""

from __future__ import annotations

import itertools
import math
import sys
import time
from typing import Any

import paddle

# Between two looks at the numbers, because an accelerator has to wait for each.
_SECONDS = 0.5
# The same in a file, which keeps every line.
_SECONDS_IN_A_FILE = 30.0
_LINE = "{n_fmt}/{total_fmt} {rate_fmt} {remaining} left{postfix}"


class ProgressBar(paddle.callbacks.Callback):
    """Shows how far a ``Trainer`` is, its speed, the time left, and the losses of the last step.

    In a terminal ``Trainer`` adds one itself. In a notebook that has ipywidgets the bar is a
    widget. In a file it is written every 30 seconds. The total is the weighted sum that is
    differentiated. It is always shown; the losses by name follow if the line has room for all
    of them, with their weights in brackets if there is room for these too.

    Args:
        **options: Options of ``tqdm.auto.tqdm``, such as ``desc``, ``file``, and ``disable``, which
            as ``None`` means quiet unless the output is a terminal.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = {"unit": "step", "dynamic_ncols": "ncols" not in options, **options}

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the bar."""
        from tqdm.auto import tqdm  # here, because it warns in a notebook without ipywidgets

        epochs, steps = self.params["epochs"], self.params["steps"]
        total = None if steps is None else epochs * steps
        self._done = self.params.get("initial", 0)
        self._total_loss: Any = None
        # Without a number of steps tqdm has a line of its own.
        self._lines = [None] if total is None else ["{desc}: {bar}| " + _LINE, "{desc}: " + _LINE]
        if "bar_format" in self._options:
            self._lines = [self._options["bar_format"]]
        # It draws when it is told to. That is not before the first step, in which the balancer
        # logs a line to the same terminal.
        own = {"mininterval": 0, "miniters": 0, "delay": 1e-6}
        self._bar = tqdm(total=total, initial=self._done, **{**own, **self._options})
        file = self._options.get("file") or sys.stderr
        is_rewritten = hasattr(self._bar, "container") or getattr(file, "isatty", bool)()
        self._seconds = _SECONDS if is_rewritten else _SECONDS_IN_A_FILE
        self._shown = -math.inf

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        """Count the step, and draw if it is time to."""
        self._done += 1
        self._total_loss = logs["loss"]
        if not self._bar.disable and time.monotonic() - self._shown > self._seconds:
            self._show()

    def on_train_end(self, logs: Any = None) -> None:
        """Draw for the last time, and close the bar."""
        if not self._bar.disable and self._total_loss is not None:
            self._show()
        self._bar.close()

    def _show(self) -> None:
        numbers = {**self._bar.format_dict, "n": self._done, "ncols": None}
        width = self._bar.format_dict["ncols"] or math.inf  # a file has none
        for text, line in itertools.product(self._texts(), self._lines):
            shown = {**numbers, "postfix": text, "bar_format": line}
            if len(self._bar.format_meter(**shown)) <= width:
                break  # if none fits, tqdm cuts the last, which is the shortest
        self._bar.bar_format = line
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(self._done - self._bar.n)
        self._shown = time.monotonic()

    def _texts(self) -> tuple[str, str, str]:
        """The losses of the last step, from the longest text to the shortest."""
        last = self.model.history.last()
        total = f"total {float(self._total_loss.astype('float32')):.1e}"
        losses = {name: f"{name} {loss:.1e}" for name, loss in last["losses"].items()}
        weights = {n: "" if math.isnan(w) else f" (w {w:.2g})" for n, w in last["weights"].items()}
        with_weights = " ".join(losses[name] + weights[name] for name in losses)
        return f"{total}: {with_weights}", f"{total}: {' '.join(losses.values())}", total
