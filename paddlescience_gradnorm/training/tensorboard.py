"""The curves of a running training in TensorBoard."""

from __future__ import annotations

from paddlescience_gradnorm.training._checkpoint_file import PathLike
from paddlescience_gradnorm.training._curve_log import CurveLog


class TensorBoard(CurveLog):
    """Logs the same curves as ``VisualDL`` for TensorBoard.

    ``tensorboard --logdir FOLDER`` shows them in the browser. The log is written by tensorboardX,
    which does not need TensorBoard; the viewer is installed by ``pip install tensorboard``. Tags
    are those of ``VisualDL``, with an underscore for each character that TensorBoard does not take,
    such as a space.

    Args:
        folder: Where the log is written.
        every: Steps from one point of the curves to the next. Reading the numbers makes an
            accelerator wait.

    Raises:
        ImportError: tensorboardX, which the extra ``[tensorboard]`` brings, is not installed.
        TypeError: ``every`` is no integer.
        ValueError: ``every`` is below 1.
    """

    def __init__(self, folder: PathLike, every: int = 10) -> None:
        super().__init__(folder, every)
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "logging for TensorBoard needs tensorboardX: pip install tensorboardX"
            ) from error
        self._make_writer = SummaryWriter
