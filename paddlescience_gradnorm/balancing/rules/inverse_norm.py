"""Weights in inverse proportion to the norms of the gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, RuleState
from paddlescience_gradnorm.balancing.rules._checks import check_not_negative, check_share


@dataclass(frozen=True)
class InverseNorm(Rule):
    """w_i <- memory w_i + (1 - memory) mean_j(n_j) / (n_i + eps mean_j(n_j)), n_i = ||g_i||.

    Source: Wang, Sankaran, Wang, Perdikaris, "An Expert's Guide to Training Physics-informed
    Neural Networks", 2023, arXiv:2308.08468, algorithm 1, as in jaxpi, where it is called
    ``grad_norm``. PaddleScience's aggregator ``GradNorm`` is this rule with ``eps=0``. Neither is
    GradNorm (arXiv:1711.02257), which also looks at training rates. The paper has the sum of the
    norms in place of their mean, which makes all weights T times larger.

    Args:
        memory: Share of the weights that an update keeps, in [0, 1).
        eps: Limits the weights to 1 / eps, dimensionless, at least 0.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.

    Examples:
        >>> measured = Measurement(np.ones(2), np.diag([9.0, 1.0]))
        >>> InverseNorm(memory=0.5, eps=0.0).weigh(np.ones(2), {}, measured)[0].round(2).tolist()
        [0.83, 1.5]
    """

    memory: float = 0.9
    eps: float = 1e-5
    update_every: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        check_share("memory", self.memory)
        check_not_negative("eps", self.eps)

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        sizes = measurement.norms / measurement.norms.mean()
        return self.memory * weights + (1 - self.memory) / (sizes + self.eps), state
