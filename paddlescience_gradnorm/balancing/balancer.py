"""LossBalancer: the state of GradNorm and its step, for any network and any loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Union

import numpy as np
import paddle

from paddlescience_gradnorm import arguments
from paddlescience_gradnorm.balancing import ranks
from paddlescience_gradnorm.balancing.algorithm import (
    GradNormRule,
    Rule,
    find_rule,
    inverse_training_rates,
    largest_norm,
    renormalized,
    settle_in_place,
    smallest_reference,
)
from paddlescience_gradnorm.balancing.diagnosis import diagnose
from paddlescience_gradnorm.balancing.losses import Losses, LossOrder
from paddlescience_gradnorm.balancing.shared_graph import two_passes_are_cheaper
from paddlescience_gradnorm.balancing.task_gradients import (
    TaskGradients,
    backward_by_task,
    backward_of_sum,
    inner_products,
    measured,
    rows,
    task_gradients,
    values_of,
    weighed,
)
from paddlescience_gradnorm.shielded import ShieldedLayer, count_in, shield, shielded_parameter

# After this many updates weights that have not moved are no accident.
_STEPS_TO_MOVE = 100

Shared = Union[paddle.Tensor, paddle.nn.Layer, Sequence[Union[paddle.Tensor, paddle.nn.Layer]]]


class LossBalancer(ShieldedLayer):
    """Learns the weights of several losses by GradNorm, inside anybody's training loop.

    Source: Chen et al., "GradNorm", ICML 2018, arXiv:1711.02257; with ``rule="pinn"``
    ``PinnRule``. By the published rule the weights always sum to ``n_loss`` after the first
    step, which uses ``weight_attr`` as given; by ``"pinn"`` the equations' are about 1.

    Args:
        shared: The shared parameters W that every loss depends on: a parameter, a
            layer (all its trainable parameters), or a list of either. For ``"pinn"`` the
            network; for the published rule usually the weight of the last layer that all
            losses go through.
        n_loss: Number of losses T, at least 2.
        alpha: Strength of the pull towards equal training rates, at least 0.
        lr: Rate of the step of the weights. ``None`` leaves the step, by the published
            rule, to the caller's optimizer, which must then hold ``loss_weights`` and
            step after every update: a second one replaces the gradient of the first. By the
            published rule of an update; by ``"pinn"`` of a step, so that an update once in ten
            steps goes ten times as far.
        warmup_steps: Number of updates over which the rate grows linearly to ``lr``.
        weight_attr: Weights of the first step, ``n_loss`` positive numbers; all 1 by default.
        update_every: Update the weights on every this-many-th step only; on the
            others ``backward`` is one plain backward pass. By default 10 by ``"pinn"``, and 1
            by the published rule.
        floor: The smallest weight allowed, in (0, 1).
        rule: ``"published"`` is the paper's; ``"pinn"``, or a ``PinnRule`` with values of
            your own, is made for the losses of a PINN. By default ``"pinn"`` if alpha is not
            given, and if it is, the paper's.
        residuals: Which losses are residuals of equations, by number or by their names in the
            dict of losses; all others are conditions. Only ``"pinn"`` makes a difference.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or ``shared`` holds nothing trainable.

    Examples:
        >>> import paddle
        >>> net = paddle.nn.Linear(2, 1)
        >>> optimizer = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
        >>> balancer = LossBalancer(net.weight, n_loss=2, alpha=1.0, lr=0.01)
        >>> for _ in range(3):
        ...     y = net(paddle.ones([4, 2]))
        ...     total = balancer.backward([(y - 1).square().mean(), (9 * y).square().mean()])
        ...     optimizer.step()
        ...     optimizer.clear_grad()
        >>> weights = balancer.get_weights()
        >>> weights.shape, round(float(weights.sum()), 4)
        ((2,), 2.0)
    """

    step_count: paddle.Tensor

    def __init__(
        self,
        shared: Shared,
        n_loss: int,
        alpha: float | None = None,
        lr: float | None = 0.01,
        warmup_steps: int = 0,
        weight_attr: Sequence[float] | None = None,
        update_every: int | None = None,
        floor: float = 1e-3,
        rule: Union[str, Rule, None] = None,
        residuals: Sequence[Union[int, str]] = (0,),
    ) -> None:
        super().__init__()
        self.n_loss = arguments.integer("n_loss", n_loss, at_least=2)
        self.rule = find_rule(rule, alpha)
        self.residuals = _checked_residuals(residuals, self.n_loss)
        if lr is None and not isinstance(self.rule, GradNormRule):
            raise ValueError(
                f"lr is None, but {self.rule} is no gradient that an optimizer could step "
                "along; pass a rate, such as 0.01"
            )
        if lr is not None and not (arguments.number("lr", lr) > 0 and math.isfinite(lr)):
            raise ValueError(f"lr must be finite and above 0, or None, got {lr}")
        self.lr = lr
        self.warmup_steps = arguments.integer("warmup_steps", warmup_steps, at_least=0)
        if lr is None and warmup_steps:
            raise ValueError(
                f"warmup_steps is {warmup_steps}, but lr is None: warm up the rate of "
                "the optimizer that steps loss_weights, or pass lr"
            )
        if update_every is None:
            update_every = self.rule.update_every
        self.update_every = arguments.integer("update_every", update_every, at_least=1)
        if not 0 < arguments.number("floor", floor) < 1:
            raise ValueError(f"floor must lie between 0 and 1, got {floor}")
        self.floor = float(floor)
        # A tuple, for a Layer would take a bare parameter for one of its own.
        self.shared = shared_parameters(shared)
        dtype = self.shared[0].dtype
        if dtype not in (paddle.float32, paddle.float64):
            dtype = paddle.float32  # half precision cannot resolve a step of the weights
        initial_weights = _initial_weights(weight_attr, self.n_loss, self.floor)
        loss_weights = shielded_parameter(initial_weights, dtype)
        # paddle.DataParallel would wait for a gradient that no backward pass gives them.
        loss_weights.no_sync = True
        self.loss_weights = loss_weights
        # Zero until it is known.
        self.register_buffer("initial_losses", paddle.zeros([self.n_loss], dtype))
        self.register_buffer("step_count", paddle.zeros([], "int64"))
        # The weights that acted last, to tell whether the caller's optimizer has
        # stepped since, and to put them back if it must not have.
        self.register_buffer("_acted", paddle.zeros([self.n_loss], dtype), persistable=False)
        self.register_buffer("_usable", paddle.ones([], dtype="bool"), persistable=False)
        # Whether the caller's optimizer has left them finite.
        self.register_buffer("_finite", paddle.ones([], dtype="bool"), persistable=False)
        self.register_buffer("_grad_norm_loss", paddle.zeros([], dtype), persistable=False)
        for name in ("_gradient_norms", "_losses"):  # of the last update
            self.register_buffer(name, paddle.zeros([self.n_loss], dtype), persistable=False)
        self._start = initial_weights
        self._frozen = False
        self._order = LossOrder(self.n_loss)
        self._reported: set[tuple[str, str]] = set()
        self._forget_host_state()
        self.register_state_dict_hook(self._settle_for_saving)

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if name == "loss_weights":
            # The caller's optimizer tells nobody that it has stepped. Whoever reads
            # the weights after it gets them renormalised, in the same parameter.
            self._settle()
        return value

    @property
    def alpha(self) -> float:
        """Strength of the pull towards equal training rates."""
        return self.rule.alpha

    @property
    def gradient_norms(self) -> paddle.Tensor:
        """||g_i|| of the last update, of the unweighted losses, shape [n_loss]; zeros before it."""
        return self._buffers["_gradient_norms"].clone()

    @property
    def training_rates(self) -> paddle.Tensor:
        """Inverse training rates r_i of the last update, shape [n_loss]; NaN before it."""
        with paddle.no_grad():
            return inverse_training_rates(self._buffers["_losses"], self.initial_losses)

    @property
    def has_updated(self) -> bool:
        """Whether there has been an update since the balancer was made or loaded."""
        return self._noted.products is not None

    @property
    def cosines(self) -> paddle.Tensor:
        """Cosines of the angles between the gradients g_i of the last update.

        Shape [n_loss, n_loss]; of the gradients on the shared parameters. NaN before the first
        update since the balancer was made or loaded; 0 for a loss without a gradient.
        """
        products = self._noted.products
        if products is None:
            cosines = np.full([self.n_loss] * 2, math.nan)
        else:
            lengths = products.diagonal().sqrt().numpy()
            lengths[lengths == 0] = 1.0
            cosines = (products.numpy() / lengths / lengths[:, None]).clip(-1.0, 1.0)
        return paddle.to_tensor(cosines, self._weights.dtype, self._weights.place)

    def backward(
        self,
        losses: Losses,
        update: bool = True,
        scale: float = 1.0,
        scaler: paddle.amp.GradScaler | None = None,
    ) -> paddle.Tensor:
        """The whole backward pass of the weighted sum, and the update of the weights.

        Adds to every parameter's ``.grad`` the gradient of sum_i w_i L_i. Then steps
        the weights, or, with ``lr=None``, writes ``loss_weights.grad`` for the
        caller's optimizer. The new weights act from the next step on.

        In a distributed run (``paddle.distributed.init_parallel_env``) losses and gradients
        on the shared parameters are averaged over all processes before norms are taken, in
        one all-reduce, so that the weights are the same everywhere.

        Args:
            losses: ``n_loss`` scalars: a list or tuple, a 1-D tensor, or a dict
                name -> scalar.
            update: False for all micro-batches of a step but the last: k of n points
                then give the weights that k n points give at once.
            scale: Factor of all gradients, such as 1 / k for k micro-batches. The
                balancing is that of the unscaled losses.
            scaler: Multiplies all gradients by its loss scaling; ``scaler.step(optimizer)`` and
                ``scaler.update()`` follow as usual. If it finds that they overflow, this step
                is taken back as the weights are next read or the next step begins.

        Returns:
            The weighted sum, detached, without ``scale`` and loss scaling, shape [].

        Raises:
            TypeError: The losses are no tensors of floating-point type, or ``scaler`` is no
                ``paddle.amp.GradScaler``.
            ValueError: They are of another number, not scalar, under other names, or
                one of them does not depend on the shared parameters.

        Warns:
            RuntimeWarning: Once for each loss and fault, if a loss is NaN, infinite or
                negative, or zero when the references are taken. The weights then
                stay as they are; the network's gradients are those of the losses.

        Examples:
            >>> import paddle
            >>> net = paddle.nn.Linear(2, 1)
            >>> adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
            >>> balancer = LossBalancer(net.weight, n_loss=2)
            >>> scaler = paddle.amp.GradScaler(enable=paddle.is_compiled_with_cuda())
            >>> with paddle.amp.auto_cast(enable=scaler.is_enable()):
            ...     y = net(paddle.ones([4, 2]))
            ...     losses = [(y - 1).square().mean(), (9 * y).square().mean()]
            >>> total = balancer.backward(losses, scaler=scaler)
            >>> scaler.step(adam)
            >>> scaler.update()
            >>> adam.clear_grad()
        """
        scalars = self._order.scalars(losses)
        self._settle(a_step_begins=True)
        weights = self._weights
        step = self._current_step()
        noted = self._noted
        with paddle.no_grad():
            factors = weights if scale == 1 else weights * scale
            loss_scaling = _loss_scaling(scaler, weights.dtype)
            if loss_scaling is not None:
                factors = factors * loss_scaling
            undo = None if scale == 1 and loss_scaling is None else self._undo_of(step)
            if not self._is_update(step):
                total, usable = weighed(weights, scalars)
                backward_of_sum(scalars, factors, self.shared, self._order.names)
                if update:
                    self._rest(step, scalars, usable)
            elif update and undo is None and noted.pool is None and ranks.number() == 1:
                factors, gradients = self._backward_by_task(scalars, factors, alone=True)
                into = (self._buffers["_losses"], self._buffers["_gradient_norms"])
                measurement = measured(weights, factors, scalars, gradients, into)
                total, values, norms, noted.products = measurement
                # Paddle 2.6 takes set_value through the host, for which an accelerator waits.
                self._update(step, values, norms, in_place=True)
            else:
                values = values_of(scalars, weights.dtype)
                total = paddle.dot(weights, values)
                factors, gradients = self._backward_by_task(scalars, factors, ranks.number() == 1)
                by_task = rows(factors, gradients, self.shared)
                noted.pool = _pooled(noted.pool, values, by_task)
                if update:
                    undo = undo and undo._replace(pool=noted.pool)
                    values, norms, noted.products = _means(noted.pool)
                    self._update(step, values, norms, in_place=True, loss_scaling=loss_scaling)
                    noted.pool = None
            if update:
                self._count(step)
                noted.undo = undo
                scaled = None
                if scaler is not None and undo is not None and loss_scaling is not None:
                    scaled = _Scaled(scaler, scaler._found_inf, undo._replace(pool=None))
                noted.scaled = scaled
        return total

    def take_back(self) -> None:
        """Undo the last step, and let the next ``backward`` add to the losses it was made from.

        For loops that accumulate gradients and never say which backward is the last
        before the optimizer's step. It needs to have been given another ``scale`` than 1.

        Raises:
            RuntimeError: The last step was without a ``scale``, or has been undone already.
        """
        if self._noted.undo is None:
            raise RuntimeError(
                "there is no step to take back: the last backward(losses) was without a "
                "scale, or has been taken back already"
            )
        self._put_back(self._noted.undo)

    def step(self, losses: Losses) -> paddle.Tensor:
        """The update of the weights alone, for a loop that calls backward itself.

        Call it after ``backward(retain_graph=True)`` of the weighted sum and before
        the optimizer's step: it differentiates each loss once more, on the shared
        parameters only, and touches no ``.grad`` but that of ``loss_weights``. Form
        the weighted sum with ``loss_weights`` read afresh in every step.

        Args:
            losses: As for ``backward``.

        Returns:
            Lgrad, detached, shape []; between the updates of ``update_every`` the
            last one.

        Raises:
            RuntimeError: The losses' graphs are gone.
            TypeError: As for ``backward``.
            ValueError: As for ``backward``.
        """
        scalars = self._order.scalars(losses)
        self._settle(a_step_begins=True)
        weights = self._weights
        step = self._current_step()
        update = self._is_update(step)
        if update:
            gradients = task_gradients(scalars, self.shared, self._order.names)
        with paddle.no_grad():
            # What the caller's backward of the weighted sum has left there.
            weights.clear_gradient(False)
            if update:
                ones = paddle.ones_like(weights)
                if ranks.number() > 1:
                    by_task = rows(ones, gradients, self.shared)
                    values = values_of(scalars, weights.dtype)
                    values, norms, products = _means(_pooled(None, values, by_task))
                else:
                    into = (self._buffers["_losses"], self._buffers["_gradient_norms"])
                    measurement = measured(weights, ones, scalars, gradients, into)
                    _, values, norms, products = measurement
                self._noted.products = products
                self._update(step, values, norms, in_place=False)
            else:
                self._rest(step, scalars, weighed(weights, scalars)[1])
            self._count(step)
        return self._grad_norm_loss.clone()

    def get_weights(self) -> np.ndarray:
        """The weights that the next step will use, a copy, shape [n_loss]."""
        late, self._noted.unread = self._noted.unread, None
        self._report(late)
        return self.loss_weights.numpy().copy()

    def diagnose(self, falling: bool = True) -> list[str]:
        """What the last update says of the balancing, in words; an empty list if all is well.

        A weight at its floor or bound; a loss that no longer falls (with ``rule="pinn"``), that
        has no gradient, or whose reference L(0) means nothing; gradients on the shared
        parameters that point against each other.

        Args:
            falling: Whether to name losses that no longer fall, of which a history knows more.

        Raises:
            RuntimeError: There has been no update since the balancer was made or loaded.
        """
        if not self.has_updated:
            raise RuntimeError("there is nothing to diagnose yet: call backward(losses) first")
        return diagnose(
            self._order.names,
            self.get_weights(),
            self._buffers["_losses"].numpy(),
            self.initial_losses.numpy(),
            self.gradient_norms.numpy(),
            self.cosines.numpy(),
            self.rule,
            self.floor,
            self._current_step() // self.update_every,
            falling,
        )

    def freeze(self) -> None:
        """Stop updating the weights, for a last stage with L-BFGS, say."""
        self._frozen = True

    def unfreeze(self) -> None:
        """Go on updating the weights."""
        self._frozen = False

    def set_grad(self) -> None:
        """Give ``loss_weights`` a gradient of zero if it has none, for ``grad.set_value``."""
        if self._weights.grad is None:
            self._weights.grad = paddle.zeros_like(self._weights)

    def renormalize(self) -> None:
        """Scale the weights in place so that they sum to ``n_loss`` and keep to the floor.

        There is no need to call it after a step: by the published rule whoever reads
        ``loss_weights`` gets them so. It is for weights that were set by hand.
        """
        with paddle.no_grad():
            self._hold(renormalized(self._weights, self.floor))

    def reset_initial_losses(self) -> None:
        """Forget L(0); the next update takes its losses as the new references."""
        self.initial_losses.set_value(paddle.zeros_like(self.initial_losses))
        self._noted.knows_reference = False
        self._noted.unread = None
        self._reported.clear()

    def set_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights, L(0) and step count; see ``paddle.nn.Layer.set_state_dict``."""
        result = super().set_state_dict(state_dict, *args, **kwargs)
        self._forget_host_state()
        return result

    set_dict = set_state_dict
    load_dict = set_state_dict

    def noted(self) -> dict[str, Any]:
        """What is remembered beside parameters and buffers, in plain types, for checkpoints.

        Raises:
            RuntimeError: A step's micro-batches are not all through.
        """
        self._take_back_overflow()
        if self._noted.pool is not None:
            raise RuntimeError(
                "a checkpoint cannot be made between the micro-batches of a step; make it after "
                "the optimizer's step"
            )
        return {
            "next_step": self._noted.next_step,
            "knows_reference": self._noted.knows_reference,
            "awaits_optimizer": self._noted.awaits_optimizer,
            "normalized": self._noted.normalized,
            "frozen": self._frozen,
            "passes": {None: 0, False: 1, True: 2}[self._noted.in_two_passes],
            "names": self._order.names,
            "named": self._order.named,
        }

    def note(self, noted: dict[str, Any]) -> None:
        """Go on from what ``noted`` of an equal balancer has given."""
        self._noted = _Noted(
            next_step=noted["next_step"],
            knows_reference=noted["knows_reference"],
            awaits_optimizer=noted["awaits_optimizer"],
            normalized=noted["normalized"],
            in_two_passes={1: False, 2: True}.get(noted["passes"]),
        )
        self._frozen = noted["frozen"]
        self._order.resume(noted["names"] if noted["named"] else None)

    def _backward_by_task(
        self, losses: Sequence[paddle.Tensor], factors: paddle.Tensor, alone: bool
    ) -> tuple[paddle.Tensor, TaskGradients]:
        """Backward of the weighted sum in the form that is cheaper here.

        Args:
            losses: T scalars.
            factors: Their weights, shape [T].
            alone: Whether there is but one process.

        Returns:
            What the losses were multiplied by for the gradients, shape [T], and these.
        """
        names, noted = self._order.names, self._noted
        if noted.in_two_passes is None:
            noted.in_two_passes = two_passes_are_cheaper(losses, self.shared)
        # With several processes the backward pass must be one: paddle.DataParallel averages
        # gradients in the first pass that reaches them, and in no other.
        if noted.in_two_passes or not alone:
            gradients = task_gradients(losses, self.shared, names)
            backward_of_sum(losses, factors, self.shared, names)
            factors = paddle.ones_like(factors)
        else:
            gradients = backward_by_task(losses, factors, self.shared, names)
        return factors, gradients

    @property
    def _weights(self) -> paddle.Tensor:
        """The parameter as it is, not renormalised."""
        return self._parameters["loss_weights"]

    def _forget_host_state(self) -> None:
        """Drop what was noted of steps that a loaded state knows nothing of."""
        self._noted = _Noted()
        # On the host whatever the device (ShieldedLayer), so that reading it waits for nothing.
        self.step_count = self.step_count.cpu()
        self._buffers["_acted"] = self._weights.detach().clone()

    def _current_step(self) -> int:
        step = count_in(self._buffers["step_count"]).value
        if step != self._noted.next_step:  # a state was loaded since, perhaps by an outer layer
            self._forget_host_state()
            self._noted.next_step = step
        return step

    def _count(self, step: int) -> None:
        self._noted.next_step = count_in(self._buffers["step_count"]).value = step + 1

    def _is_update(self, step: int) -> bool:
        return step % self.update_every == 0 and not self._frozen

    def _update(
        self,
        step: int,
        losses: paddle.Tensor,
        gradient_norms: paddle.Tensor,
        in_place: bool,
        loss_scaling: paddle.Tensor | None = None,
    ) -> None:
        weights, rule = self._weights, self.rule
        # Straight in the dict: an attribute of a layer costs more than an operation.
        buffers = self._buffers
        buffers["_gradient_norms"], buffers["_losses"] = gradient_norms, losses
        tensors = (weights, losses, buffers["initial_losses"], gradient_norms)
        noted = self._noted
        lgrad, known = buffers["_grad_norm_loss"], noted.knows_reference
        if self.lr is None:
            assert isinstance(rule, GradNormRule)  # or __init__ would have refused
            self.set_grad()
            gradient = weights.grad if in_place else paddle.zeros_like(weights)
            finite, usable = buffers["_finite"], buffers["_usable"]
            usable = rule.gradient_in_place(*tensors, finite, gradient, lgrad, usable, known)
            if loss_scaling is not None:  # which the scaler divides by
                gradient.copy_(gradient * loss_scaling, False)
            if not in_place:
                weights.grad.set_value(gradient)
            if not noted.awaits_optimizer:  # or they are since the step began
                buffers["_acted"].copy_(weights, False)
                noted.awaits_optimizer = True
            shield(weights)
            if step == _STEPS_TO_MOVE * self.update_every:
                self._check_that_somebody_steps()
        else:
            if weights.grad is not None:
                weights.clear_gradient(False)  # an optimizer that holds them leaves them
            updates = step // self.update_every + 1
            rate = rule.rate_of_update(self.lr, self.update_every)
            rate *= min(1.0, updates / max(1, self.warmup_steps))
            if noted.residuals is None:
                noted.residuals = self._order.indices(self.residuals)
            residuals = noted.residuals
            usable = rule.step_in_place(*tensors, rate, self.floor, residuals, lgrad, known)
        if usable is True:
            noted.knows_reference = True
        else:
            self._observe(self._observation(step, losses, gradient_norms, usable, loss_scaling))

    def _observation(
        self,
        step: int,
        losses: paddle.Tensor,
        gradient_norms: paddle.Tensor,
        usable: Union[bool, paddle.Tensor],
        loss_scaling: paddle.Tensor | None,
    ) -> _Observation:
        largest = largest_norm(losses.dtype) if self.lr is None else math.inf
        finite, scaled = self._buffers["_finite"], loss_scaling is not None
        return _Observation(step, losses, gradient_norms, usable, largest, finite, scaled)

    def _undo_of(self, step: int) -> _Undo:
        initial = self.initial_losses.clone()
        measured = (self._buffers["_gradient_norms"], self._buffers["_losses"])
        flags = (self._noted.knows_reference, self._noted.awaits_optimizer)
        return _Undo(step, self._weights.clone(), initial, measured, flags, None)

    def _put_back(self, undo: _Undo) -> None:
        self._noted.undo = None
        with paddle.no_grad():
            self._hold(undo.weights)
            self.initial_losses.copy_(undo.initial_losses, False)
            self._noted.knows_reference, self._noted.awaits_optimizer = undo.flags
            self._buffers["_gradient_norms"], self._buffers["_losses"] = undo.measured
            self._noted.pool = undo.pool
            self.step_count.fill_(undo.step)
            self._noted.next_step = undo.step

    def _rest(
        self, step: int, losses: Sequence[paddle.Tensor], usable: Union[bool, paddle.Tensor]
    ) -> None:
        """A step without an update: the weights must not move, but faults are seen."""
        gradient = self._weights.grad
        # The optimizer that used the gradient of the last update has zeroed it. Without a
        # gradient it makes no step; with zeros its momentum would. One that is not zero is
        # still to be used, after the last of several backward passes.
        if gradient is not None and (self._frozen or not (gradient != 0).any().item()):
            self._weights.clear_gradient(False)
        if usable is not True:
            values = values_of(losses, self._weights.dtype)
            self._observe(_Observation(step, values, None, usable))

    def _settle(self, a_step_begins: bool = False) -> None:
        """Renormalise after a step of the caller's optimizer; nothing if there was none."""
        self._take_back_overflow()
        if not self._noted.awaits_optimizer or not paddle.in_dynamic_mode():
            return  # the second: an export asks for the state while it builds a program
        if count_in(self._buffers["step_count"]).value != self._noted.next_step:
            return  # a state was loaded since, perhaps by an outer layer
        with paddle.no_grad():
            weights, acted = self._weights, self._buffers["_acted"]
            usable = self._buffers["_usable"]
            if a_step_begins and not self._noted.normalized:
                # The weights given for the first step act in it alone, even if an
                # optimizer (in its warm-up, say) has not moved them.
                off = (weights.sum() - self.n_loss).abs() > 1e-3
                started = paddle.where(off & usable, renormalized(acted, self.floor), acted)
                acted.copy_(started, False)
                self._noted.normalized = True
            settle_in_place(weights, acted, usable, self._buffers["_finite"], self.floor)

    def _take_back_overflow(self) -> None:
        """Undo the last step if the loss scaler has found an overflow in it."""
        scaled = self._noted.scaled
        # The scaler has a new tensor for what it finds in a step's gradients.
        if scaled is not None and scaled.scaler._found_inf is not scaled.found_before:
            self._noted.scaled = None
            if scaled.scaler._found_inf.item() and self._noted.next_step == scaled.undo.step + 1:
                self._put_back(scaled.undo)

    def _hold(self, values: paddle.Tensor) -> None:
        """Make these the weights, and not look like an optimizer's step."""
        self._weights.copy_(values, False)
        self._buffers["_acted"] = values

    def _settle_for_saving(self, state: Any) -> None:
        self._settle()

    def _check_that_somebody_steps(self) -> None:
        weights = self._weights.numpy()
        if (weights == self._start.astype(weights.dtype)).all():
            warnings.warn(
                f"after {_STEPS_TO_MOVE} updates the loss weights are what they were at the "
                "start: no optimizer seems to step them. Build the optimizer with "
                "loss_weights among its parameters, or let them be stepped here (weight_lr= "
                "of GradNorm, lr= of LossBalancer)",
                RuntimeWarning,
                stacklevel=4,
            )

    def _observe(self, observation: _Observation) -> None:
        """Have the step's faults reported: at once, or on an accelerator a step late.

        There it is then a whole backward pass behind in the queue, so that nothing
        waits for the report.
        """
        if self._weights.place.is_cpu_place():
            self._report(observation)
        else:
            if observation.finite is not None:  # which the next step overwrites
                observation = observation._replace(finite=observation.finite.clone())
            late, self._noted.unread = self._noted.unread, observation
            self._report(late)

    def _report(self, observation: _Observation | None) -> None:
        if observation is None:
            return
        usable = observation.usable
        if usable if isinstance(usable, bool) else usable.item():
            # Between updates it says nothing of the reference.
            if observation.gradient_norms is not None:
                self._noted.knows_reference = True
            return
        for name, fault in observation.faults(self._order.names, self.initial_losses):
            if (name, fault) not in self._reported:
                self._reported.add((name, fault))
                warnings.warn(
                    f"step {observation.step}: {name} {fault}; the loss weights stay "
                    "as they are while this lasts",
                    RuntimeWarning,
                    stacklevel=5,
                )


