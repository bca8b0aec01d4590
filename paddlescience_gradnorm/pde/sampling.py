"""Collocation points in a box and on its faces, by scipy's quasi-Monte Carlo sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import qmc

from paddlescience_gradnorm import _arguments


def sample_interior(
    n: int,
    low: Sequence[float],
    high: Sequence[float],
    method: str = "sobol",
    seed: int | None = None,
) -> np.ndarray:
    """Points inside the box [low, high].

    Args:
        n: Number of points, at least 1.
        low: Lower corner, d numbers.
        high: Upper corner, d numbers, each above the one in ``low``.
        method: ``"sobol"`` (scrambled Sobol sequence) or ``"lhs"`` (Latin hypercube).
        seed: Seed of the scrambling; ``None`` takes a fresh one.

    Returns:
        The points, float64, shape [n, d].

    Raises:
        ValueError: ``n`` is below 1, the corners do not make a box, or the method is not known.

    Examples:
        >>> sample_interior(100, [0, 0], [1, 2], seed=0).shape
        (100, 2)
    """
    lower, upper = _box(low, high)
    return lower + (upper - lower) * _unit_cube(n, len(lower), method, seed)


def sample_boundary(
    n: int,
    low: Sequence[float],
    high: Sequence[float],
    method: str = "sobol",
    seed: int | None = None,
) -> np.ndarray:
    """Points on the faces of the box [low, high], each face in proportion to its area.

    Args:
        n: Number of points, at least 1; with fewer than 2 d some faces stay empty.
        low: Lower corner, d numbers.
        high: Upper corner, d numbers, each above the one in ``low``.
        method: ``"sobol"`` or ``"lhs"``.
        seed: Seed of the scrambling; ``None`` takes a fresh one.

    Returns:
        The points, float64, shape [n, d].

    Raises:
        ValueError: As for ``sample_interior``.

    Examples:
        >>> points = sample_boundary(100, [0, 0], [1, 1], seed=0)
        >>> bool(((points == 0) | (points == 1)).any(axis=1).all())
        True
    """
    lower, upper = _box(low, high)
    dimension = len(lower)
    extent = upper - lower
    # Two faces for each coordinate, of the area that the other extents span.
    areas = np.repeat(np.prod(extent) / extent, 2)
    edges = np.concatenate([[0.0], np.cumsum(areas) / areas.sum()])
    # One sequence in d dimensions for all faces: the first coordinate picks the
    # face, in equal shares, and the rest place the point on it.
    cube = _unit_cube(n, dimension, method, seed)
    face = np.clip(np.searchsorted(edges, cube[:, 0], side="right") - 1, 0, 2 * dimension - 1)
    axis, side = face // 2, face % 2
    points = np.empty((n, dimension))
    for fixed in range(dimension):
        on_axis = axis == fixed
        others = [k for k in range(dimension) if k != fixed]
        points[np.ix_(on_axis, others)] = cube[on_axis, 1:]
        points[on_axis, fixed] = side[on_axis]
    # Exactly on the face, where low + (high - low) might miss it by a rounding.
    exact = np.where(side == 0, lower[axis], upper[axis])
    points = lower + extent * points
    points[np.arange(n), axis] = exact
    return points


def sample_face(
    n: int,
    low: Sequence[float],
    high: Sequence[float],
    fixed: Mapping[int, float],
    method: str = "sobol",
    seed: int | None = None,
) -> np.ndarray:
    """Points of the box [low, high] with some coordinates fixed: on a face, a line, at a corner.

    Args:
        n: Number of points, at least 1; with all coordinates fixed they are all the same.
        low: Lower corner, d numbers.
        high: Upper corner, d numbers, each above the one in ``low``.
        fixed: Number of a coordinate -> its value, which lies in the box.
        method: ``"sobol"`` or ``"lhs"``.
        seed: Seed of the scrambling; ``None`` takes a fresh one.

    Returns:
        The points, float64, shape [n, d].

    Raises:
        TypeError: ``fixed`` is no dict of integers and numbers.
        ValueError: As for ``sample_interior``, or ``fixed`` leaves the box.

    Examples:
        >>> sample_face(3, [0, 0], [1, 2], {1: 2.0}, seed=0)[:, 1].tolist()
        [2.0, 2.0, 2.0]
    """
    lower, upper = _box(low, high)
    if not isinstance(fixed, Mapping):
        raise TypeError(
            f"fixed must be a dict, number of a coordinate -> its value, such as {{0: {low[0]}}}, "
            f"got {fixed!r}"
        )
    for k, value in fixed.items():
        _arguments.integer("a coordinate number of fixed", k, at_least=0)
        _arguments.number(f"fixed[{k}]", value)
        if k not in range(len(lower)) or not lower[k] <= value <= upper[k]:
            raise ValueError(
                f"fixed must have coordinate numbers below {len(lower)} and values between "
                f"{low!r} and {high!r}, got {dict(fixed)!r}"
            )
    free = [k for k in range(len(lower)) if k not in fixed]
    points = np.empty((_arguments.integer("n", n, at_least=1), len(lower)))
    if free:
        points[:, free] = sample_interior(
            n, lower[free].tolist(), upper[free].tolist(), method, seed
        )
    for k, value in fixed.items():
        points[:, k] = value
    return points


def _box(low: Sequence[float], high: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    lower, upper = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    if lower.ndim != 1 or lower.shape != upper.shape or lower.size == 0:
        raise ValueError(f"low and high must be d numbers each, got {low!r} and {high!r}")
    if not (np.isfinite(lower) & np.isfinite(upper) & (lower < upper)).all():
        raise ValueError(f"low must lie below high in every coordinate, got {low!r} and {high!r}")
    return lower, upper


def _unit_cube(n: int, dimension: int, method: str, seed: int | None) -> np.ndarray:
    _arguments.integer("n", n, at_least=1)
    if method == "sobol":
        # A full power of two, as the sequence is balanced only then; its first n.
        return qmc.Sobol(dimension, seed=seed).random_base2((n - 1).bit_length())[:n]
    if method == "lhs":
        return qmc.LatinHypercube(dimension, seed=seed).random(n)
    raise ValueError(f"method must be 'sobol' or 'lhs', got {method!r}")
