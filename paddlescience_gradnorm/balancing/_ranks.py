"""The processes of a distributed run: their number, and what they tell each other."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Callable

import paddle

# Called at every mark, if anybody counts them.
at_mark: Callable[[], None] | None = None


def number() -> int:
    """How many processes train together: 1 without a distributed environment."""
    if not paddle.distributed.is_initialized():
        return 1
    count: int = paddle.distributed.get_world_size()
    return count


def rank() -> int:
    """The number of this process: 0 without a distributed environment."""
    return paddle.distributed.get_rank() if number() > 1 else 0


def mark() -> None:
    """Note that this process has come as far as where it may have to wait for others.

    All processes pass the same marks, so the one that has passed fewer is the one that is waited
    for.
    """
    if at_mark is not None:
        at_mark()


def mean(tensor: paddle.Tensor) -> paddle.Tensor:
    """The mean of a tensor over all processes, in one all-reduce that every process must join.

    Examples:
        >>> import paddle
        >>> mean(paddle.to_tensor([1.0, 3.0])).tolist()  # a single process
        [1.0, 3.0]
    """
    if number() == 1:
        return tensor
    mark()
    tensor = tensor.clone()
    paddle.distributed.all_reduce(tensor)
    return tensor / number()


def maximum(tensor: paddle.Tensor) -> paddle.Tensor:
    """The largest of each number over all processes, in one all-reduce that all must join."""
    if number() == 1:
        return tensor
    mark()
    tensor = tensor.clone()
    paddle.distributed.all_reduce(tensor, paddle.distributed.ReduceOp.MAX)
    return tensor


def any_has(flag: bool) -> bool:
    """Whether the flag is set in any process, in one all-reduce that every process must join."""
    return bool(largest(int(flag)))


def largest(value: int) -> int:
    """The largest of the processes' integers, in one all-reduce that every process must join."""
    if number() == 1:
        return value
    found: int = maximum(paddle.to_tensor([value], "int64")).item()
    return found


def check_alike(names: Sequence[str], complete: bool) -> None:
    """Raise a ``ValueError`` in every process if the names or their order differ between them.

    Every process must join, in one all-reduce.

    Args:
        names: Names of the losses in this process.
        complete: Whether no loss can join any more.
    """
    if number() == 1:
        return
    digest = zlib.crc32("\n".join(names).encode())
    found = maximum(paddle.to_tensor([digest, -digest, int(not complete)], "int64"))
    if found[0].item() != -found[1].item() or found[2].item():
        raise ValueError(
            f"the processes must all name the same losses in the same order, and all of them in "
            f"the first step; this process has {list(names)}"
        )
