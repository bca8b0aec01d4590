"""UPGrad: the mean of the gradients, each projected on the directions that raise no loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import DirectionRule, RuleState
from paddlescience_gradnorm.balancing.rules._checks import check_not_negative
from paddlescience_gradnorm.balancing.rules._non_negative import least_over_non_negative


@dataclass(frozen=True)
class UPGrad(DirectionRule):
    """Each gradient goes to the nearest direction that conflicts with no gradient; then the mean.

    Source: Quinton, Rey, "Jacobian Descent for Multi-Objective Optimization", 2024,
    arXiv:2406.16232. The projection of g_i is sum_j v_j g_j with the least v^T G v, v_i >= 1 and
    all v_j >= 0.

    Where nothing conflicts it is the mean of the gradients. Opposite gradients give 0.

    Args:
        regularization: Added to the diagonal of G / trace(G), dimensionless, at least 0. TorchJD
            adds 1e-4. It makes the result smooth, but gradients that are a hundred times smaller
            than the largest then hardly count. 0 is the projection itself.

    Raises:
        TypeError: ``regularization`` is not a number.
        ValueError: ``regularization`` is negative or not finite.

    Examples:
        >>> measured = Measurement(np.ones(2), np.array([[4.0, -1.0], [-1.0, 1.0]]))
        >>> UPGrad().weigh(np.ones(2), {}, measured)[0].round(12).tolist()
        [0.625, 1.0]
    """

    never_negative_up_to: ClassVar[float] = math.inf
    regularization: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative("regularization", self.regularization)

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        n_loss, gram = len(weights), measurement.gram
        assert gram is not None
        if self.regularization:
            gram = gram / max(gram.trace(), 1e-300) + self.regularization * np.eye(n_loss)
        # v is 1 for the loss itself, and what the constraints add.
        added = [least_over_non_negative(gram, -row) for row in gram]
        return (1 + np.sum(added, axis=0)) / n_loss, state
