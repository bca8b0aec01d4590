"""ReLoBRaLo: relative loss balancing with random lookback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, RuleState
from paddlescience_gradnorm.balancing.rules._checks import (
    check_not_negative,
    check_positive,
    check_probability,
    check_share,
)
from paddlescience_gradnorm.balancing.rules._softmax import softmax_of_ratios


@dataclass(frozen=True)
class ReLoBRaLo(Rule):
    """A loss weighs more if it has fallen less than others, since the last update or the first.

    Source: Bischof, Kraus, "Multi-Objective Loss Balancing for Physics-Informed Deep Learning",
    2021, arXiv:2110.09813. With b(t') = T softmax(L(t) / (tau L(t'))) and a random rho, which is 1
    with probability beta and else 0:

        w <- memory (rho w + (1 - rho) b(0)) + (1 - memory) b(t-1)

    The defaults are those of PhysicsNeMo and PaddleScience. It looks at loss values only, so it
    costs nothing. Losses at or below 0 have no ratio and are left out. rho is drawn from the
    number of the step, so all processes draw the same, and a resumed run draws what it would have.

    Args:
        memory: Share of the weights that an update keeps, in [0, 1); the paper's alpha.
        beta: Probability of not looking back to the first losses, in [0, 1].
        tau: Temperature of the softmax, dimensionless, above 0.
        eps: Added to the denominators, at least 0; PhysicsNeMo adds 1e-8.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.

    Examples:
        >>> rule, state, weights = ReLoBRaLo(memory=0.5), ReLoBRaLo().start(2), np.ones(2)
        >>> for losses in ([2.0, 2.0], [1.0, 2.0]):
        ...     weights, state = rule.weigh(weights, state, Measurement(np.array(losses)))
        >>> weights.round(2).tolist()
        [0.88, 1.12]
    """

    memory: float = 0.95
    beta: float = 0.99
    tau: float = 1.0
    eps: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_share("memory", self.memory)
        check_probability("beta", self.beta)
        check_positive("tau", self.tau)
        check_not_negative("eps", self.eps)

    @property
    def needs_positive_losses(self) -> bool:
        return True

    def start(self, n_loss: int) -> RuleState:
        return {"initial_losses": np.zeros(n_loss), "previous_losses": np.zeros(n_loss)}

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        rho = float(np.random.default_rng(measurement.step).random() < self.beta)
        return self.weigh_with(rho, weights, state, measurement)

    def weigh_with(
        self, rho: float, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        """``weigh`` with a rho of your own in place of a random one: 0, 1 or between them."""
        losses = measurement.losses
        if not state["previous_losses"].any():
            return weights, {"initial_losses": losses, "previous_losses": losses}
        initial, previous = (
            np.where(state[name] > 0, state[name], losses)
            for name in ("initial_losses", "previous_losses")
        )
        since_first = softmax_of_ratios(losses, initial, self.tau, self.eps)
        since_last = softmax_of_ratios(losses, previous, self.tau, self.eps)
        kept = rho * weights + (1 - rho) * since_first
        new = self.memory * kept + (1 - self.memory) * since_last
        return new, {"initial_losses": initial, "previous_losses": losses}
