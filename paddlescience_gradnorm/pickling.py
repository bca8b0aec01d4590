"""Layers that can be copied and pickled with everything that belongs to their parameters."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import paddle
from paddle.base.framework import EagerParamBase


class PicklableLayer(paddle.nn.Layer):
    """A Paddle layer that pickles on every Paddle version, parameters and all.

    Parameters do not pickle on Paddle 2.6, and come back as plain tensors without their
    attributes on 3.x. A pickler of our own mends that and changes nothing for the rest
    of the process.
    """

    def noted(self) -> dict[str, Any]:
        """What is remembered beside parameters and buffers, in plain types, for checkpoints."""
        return {}

    def note(self, noted: dict[str, Any]) -> None:
        """Go on from what ``noted`` of an equal layer has given; types and lengths agree."""

    def __deepcopy__(self, memo: dict[int, Any]) -> PicklableLayer:
        # Without this, deepcopy would take the way of pickle below, which keeps the
        # parameters' names; two copies in one optimizer need different ones.
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        duplicate.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return duplicate

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        buffer = io.BytesIO()
        _ParameterPickler(buffer, protocol).dump(self)
        return pickle.loads, (buffer.getvalue(),)


class _ParameterPickler(pickle.Pickler):
    """Pickles tensors as arrays, and parameters as arrays with their attributes."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, PicklableLayer):
            return _build_empty, (type(obj),), obj.__dict__
        if isinstance(obj, EagerParamBase):
            return _build_parameter, (*_describe(obj), obj.__dict__)
        if isinstance(obj, paddle.Tensor):
            return _build_tensor, _describe(obj)
        return NotImplemented


def _describe(tensor: paddle.Tensor) -> tuple[np.ndarray, str, str, bool]:
    name, stop_gradient = tensor.name, tensor.stop_gradient
    dtype = str(tensor.dtype).rpartition(".")[2]
    if dtype == "bfloat16":  # which numpy does not have
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
    parameter = EagerParamBase(shape=list(array.shape), dtype=dtype, name=name)
    parameter.set_value(paddle.to_tensor(array, dtype=dtype))
    parameter.__dict__.update(attributes)
    parameter.stop_gradient = stop_gradient
    return parameter
