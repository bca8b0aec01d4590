"""A progress bar with the losses and their weights."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

# Between two looks at the numbers, because an accelerator has to wait for each.
_SECONDS = 0.5


class ProgressBar(paddle.callbacks.Callback):
    """Shows how far a ``Trainer`` is, its losses and, in brackets, their weights.

    Args:
        **options: Options of ``tqdm.tqdm``, such as ``disable`` and ``file``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = {"unit": "step", "dynamic_ncols": True, **options}

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the bar."""
        epochs, steps = self.params["epochs"], self.params["steps"]
        total = None if steps is None else epochs * steps
        self._bar = tqdm(total=total, initial=self.params.get("initial", 0), **self._options)
        self._shown = -np.inf

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        """Advance the bar."""
        self._bar.update()
        if not self._bar.disable and time.monotonic() - self._shown > _SECONDS:
            self._show()

    def on_train_end(self, logs: Any = None) -> None:
        """Close the bar."""
        if not self._bar.disable and len(self.model.history):
            self._show()
        self._bar.close()

    def _show(self) -> None:
        last = self.model.history.last()
        self._bar.set_postfix_str(
            " ".join(
                f"{name} {loss:.1e}" + ("" if np.isnan(weight) else f" (w {weight:.2g})")
                for (name, loss), weight in zip(last["losses"].items(), last["weights"].values())
            )
        )
        self._shown = time.monotonic()
