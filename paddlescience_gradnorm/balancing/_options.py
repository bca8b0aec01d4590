"""Checks of a balancer's options that take more than a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import paddle

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.balancing._faults import warn_the_caller
from paddlescience_gradnorm.balancing.rule import DirectionRule, GradientRule, Rule

Shared = Union[paddle.Tensor, paddle.nn.Layer, Sequence[Union[paddle.Tensor, paddle.nn.Layer]]]


def shared_parameters(shared: Any) -> tuple[paddle.Tensor, ...]:
    """The parameters that ``shared`` names.

    Frozen ones are among them, because they may be trained later.

    Args:
        shared: A parameter, a layer, or a list or tuple of either.

    Raises:
        TypeError: ``shared`` holds something else.
        ValueError: ``shared`` holds no trainable parameter.
    """
    found: dict[int, paddle.Tensor] = {}
    for item in shared if isinstance(shared, (list, tuple)) else [shared]:
        if isinstance(item, paddle.nn.Layer):
            parameters = item.parameters()
        elif isinstance(item, paddle.Tensor):
            parameters = [item]
        else:
            raise TypeError(
                "shared must be a parameter, a layer, or a list of either, got "
                f"{type(item).__name__} {item!r}"
            )
        found.update({id(p): p for p in parameters})
    if all(p.stop_gradient for p in found.values()):
        raise ValueError(
            f"shared holds no trainable parameter, got {shared!r}; pass parameters "
            "that every loss depends on and that are trained"
        )
    return tuple(found.values())


def checked_rate(
    weight_lr: float | None, rule: Rule, n_loss: int | None, warmup_steps: int
) -> float | None:
    if weight_lr is not None:
        if not 0 < _arguments.number("weight_lr", weight_lr) < math.inf:
            raise ValueError(f"weight_lr must be finite and above 0, or None, got {weight_lr}")
        return weight_lr
    if not isinstance(rule, GradientRule):
        raise ValueError(
            f"weight_lr is None, but {rule} has no gradient that an optimizer could step "
            "along; pass a rate, such as 0.01"
        )
    if n_loss is None:
        raise ValueError(
            "n_loss is missing: with weight_lr=None your optimizer steps loss_weights, so they "
            "must be there before the first step. Pass n_loss, or a weight_lr such as 0.01"
        )
    if warmup_steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps}, but weight_lr is None: warm up the rate of "
            "the optimizer that steps loss_weights, or pass weight_lr"
        )
    return None


def warn_of_holding(rule: Rule, update_every: int, n_loss: int) -> None:
    """Warn if the coefficients of a direction are held between updates and may be negative."""
    if update_every > 1 and isinstance(rule, DirectionRule) and n_loss > rule.never_negative_up_to:
        warn_the_caller(
            f"update_every is {update_every}, so {rule} combines gradients in one of "
            f"{update_every} steps, and its coefficients are held as weights in the others. With "
            f"{n_loss} losses they may be negative, and the network then climbs a loss: pass "
            "update_every=1, or a direction without negative coefficients, such as UPGrad()"
        )


def given_weights(weight_attr: Any) -> np.ndarray:
    """``weight_attr`` as an array, shape [number of losses]."""
    try:
        weights = np.asarray(weight_attr, dtype=np.float64)
    except (TypeError, ValueError):
        weights = np.zeros([])
    if not weights.ndim:
        raise TypeError(
            f"weight_attr must be a sequence of numbers, one for each loss, got {weight_attr!r}"
        )
    return weights


def initial_weights(
    weight_attr: Sequence[float] | None, n_loss: int, floor: float, rule: Rule
) -> np.ndarray:
    if weight_attr is None:
        return np.ones(n_loss)
    weights = given_weights(weight_attr)
    if weights.shape != (n_loss,):
        raise ValueError(f"weight_attr must have n_loss = {n_loss} entries, got {weight_attr!r}")
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"weight_attr must be positive and finite, got {weight_attr!r}")
    smallest = weights.min() * (n_loss / weights.sum() if rule.keeps_sum else 1.0)
    if smallest < floor:
        scaled = ", scaled to sum to n_loss," if rule.keeps_sum else ""
        raise ValueError(
            f"weight_attr {weight_attr!r}{scaled} has a weight of "
            f"{smallest:.3g}, below the floor of {floor:.3g}; pass a smaller floor"
        )
    return weights
