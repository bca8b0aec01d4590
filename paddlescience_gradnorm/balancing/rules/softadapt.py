"""SoftAdapt: weights by how each loss has changed since the last update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, RuleState
from paddlescience_gradnorm.balancing.rules._checks import check_not_negative, check_positive
from paddlescience_gradnorm.balancing.rules._softmax import softmax_of_ratios


@dataclass(frozen=True)
class SoftAdapt(Rule):
    """w = T softmax(L_i(t) / (tau L_i(t-1))): a loss that falls more slowly weighs more.

    Source: Heydari, Thompson, Mehmood, "SoftAdapt", 2019, arXiv:1912.12355, in the form of
    PhysicsNeMo. The paper takes the softmax of differences of losses in place of ratios. Ratios
    do not depend on a loss's unit. They are near 1 from step to step, so the weights are too, at a
    tau of 1. A lower tau spreads them.

    It looks at loss values only, so it costs nothing. Losses at or below 0 have no ratio and are
    left out.

    Args:
        tau: Temperature of the softmax, dimensionless, above 0.
        eps: Added to the denominators, at least 0. PhysicsNeMo adds 1e-8, which hides what happens
            to losses below that.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.

    Examples:
        >>> rule, state = SoftAdapt(), SoftAdapt().start(2)
        >>> for losses in ([2.0, 2.0], [1.0, 2.0]):
        ...     weights, state = rule.weigh(np.ones(2), state, Measurement(np.array(losses)))
        >>> weights.round(2).tolist()
        [0.76, 1.24]
    """

    tau: float = 1.0
    eps: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_positive("tau", self.tau)
        check_not_negative("eps", self.eps)

    @property
    def needs_positive_losses(self) -> bool:
        return True

    def start(self, n_loss: int) -> RuleState:
        return {"previous_losses": np.zeros(n_loss)}

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        losses, previous = measurement.losses, state["previous_losses"]
        if not previous.any():
            return np.ones(len(losses)), {"previous_losses": losses}
        previous = np.where(previous > 0, previous, losses)
        new = softmax_of_ratios(losses, previous, self.tau, self.eps)
        return new, {"previous_losses": losses}
