"""The mathematics of GradNorm: tensors in, tensors out, no state and no network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import paddle

from paddlescience_gradnorm import arguments, operators


class RuleOutput(NamedTuple):
    """What a balancing rule says about one step.

    Attributes:
        loss: The GradNorm loss Lgrad, shape [].
        weight_gradient: dLgrad/dw, shape [T]; zero where ``usable`` is false.
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
        tensors = (weights, losses, initial_losses, gradient_norms)
        # They have no gradient of their own.
        if not paddle.is_grad_enabled() and operators.apply_to(*tensors):
            return RuleOutput(*operators.rule(*tensors, self.alpha))
        weighted_norms = weights * gradient_norms
        powers = inverse_rate_powers(losses, initial_losses, self.alpha)
        excess = weighted_norms - weighted_norms.mean() * powers
        loss = excess.abs().sum()
        usable = paddle.isfinite(loss)  # every NaN and infinity ends up in Lgrad
        gradient = excess.sign() * gradient_norms
        return RuleOutput(loss, paddle.where(usable, gradient, paddle.zeros_like(gradient)), usable)


def inverse_training_rates(losses: paddle.Tensor, initial_losses: paddle.Tensor) -> paddle.Tensor:
    """r_i = (L_i / L_i(0)) / mean_j(L_j / L_j(0)), all of shape [T]; above 1 for a slow loss.

    Example:
        >>> import paddle
        >>> halved_and_kept = paddle.to_tensor([1.0, 6.0])
        >>> inverse_training_rates(halved_and_kept, paddle.to_tensor([2.0, 4.0])).tolist()
        [0.5, 1.5]
    """
    loss_ratios = losses / initial_losses
    return loss_ratios / loss_ratios.mean()


def inverse_rate_powers(
    losses: paddle.Tensor, initial_losses: paddle.Tensor, alpha: float
) -> paddle.Tensor:
    """The inverse training rates to the power alpha, shape [T]; NaN where a loss is negative.

    Args:
        losses: The unweighted losses L, shape [T].
        initial_losses: Their references L(0), shape [T].
        alpha: The exponent, at least 0.

    Example:
        >>> import paddle
        >>> losses, initial = paddle.to_tensor([1.0, 6.0]), paddle.to_tensor([2.0, 4.0])
        >>> [round(r, 3) for r in inverse_rate_powers(losses, initial, 1.0).tolist()]
        [0.5, 1.5]
    """
    rates = inverse_training_rates(losses, initial_losses)
    # By way of the root, which is NaN for a negative rate, whatever alpha; and with a
    # tensor, for Paddle rounds a Python exponent to float32.
    roots = rates.sqrt()
    powers = roots ** paddle.full([], 2 * alpha, rates.dtype)
    return powers if alpha else powers + 0 * roots  # NaN ** 0 is 1


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
        >>> renormalized(paddle.to_tensor([1.0, 3.0]), floor=0.125).tolist()
        [0.5, 1.5]
        >>> renormalized(paddle.to_tensor([-2.0, 3.0]), floor=0.125).tolist()
        [0.125, 1.875]
    """
    if not paddle.is_grad_enabled() and operators.apply_to(weights):
        return operators.renormalized(weights, floor)
    n_loss = weights.shape[0]
    # Not zero: if every weight is at or below zero, the result is equal weights, not 0 / 0.
    positive = weights.clip(min=1e-20)
    # What the scaled weights have above the floor, times the sum; where that is nowhere
    # cut off at zero, it sums to T (1 - floor) and the result is w * T / sum(w).
    above = paddle.nn.functional.relu(positive * n_loss - positive.sum() * floor)
    # floor + above * T (1 - floor) / sum(above), with factors only: Paddle 2.6 rounds a
    # Python number that is added to float32.
    total = above.sum()
    return (total * floor + above * (n_loss * (1.0 - floor))) / total


def stepped(
    weights: paddle.Tensor,
    gradient: paddle.Tensor,
    usable: paddle.Tensor,
    rate: float,
    floor: float,
) -> paddle.Tensor:
    """The weights after a step of plain gradient descent, renormalised; or as they are.

    Args:
        weights: Shape [T].
        gradient: dLgrad/dw, shape [T].
        usable: Whether the step is to be made, boolean, shape [].
        rate: Of the descent, above 0.
        floor: As for :func:`renormalized`.

    Example:
        >>> import paddle
        >>> ones, gradient = paddle.ones([2]), paddle.to_tensor([4.0, -4.0])
        >>> stepped(ones, gradient, paddle.to_tensor(True), rate=0.125, floor=0.01).tolist()
        [0.5, 1.5]
    """
    if not paddle.is_grad_enabled() and operators.apply_to(weights, gradient):
        return operators.stepped(weights, gradient, usable, rate, floor)
    return paddle.where(usable, renormalized(weights - gradient * rate, floor), weights)


def settled(
    weights: paddle.Tensor, acted: paddle.Tensor, usable: paddle.Tensor, floor: float
) -> paddle.Tensor:
    """The weights after somebody else may have stepped them, renormalised if so.

    Args:
        weights: As they are, shape [T].
        acted: As they were before, shape [T].
        usable: Whether a step is to count; otherwise ``acted`` is put back. Boolean, shape [].
        floor: As for :func:`renormalized`.

    Example:
        >>> import paddle
        >>> acted, true = paddle.to_tensor([3.0, 3.0]), paddle.to_tensor(True)
        >>> settled(acted, acted, true, floor=0.125).tolist()
        [3.0, 3.0]
        >>> settled(paddle.to_tensor([3.0, 1.0]), acted, true, floor=0.125).tolist()
        [1.5, 0.5]
    """
    if not paddle.is_grad_enabled() and operators.apply_to(weights, acted):
        return operators.settled(weights, acted, usable, floor)
    return paddle.where((weights != acted).any() & usable, renormalized(weights, floor), acted)
