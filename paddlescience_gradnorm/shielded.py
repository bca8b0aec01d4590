"""What a balancer trains beside a network, shielded from what is meant for the network."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import paddle

from paddlescience_gradnorm.pickling import PicklableLayer

_NO_DECAY = paddle.regularizer.L2Decay(0.0)


def shielded_parameter(values: np.ndarray, dtype: paddle.dtype) -> paddle.Tensor:
    """A parameter that an optimizer's clipping and weight decay leave alone.

    Args:
        values: What it starts with.
        dtype: Its dtype.
    """
    return paddle.create_parameter(
        list(values.shape),
        dtype,
        attr=paddle.ParamAttr(
            initializer=paddle.nn.initializer.Assign(values),
            need_clip=False,
            regularizer=_NO_DECAY,
        ),
    )


def shield(parameter: paddle.Tensor) -> None:
    """Take away the decay that an optimizer with parameter groups has put on it."""
    if parameter.regularizer is not _NO_DECAY:  # to set it takes 20 times as long
        parameter.regularizer = _NO_DECAY


def add_gradient(parameter: paddle.Tensor, gradient: paddle.Tensor) -> None:
    """Add to the parameter's ``.grad``, as a backward pass does."""
    before = parameter.grad
    parameter.grad = gradient if before is None else before + gradient


def count_in(count: paddle.Tensor) -> ctypes.c_int64:
    """The number in a count on the host, where it is, to be read and set.

    After a network's pass Paddle takes 30 us to hand it out, and 100 to add 1.
    """
    return ctypes.c_int64.from_address(count.data_ptr())


class ShieldedLayer(PicklableLayer):
    """A layer whose own tensors a conversion of the network around it does not coarsen.

    Its floating-point tensors follow ``Layer.to`` to float32 and float64 only, for half
    precision cannot resolve a step of theirs. Its 64-bit integers are counts: never converted,
    and kept on the host, so that reading one waits for nothing.

    Examples:
        >>> import paddle
        >>> layer = ShieldedLayer()
        >>> layer.register_buffer("count", paddle.zeros([], "int64"))
        >>> layer.register_buffer("rate", paddle.ones([]))
        >>> _ = layer.to(dtype="bfloat16")
        >>> layer.count.dtype == paddle.int64, layer.rate.dtype == paddle.float32
        (True, True)
    """

    def _apply(self, func: Any, device: Any, dtype: Any, blocking: Any, *args: Any) -> None:
        """What ``Layer.to`` and its kin call."""

        def transform(tensor: Any, device: Any, dtype: Any, blocking: Any) -> Any:
            precise = str(dtype).endswith(("float32", "float64"))
            castable = precise and tensor.is_floating_point()
            stays = tensor.dtype == paddle.int64
            return func(tensor, None if stays else device, dtype if castable else None, blocking)

        super()._apply(transform, device, dtype, blocking, *args)
