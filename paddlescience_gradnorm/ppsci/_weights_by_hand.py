"""What becomes of the weights that a Solver's constraints give their losses by hand."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from paddlescience_gradnorm.balancing import _equations
from paddlescience_gradnorm.balancing.balancer import LossBalancer

_log = logging.getLogger(__name__)


class WeightsByHand:
    """Which weights by hand the learned ones replace.

    A rule that tells equations from conditions gives each condition the weight that it needs, and
    a factor by hand would act on top of that. So it is taken out. These stay as factors:

    - that of an equation, because it says how much the equation counts beside the others;
    - one below the balancer's floor or above its inverse, because it is a matter of units;
    - all of them, if another rule learns the weights, or none are learned.
    """

    def __init__(self, balancer: LossBalancer) -> None:
        self._balancer = balancer
        self._replaced: set[str] = set()  # losses
        self._weights: Mapping[str, Mapping[str, float]] = {}
        self._are_learned: bool | None = None

    def meet(
        self,
        weights: Mapping[str, Mapping[str, float]],
        names: Sequence[str],
        equations: _equations.Equations,
        learns: bool,
    ) -> Collection[str]:
        """Decide which of these are replaced.

        Args:
            weights: Loss -> argument of PaddleScience -> weight that is not 1.
            names: Names of all losses.
            equations: Those that are equations, unless the balancer has been told them.
            learns: Whether the weights are learned from here on. The first call decides.

        Returns:
            The losses whose weights are to be left out.
        """
        rule = self._balancer.rule
        if self._are_learned is None:
            self._are_learned = learns and rule.tells_equations
        self._weights, self._replaced = weights, set()
        if not self._are_learned:
            return self._replaced
        if self._balancer.equations is not None:
            equations = self._balancer.equations
        conditions = {
            name
            for name, is_one in zip(names, _equations.are_equations(equations, names, True))
            if not is_one
        }
        for name, by_argument in weights.items():
            weight, floor = math.prod(by_argument.values()), self._balancer.floor
            if name in conditions and floor <= weight <= 1 / floor:
                self._replaced.add(name)
        return self._replaced

    def tell(self) -> None:
        """Log what becomes of the weights; warn if those of conditions act twice."""
        replaced = [self._text(name) for name in self._weights if name in self._replaced]
        staying = [self._text(name) for name in self._weights if name not in self._replaced]
        if replaced:
            _log.info("learned weights replace those by hand: %s", ", ".join(replaced))
        if not staying:
            return
        if self._balancer.rule.tells_equations:
            _log.info("weights by hand stay as factors: %s", ", ".join(staying))
        else:
            warnings.warn(
                f"{', '.join(staying)}: these weights by hand multiply with those that are learned "
                "here. Take out those of conditions. Leave one on an equation, if the equation is "
                "meant to count less than others",
                UserWarning,
                stacklevel=5,
            )

    def _text(self, name: str) -> str:
        found = (f"{value:g} ({argument})" for argument, value in self._weights[name].items())
        return f"{name} {' x '.join(found)}"


def without_weights_by_hand(
    loss: Any, output: Any, label: Any, weights: Mapping[str, paddle.Tensor] | None
) -> Any:
    """What a constraint's loss returns if weights that are the same at all points are 1.

    The result need not be proportional to a weight. So it is not enough to divide by it.
    """
    own = getattr(loss, "weight", None)
    if own is not None:
        loss.weight = _with_ones(own)
    try:
        return loss(output, label, _with_ones(weights))
    finally:
        if own is not None:
            loss.weight = own


def _with_ones(weights: Any) -> Any:
    """Weights that differ from point to point as they are, the others as 1."""
    if isinstance(weights, Mapping):
        return {name: _with_ones(each) for name, each in weights.items()}
    if constant_weight(weights, "") is None:
        return weights
    return paddle.ones_like(weights) if isinstance(weights, paddle.Tensor) else 1.0


def constant_weight(weights: Any, name: str) -> float | None:
    """The weight of a loss; None if it has none, or one for each point."""
    value = weights.get(name) if isinstance(weights, Mapping) else weights
    if isinstance(value, paddle.Tensor):
        numbers = np.unique(value.astype("float32").numpy())
        return float(numbers[0]) if len(numbers) == 1 else None
    return float(value) if isinstance(value, (int, float)) else None
