"""The mathematics of GradNorm: tensors in, tensors out, no state and no network."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Union

import paddle

from paddlescience_gradnorm import arguments, operators

# Weights, losses, references and gradient norms, shape [T] each.
_OfStep = tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor, paddle.Tensor]


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


class RuleStep(NamedTuple):
    """A step of the weights.

    Attributes:
        loss: What the rule makes small, shape []; 0 where all norms are at their targets.
        weights: The new weights, shape [T]; those of before where ``usable`` is false.
        usable: As of ``RuleOutput``.
    """

    loss: paddle.Tensor
    weights: paddle.Tensor
    usable: paddle.Tensor


class Rule(ABC):
    """How losses and gradient norms make new weights. The rest of the package knows no more."""

    alpha: float
    # Whether ``references`` changes references that are known.
    averages: ClassVar[bool]
    # What a balancer does unless it is told otherwise: whether it takes gradients on all of a
    # network's parameters or on its last shared layer, and on every how-manieth step.
    on_all_parameters: ClassVar[bool]
    update_every: ClassVar[int]

    @abstractmethod
    def references(self, references: paddle.Tensor, losses: paddle.Tensor) -> paddle.Tensor:
        """The references L(0) after a step with these losses, shape [T]; 0 while unknown."""

    @abstractmethod
    def step(
        self,
        weights: paddle.Tensor,
        losses: paddle.Tensor,
        references: paddle.Tensor,
        gradient_norms: paddle.Tensor,
        rate: float,
        floor: float,
        residuals: Sequence[int],
    ) -> RuleStep:
        """The weights of the next step, by references that are up to date.

        The arguments are those of ``step_in_place``, none of which it overwrites.
        """

    def rate_of_update(self, lr: float, update_every: int) -> float:
        """The rate of an update, one of which there is in so many steps, from a balancer's."""
        return lr

    def _step_in_cpp(
        self,
        tensors: _OfStep,
        rate: float,
        floor: float,
        residuals: Sequence[int],
        loss: paddle.Tensor,
    ) -> bool | None:
        """``step_in_place`` by ``operators.balancing``; None if that has not been done."""
        return None

    def step_in_place(
        self,
        weights: paddle.Tensor,
        losses: paddle.Tensor,
        references: paddle.Tensor,
        gradient_norms: paddle.Tensor,
        rate: float,
        floor: float,
        residuals: Sequence[int],
        loss: paddle.Tensor,
        known: bool = False,
    ) -> Union[bool, paddle.Tensor]:
        """Set the weights for the next step. All tensors are contiguous and of one dtype.

        Args:
            weights: w, which have acted, shape [T]; overwritten where the step is usable.
            losses: The unweighted losses L, shape [T].
            references: L(0), shape [T], 0 while unknown; overwritten.
            gradient_norms: ||g_i|| of the unweighted losses, shape [T].
            rate: Of the step.
            floor: The smallest weight allowed.
            residuals: Which losses are residuals of equations.
            loss: Overwritten with what the rule makes small, shape [].
            known: Whether all references are known to be there.

        Returns:
            Whether losses, references and gradients gave finite training rates and targets,
            as a bool or, where nobody has waited for it, a boolean tensor, shape [].
        """
        tensors = (weights, losses, references, gradient_norms)
        usable = self._step_in_cpp(tensors, rate, floor, residuals, loss)
        if usable is not None:
            return usable
        if self.averages or not known:
            references.copy_(self.references(references, losses), False)
        new = self.step(*tensors, rate, floor, residuals)
        weights.copy_(new.weights, False)
        loss.copy_(new.loss, False)
        return new.usable


