"""IMTL-G: equal projections on all gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import DirectionRule, RuleState
from paddlescience_gradnorm.balancing.rules.config import equiangular


@dataclass(frozen=True)
class IMTLG(DirectionRule):
    """The direction of ConFIG, with coefficients that sum to 1.

    Source: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021. The projections of the
    combined gradient on all unit gradients are equal. The smallest gradients get the largest
    coefficients, so it is about as long as the smallest gradient.

    Where the sum of the coefficients is 0 or below before they are scaled, the formula would have
    the network ascend. Then it is the mean of the gradients, c_i = 1 / T.

    Examples:
        >>> measured = Measurement(np.ones(2), np.array([[4.0, -1.0], [-1.0, 1.0]]))
        >>> IMTLG().weigh(np.ones(2), {}, measured)[0].round(3).tolist()
        [0.333, 0.667]
    """

    never_negative_up_to: ClassVar[float] = 2

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        coefficients = equiangular(measurement.cosines) / measurement.norms
        total = coefficients.sum()
        if total <= 1e-10 * abs(coefficients).sum():
            return np.full(len(weights), 1 / len(weights)), state
        return coefficients / total, state
