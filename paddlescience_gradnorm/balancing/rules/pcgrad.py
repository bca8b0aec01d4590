"""PCGrad: gradients without their parts that conflict with others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import DirectionRule, RuleState


@dataclass(frozen=True)
class PCGrad(DirectionRule):
    """The sum of the gradients, each projected on the normal plane of those it conflicts with.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, arXiv:2001.06782.
    Each gradient meets the others in a random order. It is drawn from the number of the step, so
    all processes draw the same.

    Where nothing conflicts it is the plain sum. Two opposite gradients give 0.

    Examples:
        >>> measured = Measurement(np.ones(2), np.array([[4.0, -1.0], [-1.0, 1.0]]))
        >>> PCGrad().weigh(np.ones(2), {}, measured)[0].tolist()
        [1.25, 2.0]
    """

    never_negative_up_to: ClassVar[float] = math.inf

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        assert measurement.gram is not None
        rng = np.random.default_rng(measurement.step)
        orders = [rng.permutation(len(weights)).tolist() for _ in weights]
        return projected(measurement.gram, orders), state


def projected(gram: np.ndarray, orders: Sequence[Sequence[int]]) -> np.ndarray:
    """The coefficients of PCGrad, shape [T].

    Args:
        gram: Inner products of the gradients, shape [T, T].
        orders: For each loss the order in which it meets the others, which may contain itself.
    """
    total = np.zeros(len(gram))
    for i, order in enumerate(orders):
        coefficients = np.zeros(len(gram))
        coefficients[i] = 1
        for j in order:
            product = coefficients @ gram[j]
            if j != i and product < 0:
                coefficients[j] -= product / gram[j, j]
        total += coefficients
    return total