class _Observation(NamedTuple):
    """One update, as it is needed to say afterwards what was wrong with it."""

    step: int
    losses: paddle.Tensor
    gradient_norms: paddle.Tensor | None
    usable: Union[bool, paddle.Tensor]
    largest_norm: float = math.inf
    finite: paddle.Tensor | None = None  # whether the caller's optimizer left the weights so
    scaled: bool = False  # by a scaler, which says itself what overflows

    def faults(self, names: Sequence[str], initial_losses: paddle.Tensor) -> list[tuple[str, str]]:
        found = []
        smallest = smallest_reference(self.losses.dtype)
        if self.finite is not None and not self.finite.item():
            found.append(("the optimizer", "has made the loss weights NaN or infinite"))
        norms = [0.0] * len(names) if self.gradient_norms is None else self.gradient_norms.tolist()
        for name, loss, initial, norm in zip(
            names, self.losses.tolist(), initial_losses.tolist(), norms
        ):
            if not math.isfinite(loss):
                found.append((f"loss {name!r}", f"is {loss}"))
            elif loss < 0:
                found.append((f"loss {name!r}", "is negative and has no training rate"))
            elif loss < smallest and initial == 0:
                size = "0" if loss == 0 else f"below {smallest:.0e}"
                found.append((f"loss {name!r}", f"is {size}, which cannot be the reference L(0)"))
            elif self.scaled:
                continue
            elif not math.isfinite(norm):
                found.append((f"loss {name!r}", f"has a gradient of norm {norm}"))
            elif norm > self.largest_norm:
                limit = f"{self.largest_norm:.0e}, too large for an optimizer to square"
                found.append((f"loss {name!r}", f"has a gradient of norm above {limit}"))
        if found or self.scaled:
            return found
        if not any(self.losses.tolist()):
            return [("GradNorm", "has no training rates where all losses are 0")]
        return [("GradNorm", "finds no finite training rates")]


