"""Weights from the neural tangent kernel of each loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, RuleState
from paddlescience_gradnorm.balancing.rules._checks import check_not_negative, check_share


@dataclass(frozen=True)
class NTK(Rule):
    """w_i <- memory w_i + (1 - memory) mean_j(k_j) / (k_i + eps mean_j(k_j)).

    k_i stands for the mean diagonal of the neural tangent kernel K_i = J_i J_i^T of the residuals
    r of loss i, where J_i = dr/dW. Source: Wang, Yu, Perdikaris, "When and Why PINNs Fail to
    Train", J. Comput. Phys. 449 (2022), arXiv:2007.14527, with the moving average of jaxpi.

    The diagonal itself takes a gradient for each point. This rule estimates it from what one pass
    measures: k_i = ||g_i||^2 / (4 L_i). Since L = r^T r / N and g = 2 J^T r / N, this is the
    Rayleigh quotient r^T K r / (r^T r) of K / N. It is never above the mean diagonal tr(K) / N. It
    is equal if the points' gradients are parallel, such as for a single point, and close while the
    residual lies along the first eigenvectors of K. It falls below as these directions are learned.

    It needs losses that are means of squares, of any positive factor, above 0. It does not need
    the numbers of points.

    It differs from the paper in three ways: in the estimate, in the mean over points where
    the paper has the trace, and in the mean over losses where the paper has their sum. Other
    packages that offer NTK weights differ more: PaddleScience takes sums of ||g_j|| over ||g_i||,
    and PhysicsNeMo the roots of k_j and k_i.

    Args:
        memory: Share of the weights that an update keeps, in [0, 1).
        eps: Limits the weights to 1 / eps, dimensionless, at least 0.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.

    Examples:
        >>> measured = Measurement(np.array([1.0, 4.0]), np.diag([36.0, 16.0]))  # k = 9, 1
        >>> NTK(memory=0.0, eps=0.0).weigh(np.ones(2), {}, measured)[0].round(2).tolist()
        [0.56, 5.0]
    """

    memory: float = 0.9
    eps: float = 1e-5
    update_every: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        check_share("memory", self.memory)
        check_not_negative("eps", self.eps)

    @property
    def needs_positive_losses(self) -> bool:
        return True

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        traces = (measurement.norms / np.sqrt(measurement.losses)) ** 2 / 4
        sizes = traces / traces.mean()
        return self.memory * weights + (1 - self.memory) / (sizes + self.eps), state
