"""Weights from learned uncertainties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, RuleState


@dataclass(frozen=True)
class Uncertainty(Rule):
    """w_i = exp(-s_i) / 2, where the log-variances s descend sum_i (exp(-s_i) L_i + s_i) / 2.

    Source: Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR
    2018, arXiv:1705.07115. For PINNs: Xiang et al., "lbPINN", 2022, arXiv:2104.06217. At rest
    s_i = log L_i, so the weights settle at 1 / (2 L_i): all weighted losses are alike.

    It differs from the paper in two ways. The log-variances take plain gradient steps at the
    balancer's ``weight_lr``, in place of the network's optimizer. And a step ends at log L_i, where
    the sum is least, because a large loss would carry it far beyond that.

    It looks at loss values only, so it costs nothing. Losses at or below 0 are left out, because
    they have no such minimum.

    Examples:
        >>> measured = Measurement(np.array([4.0, 1.0]), rate=0.2)
        >>> Uncertainty().weigh(np.ones(2), Uncertainty().start(2), measured)[0].round(3).tolist()
        [0.37, 0.5]
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs_positive_losses(self) -> bool:
        return True

    def start(self, n_loss: int) -> RuleState:
        return {"log_variances": np.zeros(n_loss)}

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        log_variances, losses = state["log_variances"], measurement.losses
        at_rest = np.log(losses)
        with np.errstate(over="ignore"):  # then the step ends at its limit
            slope = (1 - np.exp(at_rest - log_variances)) / 2
        moved = log_variances - measurement.rate * slope
        low, high = np.minimum(log_variances, at_rest), np.maximum(log_variances, at_rest)
        new = moved.clip(low, high)
        return np.exp(-new) / 2, {"log_variances": new}
