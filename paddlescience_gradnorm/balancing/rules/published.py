"""GradNorm as published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing._diagnosis import listed
from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import GradientRule, GradientStep, RuleState
from paddlescience_gradnorm.balancing.rules._rates import (
    check_alpha,
    inverse_training_rates,
    too_small_references,
)


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
        found = self._overshooting(names, measurement)
        ratios = too_small_references(self.alpha, state, measurement)
        if ratios:
            found.append(
                f"The reference L(0) of {listed([names[i] for i in ratios])} was too small to mean "
                "anything, because an untrained network can fulfil an equation by accident: the "
                f"loss is now up to {max(ratios.values()):.3g} times as large. Call "
                'reset_initial_losses() once the losses have settled, or use rule="pinn".'
            )
        return found

    def _overshooting(self, names: Sequence[str], measurement: Measurement) -> list[str]:
        """Whether steps of plain descent are larger than the weight at which the norms are equal.

        Then the weight jumps across it: by a third and more from 0.5 times the weight on, and by
        3 % at 0.05 times. With ``weight_lr=None`` the rate is NaN and the optimizer decides.
        """
        norms = measurement.norms
        if not (np.isfinite(norms).all() and norms.all()):
            return []
        at_rest = np.maximum(len(norms) / norms / (1 / norms).sum(), measurement.floor)
        steps = measurement.rate * norms
        worst = int(np.argmax(steps / at_rest))
        if not steps[worst] > 0.5 * at_rest[worst]:
            return []
        rate = 0.05 * at_rest[worst] / norms[worst]
        return [
            f"The weight of {names[worst]!r} jumps: with weight_lr={measurement.rate:g} a step "
            f"moves it by {steps[worst]:.2g}, and its gradient asks for a weight of "
            f"{at_rest[worst]:.2g}. Lower weight_lr to {rate:.0e}, let Adam step the weights "
            '(weight_lr=None), or use rule="pinn".'
        ]
