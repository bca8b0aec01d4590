"""What becomes of the weights that a Solver's constraints give their losses by hand."""

from __future__ import annotations

import logging
import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from ppsci.constraint import Constraint

from paddlescience_gradnorm.balancing import _equations
from paddlescience_gradnorm.balancing.balancer import LossBalancer
from paddlescience_gradnorm.balancing.rules.fixed import Equal, Fixed

_log = logging.getLogger(__name__)
# Loss or output -> argument of PaddleScience -> a weight that is the same at all points, and not 1.
Weights = Mapping[str, Mapping[str, float]]


class WeightsByHand:
    """Which weights by hand the learned ones replace.

    A rule that tells equations from conditions gives each condition the weight that it needs, and
    a factor by hand would act on top of that. So it is taken out. These stay as factors:

    - that of an equation, because it says how much the equation counts beside the others;
    - one below the balancer's floor or above its inverse, because it is a matter of units;
    - all of them, if another rule learns the weights, or none are learned.

    Attributes:
        replaced: The losses whose weights are taken out.
        are_replaced: Whether there may be any; None until the first step, which decides.
    """

    def __init__(self, balancer: LossBalancer) -> None:
        self.replaced: set[str] = set()
        self.are_replaced: bool | None = None
        self._balancer = balancer
        self._weights: Weights = {}
        self._told: tuple[str, str] = ("", "")

    def meet(
        self,
        weights: Weights,
        names: Sequence[str],
        equations: _equations.Equations,
        learns: bool,
    ) -> None:
        """Decide which of these are replaced.

        Args:
            weights: The weights by hand of the losses.
            names: Names of the losses that have come so far.
            equations: Those that are equations, unless the balancer has been told them.
            learns: Whether the weights are learned from here on.
        """
        rule, floor = self._balancer.rule, self._balancer.floor
        if self.are_replaced is None:
            # A rule that combines gradients may give several conditions one coefficient.
            self.are_replaced = learns and rule.tells_equations and not rule.acts_now
        self._weights, self.replaced = weights, set()
        if not self.are_replaced:
            return
        if self._balancer.equations is not None:
            equations = self._balancer.equations
        # A number may be of a loss that joins later.
        known = [each for each in equations if isinstance(each, str) or each < len(names)]
        for name, is_one in zip(names, _equations.are_equations(known, names, open_ended=True)):
            weight = math.prod(weights.get(name, {}).values())
            if name in weights and not is_one and floor <= weight <= 1 / floor:
                self.replaced.add(name)

    def tell(self) -> None:
        """Say what becomes of the weights, unless that has been said; warn if they act twice."""
        replaced, staying = (
            ", ".join(
                self._text(name) for name in self._weights if (name in self.replaced) is taken
            )
            for taken in (True, False)
        )
        if (replaced, staying) == self._told:
            return
        self._told = replaced, staying
        rule = self._balancer.rule
        if replaced:
            _log.info("learned weights replace those by hand: %s", replaced)
        if staying and (rule.tells_equations or isinstance(rule, (Equal, Fixed))):
            _log.info("weights by hand stay as factors: %s", staying)
        elif staying:
            warnings.warn(
                f"{staying}: these weights by hand multiply with those that are learned here. Take "
                "out those of conditions. Leave one on an equation, if the equation is meant to "
                "count less than others",
                UserWarning,
                stacklevel=5,
            )

    def _text(self, name: str) -> str:
        found = (f"{value:g} ({argument})" for argument, value in self._weights[name].items())
        return f"{name} {' x '.join(found)}"


def weights_by_hand(constraint: Constraint, loss: Any) -> dict[str, dict[str, float]]:
    """The weights of a constraint's losses that are the same at all its points, and not 1.

    Args:
        constraint: The constraint. If its dataset computes weights anew for each batch, they count
            as different at each point.
        loss: Its loss.

    Returns:
        Output -> argument of PaddleScience -> weight.
    """
    loader = getattr(constraint, "data_loader", None)  # an iterable dataset is its own loader
    dataset = getattr(loader, "dataset", loader)
    found: dict[str, dict[str, float]] = {}
    for argument, weights in (
        ("weight_dict", getattr(dataset, "weight", None)),
        ("weight", _own(loss)),
    ):
        for output in constraint.output_expr:
            each = weights.get(output) if isinstance(weights, Mapping) else weights
            if (value := _constant(each)) not in (None, 1):
                found.setdefault(output, {})[argument] = value
    return found


def without_weights_by_hand(
    found: Weights,
    loss: Any,
    output: Any,
    label: Any,
    weights: Mapping[str, paddle.Tensor] | None = None,
) -> Any:
    """What a constraint's loss returns if the weights that ``weights_by_hand`` has found are 1.

    The result need not be proportional to a weight. So it is not enough to divide by it.
    """
    batch = {
        name: paddle.ones_like(each) if "weight_dict" in found.get(name, {}) else each
        for name, each in (weights or {}).items()
    }
    own = _own(loss)
    if own is None:
        return loss(output, label, batch)
    known = [name for name, arguments in found.items() if "weight" in arguments]
    loss.weight = {**own, **dict.fromkeys(known, 1.0)} if isinstance(own, dict) else 1.0
    try:
        return loss(output, label, batch)
    finally:
        loss.weight = own


def _own(loss: Any) -> Any:
    """The attribute ``weight`` of a loss, if it is one that PaddleScience's losses use."""
    own = getattr(loss, "__dict__", {}).get("weight")  # not a parameter, nor a property
    return own if isinstance(own, (int, float, dict)) else None


def _constant(weight: Any) -> float | None:
    """The weight, if it is the same at all points."""
    if isinstance(weight, (paddle.Tensor, np.ndarray)):
        values = np.unique(weight.numpy() if isinstance(weight, paddle.Tensor) else weight)
        return float(values[0]) if len(values) == 1 else None
    return float(weight) if isinstance(weight, numbers.Real) else None
