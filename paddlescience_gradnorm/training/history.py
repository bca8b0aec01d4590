"""History: what every step of a run has measured, by the losses' names."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import paddle

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.training._checkpoint_file import replace
from paddlescience_gradnorm.training._diagnosis import LAST, diagnose

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# One number for each loss.
Row = Union[paddle.Tensor, np.ndarray]

QUANTITIES = ("losses", "weights", "gradient_norms", "training_rates")
# Rows that are kept as they come. Reading a tensor makes an accelerator wait, so this is done
# for many of them at once.
_BLOCK = 256
_LIMIT = 20_000
_VERSION = 2  # of the files; version 1 had no numbers of steps
# What numpy raises for a file that is none of its own.
_DAMAGED = (ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile)
_FEWEST_ROWS = 1000  # with half of them the diagnosis still sees the course of a run


class History:
    """Losses, weights, gradient norms and inverse training rates of the steps, by name.

    The row of a step holds the unweighted losses at its start and the weights that acted in it.
    It also holds what the balancer has measured in its last update, up to and with this step: the
    norms ||g_i|| of the unweighted losses' gradients on the shared parameters, and the rates r_i.
    What has not been measured is NaN, such as norms and rates without a balancer.

    A long run is thinned, so that its memory stays bounded. While there are at most ``limit``
    steps, each has a row. Beyond that, rows are those of the steps 0, n, 2n and so on, where n is
    the smallest power of 2 that leaves ``limit`` of them, and of the last ten steps. ``steps`` has
    their numbers.

    Args:
        limit: Number of rows beside the last ten, at least 1,000. ``None`` keeps every step.

    Raises:
        TypeError: ``limit`` is no integer.
        ValueError: It is below 1,000.

    Examples:
        >>> import paddle
        >>> history = History()
        >>> for loss in (4.0, 1.0):
        ...     history.record(["pde", "data"], losses=paddle.to_tensor([loss, 2.0]))
        >>> len(history), history.losses["pde"].tolist(), history.weights["data"].tolist()
        (2, [4.0, 1.0], [nan, nan])
        >>> history
        <History: 2 steps of pde, data>

        The rows of 3,000 steps are those of every fourth one and of the last ten.

        >>> import numpy as np
        >>> history = History(limit=1000)
        >>> for loss in range(3000):
        ...     history.record(["pde"], losses=np.array([loss]))
        >>> len(history), history.steps[:3].tolist(), history.steps[-3:].tolist()
        (3000, [0, 4, 8], [2997, 2998, 2999])
    """

    def __init__(self, limit: int | None = _LIMIT) -> None:
        if limit is not None:
            limit = _arguments.integer("limit", limit, at_least=_FEWEST_ROWS)
        self.limit = limit
        self.names: list[str] = []
        self._pending: dict[str, list[Row | None]] = {q: [] for q in QUANTITIES}
        self._begin(np.empty(0, np.int64), np.empty((0, len(QUANTITIES), 0)))

    def __len__(self) -> int:
        """Number of steps, those too that have no row any more."""
        return self._count + len(self._pending["losses"])

    def __repr__(self) -> str:
        names = ", ".join(self.names) or "no losses yet"
        return f"<History: {len(self)} {'step' if len(self) == 1 else 'steps'} of {names}>"

    def record(
        self,
        names: Sequence[str],
        losses: Row,
        weights: Row | None = None,
        gradient_norms: Row | None = None,
        training_rates: Row | None = None,
    ) -> None:
        """Add a step.

        Args:
            names: The losses' names, the same T in every step. A loss without a name,
                ``losses[i]``, may get one later.
            losses: Shape [T], like the others. All may be tensors or numpy arrays, which nobody
                may change in place later.
            weights: The weights that acted.
            gradient_norms: ||g_i||.
            training_rates: r_i.

        Raises:
            ValueError: The names are not those of the first step.
        """
        kept = (old in (new, f"losses[{i}]") for i, (old, new) in enumerate(zip(self.names, names)))
        if self.names and not (len(self.names) == len(names) and all(kept)):
            raise ValueError(f"names must be {self.names} as on the first step, got {list(names)}")
        self.names = list(names)
        for quantity, values in zip(QUANTITIES, (losses, weights, gradient_norms, training_rates)):
            self._pending[quantity].append(values)
        if len(self._pending["losses"]) >= _BLOCK:
            self._read()

    @property
    def steps(self) -> NDArray[np.int64]:
        """Numbers of the steps that have a row, from 0, shape [rows]."""
        self._read()
        return self._steps[: self._n_rows].copy()

    @property
    def losses(self) -> dict[str, NDArray[np.float64]]:
        """Name -> the unweighted loss in these steps, shape [rows]."""
        return self._by_name("losses")

    @property
    def weights(self) -> dict[str, NDArray[np.float64]]:
        """Name -> the weight that acted in these steps, shape [rows]."""
        return self._by_name("weights")

    @property
    def gradient_norms(self) -> dict[str, NDArray[np.float64]]:
        """Name -> the norm of the unweighted loss's gradient, shape [rows]."""
        return self._by_name("gradient_norms")

    @property
    def training_rates(self) -> dict[str, NDArray[np.float64]]:
        """Name -> the inverse training rate, shape [rows]; above 1 for a slow loss."""
        return self._by_name("training_rates")

    def to_numpy(self) -> dict[str, np.ndarray]:
        """``names``, shape [T], ``steps``, shape [rows], and each quantity, shape [rows, T]."""
        self._read()
        rows = self._rows[: self._n_rows]
        return {
            "names": np.array(self.names, dtype=str),
            "steps": self._steps[: self._n_rows].copy(),
            **{quantity: rows[:, k].copy() for k, quantity in enumerate(QUANTITIES)},
        }

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each step, and a column for each quantity and loss.

        ``frame["losses"]["pde"]`` is a column, and ``frame["losses"]`` a frame of all losses.

        Raises:
            ImportError: Pandas, which no extra brings, is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas") from error
        numbers = self.to_numpy()
        columns = pd.MultiIndex.from_product([QUANTITIES, self.names], names=["quantity", "loss"])
        values = np.concatenate([numbers[quantity] for quantity in QUANTITIES], axis=1)
        return pd.DataFrame(values, columns=columns).rename_axis(index="step")

    def replace(self, names: Sequence[str], rows: Mapping[str, np.ndarray]) -> None:
        """Hold these steps instead, in the form that ``to_numpy`` gives."""
        self.names = list(names)
        for pending in self._pending.values():
            pending.clear()
        self._begin(
            rows["steps"].copy(), np.stack([rows[quantity] for quantity in QUANTITIES], axis=1)
        )

    def last(self) -> dict[str, dict[str, float]]:
        """Quantity -> name -> number, of the last step.

        Raises:
            IndexError: No step has been recorded.
        """
        self._read()
        if not self._n_rows:
            raise IndexError("no step has been recorded yet")
        row = self._rows[self._n_rows - 1].tolist()
        return {quantity: dict(zip(self.names, row[k])) for k, quantity in enumerate(QUANTITIES)}

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Write ``to_numpy`` and a ``version`` to a ``.npz`` file, for ``numpy.load`` or ``load``.

        Raises:
            OSError: The file cannot be written. What was in it is still there.
        """
        arrays: dict[str, Any] = {"version": np.array(_VERSION), **self.to_numpy()}
        content = io.BytesIO()
        np.savez(content, **arrays)
        replace(Path(path), [content.getvalue()])

    @classmethod
    def load(cls, path: Union[str, os.PathLike[str]]) -> History:
        """Read what ``save`` has written, in this version of the package or an older one.

        Raises:
            ValueError: The file is damaged or no history, or a newer version has written it.
            OSError: The file cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            version = int(arrays.get("version", 1))
            if version <= _VERSION:
                names, rows = arrays["names"].tolist(), {q: arrays[q] for q in QUANTITIES}
                # A file of version 1 has a row for each step.
                every = np.arange(len(rows["losses"]))
                rows["steps"] = arrays["steps"] if version > 1 else every
        except _DAMAGED as error:
            raise ValueError(f"{str(path)!r} is damaged, or no history; train again") from error
        if version > _VERSION:
            raise ValueError(
                f"{str(path)!r} was written by a newer paddlescience_gradnorm: it has version "
                f"{version} of a history, and this package knows versions up to {_VERSION}. Update "
                "the package"
            )
        shape = (len(every), len(names)) if isinstance(names, list) else None
        if not (
            shape is not None
            and all(isinstance(name, str) for name in names)
            and all(rows[q].shape == shape and rows[q].dtype == float for q in QUANTITIES)
            and rows["steps"].dtype == np.int64
            and are_steps(rows["steps"], len(every))
        ):
            raise ValueError(f"{str(path)!r} is damaged, or no history; train again")
        history = cls()
        history.replace(names, rows)
        return history

    def diagnose(self, cosines: np.ndarray | None = None) -> list[str]:
        """What a user should act on, in words; an empty list if there is nothing.

        A finding is a loss that has become NaN for good, a weighted sum that has risen again, a
        loss that is all of the sum, losses that have stood still from the start, or losses that
        rest against each other. All but the first take 300 steps to be seen.

        Args:
            cosines: Those of the balancer's last update (``LossBalancer.cosines``). Without them
                losses that rest against each other are not found.

        Examples:
            >>> import paddle
            >>> history = History()
            >>> for step in range(300):
            ...     history.record(["pde", "data"], paddle.to_tensor([0.9**step, 0.25]))
            >>> for finding in history.diagnose():
            ...     print(finding)
            The loss of 'data' has stood still from the start. Balance the losses, or raise its
            weight by hand.
        """
        rows = self.to_numpy()
        return diagnose(self.names, rows["losses"], rows["weights"], cosines, rows["steps"])

    def plot(self, axes: Sequence[Axes] | None = None) -> tuple[Axes, Axes]:
        """Draw the losses, and below them their weights.

        Args:
            axes: Two of matplotlib's axes to draw on; those of a new figure by default.

        Returns:
            Both axes; ``axes[0].figure.savefig(path)`` saves the picture.

        Raises:
            ImportError: Matplotlib, which the extra ``[plot]`` brings, is not installed.
        """
        if axes is None:
            axes = _new_figure(8, 6).subplots(2, 1, sharex=True)
        top, bottom = axes
        self.plot_losses(top).set(xlabel="")
        self.plot_weights(bottom)
        if self.names:
            bottom.legend().remove()  # it is the same
        return top, bottom

    def plot_losses(self, axes: Axes | None = None) -> Axes:
        """Draw the unweighted losses over the steps, on a logarithmic scale.

        Args:
            axes: Matplotlib's axes to draw on; those of a new figure by default.

        Returns:
            The axes; ``axes.figure.savefig(path)`` saves the picture.

        Raises:
            ImportError: Matplotlib, which the extra ``[plot]`` brings, is not installed.
        """
        axes = self._plot("losses", axes)
        axes.set(ylabel="loss, unweighted", yscale="log")
        return axes

    def plot_weights(self, axes: Axes | None = None) -> Axes:
        """Draw the weights over the steps, far apart on a logarithmic scale.

        See ``plot_losses``.
        """
        axes = self._plot("weights", axes)
        axes.set(ylabel="weight")
        weights = self.to_numpy()["weights"]
        if (weights < 0).any():  # the coefficients of a direction
            axes.set_yscale("symlog", linthresh=1)
        # Above the number of losses, usually: they do not sum to it.
        elif len(self) and np.median(weights.max(axis=1)) > len(self.names):
            axes.set_yscale("log")
        else:
            axes.set(ylim=(0, None))
        return axes

    def plot_gradient_norms(self, axes: Axes | None = None) -> Axes:
        """Draw the norms of the unweighted losses' gradients, on a logarithmic scale.

        See ``plot_losses``. Without a balancer they have not been measured.
        """
        axes = self._plot("gradient_norms", axes)
        axes.set(ylabel="gradient norm, unweighted", yscale="log")
        return axes

    def plot_training_rates(self, axes: Axes | None = None) -> Axes:
        """Draw the inverse training rates over the steps; a loss above 1 is slower than the mean.

        See ``plot_losses``. Without a balancer they have not been measured.
        """
        axes = self._plot("training_rates", axes)
        axes.axhline(1.0, color="gray", linewidth=0.8, linestyle=":")
        axes.set(ylabel="inverse training rate", ylim=(0, None))
        return axes

    def _plot(self, quantity: str, axes: Any) -> Any:
        if axes is None:
            axes = _new_figure(8, 3.5).subplots()
        steps = self.steps
        for name, values in self._by_name(quantity).items():
            axes.plot(steps, values, label=name, linewidth=1)
        axes.set(xlabel="step")
        if self.names:
            for text in axes.legend().get_texts():
                text.set_parse_math(False)  # a name may have dollars
        return axes

    def _by_name(self, quantity: str) -> dict[str, NDArray[np.float64]]:
        return dict(zip(self.names, self.to_numpy()[quantity].T))

    def _begin(self, steps: np.ndarray, rows: np.ndarray) -> None:
        """Hold the rows of these steps, shape [rows, quantities, T]."""
        # Longer than they need be, because they grow.
        self._steps, self._rows = steps, rows
        self._n_rows = len(steps)
        self._count = int(steps[-1]) + 1 if len(steps) else 0
        self._stride = 0  # so that the next reading looks at all of them

    def _stride_of(self, count: int) -> int:
        """From one row to the next, of a history of so many steps."""
        stride = 1
        while self.limit is not None and count > stride * self.limit:
            stride *= 2
        return stride

    def _read(self) -> None:
        """Bring the pending rows to the host, and leave out those that are too many."""
        new = len(self._pending["losses"])
        if not new:
            return
        read = [_stacked(pending, len(self.names)) for pending in self._pending.values()]
        for pending in self._pending.values():
            pending.clear()
        if not self._n_rows:
            self._rows = np.empty((0, len(QUANTITIES), len(self.names)))
        stride = self._stride_of(self._count + new)
        # Before the last rows there are only steps that stay, unless the stride has changed.
        start = max(0, self._n_rows - LAST) if stride == self._stride else 0
        steps = np.concatenate(
            [self._steps[start : self._n_rows], np.arange(self._count, self._count + new)]
        )
        rows = np.concatenate([self._rows[start : self._n_rows], np.stack(read, axis=1)])
        self._count, self._stride = self._count + new, stride
        stays = (steps % stride == 0) | (steps >= self._count - LAST)
        self._n_rows = start + int(stays.sum())
        self._steps = _with_room(self._steps, self._n_rows)
        self._rows = _with_room(self._rows, self._n_rows)
        self._steps[start : self._n_rows] = steps[stays]
        self._rows[start : self._n_rows] = rows[stays]


def are_steps(steps: np.ndarray, n_rows: int) -> bool:
    """Whether these may be the numbers of the steps of so many rows."""
    return steps.shape == (n_rows,) and bool((np.diff(steps, prepend=-1) > 0).all())


def _with_room(array: np.ndarray, n: int) -> np.ndarray:
    """The array, or a longer one that begins with it, of ``n`` rows at least."""
    if len(array) >= n:
        return array
    longer = np.empty((max(n, 2 * len(array)), *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


def _new_figure(width: float, height: float) -> Any:
    """A figure of that size in inches."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    return plt.figure(figsize=(width, height), layout="constrained")


def _stacked(rows: Sequence[Row | None], n_loss: int) -> np.ndarray:
    result = np.full((len(rows), n_loss), np.nan)
    tensors = [i for i, row in enumerate(rows) if isinstance(row, paddle.Tensor)]
    if tensors:
        result[tensors] = paddle.stack([rows[i] for i in tensors]).numpy()
    for i, row in enumerate(rows):
        if not (row is None or isinstance(row, paddle.Tensor)):
            result[i] = row
    return result
