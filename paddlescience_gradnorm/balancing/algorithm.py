"""The mathematics of GradNorm: tensors in, tensors out, no state and no network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import paddle

from paddlescience_gradnorm import arguments


class RuleOutput(NamedTuple):
    """What a balancing rule says about one step.

    Attributes:
        loss: The GradNorm loss Lgrad, shape [].
        weight_gradient: dLgrad/dw, shape [T]; all zeros where ``usable`` is false.
        usable: Whether the losses, their references and their gradients gave
            finite training rates and targets, boolean, shape [].
    """

    loss: paddle.Tensor
    weight_gradient: paddle.Tensor
    usable: paddle.Tensor


@dataclass(frozen=True)
class GradNormRule:
    """The rule as published: Chen et al., ICML 2018, arXiv:1711.02257, equations 1 and 2.

    With the gradient norms G_i = w_i ||g_i|| and the inverse training rates
    r_i = (L_i / L_i(0)) / mean_j(L_j / L_j(0)), the targets
    c_i = mean_j(G_j) r_i ** alpha are constants of the step, and
    Lgrad = sum_i |G_i - c_i| has the gradient sign(G_i - c_i) ||g_i|| with
    respect to w_i: no second differentiation is needed.

    Args:
        alpha: Strength of the pull towards equal training rates, dimensionless,
            at least 0. At 0 all gradient norms are brought to their mean.

    Raises:
        TypeError: ``alpha`` is not a number.
        ValueError: ``alpha`` is negative or not finite.

    Example:
        >>> import paddle
        >>> rule = GradNormRule(alpha=1.0)
        >>> ones = paddle.ones([2])
        >>> out = rule.evaluate(ones, ones, ones, paddle.to_tensor([3.0, 1.0]))
        >>> float(out.loss), out.weight_gradient.tolist()
        (2.0, [3.0, -1.0])
    """

    alpha: float

    def __post_init__(self) -> None:
        if not 0 <= arguments.number("alpha", self.alpha) < math.inf:
            raise ValueError(
                f"alpha must be finite and at least 0, got {self.alpha}; "
                "the paper uses 0.12 to 3, and 0 ignores training rates"
            )

    def evaluate(
        self,
        weights: paddle.Tensor,
        losses: paddle.Tensor,
        initial_losses: paddle.Tensor,
        gradient_norms: paddle.Tensor,
    ) -> RuleOutput:
        """Lgrad and its gradient with respect to the weights, all arguments of shape [T].

        Args:
            weights: The weights w of this step.
            losses: The unweighted losses L.
            initial_losses: Their references L(0).
            gradient_norms: ||g_i||, norms of the UNWEIGHTED losses' gradients on
                the shared parameters.
        """
        weighted_norms = weights * gradient_norms
        loss_ratios = losses / initial_losses
        rates = loss_ratios / loss_ratios.mean()
        # A tensor, for Paddle 2.6 rounds a Python exponent to float32.
        alpha = paddle.full([], self.alpha, rates.dtype)
        excess = weighted_norms - weighted_norms.mean() * rates**alpha
        loss = excess.abs().sum()
        # Every NaN and infinity ends up in Lgrad, but for alpha = 0, which hides
        # a rate that does not exist; and a negative rate means nothing.
        usable = paddle.logical_and(paddle.isfinite(loss), (rates >= 0).all())
        gradient = excess.sign() * gradient_norms
        return RuleOutput(loss, paddle.where(usable, gradient, paddle.zeros_like(gradient)), usable)


def renormalized(weights: paddle.Tensor, floor: float) -> paddle.Tensor:
    """The weights scaled so that they sum to their number, none of them below ``floor``.

    Wherever w * T / sum(w) keeps to the floor, that is the result. Where it does
    not, a weight under the floor is put on it and the others give up in proportion
    to what they have above it, so that floor and sum hold together.

    Args:
        weights: Any finite numbers, shape [T]; those at or below zero end on the floor.
        floor: The smallest weight allowed, in (0, 1).

    Example:
        >>> import paddle
        >>> renormalized(paddle.to_tensor([1.0, 3.0]), floor=0.1).tolist()
        [0.5, 1.5]
        >>> renormalized(paddle.to_tensor([-2.0, 3.0]), floor=0.25).tolist()
        [0.25, 1.75]
    """
    n_loss = weights.shape[0]
    # The smallest normal number instead of zero: if every weight is at or below
    # zero, the result is equal weights and not 0 / 0.
    tiny = float(paddle.finfo(weights.dtype).tiny)
    positive = weights.clip(min=tiny)
    scaled = positive * (n_loss / positive.sum())
    # When all of `scaled` is above the floor, these two lines change nothing:
    # the amounts above the floor then already sum to T (1 - floor).
    # (A tensor, for Paddle 2.6 rounds a Python number that is added to float32.)
    lowest = paddle.full([], floor, weights.dtype)
    above = (scaled - lowest).clip(min=0.0)
    return lowest + above * (n_loss * (1.0 - floor) / above.sum())
