"""What users give to a network: numpy arrays become tensors, what does not fit is explained."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle

# Mixed precision casts these to one another.
_SINGLE_AND_HALF = (paddle.float32, paddle.float16, paddle.bfloat16)


class Form(NamedTuple):
    """Dtype and place of a network's parameters; no place is the device in use."""

    dtype: Any
    place: Any = None


def form_of(network: Any) -> Form | None:
    """That of its first real parameter; None if it has none that can be found."""
    if isinstance(network, paddle.nn.Layer):
        for _, parameter in network.named_parameters():
            if parameter.dtype in (paddle.float64, *_SINGLE_AND_HALF):
                return Form(parameter.dtype, parameter.place)
    return None


def to_tensor(name: str, array: np.ndarray, form: Form | None) -> paddle.Tensor:
    """An array of numbers as a tensor of that form, or of Paddle's default dtype.

    Raises:
        TypeError: The array holds something else, such as complex numbers.
    """
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got an array of {array.dtype}")
    form = form or Form(getattr(paddle, paddle.get_default_dtype()))
    # Cast by numpy, which takes half the time.
    array = array.astype(np.float64 if form.dtype == paddle.float64 else np.float32)
    return paddle.to_tensor(array, form.dtype, form.place)


def as_input(name: str, values: Any, network: Any) -> paddle.Tensor:
    """The network's input: a tensor as it is, a numpy array as a tensor of the network's form.

    Raises:
        TypeError: It is neither, or the array does not hold real numbers.
    """
    if isinstance(values, np.ndarray):
        return to_tensor(name, values, form_of(network))
    if not hasattr(values, "stop_gradient"):  # which variables of a static graph have too
        raise TypeError(
            f"{name} must be a tensor or a numpy array, got {type(values).__name__} "
            f"{reprlib.repr(values)}; convert it with numpy.array, or join tensors with "
            "paddle.concat"
        )
    return values


def fits(dtype: Any, own: Any) -> bool:
    """Whether a network with parameters of its own dtype takes inputs of the first."""
    return dtype == own or {dtype, own}.issubset(_SINGLE_AND_HALF)


def wrong_dtype(name: str, dtype: Any, own: Any) -> TypeError:
    """The error for a tensor that a network of another dtype cannot take.

    A tensor is not cast in silence, because somebody has chosen its dtype. Nobody chooses an
    array's: numpy makes everything float64.
    """
    given, own = (str(x).rpartition(".")[2] for x in (dtype, own))
    return TypeError(
        f"{name} is a tensor of {given}, but the network has parameters of {own}; convert it once, "
        f"before the training, with {name}.astype('{own}')"
    )


def check_columns(name: str, ins: paddle.Tensor, columns: int) -> None:
    """Raise the error of ``wrong_shape`` unless the last axis has so many columns."""
    shape = ins.shape
    if not shape or shape[-1] not in (columns, -1):  # -1 is any, in a static graph
        raise wrong_shape(name, shape, columns)


def wrong_shape(name: str, shape: Sequence[int], columns: int) -> ValueError:
    """The error for points that are not a row each, with a column for each coordinate."""
    advice = f"; use {name}.reshape([-1, {columns}])" if len(shape) == 1 else ""
    return ValueError(f"{name} must have shape [N, {columns}], got {list(shape)}{advice}")
