"""The two kinds of losses, equations and conditions, as groups."""

from __future__ import annotations

import numpy as np


def kinds(equations: np.ndarray) -> np.ndarray:
    """Which losses belong to the equations and which to the conditions, 0 or 1, shape [K, T].

    K is 2, or 1 if all losses are of one kind.

    Examples:
        >>> kinds(np.array([True, False, False])).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    """
    members = np.array([equations, ~equations], float)
    return members[members.any(axis=1)]


def cancels_out(gram: np.ndarray, sums: np.ndarray, norms: np.ndarray) -> bool:
    """Whether a sum of gradients is nothing but rounding, so that it has no direction.

    Args:
        gram: Inner products of the sums, shape [K, K].
        sums: The factor of each gradient in each sum, at least 0, shape [K, T].
        norms: Norms of the gradients, shape [T].
    """
    # Gradients come in float32, which has 7 digits.
    return bool((gram.diagonal() <= (1e-6 * (sums @ norms)) ** 2).any())
