"""Learning rate annealing: conditions whose gradients are as large as the equation's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, RuleState
from paddlescience_gradnorm.balancing.rules._checks import (
    check_choice,
    check_not_negative,
    check_share,
)


@dataclass(frozen=True)
class LearningRateAnnealing(Rule):
    """w_i <- memory w_i + (1 - memory) max|g_r| / mean|w_i g_i| for conditions, 1 for equations.

    Source: Wang, Teng, Perdikaris, "Understanding and Mitigating Gradient Flow Pathologies in
    Physics-Informed Neural Networks", SIAM J. Sci. Comput. 43 (2021), arXiv:2001.04536,
    algorithm 1. The form ``statistic="mean"`` is that of NSFnets (arXiv:2003.06496) and
    PhysicsNeMo: mean|g_r| / mean|g_i|, from unweighted gradients, in every step and with
    ``memory=0.99``.

    g_r is the gradient of the equation, on all parameters. With several equations, the largest of
    their max|g| or mean|g| counts. Without an equation or a condition the weights stay.

    Args:
        memory: Share of the weights that an update keeps, in [0, 1).
        statistic: ``"max"`` or ``"mean"``: what is taken of the equation's gradient.
        eps: Added to mean|w_i g_i| or mean|g_i|, at least 0; PhysicsNeMo adds 1e-8.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.

    Examples:
        >>> measured = Measurement(
        ...     np.ones(2), largest=np.array([9.0, 1.0]), mean=np.array([2.0, 0.5]),
        ...     equations=np.array([True, False]),
        ... )
        >>> LearningRateAnnealing(memory=0.5).weigh(np.ones(2), {}, measured)[0].tolist()
        [1.0, 9.5]
    """

    memory: float = 0.9
    statistic: str = "max"
    eps: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"largest", "mean"})
    update_every: ClassVar[int] = 10
    tells_equations: ClassVar[bool] = True
    always: ClassVar[tuple[str, str]] = (
        "keep weights of 1",
        "get weights by the size of their gradients",
    )

    def __post_init__(self) -> None:
        check_share("memory", self.memory)
        check_choice("statistic", self.statistic, ("max", "mean"))
        check_not_negative("eps", self.eps)

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        equations, largest, mean = measurement.equations, measurement.largest, measurement.mean
        assert largest is not None and mean is not None  # as needs asks
        if equations.all() or not equations.any():
            return weights, state
        if self.statistic == "max":
            aims = largest[equations].max() / (weights * mean + self.eps)
        else:
            aims = mean[equations].max() / (mean + self.eps)
        new = self.memory * weights + (1 - self.memory) * aims
        return np.where(equations, 1.0, new), state
