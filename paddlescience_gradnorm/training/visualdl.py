"""The curves of a running training in VisualDL, PaddlePaddle's viewer."""

from __future__ import annotations

from paddlescience_gradnorm.training._checkpoint_file import PathLike
from paddlescience_gradnorm.training._curve_log import CurveLog


class VisualDL(CurveLog):
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
        super().__init__(folder, every)
        try:
            from visualdl import LogWriter
        except ImportError as error:
            raise ImportError("logging to VisualDL needs it: pip install visualdl") from error
        self._make_writer = LogWriter