class _Pool(NamedTuple):
    """Sums over the micro-batches of a step so far, on this process.

    ``rows`` holds for each task its loss and its gradient, shape [T, 1 + shared values].
    """

    parts: int
    rows: paddle.Tensor


@dataclass
class _Noted:
    """What the host has noted of the steps; no attributes of the layer, which are dear to set."""

    next_step: int = -1
    knows_reference: bool = False
    # Whether loss_weights.grad has been written for the caller's optimizer, and whether the
    # weights have summed to n_loss since.
    awaits_optimizer: bool = False
    normalized: bool = False
    in_two_passes: bool | None = None  # None until a step has shown the losses' graphs
    residuals: tuple[int, ...] | None = None  # None until a step has shown the losses' names
    products: paddle.Tensor | None = None  # of the last update's gradients, for a diagnosis
    unread: _Observation | None = None
    pool: _Pool | None = None
    undo: _Undo | None = None
    scaled: _Scaled | None = None


class _Undo(NamedTuple):
    """The state before a step."""

    step: int
    weights: paddle.Tensor
    initial_losses: paddle.Tensor
    measured: tuple[paddle.Tensor, paddle.Tensor]
    flags: tuple[bool, bool]
    pool: _Pool | None


class _Scaled(NamedTuple):
    """A step that is to be taken back if the scaler finds an overflow."""

    scaler: paddle.amp.GradScaler
    found_before: paddle.Tensor
    undo: _Undo


