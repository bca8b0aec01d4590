"""Conditions as constraints: the augmented Lagrangian of PECANN-CAPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, RuleState
from paddlescience_gradnorm.balancing.rules._checks import check_positive, check_share


@dataclass(frozen=True)
class AugmentedLagrangian(Rule):
    """Minimises the equations' losses J subject to C_i = 0 for the loss C_i of each condition.

    Source: Hu, Basir, Senocak, "Conditionally adaptive augmented Lagrangian method for
    physics-informed learning of forward and inverse problems", CMAME 456 (2026) 118953,
    arXiv:2508.15695: PECANN with CAPU. The Lagrangian is J + sum_i (lambda_i C_i + mu_i C_i^2 / 2).
    So the weight of a condition is lambda_i + mu_i C_i, and that of an equation is 1. At each
    update v_i <- zeta v_i + (1 - zeta) C_i^2. If the Lagrangian has not fallen below omega times
    what it was, lambda_i <- lambda_i + mu_i C_i and mu_i <- max(mu_i, eta / sqrt(v_i + 1e-16)).

    It looks at loss values only, so it costs nothing. It differs from the authors' code in two
    ways. C_i in a weight is that of the update, so it is one step old. And the Lagrangian is
    compared on the losses that both updates have, because some may be absent.

    Args:
        eta: Size of the penalties, above 0; the authors use 0.01 or 1.
        zeta: Memory of the mean squares v, in [0, 1).
        omega: What counts as a fall of the Lagrangian, above 0.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.

    Examples:
        >>> rule, state = AugmentedLagrangian(eta=1.0), AugmentedLagrangian().start(2)
        >>> measured = Measurement(np.array([1.0, 0.5]), equations=np.array([True, False]))
        >>> for _ in range(3):  # no progress
        ...     weights, state = rule.weigh(np.ones(2), state, measured)
        ...     print(weights.round(1).tolist())
        [1.0, 1.5]
        [1.0, 8.6]
        [1.0, 15.7]
    """

    eta: float = 0.01
    zeta: float = 0.99
    omega: float = 0.999
    needs: ClassVar[frozenset[str]] = frozenset()
    tells_equations: ClassVar[bool] = True
    always: ClassVar[tuple[str, str]] = (
        "keep weights of 1",
        "are constraints with multipliers that grow",
    )
    fewest_losses: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_positive("eta", self.eta)
        check_share("zeta", self.zeta)
        check_positive("omega", self.omega)

    def start(self, n_loss: int) -> RuleState:
        return {
            "multipliers": np.ones(n_loss),  # lambda
            "penalties": np.ones(n_loss),  # mu
            "mean_squares": np.zeros(n_loss),  # v
            "terms": np.full(n_loss, np.inf),  # of the Lagrangian at the last update
        }

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        losses, equations = measurement.losses, measurement.equations
        multipliers, penalties = state["multipliers"], state["penalties"]
        as_constraints = multipliers * losses + penalties * losses**2 / 2
        terms = np.where(equations, losses, as_constraints)
        mean_squares = self.zeta * state["mean_squares"] + (1 - self.zeta) * losses**2
        if terms.sum() >= self.omega * state["terms"].sum():
            multipliers = multipliers + penalties * losses
            penalties = np.maximum(penalties, self.eta / np.sqrt(mean_squares + 1e-16))
        new = np.where(equations, 1.0, multipliers + penalties * losses)
        return new, {
            "multipliers": multipliers,
            "penalties": penalties,
            "mean_squares": mean_squares,
            "terms": terms,
        }
