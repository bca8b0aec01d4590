"""A direction from gradients that another rule has weighted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import DirectionRule, Rule, RuleState
from paddlescience_gradnorm.balancing.rules._checks import check_choice
from paddlescience_gradnorm.balancing.rules._kinds import cancels_out, kinds
from paddlescience_gradnorm.balancing.rules.config import ConFIG
from paddlescience_gradnorm.balancing.rules.pinn import PinnRule

_OF_RULE, _OF_DIRECTION = "rule_", "direction_"


@dataclass(frozen=True)
class Directed(DirectionRule):
    """Two rules in one: ``rule`` weighs the losses, and ``direction`` combines their gradients.

    In each step ``rule`` finds new weights w from the unweighted losses and gradients, as it does
    alone. They act at once. ``direction`` then gets the weighted losses w_i L_i and the products
    w_i w_j g_i . g_j. With its coefficients d the network's gradient is sum_i d_i w_i g_i.

    Args:
        rule: A rule that weighs, such as ``PinnRule()``.
        direction: A rule that combines, such as ``ConFIG()``.
        groups: What ``direction`` combines. ``"kinds"``: two gradients, the weighted sum of the
            equations' and that of the conditions'. With one kind only, or where one of the two
            sums cancels out, it is the sum of both. ``"each"``: all weighted gradients.

    Raises:
        TypeError: ``rule`` is not a rule that weighs, or ``direction`` not one that combines.
        ValueError: ``groups`` is something else, or ``"kinds"`` with a direction that remembers
            something of each loss.

    Examples:
        >>> from paddlescience_gradnorm.balancing import Equal
        >>> measured = Measurement(
        ...     np.ones(3), np.diag([4.0, 1.0, 0.0]), equations=np.array([True, False, False])
        ... )
        >>> both = Directed(Equal(), ConFIG())
        >>> both.weigh(np.ones(3), both.start(3), measured)[0].round(12).tolist()
        [0.75, 1.5, 1.5]
    """

    rule: Rule = field(default_factory=PinnRule)
    direction: DirectionRule = field(default_factory=ConFIG)
    groups: str = "kinds"

    def __post_init__(self) -> None:
        rule, direction = self.rule, self.direction
        if not isinstance(rule, Rule) or rule.acts_now:
            raise TypeError(
                f"rule must be a rule that weighs losses, such as PinnRule(), got {rule!r}"
            )
        if not isinstance(direction, Rule) or not direction.acts_now:
            raise TypeError(
                "direction must be a rule that combines gradients, such as ConFIG(), got "
                f"{direction!r}"
            )
        check_choice("groups", self.groups, ("kinds", "each"))
        of_losses = [name for name, x in direction.start(2).items() if np.ndim(x)]
        if self.groups == "kinds" and of_losses:
            raise ValueError(
                f"{direction} remembers {', '.join(map(repr, of_losses))} of each loss, but with "
                "groups='kinds' it gets sums of losses; pass groups='each'"
            )
        apart = self.groups == "kinds" or rule.tells_equations or direction.tells_equations
        up_to = direction.never_negative_up_to
        if self.groups == "kinds":  # which are two, however many losses there are
            up_to = math.inf if up_to >= 2 else 1
        for name, value in {
            "needs": rule.needs | direction.needs,
            "on_all_parameters": rule.on_all_parameters and direction.on_all_parameters,
            "tells_equations": apart,
            "fewest_losses": max(rule.fewest_losses, direction.fewest_losses),
            "never_negative_up_to": up_to,
        }.items():
            object.__setattr__(self, name, value)

    @property
    def needs_positive_losses(self) -> bool:
        return self.rule.needs_positive_losses or self.direction.needs_positive_losses

    def remark(self, losses: np.ndarray) -> tuple[np.ndarray, str, str] | None:
        """See ``Rule.remark``."""
        return self.rule.remark(losses)

    def effects(
        self,
        equations: Sequence[str],
        conditions: Sequence[str],
        total_steps: int | None = None,
    ) -> tuple[str, str]:
        """See ``Rule.effects``."""
        return self.rule.effects(equations, conditions, total_steps)

    def start(self, n_loss: int) -> RuleState:
        return {
            "directed_weights": np.ones(n_loss),
            **_prefixed(_OF_RULE, self.rule.start(n_loss)),
            **_prefixed(_OF_DIRECTION, self.direction.start(n_loss)),
        }

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        new, of_rule = self.rule.weigh(
            state["directed_weights"], _without(_OF_RULE, state), measurement
        )
        new = np.maximum(new, measurement.floor)  # as for any rule that weighs
        members = kinds(measurement.equations) if self.groups == "kinds" else np.eye(len(new))
        sums = members * new
        of_sums = combined(measurement, sums)
        coefficients, of_direction = np.ones(len(sums)), _without(_OF_DIRECTION, state)
        assert of_sums.gram is not None
        if len(sums) > 1 and not cancels_out(of_sums.gram, sums, measurement.norms):
            coefficients, of_direction = self.direction.weigh(coefficients, of_direction, of_sums)
        return coefficients @ sums, {
            "directed_weights": new,
            **_prefixed(_OF_RULE, of_rule),
            **_prefixed(_OF_DIRECTION, of_direction),
        }

    def check(self, floor: float) -> None:
        self.rule.check(floor)

    def meet(self, names: Sequence[str], complete: bool) -> None:
        self.rule.meet(names, complete)

    def findings(
        self, names: Sequence[str], weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> list[str]:
        of_rule = _without(_OF_RULE, state)
        return self.rule.findings(names, state["directed_weights"], of_rule, measurement)


def combined(measurement: Measurement, sums: np.ndarray) -> Measurement:
    """What would have been measured of sums of the losses: losses, Gram matrix and equations.

    Args:
        measurement: Of T losses.
        sums: The factor of each loss in each sum, at least 0, shape [K, T]. The losses of a sum are
            all of one kind.
    """
    assert measurement.gram is not None
    return dataclasses.replace(
        measurement,
        losses=sums @ measurement.losses,
        gram=sums @ measurement.gram @ sums.T,
        equations=(sums * measurement.equations).any(axis=1),
        names=(),
        largest=None,
        mean=None,
        std=None,
        kurtosis=None,
    )


def _prefixed(prefix: str, state: RuleState) -> RuleState:
    return {prefix + name: array for name, array in state.items()}


def _without(prefix: str, state: RuleState) -> RuleState:
    """The part of a state whose names have this prefix, under the names without it."""
    return {n[len(prefix) :]: array for n, array in state.items() if n.startswith(prefix)}