def _loss_scaling(
    scaler: paddle.amp.GradScaler | None, dtype: paddle.dtype
) -> paddle.Tensor | None:
    """What the scaler multiplies losses by, shape [1]; None if it does not act."""
    if scaler is None:
        return None
    if not isinstance(scaler, paddle.amp.GradScaler):
        raise TypeError(f"scaler must be a paddle.amp.GradScaler or None, got {scaler!r}")
    scaling = scaler.scale(paddle.ones([1], "float32"))  # which may find that it must not act
    return scaling.astype(dtype) if scaler.is_enable() else None


def _pooled(pool: _Pool | None, losses: paddle.Tensor, rows: paddle.Tensor) -> _Pool:
    rows = paddle.concat([losses.unsqueeze(1), rows], axis=1)
    return _Pool(1, rows) if pool is None else _Pool(pool.parts + 1, pool.rows + rows)


def _means(pool: _Pool) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Mean losses; norms and inner products of mean gradients; over micro-batches and processes."""
    rows = ranks.mean(pool.rows / pool.parts)
    products = inner_products(rows[:, 1:])
    norms = products.diagonal().sqrt().astype(rows.dtype)
    return rows[:, 0].contiguous(), norms, products


def shared_parameters(shared: Any) -> tuple[paddle.Tensor, ...]:
    """The trainable parameters that ``shared`` names.

    Args:
        shared: A parameter, a layer, or a list or tuple of either.

    Raises:
        TypeError: ``shared`` holds something else.
        ValueError: There is no trainable parameter in it.
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
        found.update({id(p): p for p in parameters if not p.stop_gradient})
    if not found:
        raise ValueError(
            f"shared holds no trainable parameter, got {shared!r}; pass parameters "
            "that every loss depends on and that are trained"
        )
    return tuple(found.values())


