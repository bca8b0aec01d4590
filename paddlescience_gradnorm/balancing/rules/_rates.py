"""Inverse training rates, which several rules use."""

from __future__ import annotations

import math

import numpy as np

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import RuleState

# If a loss exceeds its reference by this factor, the reference was too small by accident.
_TOO_SMALL_A_REFERENCE = 10.0


def inverse_training_rates(losses: np.ndarray, initial_losses: np.ndarray) -> np.ndarray:
    """r_i = (L_i / L_i(0)) / mean_j(L_j / L_j(0)), shape [T]; above 1 for a slow loss.

    Source: Chen et al., ICML 2018, arXiv:1711.02257.

    Args:
        losses: L, above 0, shape [T].
        initial_losses: Their references L(0), shape [T]. A 0 means unknown and makes all rates
            NaN.

    Examples:
        >>> inverse_training_rates(np.array([1.0, 6.0]), np.array([2.0, 4.0])).tolist()
        [0.5, 1.5]
    """
    # Losses are scaled by a power of two, which changes no digit, because a ratio may overflow.
    unit = -math.frexp(np.abs(losses).max())[1]
    ratios = [
        math.ldexp(loss, unit) / initial if initial else math.nan
        for loss, initial in zip(losses.tolist(), initial_losses.tolist())
    ]
    mean = sum(ratios) / len(ratios) or math.nan
    return np.array([ratio / mean for ratio in ratios])


def check_alpha(alpha: float) -> None:
    """Raise a ``TypeError`` or ``ValueError`` if alpha is not valid."""
    if not 0 <= _arguments.number("alpha", alpha) < math.inf:
        raise ValueError(
            f"alpha must be finite and at least 0, got {alpha}; "
            "the paper uses 0.12 to 3, and 0 ignores training rates"
        )


def too_small_references(
    alpha: float, state: RuleState, measurement: Measurement
) -> dict[int, float]:
    """Number of a loss -> how many times its reference L(0) it is, if the reference is too small.

    Without alpha a rule uses no references, so none is too small.
    """
    pairs = zip(measurement.losses.tolist(), state["initial_losses"].tolist())
    return {
        i: loss / initial
        for i, (loss, initial) in enumerate(pairs)
        if alpha and 0 < _TOO_SMALL_A_REFERENCE * initial < loss
    }
