"""What balancing does with T numbers, by the functions of balancing.cc where they are loaded.

Tensors that are changed are changed in place. Every function gives None, and has done nothing,
where nothing is loaded and where the tensors are not what it is made for: all float32 or all
float64 like the weights, on the host, and without gaps; ``usable`` and ``finite`` are boolean,
shape [].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle

module: Any = None


def weigh(
    weights: paddle.Tensor, losses: Sequence[paddle.Tensor]
) -> tuple[paddle.Tensor, bool] | None:
    """``task_gradients.weighed``."""
    return None if module is None else module.weigh(weights, losses)


def measure(
    weights: paddle.Tensor,
    factors: paddle.Tensor,
    losses: Sequence[paddle.Tensor],
    gradients: Sequence[Sequence[paddle.Tensor | None]],
    values: paddle.Tensor,
    norms: paddle.Tensor,
) -> tuple[paddle.Tensor, paddle.Tensor] | None:
    """``task_gradients.measured``: the sum and the products, the rest into the last two."""
    if module is None:
        return None
    return module.measure(weights, factors, losses, gradients, values, norms)


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
) -> bool | None:
    """``GradNormRule.gradient_in_place``."""
    if module is None:
        return None
    return module.gradient(
        weights, losses, references, norms, finite, alpha, largest_norm, into, loss, usable
    )


def step(
    weights: paddle.Tensor,
    losses: paddle.Tensor,
    references: paddle.Tensor,
    norms: paddle.Tensor,
    alpha: float,
    rate: float,
    floor: float,
    loss: paddle.Tensor,
) -> bool | None:
    """``GradNormRule.step_in_place``."""
    if module is None:
        return None
    return module.step(weights, losses, references, norms, alpha, rate, floor, loss)


def pinn_step(
    weights: paddle.Tensor,
    losses: paddle.Tensor,
    references: paddle.Tensor,
    norms: paddle.Tensor,
    options: Sequence[float],
    residuals: Sequence[int],
    loss: paddle.Tensor,
) -> bool | None:
    """``PinnRule.step_in_place``; options are those of the rule, rate, floor."""
    if module is None:
        return None
    return module.pinn_step(weights, losses, references, norms, *options, residuals, loss)


def settle(
    weights: paddle.Tensor,
    acted: paddle.Tensor,
    usable: paddle.Tensor,
    finite: paddle.Tensor,
    floor: float,
) -> bool | None:
    """``algorithm.settle_in_place``; True where it has been done."""
    return None if module is None else module.settle(weights, acted, usable, finite, floor)


def rate_powers(
    losses: paddle.Tensor, references: paddle.Tensor, alpha: float
) -> paddle.Tensor | None:
    """``algorithm.inverse_rate_powers``."""
    return None if module is None else module.rate_powers(losses, references, alpha)


def norm_of_sum(products: paddle.Tensor, factors: paddle.Tensor | None) -> paddle.Tensor | None:
    """``rotograd.FactoredGradients.norm_of``, and without factors ``norm_of_sum``."""
    return None if module is None else module.norm_of_sum(products, factors)


def direction_shares(
    norm_of_sum: paddle.Tensor, norms: paddle.Tensor, smallest_norm: float
) -> paddle.Tensor | None:
    """``rotograd.direction_shares``."""
    return None if module is None else module.direction_shares(norm_of_sum, norms, smallest_norm)


def logit_gradient(
    weights: paddle.Tensor,
    norms: paddle.Tensor,
    common_norm: paddle.Tensor,
    rate_powers: paddle.Tensor,
    through_sum: bool,
) -> paddle.Tensor | None:
    """``rotograd.logit_gradient``."""
    if module is None:
        return None
    return module.logit_gradient(weights, norms, common_norm, rate_powers, through_sum)
