"""A view of a running training in the terminal, drawn by rich."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import paddle

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Between two looks at the numbers, because an accelerator has to wait for each.
_SECONDS = 0.5
_WIDTH = 30  # characters of a weight's bar


class LiveView(paddle.callbacks.Callback):
    """Shows how far a ``Trainer`` is, the time left, its losses, and a bar for each weight.

    It stands in place of a ``ProgressBar``. The bar of the largest weight is full, and the others
    are in proportion. Where the output is no terminal, the view is printed once, at the end.

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
            raise ImportError(
                "the live view needs rich: pip install 'paddlescience_gradnorm[plot]'"
            ) from error
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
            progress.BarColumn(_WIDTH),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[speed]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,
        )
        self._initial = self.params.get("initial", 0)
        self._done = self._initial
        self._task = self._progress.add_task("", total=total, completed=self._done, speed="")
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
            view = Group(self._progress, _table(self.model.history.last()))
        self._live.update(view, refresh=True)
        self._shown = time.monotonic()


def _table(last: dict[str, dict[str, float]]) -> RenderableType:
    """A table with a line for each loss: its name, value, weight, and the weight's bar."""
    from rich.bar import Bar
    from rich.table import Table
    from rich.text import Text

    weights = last["weights"]
    largest = max((w for w in weights.values() if math.isfinite(w)), default=math.nan)
    table = Table(box=None, pad_edge=False)
    table.add_column("loss")
    table.add_column("value", justify="right")
    table.add_column("weight", justify="right")
    table.add_column("")
    for name, loss in last["losses"].items():
        weight = weights[name]
        known = math.isfinite(weight)
        table.add_row(
            Text(name),  # because in a plain string brackets are markup
            f"{loss:.2e}",
            f"{weight:.3g}" if known else "",
            Bar(largest, 0, max(weight, 0), width=_WIDTH, color="cyan") if known else "",
        )
    return table
