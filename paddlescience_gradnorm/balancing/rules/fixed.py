"""Weights that do not change: the user's own, or all equal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Union

import numpy as np

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, RuleState


@dataclass(frozen=True)
class Equal(Rule):
    """All weights are 1: the plain sum of the losses, to compare other rules with.

    Examples:
        >>> Equal().weigh(np.array([3.0, 5.0]), {}, Measurement(np.ones(2)))[0].tolist()
        [1.0, 1.0]
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    fewest_losses: ClassVar[int] = 1

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        return np.ones(len(weights)), state


@dataclass(frozen=True)
class Fixed(Rule):
    """The weights of the user, by the losses' names or in their order.

    They act from the first step on, unless the balancer's ``weight_attr`` sets others for that.

    Args:
        weights: A dict name -> weight, in which losses that are not named have 1; or a weight for
            each loss, shape [n_loss]. Above 0 and not below the balancer's ``floor``.

    Raises:
        TypeError: ``weights`` is something else, or a weight is not a number.
        ValueError: A weight is not finite or not above 0. When it is used: a name is that of no
            loss, the number of losses differs, or a weight is below the balancer's floor.

    Examples:
        >>> measured = Measurement(np.ones(2), names=("pde", "bc"))
        >>> Fixed({"bc": 50}).weigh(np.ones(2), {}, measured)[0].tolist()
        [1.0, 50.0]
    """

    weights: Union[Mapping[str, float], Sequence[float]]
    needs: ClassVar[frozenset[str]] = frozenset()
    fewest_losses: ClassVar[int] = 1

    def __post_init__(self) -> None:
        given = self.weights
        if isinstance(given, np.ndarray):
            given = given.tolist()
        if isinstance(given, str) or not isinstance(given, (Mapping, Sequence)) or not given:
            raise TypeError(
                "weights must be a dict name -> weight, or a weight for each loss, such as "
                f"{{'bc': 50}} or [1, 50], got {given!r}"
            )
        named = given if isinstance(given, Mapping) else dict(enumerate(given))
        for name, weight in named.items():
            which = f"weights[{name!r}]"
            if not 0 < _arguments.number(which, weight) < math.inf:
                raise ValueError(
                    f"{which} must be finite and above 0, got {weight}; to ignore a loss, leave it "
                    "out of the losses"
                )
        kept = dict(given) if isinstance(given, Mapping) else tuple(given)
        object.__setattr__(self, "weights", kept)

    def start(self, n_loss: int) -> RuleState:
        if isinstance(self.weights, Mapping):
            return {}
        if len(self.weights) != n_loss:
            raise ValueError(
                f"weights has {len(self.weights)} entries, but there are {n_loss} losses; pass one "
                "for each, or a dict name -> weight"
            )
        return {"fixed_weights": np.array(self.weights, np.float64)}

    def meet(self, names: Sequence[str], complete: bool) -> None:
        unknown = [name for name in self.weights if isinstance(name, str) and name not in names]
        if unknown and complete:
            raise ValueError(
                f"weights names {', '.join(map(repr, unknown))}, but the losses are {list(names)}; "
                "name these, or pass a weight for each in their order"
            )

    def first_weights(self, names: Sequence[str]) -> np.ndarray:
        if not isinstance(self.weights, Mapping):
            return np.array(self.weights, np.float64)
        return np.array([float(self.weights.get(name, 1.0)) for name in names])

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        if not isinstance(self.weights, Mapping):
            return state["fixed_weights"], state
        if len(measurement.names) != len(weights):
            raise ValueError(
                f"weights are given by name, as {self.weights}, but the losses have no names; pass "
                "a weight for each in their order"
            )
        return self.first_weights(measurement.names), state

    def check(self, floor: float) -> None:
        given = self.weights
        smallest = min(given.values() if isinstance(given, Mapping) else given)
        if smallest < floor:
            raise ValueError(
                f"weights has {smallest:g}, below the floor of {floor:g}; pass floor={smallest:g}"
            )
