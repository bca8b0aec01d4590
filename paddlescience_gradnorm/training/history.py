"""History: what every step of a run has measured, by the losses' names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import paddle

from paddlescience_gradnorm.training._diagnosis import diagnose

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


class History:
    """Losses, weights, gradient norms and inverse training rates of every step, by name.

    Row t holds the unweighted losses at the start of step t and the weights that acted in it.
    It also holds what the balancer has measured in its last update, up to and with this step: the
    norms ||g_i|| of the unweighted losses' gradients on the shared parameters, and the rates r_i.
    What has not been measured is NaN, such as norms and rates without a balancer.

    Examples:
        >>> import paddle
        >>> history = History()
        >>> for loss in (4.0, 1.0):
        ...     history.record(["pde", "data"], losses=paddle.to_tensor([loss, 2.0]))
        >>> len(history), history.losses["pde"].tolist(), history.weights["data"].tolist()
        (2, [4.0, 1.0], [nan, nan])
        >>> history
        <History: 2 steps of pde, data>
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._blocks: dict[str, list[np.ndarray]] = {quantity: [] for quantity in QUANTITIES}
        self._pending: dict[str, list[Row | None]] = {q: [] for q in QUANTITIES}

    def __len__(self) -> int:
        """Number of steps."""
        return sum(map(len, self._blocks["losses"])) + len(self._pending["losses"])

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
    def losses(self) -> dict[str, NDArray[np.float64]]:
        """Name -> the unweighted loss in every step, shape [steps]."""
        return self._by_name("losses")

    @property
    def weights(self) -> dict[str, NDArray[np.float64]]:
        """Name -> the weight that acted in every step, shape [steps]."""
        return self._by_name("weights")

    @property
    def gradient_norms(self) -> dict[str, NDArray[np.float64]]:
        """Name -> the norm of the unweighted loss's gradient, shape [steps]."""
        return self._by_name("gradient_norms")

    @property
    def training_rates(self) -> dict[str, NDArray[np.float64]]:
        """Name -> the inverse training rate, shape [steps]; above 1 for a slow loss."""
        return self._by_name("training_rates")

    def to_numpy(self) -> dict[str, np.ndarray]:
        """``names``, shape [T], and each of the four quantities, shape [steps, T]."""
        self._read()
        empty = np.empty((0, len(self.names)))
        numbers = {q: np.concatenate([empty, *blocks]) for q, blocks in self._blocks.items()}
        return {"names": np.array(self.names, dtype=str), **numbers}

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
        for quantity in QUANTITIES:
            self._pending[quantity].clear()
            self._blocks[quantity] = [rows[quantity]] if len(rows[quantity]) else []

    def last(self) -> dict[str, dict[str, float]]:
        """Quantity -> name -> number, of the last step.

        Raises:
            IndexError: No step has been recorded.
        """
        self._read()
        if not self.names:
            raise IndexError("no step has been recorded yet")
        return {
            quantity: dict(zip(self.names, blocks[-1][-1].tolist()))
            for quantity, blocks in self._blocks.items()
        }

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Write ``to_numpy`` to a ``.npz`` file, for ``numpy.load`` or ``load``."""
        arrays: dict[str, Any] = self.to_numpy()
        with Path(path).open("wb") as file:  # numpy would add a suffix to a path
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Union[str, os.PathLike[str]]) -> History:
        """Read what ``save`` has written."""
        history = cls()
        with np.load(path) as arrays:
            history.names = arrays["names"].tolist()
            for quantity in QUANTITIES:
                history._blocks[quantity] = [arrays[quantity]]
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
        return diagnose(self.names, rows["losses"], rows["weights"], cosines)

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
        for name, values in self._by_name(quantity).items():
            axes.plot(values, label=name, linewidth=1)
        axes.set(xlabel="step")
        if self.names:
            axes.legend()
        return axes

    def _by_name(self, quantity: str) -> dict[str, NDArray[np.float64]]:
        return dict(zip(self.names, self.to_numpy()[quantity].T))

    def _read(self) -> None:
        """Bring the pending rows to the host."""
        for quantity, pending in self._pending.items():
            if pending:
                self._blocks[quantity].append(_stacked(pending, len(self.names)))
                pending.clear()


def _new_figure(width: float, height: float) -> Any:
    """A figure of that size in inches."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install 'paddlescience_gradnorm[plot]'"
        ) from error
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
