"""Points shared out over the processes of a distributed run, and means over all points."""

from __future__ import annotations

from typing import Any, Callable, TypeVar

import numpy as np
import paddle

from paddlescience_gradnorm.balancing import _ranks

__all__ = ["mean", "share"]

Points = TypeVar("Points", np.ndarray, paddle.Tensor)


def share(points: Points) -> Points:
    """The points of this process: those of rank r of R are r, r + R, r + 2 R, and so on.

    Every process must hold the same points, such as those drawn from a generator with the same
    seed. So the points of a step do not depend on the number of processes, and a run can go on
    with another number.

    Args:
        points: All points of one loss, shape [N, ...].

    Returns:
        Some of them, shape [n, ...]. With fewer points than processes n may be 0.

    Examples:
        >>> share(np.arange(6).reshape(3, 2)).tolist()  # a single process
        [[0, 1], [2, 3], [4, 5]]
    """
    if _ranks.rank() >= len(points) and isinstance(points, paddle.Tensor):
        # Paddle 2.6 has no slice that begins behind the end.
        return paddle.zeros([0, *points.shape[1:]], points.dtype)
    return points[_ranks.rank() :: _ranks.number()]


def mean(values: Callable[..., paddle.Tensor], *points: Any) -> paddle.Tensor:
    """A loss whose mean over the processes is the mean over all points.

    The losses and gradients of a step are averaged over the processes. Where their numbers of
    points differ, an average of their own means gives a point of a small share more weight than
    others. So this is R n / N times the mean over the n points of this process's share, where N is
    the number of all points and R that of processes. Each point then has the same weight.

    Args:
        values: What the loss averages, such as squared residuals: a function of this process's
            share of the points, with values of shape [n, ...].
        *points: All points of the loss, numpy arrays or tensors of shape [N, ...] each, such as
            points and what is measured there. Every process must hold the same.

    Returns:
        A scalar, shape []. If the share has no point it is a constant 0, and the function is not
        called.

    Raises:
        ValueError: There are no points, or their numbers differ.

    Examples:
        >>> mean(lambda x, u: (x.sum(1) - u) ** 2, paddle.ones([3, 2]), paddle.ones([3])).item()
        1.0
    """
    numbers = [len(each) for each in points]
    if not numbers or min(numbers) != max(numbers) or not numbers[0]:
        raise ValueError(f"points must be as many in each argument, 1 at least, got {numbers}")
    shares = [share(each) for each in points]
    n = len(shares[0])
    if not n:
        return paddle.zeros([])
    return values(*shares).mean() * (_ranks.number() * n / numbers[0])