@dataclass(frozen=True)
class GradNormRule(Rule):
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

    Examples:
        >>> import paddle
        >>> rule = GradNormRule(alpha=1.0)
        >>> ones = paddle.ones([2])
        >>> out = rule.evaluate(ones, ones, ones, paddle.to_tensor([3.0, 1.0]))
        >>> float(out.loss), out.weight_gradient.tolist()
        (2.0, [3.0, -1.0])
    """

    alpha: float
    averages: ClassVar[bool] = False
    on_all_parameters: ClassVar[bool] = False
    update_every: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def references(self, references: paddle.Tensor, losses: paddle.Tensor) -> paddle.Tensor:
        """Each L(0) from the first step on which the loss is finite and above zero."""
        first = paddle.where(_can_be_reference(losses), losses, paddle.zeros_like(losses))
        return paddle.where(references > 0, references, first)

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
        w, now, initial, norms = _in_double(weights, losses, initial_losses, gradient_norms)
        weighted_norms = w * norms
        powers = inverse_rate_powers(now, initial, self.alpha)
        excess = weighted_norms - weighted_norms.mean() * powers
        loss = excess.abs().sum().astype(weights.dtype)
        usable = paddle.isfinite(loss)  # every NaN and infinity ends up in Lgrad
        gradient = excess.sign().astype(weights.dtype) * gradient_norms
        return RuleOutput(loss, paddle.where(usable, gradient, paddle.zeros_like(gradient)), usable)

    def step(
        self,
        weights: paddle.Tensor,
        losses: paddle.Tensor,
        references: paddle.Tensor,
        gradient_norms: paddle.Tensor,
        rate: float,
        floor: float,
        residuals: Sequence[int] = (),
    ) -> RuleStep:
        """A step of plain gradient descent on Lgrad; the paper knows no kinds of losses."""
        loss, gradient, usable = self.evaluate(weights, losses, references, gradient_norms)
        return RuleStep(loss, stepped(weights, gradient, usable, rate, floor), usable)

    def _step_in_cpp(
        self,
        tensors: _OfStep,
        rate: float,
        floor: float,
        residuals: Sequence[int],
        loss: paddle.Tensor,
    ) -> bool | None:
        return operators.balancing.step(*tensors, self.alpha, rate, floor, loss)

    def gradient_in_place(
        self,
        weights: paddle.Tensor,
        losses: paddle.Tensor,
        references: paddle.Tensor,
        gradient_norms: paddle.Tensor,
        finite: paddle.Tensor,
        into: paddle.Tensor,
        loss: paddle.Tensor,
        usable: paddle.Tensor,
        known: bool = False,
    ) -> Union[bool, paddle.Tensor]:
        """Set dLgrad/dw for somebody else's step, and otherwise as ``Rule.step_in_place``.

        Args:
            weights: w, shape [T].
            losses: The unweighted losses L, shape [T].
            references: L(0), shape [T], 0 while unknown; overwritten.
            gradient_norms: ||g_i|| of the unweighted losses, shape [T].
            finite: Whether the weights were finite, boolean, shape [].
            into: Overwritten with the gradient, shape [T], zero where it is not usable: an
                optimizer keeps a NaN, and the square of what is too large, for ever.
            loss: Overwritten with Lgrad, shape [].
            usable: Overwritten with the result, boolean, shape [].
            known: Whether all references are known to be there.
        """
        tensors = (weights, losses, references, gradient_norms)
        largest = largest_norm(weights.dtype)
        done = operators.balancing.gradient(
            *tensors, finite, self.alpha, largest, into, loss, usable
        )
        if done is not None:
            return done
        if not known:
            references.copy_(self.references(references, losses), False)
        lgrad, gradient, good = self.evaluate(*tensors)
        # A tensor, for Paddle 2.6 rounds a number that is compared to float32.
        limit = paddle.full([], largest, gradient_norms.dtype)
        good = good & (gradient_norms <= limit).all() & finite
        into.copy_(paddle.where(good, gradient, paddle.zeros_like(gradient)), False)
        loss.copy_(lgrad, False)
        usable.copy_(good, False)
        return good


@dataclass(frozen=True)
class PinnRule(Rule):
    """GradNorm's idea in a form that suits the losses of a PINN.

    In GradNorm the gradient norms w_i ||g_i|| are to follow r_i ** alpha, so that weights in
    proportion to r_i ** alpha / ||g_i|| would be at rest. Here each log w_i moves towards the
    logarithm of a target by rate * clip(log target_i - log w_i, -1, 1). What makes that good for
    a PINN:

    - gradients are those of all parameters, for an equation's derivatives act on all layers
      and a condition's value mostly on the last;
    - the target is (r_i ** alpha / ||g_i||) ** strength: with 1/3 a compromise between equal
      norms and equal weights, so that a loss with next to no gradient is not raised without end;
    - the conditions' targets are then multiplied by ``lead``, for it is they that make a
      solution the right one;
    - weights do not sum to their number: the targets' unit is the geometric mean of the
      equations'. Adam does not ask how large gradients are, but it remembers for a thousand
      steps how large they were. With equations at 1 and conditions on the rise it moves fast;
      with conditions at 1 and equations on the way down it hardly moves at all;
    - steps are in proportion to what is missing, where the published rule takes the sign: no
      weight is driven to the floor by a fault of a few steps;
    - L(0) is a moving average of the loss, for an untrained network's loss means little.

    The rate of an update grows with the number of steps between two, so that weights follow
    at the same pace however seldom they are updated.

    Args:
        alpha: Strength of the pull towards equal training rates, at least 0. Raise it where one
            loss stands still while others fall; 0 looks at gradient norms alone.
        strength: How far to go from equal weights towards equal norms, above 0, at most 1.
            Lower it where equal weights are nearly right.
        lead: How many times above the equations the conditions' targets are put, above 0. Lower
            it where data are noisy, and in a flow that a lid drives.
        bound: The largest factor between a target and its unit, above 1. Lower it where a loss
            is to be ignored by no means.
        memory: What an update leaves of the average that is L(0), in [0, 1). Move it towards 1
            with the number of updates of a run; 0.99 remembers about 100 of them.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is out of range.

    Examples:
        >>> import paddle
        >>> ones = paddle.ones([3])
        >>> norms = paddle.to_tensor([100.0, 1.0, 1.0])  # of an equation and two conditions
        >>> rule, weights = PinnRule(strength=0.5, lead=2.0), ones
        >>> for _ in range(100):
        ...     weights = rule.step(weights, ones, ones, norms, 0.1, 1e-3, residuals=[0]).weights
        >>> [round(w, 2) for w in weights.tolist()]
        [1.0, 20.0, 20.0]
    """

    alpha: float = 0.0
    strength: float = 1 / 3
    lead: float = 20.0
    bound: float = 1000.0
    memory: float = 0.99
    averages: ClassVar[bool] = True
    on_all_parameters: ClassVar[bool] = True
    update_every: ClassVar[int] = 10

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        if not 0 < arguments.number("strength", self.strength) <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {self.strength}")
        if not 0 < arguments.number("lead", self.lead) < math.inf:
            raise ValueError(f"lead must be finite and above 0, got {self.lead}")
        if not 1 < arguments.number("bound", self.bound) < math.inf:
            raise ValueError(f"bound must be finite and above 1, got {self.bound}")
        if not 0 <= arguments.number("memory", self.memory) < 1:
            raise ValueError(f"memory must be at least 0 and below 1, got {self.memory}")

    def references(self, references: paddle.Tensor, losses: paddle.Tensor) -> paddle.Tensor:
        """The moving average of each loss, over the steps on which it is finite and above zero."""
        then, now = _in_double(references, losses)
        average = (then + (now - then) * (1.0 - self.memory)).astype(losses.dtype)
        # The second where a loss has fallen so far that the difference is all that is left.
        average = paddle.where((references > 0) & (average > 0), average, losses)
        return paddle.where(_can_be_reference(losses), average, references)

    def step(
        self,
        weights: paddle.Tensor,
        losses: paddle.Tensor,
        references: paddle.Tensor,
        gradient_norms: paddle.Tensor,
        rate: float,
        floor: float,
        residuals: Sequence[int] = (),
    ) -> RuleStep:
        """A step in log w; see ``Rule.step_in_place``.

        A loss that is zero or has no gradient, and so nothing to be balanced, is given the
        geometric mean of the others' targets.
        """
        w, values, references, norms = _in_double(weights, losses, references, gradient_norms)
        powers = inverse_rate_powers(values, references, self.alpha)
        usable = paddle.isfinite(powers).all() & paddle.isfinite(norms).all()
        targets = powers / norms
        known = (targets > 0) & paddle.isfinite(targets)
        logs = paddle.where(known, targets, paddle.ones_like(targets)).log() * self.strength
        mean = logs.sum() / known.astype(logs.dtype).sum().clip(min=1)
        logs = paddle.where(known, logs - mean, paddle.zeros_like(logs))
        if 0 < len(residuals) < len(weights):
            is_condition = paddle.ones_like(logs)
            is_condition[list(residuals)] = 0.0
            logs = logs + is_condition * math.log(self.lead)
            unit = logs[list(residuals)].mean()
        else:
            unit = logs.mean()
        limit = math.log(self.bound)
        now = w.log()
        missing = (logs - unit).clip(-limit, limit) - now
        loss = missing.abs().sum()
        usable = usable & paddle.isfinite(loss)  # not so where a weight is at or below zero
        new = (now + missing.clip(-1.0, 1.0) * min(1.0, rate)).exp().clip(min=floor)
        new = paddle.where(usable, new.astype(weights.dtype), weights)
        return RuleStep(loss.astype(weights.dtype), new, usable)

    def rate_of_update(self, lr: float, update_every: int) -> float:
        """In proportion to the steps between two updates; 1 is all the way."""
        return lr * update_every

    def _step_in_cpp(
        self,
        tensors: _OfStep,
        rate: float,
        floor: float,
        residuals: Sequence[int],
        loss: paddle.Tensor,
    ) -> bool | None:
        options = (self.alpha, self.strength, self.lead, self.bound, self.memory, rate, floor)
        return operators.balancing.pinn_step(*tensors, options, residuals, loss)


RULES = {"published": GradNormRule, "pinn": PinnRule}


def find_rule(rule: Union[str, Rule, None], alpha: float | None) -> Rule:
    """The rule that these arguments of a balancer mean.

    Args:
        rule: ``"published"``, ``"pinn"``, or a rule. ``None`` is the published one if alpha, its
            only knob, is given, and ``"pinn"`` if not.
        alpha: Its alpha. ``None`` leaves that to the rule.

    Raises:
        TypeError: ``rule`` is no rule, or alpha is missing or no number.
        ValueError: There is no rule of this name, ``rule`` has its own alpha, or alpha is out
            of range.

    Examples:
        >>> find_rule(None, None) == PinnRule(), find_rule(None, 1.5)
        (True, GradNormRule(alpha=1.5))
    """
    if rule is None:
        rule = "pinn" if alpha is None else "published"
    if isinstance(rule, str):
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(map(repr, RULES))}, got {rule!r}")
        if alpha is None and rule == "published":
            raise TypeError(
                "alpha is missing: the published rule has no default for it; the paper uses "
                "0.12 to 3"
            )
        return RULES[rule]() if alpha is None else RULES[rule](alpha)
    if not isinstance(rule, tuple(RULES.values())):
        raise TypeError(
            f"rule must be 'published', 'pinn', a GradNormRule or a PinnRule, got {rule!r}"
        )
    if alpha is not None:
        raise ValueError(f"alpha is {alpha}, but {rule} has its own; give it there")
    return rule


def _check_alpha(alpha: float) -> None:
    if not 0 <= arguments.number("alpha", alpha) < math.inf:
        raise ValueError(
            f"alpha must be finite and at least 0, got {alpha}; "
            "the paper uses 0.12 to 3, and 0 ignores training rates"
        )


def _in_double(*tensors: paddle.Tensor) -> list[paddle.Tensor]:
    # In float32 ratios of losses, and products of weights and norms, would overflow.
    return [tensor.astype("float64") for tensor in tensors]


@functools.cache
def smallest_reference(dtype: paddle.dtype) -> float:
    """The smallest L(0): one that is not a denormal number, for those have few digits left."""
    smallest: float = paddle.finfo(dtype).tiny
    return smallest


@functools.cache
def largest_norm(dtype: paddle.dtype) -> float:
    """The largest ||g_i|| whose square an optimizer of the weights can hold."""
    return math.sqrt(paddle.finfo(dtype).max) / 2


def _can_be_reference(losses: paddle.Tensor) -> paddle.Tensor:
    return paddle.isfinite(losses) & (losses >= smallest_reference(losses.dtype))


def inverse_training_rates(losses: paddle.Tensor, initial_losses: paddle.Tensor) -> paddle.Tensor:
    """r_i = (L_i / L_i(0)) / mean_j(L_j / L_j(0)), all of shape [T]; above 1 for a slow loss.

    Examples:
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

    Examples:
        >>> import paddle
        >>> losses, initial = paddle.to_tensor([1.0, 6.0]), paddle.to_tensor([2.0, 4.0])
        >>> [round(r, 3) for r in inverse_rate_powers(losses, initial, 1.0).tolist()]
        [0.5, 1.5]
    """
    done = operators.balancing.rate_powers(losses, initial_losses, alpha)
    if done is not None:
        return done
    rates = inverse_training_rates(losses, initial_losses)
    roots = rates.sqrt()  # NaN for a negative rate, whatever alpha
    if alpha == 0:
        return roots * 0 + 1
    if alpha == 1:
        return roots.square()
    # With a tensor, for Paddle rounds a Python exponent to float32.
    return roots ** paddle.full([], 2 * alpha, rates.dtype)


def renormalized(weights: paddle.Tensor, floor: float) -> paddle.Tensor:
    """The weights scaled so that they sum to their number, none of them below ``floor``.

    Wherever w * T / sum(w) keeps to the floor, that is the result. Where it does
    not, a weight under the floor is put on it and the others give up in proportion
    to what they have above it, so that floor and sum hold together.

    Args:
        weights: Any finite numbers, shape [T]; those at or below zero end on the floor.
        floor: The smallest weight allowed, in (0, 1).

    Examples:
        >>> import paddle
        >>> renormalized(paddle.to_tensor([1.0, 3.0]), floor=0.125).tolist()
        [0.5, 1.5]
        >>> renormalized(paddle.to_tensor([-2.0, 3.0]), floor=0.125).tolist()
        [0.125, 1.875]
    """
    n_loss = weights.shape[0]
    # Not zero: if every weight is at or below zero, the result is equal weights, not 0 / 0.
    # Nor so large that a sum or a product below is infinite.
    positive = weights.clip(1e-20, 1e30)
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
        floor: As for ``renormalized``.

    Examples:
        >>> import paddle
        >>> ones, gradient = paddle.ones([2]), paddle.to_tensor([4.0, -4.0])
        >>> stepped(ones, gradient, paddle.to_tensor(True), rate=0.125, floor=0.01).tolist()
        [0.5, 1.5]
    """
    return paddle.where(usable, renormalized(weights - gradient * rate, floor), weights)


