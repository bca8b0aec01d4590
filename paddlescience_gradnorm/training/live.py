"""A view of a running training in the terminal, drawn by rich."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console, RenderableType

    from paddlescience_gradnorm.training.history import History

# Between two looks at the numbers, because an accelerator has to wait for each.
_SECONDS = 0.5
_BAR = 20  # characters of the progress bar
_LINE = 20  # characters of a sparkline
_HEIGHTS = "▁▂▃▄▅▆▇█"


class LiveView(paddle.callbacks.Callback):
    """Shows how far a ``Trainer`` is, the time left, and its losses and weights so far.

    It stands in place of a ``ProgressBar``. Beside each number is a small curve of the whole run,
    drawn from its own smallest value to its largest, on a logarithmic scale if all are positive.
    What ``validate`` returns, such as an error, has a line of its own. Where the output is no
    terminal, the view is printed once, at the end.

    Args:
        console: Rich's console to print on; by default one on the standard error.
        unit: What a step is called.

    Raises:
        ImportError: Rich, which the extra ``[plot]`` brings, is not installed.

    Examples:
        >>> import io
        >>> import paddle
        >>> from rich.console import Console
        >>> from paddlescience_gradnorm import FCNet, GradNorm
        >>> from paddlescience_gradnorm.training import Trainer
        >>> net, x = GradNorm(FCNet(1, 1, 3, 16), n_loss=2), paddle.rand([8, 1])
        >>> def losses(net):
        ...     return {"data": (net(x) - x).square().mean(), "end": net(x[:1]).square().mean()}
        >>> adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
        >>> output = io.StringIO()
        >>> view = LiveView(Console(file=output, width=80))
        >>> history = Trainer(net, losses, adam, callbacks=[view]).fit(epochs=20)
        >>> "20/20" in output.getvalue(), "data" in output.getvalue()
        (True, True)
    """

    def __init__(self, console: Console | None = None, unit: str = "step") -> None:
        super().__init__()
        try:
            import rich.console
        except ImportError as error:
            raise ImportError("the live view needs rich: pip install rich") from error
        self._console = rich.console.Console(stderr=True) if console is None else console
        self._unit = unit

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin to draw."""
        from rich import progress
        from rich.live import Live

        epochs, steps = self.params["epochs"], self.params["steps"]
        total = None if steps is None else epochs * steps
        self._progress = progress.Progress(
            progress.TextColumn(self._unit),
            progress.BarColumn(_BAR),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[speed]}"),
            progress.TextColumn("elapsed"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,
        )
        self._initial = self.params.get("initial", 0)
        self._done = self._initial
        self._task = self._progress.add_task("", total=total, completed=self._done, speed="")
        self._validated: dict[str, list[float]] = {}
        self._began = time.monotonic()
        self._shown = -math.inf
        # This thread draws, because another one would take turns with the training.
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        """Count the step, and draw if it is time to."""
        self._done += 1
        if self._console.is_terminal and time.monotonic() - self._shown > _SECONDS:
            self._draw()

    def on_eval_end(self, logs: Any = None) -> None:
        """Keep what ``validate`` has returned."""
        for name, value in (logs or {}).items():
            self._validated.setdefault(name, []).append(value)

    def on_train_end(self, logs: Any = None) -> None:
        """Draw for the last time."""
        self._draw()
        self._live.stop()

    def _draw(self) -> None:
        from rich.console import Group

        seconds = time.monotonic() - self._began
        speed = f"{(self._done - self._initial) / seconds:.0f} {self._unit}s/s" if seconds else ""
        self._progress.update(self._task, completed=self._done, speed=speed)
        view: RenderableType = self._progress
        if len(self.model.history):
            view = Group(self._progress, _table(self.model.history, self._validated))
        self._live.update(view, refresh=True)
        self._shown = time.monotonic()


def _table(history: History, validated: dict[str, list[float]]) -> RenderableType:
    """A line for each loss, with its weight, and one for each number of ``validate``."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("loss")
    table.add_column("value", justify="right")
    table.add_column("so far", width=_LINE)
    table.add_column("weight", justify="right")
    table.add_column("so far", width=_LINE)
    losses, weights = history.losses, history.weights
    for name in history.names:
        weight = weights[name][-1]
        table.add_row(
            Text(name),  # because in a plain string brackets are markup
            f"{losses[name][-1]:.2e}",
            sparkline(losses[name]),
            f"{weight:.3g}" if math.isfinite(weight) else "",
            sparkline(weights[name]),
        )
    for name, values in validated.items():
        table.add_row(Text(name), f"{values[-1]:.2e}", sparkline(values))
    return table


def sparkline(values: Sequence[float] | NDArray[np.float64]) -> str:
    """A curve of numbers in one line of text; numbers that are not finite are left out.

    Examples:
        >>> sparkline([1.0, 10.0, 100.0, 1000.0]), sparkline([0.0, 0.5, 1.0]), sparkline([2.0, 2.0])
        ('▁▃▆█', '▁▅█', '▄▄')
    """
    numbers = np.asarray(values, float)
    parts = np.array_split(numbers, min(len(numbers), _LINE)) if len(numbers) else []
    last = [part[np.isfinite(part)][-1:] for part in parts]
    shown = np.concatenate([np.empty(0), *last])
    if not len(shown):
        return ""
    if shown.min() > 0:
        shown = np.log(shown)
    low, span = shown.min(), np.ptp(shown)
    if not span > 1e-6 * max(1.0, abs(low)):  # rounding
        return _HEIGHTS[3] * len(shown)
    levels = np.floor((shown - low) / span * (len(_HEIGHTS) - 1) + 0.5).astype(int)
    return "".join(_HEIGHTS[level] for level in levels)
