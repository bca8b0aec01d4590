"""What the callbacks have in common that log a running training for a viewer of curves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import paddle

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.balancing import LossBalancer
from paddlescience_gradnorm.training._checkpoint_file import PathLike

_TAGS = {
    "losses": "loss",
    "weights": "weight",
    "gradient_norms": "gradient_norm",
    "training_rates": "training_rate",
}


class CurveLog(paddle.callbacks.Callback):
    """Logs a ``Trainer``'s losses, weights, gradient norms, training rates and cosines.

    Args:
        folder: Where the log is written.
        every: Steps from one point of the curves to the next.
    """

    # Opens a log in a folder, which has ``add_scalar(tag, number, row)`` and ``close()``.
    _make_writer: Any

    def __init__(self, folder: PathLike, every: int) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.every = _arguments.integer("every", every, at_least=1)
        self._writer: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the log."""
        if paddle.distributed.get_rank() == 0:
            self._writer = self._make_writer(logdir=str(self.folder))

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        """Log the step, if it is its turn."""
        row = len(self.model.history) - 1
        if self._writer is not None and row % self.every == 0:
            self._log(row)

    def on_train_end(self, logs: Any = None) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _log(self, row: int) -> None:
        last = self.model.history.last()
        numbers = {
            f"{tag}/{name}": number
            for quantity, tag in _TAGS.items()
            for name, number in last[quantity].items()
        }
        balancer = self.model.balancer
        # In L-BFGS's steps the balancer takes no part.
        if isinstance(balancer, LossBalancer) and not all(
            map(math.isnan, last["gradient_norms"].values())
        ):
            names, cosines = list(last["losses"]), balancer.cosines.tolist()
            for i, name in enumerate(names):
                for j in range(i):
                    numbers[f"cosine/{names[j]} and {name}"] = cosines[i][j]
        for tag, number in numbers.items():
            if not math.isnan(number):
                self._writer.add_scalar(tag, number, row)
