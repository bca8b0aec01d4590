"""GradNorm as published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import GradientRule, GradientStep, RuleState
from paddlescience_gradnorm.balancing.rules._rates import check_alpha, inverse_training_rates

# If a loss exceeds its reference by this factor, the reference was too small by accident.
_TOO_SMALL_A_REFERENCE = 10.0


@dataclass(frozen=True)
class GradNormRule(GradientRule):
    """The rule as published: Chen et al., ICML 2018, arXiv:1711.02257, equations 1 and 2.

    The gradient norms are G_i = w_i ||g_i|| and the inverse training rates
    r_i = (L_i / L_i(0)) / mean_j(L_j / L_j(0)). The targets c_i = mean_j(G_j) r_i ** alpha are
    constant within a step. So Lgrad = sum_i |G_i - c_i| has the gradient
    sign(G_i - c_i) ||g_i|| with respect to w_i, and no second differentiation is needed.
    L_i(0) is the first loss above zero.

    Args:
        alpha: Strength of the pull towards equal training rates, dimensionless, at least 0. 0
            pulls all gradient norms to their mean.

    Raises:
        TypeError: ``alpha`` is not a number.
        ValueError: ``alpha`` is negative or not finite.

    Examples:
        >>> rule, measured = GradNormRule(1.0), Measurement(np.ones(2), gram=np.diag([9.0, 1.0]))
        >>> step = rule.gradient(np.ones(2), rule.start(2), measured)
        >>> step.loss, step.gradient.tolist()
        (2.0, [3.0, -1.0])
    """

    alpha: float
    on_all_parameters: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    @property
    def needs_positive_losses(self) -> bool:
        return self.alpha > 0

    def start(self, n_loss: int) -> RuleState:
        return {"initial_losses": np.zeros(n_loss)}

    def gradient(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> GradientStep:
        initial, losses = state["initial_losses"], measurement.losses
        if not all(initial.tolist()):
            initial = np.where(initial > 0, initial, np.maximum(losses, 0.0))
        norms = measurement.norms.tolist()
        weighted = [weight * norm for weight, norm in zip(weights.tolist(), norms)]
        targets = [sum(weighted) / len(weighted)] * len(weighted)
        if self.alpha:
            powers = inverse_training_rates(losses, initial) ** self.alpha
            targets = [target * power for target, power in zip(targets, powers.tolist())]
        excess = [now - target for now, target in zip(weighted, targets)]
        gradient = [math.copysign(n, e) if e else 0.0 for n, e in zip(norms, excess)]
        return GradientStep(sum(map(abs, excess)), np.array(gradient), {"initial_losses": initial})

    def findings(
        self, names: Sequence[str], weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> list[str]:
        found: list[str] = []
        if not self.alpha:  # which uses no references
            return found
        for name, loss, initial in zip(names, measurement.losses, state["initial_losses"]):
            if 0 < _TOO_SMALL_A_REFERENCE * initial < loss:
                found.append(
                    f"The loss of {name!r} is {loss / initial:.3g} times its reference L(0) = "
                    f"{initial:.3g}, which was too small to mean anything: an untrained network "
                    "can fulfil an equation by accident. Call reset_initial_losses() once the "
                    'losses have settled, or use rule="pinn".'
                )
        return found