def _checked_residuals(
    residuals: Sequence[Union[int, str]], n_loss: int
) -> tuple[Union[int, str], ...]:
    if isinstance(residuals, str) or not isinstance(residuals, Sequence):
        raise TypeError(
            f"residuals must be a list of numbers or names of losses, got {residuals!r}"
        )
    for residual in residuals:
        if not isinstance(residual, str):
            arguments.integer("residuals", residual, at_least=0)
            if residual >= n_loss:
                raise ValueError(f"residuals has {residual}, but n_loss is {n_loss}")
    return tuple(residuals)


def _initial_weights(weight_attr: Sequence[float] | None, n_loss: int, floor: float) -> np.ndarray:
    if weight_attr is None:
        return np.ones(n_loss)
    try:
        weights = np.asarray(weight_attr, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"weight_attr must be a sequence of {n_loss} numbers, got {weight_attr!r}"
        ) from None
    if weights.shape != (n_loss,):
        raise ValueError(f"weight_attr must have n_loss = {n_loss} entries, got {weight_attr!r}")
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"weight_attr must be positive and finite, got {weight_attr!r}")
    smallest = weights.min() * n_loss / weights.sum()
    if smallest < floor:
        raise ValueError(
            f"weight_attr {weight_attr!r}, scaled to sum to n_loss, has a weight of "
            f"{smallest:.3g}, below the floor of {floor:.3g}; pass a smaller floor"
        )
    return weights
