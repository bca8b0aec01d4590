"""MGDA: the shortest convex combination of the gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import DirectionRule, RuleState
from paddlescience_gradnorm.balancing.rules._checks import check_positive
from paddlescience_gradnorm.balancing.rules._non_negative import least_over_non_negative


@dataclass(frozen=True)
class MGDA(DirectionRule):
    """c >= 0, of sum 1, with the shortest sum_i c_i g_i.

    Source: Desideri, "Multiple-gradient Descent Algorithm", C. R. Math. 350 (2012); for networks
    Sener, Koltun, NeurIPS 2018, arXiv:1810.04650. It lowers all losses by the same rate, or those
    with a coefficient of 0 faster. It is never longer than the smallest gradient, so a loss that is
    nearly met holds up all others.

    By default it is solved to rounding. Opposite or cancelling gradients give 0.

    Args:
        tolerance: None, or the step below which the Frank-Wolfe iteration of Sener and Koltun ends,
            after 100 at most. TorchJD has 1e-3. With gradients of different size that is
            far from the solution.

    Raises:
        TypeError: ``tolerance`` is neither None nor a number.
        ValueError: ``tolerance`` is not finite or not above 0.

    Examples:
        >>> measured = Measurement(np.ones(2), np.array([[4.0, -1.0], [-1.0, 1.0]]))
        >>> MGDA().weigh(np.ones(2), {}, measured)[0].round(3).tolist()
        [0.286, 0.714]
    """

    never_negative_up_to: ClassVar[float] = math.inf
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            check_positive("tolerance", self.tolerance)

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        gram = measurement.gram
        assert gram is not None
        if self.tolerance is not None:
            return _frank_wolfe(gram, self.tolerance), state
        smallest = gram.diagonal().min()
        if not smallest > 0:
            return np.where(gram.diagonal() == smallest, 1.0, 0.0), state
        # x >= 0 with the least |sum_i x_i g_i|^2 + (sum(x) - 1)^2 is c times a number.
        ones = np.ones(len(gram))
        found = least_over_non_negative(gram / smallest + 1, ones)
        return found / found.sum(), state


def _frank_wolfe(gram: np.ndarray, tolerance: float) -> np.ndarray:
    coefficients = np.full(len(gram), 1 / len(gram))
    for _ in range(100):
        products = gram @ coefficients
        towards = int(np.argmin(products))
        to, now = products[towards], coefficients @ products
        if gram[towards, towards] <= to:
            share = 1.0
        elif now <= to:
            share = 0.0
        else:
            share = (now - to) / (now + gram[towards, towards] - 2 * to)
        coefficients = (1 - share) * coefficients
        coefficients[towards] += share
        if share < tolerance:
            break
    return coefficients
