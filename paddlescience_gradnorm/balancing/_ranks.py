"""The processes of a distributed run: their number, and means and maxima over them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import paddle


def number() -> int:
    """How many processes train together: 1 without a distributed environment."""
    if not paddle.distributed.is_initialized():
        return 1
    count: int = paddle.distributed.get_world_size()
    return count


def mean(tensor: paddle.Tensor) -> paddle.Tensor:
    """The mean of a tensor over all processes, in one all-reduce that every process must join.

    Examples:
        >>> import paddle
        >>> mean(paddle.to_tensor([1.0, 3.0])).tolist()  # a single process
        [1.0, 3.0]
    """
    if number() == 1:
        return tensor
    tensor = tensor.clone()
    paddle.distributed.all_reduce(tensor)
    return tensor / number()


def largest(tensor: paddle.Tensor) -> paddle.Tensor:
    """The largest of each number over all processes; every process must join."""
    if number() == 1:
        return tensor
    tensor = tensor.clone()
    paddle.distributed.all_reduce(tensor, paddle.distributed.ReduceOp.MAX)
    return tensor


def any_has(flag: bool) -> bool:
    """Whether the flag is set in any process, in one all-reduce that every process must join."""
    if number() == 1:
        return flag
    joined = paddle.to_tensor([int(flag)])
    paddle.distributed.all_reduce(joined)
    return bool(joined.item())


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
    largest = paddle.to_tensor([digest, -digest, int(not complete)], "int64")
    paddle.distributed.all_reduce(largest, paddle.distributed.ReduceOp.MAX)
    if largest[0].item() != -largest[1].item() or largest[2].item():
        raise ValueError(
            f"the processes must all name the same losses in the same order, and all of them in "
            f"the first step; this process has {list(names)}"
        )
