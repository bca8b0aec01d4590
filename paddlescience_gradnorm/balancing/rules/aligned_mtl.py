"""Aligned-MTL: gradients made orthogonal and equally long."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import DirectionRule, RuleState


@dataclass(frozen=True)
class AlignedMTL(DirectionRule):
    """The mean of the nearest gradients that are orthogonal and of the smallest singular value.

    Source: Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023,
    arXiv:2305.19000. With G = V diag(s) V^T, c is the mean over rows of
    V diag(sqrt(min(s) / s)) V^T, from the singular values that are not 0 to rounding.

    Gradients that are parallel or opposite count as one direction, along the first eigenvector.
    It is about as long as the smallest gradient, or shorter.

    Examples:
        >>> measured = Measurement(np.ones(2), np.diag([4.0, 1.0]))
        >>> AlignedMTL().weigh(np.ones(2), {}, measured)[0].tolist()
        [0.25, 0.5]
    """

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        assert measurement.gram is not None
        values, vectors = np.linalg.eigh(measurement.gram)
        kept = values > len(values) * np.finfo(float).eps * values[-1]
        if not kept.any():
            return np.full(len(weights), 1 / len(weights)), state
        values, vectors = values[kept], vectors[:, kept]
        balance = vectors * np.sqrt(values[0] / values) @ vectors.T
        return balance.mean(axis=0), state
