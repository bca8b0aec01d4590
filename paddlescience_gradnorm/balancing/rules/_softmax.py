"""The softmax of loss ratios, which several rules use."""

from __future__ import annotations

import numpy as np


def softmax_of_ratios(
    losses: np.ndarray, references: np.ndarray, tau: float = 1.0, eps: float = 0.0
) -> np.ndarray:
    """T softmax(L_i / (tau L'_i)), shape [T]: weights of mean 1, the largest for the slowest loss.

    Args:
        losses: L, above 0, shape [T].
        references: L', above 0, shape [T].
        tau: Temperature, above 0.
        eps: Added to both denominators, as some implementations do.

    Examples:
        >>> softmax_of_ratios(np.ones(2), np.ones(2)).tolist()
        [1.0, 1.0]
    """
    with np.errstate(over="ignore"):
        ratios = np.minimum(losses / (tau * references + eps), np.finfo(float).max)
    powers = np.exp(ratios - ratios.max())
    return len(losses) * powers / (powers.sum() + eps)
