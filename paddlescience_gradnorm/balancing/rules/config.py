"""ConFIG: the direction at the same angle to all gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import DirectionRule, RuleState


def equiangular(cosines: np.ndarray) -> np.ndarray:
    """a, whose sum is 1, for which sum_i a_i g_i / n_i has one angle to all gradients, shape [T].

    It is the shortest of these sums. It is 0 if no direction lowers all losses by the same rate,
    as with two opposite gradients. Directions within 1e-10 of each other count as one.

    Args:
        cosines: Of the angles between the gradients, shape [T, T].

    Examples:
        >>> equiangular(np.array([[1.0, 0.5], [0.5, 1.0]])).round(12).tolist()
        [0.5, 0.5]
    """
    n_loss = len(cosines)
    # The shortest sum, with a multiplier for the condition that the coefficients sum to 1.
    conditions = np.ones([n_loss + 1, n_loss + 1])
    conditions[:n_loss, :n_loss] = cosines
    conditions[n_loss, n_loss] = 0
    right = np.zeros(n_loss + 1)
    right[n_loss] = 1
    return np.linalg.lstsq(conditions, right, rcond=1e-10)[0][:n_loss]


@dataclass(frozen=True)
class ConFIG(DirectionRule):
    """The direction with the same cosine to all gradients, as long as they project onto it.

    Source: Liu, Chu, Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural
    Networks", ICLR 2025, arXiv:2408.11104. With C the cosines between the gradients and n_i their
    norms, C a = 1, c_i = sum_j(n_j) a_i / (n_i sum_j(a_j)). It solves with the Gram matrix what the
    authors solve with the gradients. From three losses on c_i may be negative.

    If no direction lowers all losses by the same rate, such as with two opposite gradients, the
    combined gradient is 0, as it is in the limit. The network then rests in this step.

    Examples:
        >>> measured = Measurement(np.ones(2), np.array([[4.0, -1.0], [-1.0, 1.0]]))
        >>> ConFIG().weigh(np.ones(2), {}, measured)[0].round(12).tolist()
        [0.75, 1.5]
    """

    never_negative_up_to: ClassVar[float] = 2

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        norms = measurement.norms
        return norms.sum() * equiangular(measurement.cosines) / norms, state
