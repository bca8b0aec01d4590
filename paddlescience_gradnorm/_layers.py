"""Layers that stay complete when they are copied, pickled, converted or checkpointed."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import paddle

from paddlescience_gradnorm import _paddle

# A class that is made as a program runs holds here a function and its arguments that make it again.
PICKLED_AS = "_pickled_as"
_NO_DECAY = paddle.regularizer.L2Decay(0.0)


class PicklableLayer(paddle.nn.Layer):
    """A Paddle layer that pickles with its parameters on every Paddle version.

    On Paddle 2.6 parameters do not pickle. On 3.x they come back as plain tensors without their
    attributes. This layer has its own pickler, which changes nothing else in the process.
    """

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds of this layer besides its parameters and buffers.

        It may hold numbers, strings, arrays, lists and dicts. Use NaN or -1 for a number that is
        not known yet, because loading asks for the same types.
        """
        return {}

    def expect_extra_state(self, state: dict[str, Any]) -> None:
        """Get ready to load a state: make what depends on it, such as parameters.

        The state comes from a file and has not been checked. If it is not loaded in the end, the
        layer's attributes, parameters and buffers are set to what they were.

        Raises:
            ValueError: What the state needs cannot be made here.
        """

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the ``extra_state`` of an equal layer, with the same types and shapes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> PicklableLayer:
        # Without this, deepcopy would use the pickler below, which keeps the parameters'
        # names. Two copies in one optimizer need different names.
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        duplicate.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return duplicate

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        buffer = io.BytesIO()
        _ParameterPickler(buffer, protocol).dump(self)
        return pickle.loads, (buffer.getvalue(),)


class PreciseLayer(PicklableLayer):
    """A layer whose tensors stay precise when the network around it is converted.

    ``Layer.to`` converts its parameters to float32 and float64 only, because half precision cannot
    resolve their small steps. Its 64-bit buffers are never converted. They stay on the host, so
    that reading one does not wait for an accelerator.

    Examples:
        >>> import paddle
        >>> layer = PreciseLayer()
        >>> layer.register_buffer("count", paddle.zeros([], "int64"))
        >>> layer.register_buffer("rate", paddle.ones([]))
        >>> _ = layer.to(dtype="bfloat16")
        >>> layer.count.dtype == paddle.int64, layer.rate.dtype == paddle.float32
        (True, True)
    """

    def astype(self, dtype: Any = None) -> PreciseLayer:
        """Same as ``to(dtype=dtype)``, because on Paddle 2.6 it would convert counts."""
        self.to(dtype=dtype)
        return self

    def _apply(self, func: Any, device: Any, dtype: Any, blocking: Any, *args: Any) -> None:
        """Convert the tensors; ``Layer.to`` and the like call this, on any layer around too.

        It overrides a private method, because the public ones convert a layer only as a whole.
        """
        buffers = {id(buffer) for buffer in self.buffers(include_sublayers=False)}

        def transform(tensor: Any, device: Any, dtype: Any, blocking: Any) -> Any:
            precise = str(dtype).endswith(("float32", "float64"))
            castable = precise and tensor.is_floating_point()
            if id(tensor) in buffers and self._stays_on_host(tensor):
                device = dtype = None
            return func(tensor, device, dtype if castable else None, blocking)

        super()._apply(transform, device, dtype, blocking, *args)

    def _stays_on_host(self, buffer: paddle.Tensor) -> bool:
        """Whether this buffer is never converted. Layers that compute with it override this."""
        return buffer.dtype in (paddle.int64, paddle.float64)


class _ParameterPickler(pickle.Pickler):
    """Pickles tensors as arrays, and parameters as arrays with their attributes."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) and PICKLED_AS in vars(obj):
            return vars(obj)[PICKLED_AS]
        if isinstance(obj, PicklableLayer):
            return _build_empty, (type(obj),), obj.__dict__
        if isinstance(obj, _paddle.Parameter):
            return _build_parameter, (*_describe(obj), obj.__dict__)
        if isinstance(obj, paddle.Tensor):
            return _build_tensor, _describe(obj)
        return NotImplemented


def _describe(tensor: paddle.Tensor) -> tuple[np.ndarray, str, str, bool]:
    name, stop_gradient = tensor.name, tensor.stop_gradient
    dtype = str(tensor.dtype).rpartition(".")[2]
    if dtype == "bfloat16":  # numpy lacks it
        tensor = tensor.astype("float32")
    return tensor.numpy(), dtype, name, stop_gradient


def _build_empty(cls: type[PicklableLayer]) -> PicklableLayer:
    return cls.__new__(cls)


def _build_tensor(array: np.ndarray, dtype: str, name: str, stop_gradient: bool) -> paddle.Tensor:
    tensor = paddle.to_tensor(array, dtype=dtype, stop_gradient=stop_gradient)
    tensor.name = name
    return tensor


def _build_parameter(
    array: np.ndarray, dtype: str, name: str, stop_gradient: bool, attributes: dict[str, Any]
) -> paddle.Tensor:
    parameter = _paddle.Parameter(shape=list(array.shape), dtype=dtype, name=name)
    parameter.set_value(paddle.to_tensor(array, dtype=dtype))
    parameter.__dict__.update(attributes)
    parameter.stop_gradient = stop_gradient
    return parameter


def shielded_parameter(values: np.ndarray, dtype: paddle.dtype) -> paddle.Tensor:
    """A parameter that an optimizer's clipping and weight decay leave alone.

    Args:
        values: Its initial values.
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
    """Remove the weight decay that an optimizer with parameter groups has set."""
    if parameter.regularizer is not _NO_DECAY:  # setting it takes 20 times as long
        parameter.regularizer = _NO_DECAY


def on_host(array: np.ndarray) -> paddle.Tensor:
    """A tensor on the host, in the array's dtype."""
    return paddle.to_tensor(array, place=paddle.CPUPlace())
