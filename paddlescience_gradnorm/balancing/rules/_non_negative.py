"""Small quadratic problems over x >= 0, which several rules solve."""

from __future__ import annotations

import numpy as np

_ROUNDING = 1e-13
_TINY = 1e-300


def least_over_non_negative(quadratic: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """The x >= 0 with the least x^T Q x / 2 - b^T x, shape [T], to rounding.

    Source: the active-set method of Lawson and Hanson, "Solving Least Squares Problems", 1974,
    chapter 23, on the normal equations. It ends, because the value falls with every x it takes.

    Args:
        quadratic: Q, symmetric, positive semidefinite, shape [T, T].
        linear: b in the range of Q, shape [T].

    Examples:
        >>> quadratic, linear = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([2.0, 0.5])
        >>> least_over_non_negative(quadratic, linear).round(12).tolist()
        [1.0, 0.0]
    """
    diagonal = quadratic.diagonal()
    scale = np.where(diagonal > 0, np.maximum(diagonal, 1e-300), 1.0) ** -0.5
    quadratic, linear = quadratic * scale * scale[:, None], linear * scale
    x, value = np.zeros(len(linear)), 0.0
    free, refused = np.zeros(len(x), bool), np.zeros(len(x), bool)
    while True:
        slopes = linear - quadratic @ x
        noise = _ROUNDING * (abs(linear) + abs(quadratic) @ x)
        rising = (slopes > noise) & ~free & ~refused
        if not rising.any():
            return x * scale
        added = int(np.argmax(np.where(rising, slopes, -np.inf)))
        new, new_free = _with(added, x, free, quadratic, linear)
        new_value = new @ quadratic @ new / 2 - linear @ new
        if new_value < value:
            x, value, free = new, new_value, new_free
            refused[:] = False
        else:  # the slope was rounding
            refused[added] = True


def _with(
    added: int, x: np.ndarray, free: np.ndarray, quadratic: np.ndarray, linear: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The least value with one more entry free, and which are free there; others are 0."""
    free = free.copy()
    free[added] = True
    while True:
        aim = np.zeros(len(x))
        of_free = quadratic[free][:, free]
        aim[free] = np.linalg.lstsq(of_free, linear[free], rcond=_ROUNDING)[0]
        outside = free & (aim <= 0)
        if not outside.any():
            return aim, free
        # As far towards the aim as no entry becomes negative, and that entry rests at 0.
        shares = np.full(len(x), np.inf)
        shares[outside] = x[outside] / (x[outside] - aim[outside] + _TINY)
        first = int(np.argmin(shares))
        x = x + shares[first] * (aim - x)
        free[first] = False
        free &= x > 0
        x = np.where(free, x, 0.0)
