"""DB-PINN: dual balancing of conditions, by their gradients and by how hard they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, RuleState
from paddlescience_gradnorm.balancing.rules._checks import check_choice

_NEEDS = {
    "mean": frozenset({"largest", "mean"}),
    "std": frozenset({"std"}),
    "kurtosis": frozenset({"std", "kurtosis"}),
}


@dataclass(frozen=True)
class DualBalance(Rule):
    """The conditions share the sum of their gradients' ratios to the equation's, by difficulty.

    Source: Zhou et al., "Dual-Balancing for Physics-Informed Neural Networks", IJCAI 2025,
    arXiv:2505.11117. At the N-th update of a condition, with the mean Lbar_i of its losses so far:

        d_i = L_i / Lbar_i
        w_i <- w_i + (sum_j(h_j) d_i / sum_j(d_j) - w_i) / N

    Equations have a weight of 1. The ratio h_i is max|g_r| / mean|w_i g_i|, std(g_r) / std(g_i), or
    std(g_r) / kurtosis(g_r) over std(g_i) / kurtosis(g_i).

    The authors update in every 10th step (Helmholtz, Burgers, cavity), 50th (wave), or 100th
    (Allen-Cahn, Klein-Gordon): pass ``update_every``. They standardise the inputs, and leave out
    of the statistics biases that a loss does not reach, which count as zeros here.

    With several equations, the largest of their max|g|, std or std / kurtosis counts. Without an
    equation or a condition the weights stay. A ratio that is not defined, because all entries of a
    gradient are equal, is 1, as in the authors' code.

    Args:
        by: ``"mean"``, ``"std"`` or ``"kurtosis"``: the statistic of the gradients.

    Raises:
        ValueError: ``by`` is something else.

    Examples:
        >>> measured = Measurement(
        ...     np.ones(3), std=np.array([8.0, 2.0, 1.0]), equations=np.array([True, False, False])
        ... )
        >>> rule = DualBalance("std")
        >>> rule.weigh(np.ones(3), rule.start(3), measured)[0].tolist()
        [1.0, 6.0, 6.0]
    """

    by: str = "mean"
    update_every: ClassVar[int] = 10
    tells_equations: ClassVar[bool] = True
    always: ClassVar[tuple[str, str]] = (
        "keep weights of 1",
        "share a weight by the size of their gradients",
    )

    def __post_init__(self) -> None:
        check_choice("by", self.by, tuple(_NEEDS))
        object.__setattr__(self, "needs", _NEEDS[self.by])

    @property
    def needs_positive_losses(self) -> bool:
        return True

    def start(self, n_loss: int) -> RuleState:
        return {"updates": np.zeros(n_loss), "mean_losses": np.zeros(n_loss)}

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        equations, losses = measurement.equations, measurement.losses
        if equations.all() or not equations.any():
            return weights, state
        updates = state["updates"] + 1
        mean_losses = state["mean_losses"] + (losses - state["mean_losses"]) / updates
        conditions = ~equations
        difficulties = (losses / mean_losses)[conditions]
        shared = self._ratios(weights, measurement)[conditions].sum()
        targets = shared * difficulties / difficulties.sum()
        new = np.ones(len(weights))
        before = weights[conditions]
        new[conditions] = before + (targets - before) / updates[conditions]
        return new, {"updates": updates, "mean_losses": mean_losses}

    def _ratios(self, weights: np.ndarray, measurement: Measurement) -> np.ndarray:
        """h_i, shape [T]; those of equations are not used."""
        equations, std = measurement.equations, measurement.std
        if self.by == "mean":
            assert measurement.largest is not None and measurement.mean is not None
            return measurement.largest[equations].max() / (weights * measurement.mean)
        assert std is not None
        spreads = std
        if self.by == "kurtosis":
            assert measurement.kurtosis is not None
            spreads = std / measurement.kurtosis
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = spreads[equations].max() / spreads
        return np.where(np.isfinite(ratios) & (ratios > 0), ratios, 1.0)