def settled(
    weights: paddle.Tensor, acted: paddle.Tensor, usable: paddle.Tensor, floor: float
) -> paddle.Tensor:
    """The weights after somebody else may have stepped them, renormalised if so.

    Args:
        weights: As they are, shape [T].
        acted: As they were before, shape [T].
        usable: Whether a step is to count; otherwise ``acted`` is put back. Boolean, shape [].
        floor: As for ``renormalized``.

    Examples:
        >>> import paddle
        >>> acted, true = paddle.to_tensor([3.0, 3.0]), paddle.to_tensor(True)
        >>> settled(acted, acted, true, floor=0.125).tolist()
        [3.0, 3.0]
        >>> settled(paddle.to_tensor([3.0, 1.0]), acted, true, floor=0.125).tolist()
        [1.5, 0.5]
    """
    return paddle.where((weights != acted).any() & usable, renormalized(weights, floor), acted)


def settle_in_place(
    weights: paddle.Tensor,
    acted: paddle.Tensor,
    usable: paddle.Tensor,
    finite: paddle.Tensor,
    floor: float,
) -> None:
    """Overwrite ``weights`` and ``acted`` with ``settled``, as ``acted`` if not finite.

    Both are contiguous and of one dtype.

    Args:
        weights: As they are, shape [T].
        acted: As they were before, shape [T].
        usable: As for ``settled``.
        finite: Overwritten with whether the weights were, boolean, shape [].
        floor: As for ``renormalized``.
    """
    if operators.balancing.settle(weights, acted, usable, finite, floor):
        return
    finite.copy_(paddle.isfinite(weights).all(), False)
    weights.copy_(settled(weights, acted, usable & finite, floor), False)
    acted.copy_(weights, False)
