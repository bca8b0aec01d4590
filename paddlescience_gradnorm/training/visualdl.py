"""The curves of a running training in VisualDL, PaddlePaddle's viewer."""

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


class VisualDL(paddle.callbacks.Callback):
    """Logs a ``Trainer``'s losses, weights, gradient norms, training rates and cosines.

    ``visualdl --logdir FOLDER`` shows them in the browser while the run goes on. If FOLDER holds
    the folders of several runs, it shows their curves side by side. Tags are ``loss/NAME``,
    ``weight/NAME``, ``gradient_norm/NAME``, ``training_rate/NAME``, and ``cosine/NAME and NAME``
    for the angle between two losses' gradients on the shared parameters. Numbers that have not
    been measured are left out. The x-axis is the row of the history. Of several processes the
    first one logs.

    Args:
        folder: Where the log is written.
        every: Steps from one point of the curves to the next. Reading the numbers makes an
            accelerator wait.

    Raises:
        ImportError: VisualDL, which the extra ``[visualdl]`` brings, is not installed.
        TypeError: ``every`` is no integer.
        ValueError: ``every`` is below 1.
    """

    def __init__(self, folder: PathLike, every: int = 10) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.every = _arguments.integer("every", every, at_least=1)
        try:
            from visualdl import LogWriter
        except ImportError as error:
            raise ImportError(
                "logging to VisualDL needs it: pip install 'paddlescience_gradnorm[visualdl]'"
            ) from error
        self._new_writer = LogWriter
        self._writer: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the log."""
        if paddle.distributed.get_rank() == 0:
            self._writer = self._new_writer(logdir=str(self.folder))

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
