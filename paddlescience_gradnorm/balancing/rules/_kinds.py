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
