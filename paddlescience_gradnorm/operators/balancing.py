"""What balancing does with T numbers, by the functions of balancing.cc.

All tensors are such as ``operators.apply_in_place_to`` agrees to; ``usable`` and ``finite`` are
boolean, shape []. What is changed is changed in place.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

# For float32 and float64; not by dtype, for to hash one takes longer than the functions do.
_single: dict[str, Any] = {}
_double: dict[str, Any] = {}


def use(library: ctypes.CDLL) -> None:
    """Find the functions in the library that has been built."""
    count, real, pointer, flag = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p, ctypes.c_bool
    for found, name in ((_single, "float32"), (_double, "float64")):
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "weigh": (flag, [count, pointer]),
            "measure": (None, [count] * 2 + [pointer] * 3),
            "gradient": (flag, [count] + [pointer] * 5 + [real] * 2 + [pointer] * 3),
            "step": (flag, [count] + [pointer] * 4 + [real] * 3 + [pointer]),
            "pinn_step": (flag, [count] + [pointer] * 4 + [real] * 7 + [count] + [pointer] * 2),
            "settle": (None, [count] + [pointer] * 4 + [real]),
        }
        for function, (restype, argtypes) in signatures.items():
            found[function] = library[f"gradnorm_{function}_{name}"]
            found[function].restype, found[function].argtypes = restype, argtypes


def _for(weights: paddle.Tensor) -> dict[str, Any]:
    return _single if weights.dtype in (paddle.float32,) else _double


def _pointers(tensors: Sequence[paddle.Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[None if x is None else x.data_ptr() for x in tensors])


def weigh(weights: paddle.Tensor, losses: Sequence[paddle.Tensor], total: paddle.Tensor) -> bool:
    """``task_gradients.weighed``, the sum into the last."""
    pointers = _pointers((weights, total, *losses))
    usable: bool = _for(weights)["weigh"](len(losses), pointers)
    return usable


def measure(
    weights: paddle.Tensor,
    factors: paddle.Tensor,
    losses: Sequence[paddle.Tensor],
    gradients: Sequence[Sequence[paddle.Tensor | None]],
    values: paddle.Tensor,
    norms: paddle.Tensor,
    total: paddle.Tensor,
    products: np.ndarray,
) -> None:
    """``task_gradients.measured``, into the last four; the products float64, shape [T, T]."""
    flat = [g for of_task in gradients for g in of_task]
    sizes = [
        next((math.prod(g.shape) for g in of_parameter if g is not None), 0)
        for of_parameter in zip(*gradients)
    ]
    _for(weights)["measure"](
        len(losses),
        len(sizes),
        (ctypes.c_int64 * len(sizes))(*sizes),
        _pointers((weights, total, *losses, factors, values, norms, *flat)),
        products.ctypes.data,
    )


def gradient(
    weights: paddle.Tensor,
    losses: paddle.Tensor,
    references: paddle.Tensor,
    norms: paddle.Tensor,
    finite: paddle.Tensor,
    alpha: float,
    largest_norm: float,
    into: paddle.Tensor,
    loss: paddle.Tensor,
    usable: paddle.Tensor,
) -> bool:
    """``GradNormRule.gradient_in_place``."""
    result: bool = _for(weights)["gradient"](
        weights.shape[0],
        weights.data_ptr(),
        losses.data_ptr(),
        references.data_ptr(),
        norms.data_ptr(),
        finite.data_ptr(),
        alpha,
        largest_norm,
        into.data_ptr(),
        loss.data_ptr(),
        usable.data_ptr(),
    )
    return result


def step(
    weights: paddle.Tensor,
    losses: paddle.Tensor,
    references: paddle.Tensor,
    norms: paddle.Tensor,
    alpha: float,
    rate: float,
    floor: float,
    loss: paddle.Tensor,
) -> bool:
    """``GradNormRule.step_in_place``."""
    usable: bool = _for(weights)["step"](
        weights.shape[0],
        weights.data_ptr(),
        losses.data_ptr(),
        references.data_ptr(),
        norms.data_ptr(),
        alpha,
        rate,
        floor,
        loss.data_ptr(),
    )
    return usable


def pinn_step(
    weights: paddle.Tensor,
    losses: paddle.Tensor,
    references: paddle.Tensor,
    norms: paddle.Tensor,
    options: Sequence[float],
    residuals: Sequence[int],
    loss: paddle.Tensor,
) -> bool:
    """``PinnRule.step_in_place``; options are those of the rule, rate, floor."""
    usable: bool = _for(weights)["pinn_step"](
        weights.shape[0],
        weights.data_ptr(),
        losses.data_ptr(),
        references.data_ptr(),
        norms.data_ptr(),
        *options,
        len(residuals),
        (ctypes.c_int64 * len(residuals))(*residuals),
        loss.data_ptr(),
    )
    return usable


def settle(
    weights: paddle.Tensor,
    acted: paddle.Tensor,
    usable: paddle.Tensor,
    finite: paddle.Tensor,
    floor: float,
) -> None:
    """``algorithm.settle_in_place``."""
    _for(weights)["settle"](
        weights.shape[0],
        weights.data_ptr(),
        acted.data_ptr(),
        usable.data_ptr(),
        finite.data_ptr(),
        floor,
    )
