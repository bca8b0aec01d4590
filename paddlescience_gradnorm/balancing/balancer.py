"""LossBalancer: measures a step, asks its rule for the weights, and puts them in place."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np
import paddle

from paddlescience_gradnorm import _arguments, _paddle
from paddlescience_gradnorm._layers import PreciseLayer, on_host, shielded_parameter
from paddlescience_gradnorm.balancing import _equations, _one_pass, _ranks
from paddlescience_gradnorm.balancing._accumulation import Accumulation, BalancerState, loss_scaling
from paddlescience_gradnorm.balancing._caller_stepped import CallerStepped, set_grad
from paddlescience_gradnorm.balancing._diagnosis import diagnose
from paddlescience_gradnorm.balancing._faults import FaultReporter
from paddlescience_gradnorm.balancing._losses import Losses, LossOrder
from paddlescience_gradnorm.balancing._one_pass import overwrite
from paddlescience_gradnorm.balancing._options import (
    Shared,
    checked_rate,
    initial_weights,
    shared_parameters,
)
from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import GradientRule, Rule, RuleState, renormalized
from paddlescience_gradnorm.balancing.rules import find_rule

_log = logging.getLogger("paddlescience_gradnorm")
# A loss below this counts as 0, because a denormal number has too few digits for a reference.
_SMALLEST_LOSS = float(np.finfo(np.float32).tiny)
# A weight above this counts as infinite, because float32 cannot hold it.
_LARGEST_WEIGHT = float(np.finfo(np.float32).max)


class LossBalancer(PreciseLayer):
    """Learns the weights of several losses inside any training loop.

    Source: Chen et al., "GradNorm", ICML 2018, arXiv:1711.02257. The default is ``PinnRule``,
    which keeps the equations' weights near 1. The published rule uses ``weight_attr`` as given in
    the first step; from then on its weights sum to ``n_loss``.

    Args:
        shared: The shared parameters W that every loss depends on: a parameter, a
            layer (all its trainable parameters), or a list of either. Pass the network for
            ``"pinn"``, and usually the weight of the last shared layer for ``"published"``.
        n_loss: Number of losses T, at least 2.
        alpha: Strength of the pull towards equal training rates, at least 0.
        weight_lr: Learning rate of the weights. ``None`` leaves the step to the caller's
            optimizer, which must hold ``loss_weights`` and step after every update. Only rules
            with a gradient, such as the published one, allow ``None``.
        warmup_steps: Number of updates over which the rate grows linearly to ``weight_lr``.
        weight_attr: Weights of the first step, ``n_loss`` positive numbers; all 1 by default.
        update_every: Number of steps from one update of the weights to the next; the other
            steps are plain backward passes. The rule sets the default: 10 for ``"pinn"``, 1
            for ``"published"``.
        floor: The smallest weight allowed, in (0, 1).
        rule: A name, ``"published"`` or ``"pinn"``, or a ``Rule``, which may be your own. By
            default ``"pinn"`` if alpha is not given, and ``"published"`` if it is.
        equations: The losses that are residuals of equations, by number or by name in the dict
            of losses. All others are conditions. Only rules that tell them apart use this.
        **unknown: Not accepted; the error suggests the option that was meant.

    Raises:
        TypeError: An argument is of the wrong type, or an option does not exist.
        ValueError: An argument is out of range, or ``shared`` holds nothing trainable.

    Examples:
        >>> import paddle
        >>> net = paddle.nn.Linear(2, 1)
        >>> optimizer = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
        >>> balancer = LossBalancer(net.weight, n_loss=2, alpha=1.0, weight_lr=0.01)
        >>> for _ in range(3):
        ...     y = net(paddle.ones([4, 2]))
        ...     total = balancer.backward([(y - 1).square().mean(), (9 * y).square().mean()])
        ...     optimizer.step()
        ...     optimizer.clear_grad()
        >>> weights = balancer.get_weights()
        >>> weights.shape, round(float(weights.sum()), 4)
        ((2,), 2.0)
    """

    loss_weights: paddle.Tensor
    step_count: paddle.Tensor

    def __init__(
        self,
        shared: Shared,
        n_loss: int,
        alpha: float | None = None,
        weight_lr: float | None = 0.01,
        warmup_steps: int = 0,
        weight_attr: Sequence[float] | None = None,
        update_every: int | None = None,
        floor: float = 1e-3,
        rule: Union[str, Rule, None] = None,
        equations: Sequence[Union[int, str]] = (0,),
        **unknown: Any,
    ) -> None:
        super().__init__()
        _arguments.refuse("LossBalancer", unknown, type(self).__init__)
        self.n_loss = _arguments.integer("n_loss", n_loss, at_least=2)
        self.rule = find_rule(rule, alpha)
        self.equations = _equations.checked(equations, self.n_loss)
        self.weight_lr = checked_rate(weight_lr, self.rule)
        self.warmup_steps = _arguments.integer("warmup_steps", warmup_steps, at_least=0)
        if weight_lr is None and warmup_steps:
            raise ValueError(
                f"warmup_steps is {warmup_steps}, but weight_lr is None: warm up the rate of "
                "the optimizer that steps loss_weights, or pass weight_lr"
            )
        if update_every is None:
            update_every = self.rule.update_every
        self.update_every = _arguments.integer("update_every", update_every, at_least=1)
        if not 0 < _arguments.number("floor", floor) < 1:
            raise ValueError(f"floor must lie between 0 and 1, got {floor}")
        self.floor = float(floor)
        self.rule.check(self.floor)
        # A tuple, because a Layer would register a bare parameter as its own.
        self.shared = shared_parameters(shared)
        dtype = self.shared[0].dtype
        if dtype not in (paddle.float32, paddle.float64):
            dtype = paddle.float32  # half precision cannot resolve a step of the weights
        start = initial_weights(weight_attr, self.n_loss, self.floor, self.rule)
        self.loss_weights = shielded_parameter(start, dtype)
        # Otherwise paddle.DataParallel waits for a gradient that no backward pass computes.
        self.loss_weights.no_sync = True
        self.register_buffer("step_count", on_host(np.zeros([], np.int64)))
        self._remembered = _registered(self, self.rule, self.n_loss)
        self._run = _Run(
            LossOrder(self.n_loss),
            None if weight_lr is not None else CallerStepped(self.floor, self.loss_weights),
            Measurement(np.full(self.n_loss, np.nan), np.full([self.n_loss] * 2, np.nan), step=-1),
        )
        self.register_state_dict_hook(self._settle_for_saving)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return (
            f"rule={self.rule}, n_loss={self.n_loss}, equations={list(self.equations)}, "
            f"weight_lr={self.weight_lr}, update_every={self.update_every}, floor={self.floor:g}"
        )

    def backward(
        self,
        losses: Losses,
        update: bool = True,
        scale: float = 1.0,
        scaler: paddle.amp.GradScaler | None = None,
    ) -> paddle.Tensor:
        """Run the whole backward pass of the weighted sum, and update the weights.

        This adds the gradient of sum_i w_i L_i to every parameter's ``.grad``. Then it steps the
        weights, or writes ``loss_weights.grad`` for the caller's optimizer if ``weight_lr`` is
        ``None``. The new weights act from the next step on. The losses are detached, which
        frees their graphs.

        In a distributed run (``paddle.distributed.init_parallel_env``) one all-reduce averages
        the losses and their gradients on the shared parameters before norms are taken. So all
        processes have the same weights.

        Args:
            losses: ``n_loss`` scalars: a list or tuple, a 1-D tensor, or a dict
                name -> scalar.
            update: False for all micro-batches of a step but the last. Then k micro-batches of
                n points give the same weights as one batch of k n points.
            scale: Factor of all gradients, such as 1 / k for k micro-batches. It does not
                affect the balancing.
            scaler: Its loss scaling multiplies all gradients. Call ``scaler.step(optimizer)``
                and ``scaler.update()`` as usual. If it finds an overflow, the next method call
                on this object undoes this step.

        Returns:
            The weighted sum, detached, without ``scale`` and loss scaling, shape [].

        Raises:
            TypeError: A loss is not a floating-point tensor, or ``scaler`` is not a
                ``paddle.amp.GradScaler``.
            ValueError: The losses' number or names are wrong, one is not scalar, or one does
                not depend on the shared parameters.

        Warns:
            RuntimeWarning: A loss or its gradient cannot be balanced; once for each loss and
                fault. The loss is left out of the update, but not of the network's gradients.
        """
        run, weights = self._run, self.loss_weights
        scalars = run.order.scalars(losses)
        step: int = (
            self._settle() if run.is_unsettled else _paddle.host_count(self.step_count).value
        )
        due = step % self.update_every == 0 and not run.frozen
        with paddle.no_grad():
            scaling = None if scaler is None else loss_scaling(scaler, weights.dtype)
            multiplier = scale if scaling is None else scaling * scale
            may_not_stand = scaling is not None or scale != 1
            factors = weights * multiplier if may_not_stand else weights
            values = paddle.stack(
                [x if x.dtype == weights.dtype else x.astype(weights.dtype) for x in scalars]
            )
            total, rows = paddle.dot(weights, values), None
            if due and self.rule.needs:
                if run.in_two_passes is None and not any(x.stop_gradient for x in scalars):
                    run.in_two_passes = self._two_passes_are_better(scalars)
                rows = _one_pass.backward_by_loss(
                    scalars, factors, self.shared, run.order.names, bool(run.in_two_passes)
                )
            else:
                _one_pass.backward_of_sum(scalars, factors, self.shared, run.order.names)
            if may_not_stand or not update or (due and paddle.distributed.is_initialized()):
                run.accumulation = run.accumulation or Accumulation()
            if not due:
                run.unchecked = (step, total, values)
                if total.place.is_cpu_place():
                    self._check()
            elif run.accumulation is not None:
                run.accumulation.add(values, rows, multiplier)
                if update:
                    values, rows = run.accumulation.means()
            if update:
                before = self._state() if may_not_stand else None
                if due:
                    is_scaled = scaling is not None or scale > 1  # not for micro-batches
                    self._update(step, values, rows, is_scaled, scaling)
                else:
                    self._rest(step)
                if before is None:
                    run.accumulation = None
                elif run.accumulation is not None:
                    run.accumulation.end_step(before, None if scaling is None else scaler)
        return total

    def step(self, losses: Losses) -> paddle.Tensor:
        """Update the weights only, for a loop that calls backward itself.

        Call it after ``backward(retain_graph=True)`` of the weighted sum and before the
        optimizer's step. It differentiates each loss once more, on the shared parameters only,
        and changes no ``.grad`` except ``loss_weights.grad``. If the caller's optimizer steps
        the weights, call ``settle()`` after it; a ``GradNorm`` does so when it is next called.

        Args:
            losses: As for ``backward``.

        Returns:
            The imbalance that the rule reduces, such as Lgrad, detached, shape []; NaN for a
            rule that defines none. Between updates, the value of the last update.

        Raises:
            RuntimeError: A loss's graph has been freed, or micro-batches of a step are missing.
            TypeError: As for ``backward``.
            ValueError: As for ``backward``.
        """
        run, weights = self._run, self.loss_weights
        scalars = run.order.scalars(losses)
        step = self._settle()
        if run.accumulation is not None and run.accumulation.is_within_a_step:
            raise RuntimeError(
                "step(losses) was called between the micro-batches of backward(losses, "
                "update=False); call backward(losses) for the last of them first"
            )
        due, rows = step % self.update_every == 0 and not run.frozen, None
        if due and self.rule.needs:
            names = run.order.names
            rows = _one_pass.gradients_alone(scalars, weights, self.shared, names)
        with paddle.no_grad():
            weights.clear_gradient(False)  # left by the caller's backward of the weighted sum
            values = paddle.stack([x.astype(weights.dtype) for x in scalars])
            run.accumulation = None  # this step cannot be undone
            if due:
                if paddle.distributed.is_initialized():
                    processes = Accumulation()
                    processes.add(values, rows)
                    values, rows = processes.means()
                self._update(step, values, rows, wants_imbalance=True)
            else:
                run.unchecked = (step, paddle.dot(weights, values), values)
                self._rest(step)
            return paddle.to_tensor(run.imbalance, weights.dtype, weights.place)

    def settle(self) -> None:
        """Settle the weights after a step of the caller's optimizer, in place.

        Only a loop that forms the weighted sum from ``loss_weights`` itself needs to call this,
        because ``backward`` and ``get_weights`` settle the weights too.
        """
        self._settle()

    def get_weights(self) -> np.ndarray:
        """The weights that the next step will use, a copy, shape [n_loss]."""
        self._settle()
        return self.loss_weights.numpy().copy()

    @property
    def alpha(self) -> float | None:
        """The rule's strength of the pull towards equal training rates; None if it has none."""
        return getattr(self.rule, "alpha", None)

    @property
    def rule_state(self) -> dict[str, np.ndarray]:
        """Copies of what the rule remembers, float64."""
        return {name: getattr(self, name).numpy() for name in self._remembered}

    @property
    def last_measurement(self) -> Measurement:
        """The measurement of the last update; NaN, with step -1, before the first."""
        return self._run.last

    @property
    def gradient_norms(self) -> np.ndarray:
        """||g_i|| of the unweighted losses in the last update, shape [n_loss]; NaN before it."""
        return self._run.last.norms.copy()

    @property
    def training_rates(self) -> np.ndarray:
        """Inverse training rates r_i of the last update, shape [n_loss].

        They are NaN before the first update, and for a rule without references L(0).
        """
        initial = self.rule_state.get("initial_losses", np.full(self.n_loss, np.nan))
        with np.errstate(all="ignore"):
            ratios = self._run.last.losses / initial
            return ratios / ratios.mean()

    @property
    def cosines(self) -> np.ndarray:
        """Cosines of the angles between the gradients g_i of the last update.

        Shape [n_loss, n_loss], on the shared parameters. NaN before the first update; 0 for a
        loss without a gradient.
        """
        return self._run.last.cosines.copy()

    def diagnose(self) -> list[str]:
        """Explain the last update in words; an empty list if all is well.

        Raises:
            RuntimeError: There has been no update.
        """
        if self._run.last.step < 0:
            raise RuntimeError("there is nothing to diagnose yet: call backward(losses) first")
        names, weights = self._run.order.names, self.get_weights().astype(np.float64)
        return diagnose(names, weights, self.rule, self.rule_state, self._run.last)

    def take_back(self) -> None:
        """Undo the last step, and let the next ``backward`` add to its micro-batches.

        This is for loops that accumulate gradients and never say which backward is the last
        before the optimizer's step. The last step must have had a ``scale`` other than 1.

        Raises:
            RuntimeError: The last step had no ``scale``, or has been undone already.
        """
        # An accumulation without a step raises the error that there is nothing to undo.
        accumulation = self._run.accumulation or Accumulation()
        self._restore(accumulation.take_back())

    def freeze(self) -> None:
        """Stop updating the weights, such as for a final stage with L-BFGS."""
        self._run.frozen = True

    def unfreeze(self) -> None:
        """Resume updating the weights."""
        self._run.frozen = False

    def set_grad(self) -> None:
        """Give ``loss_weights`` a zero gradient if it has none, so ``grad.set_value`` works."""
        set_grad(self.loss_weights)

    def renormalize(self) -> None:
        """Make weights that were set by hand, or by an optimizer, valid for the rule, in place.

        If the rule keeps the sum of the weights, such as the published one, they are scaled to
        sum to ``n_loss``. For every rule, weights below the floor are raised to it.
        """
        self._take_back_overflow()
        weights = self.loss_weights.numpy().astype(np.float64)
        if self.rule.keeps_sum:
            weights = renormalized(weights, self.floor)
        overwrite(self.loss_weights, np.maximum(weights, self.floor))
        if self._run.caller is not None:
            self._run.caller.acted = self.loss_weights.numpy().astype(np.float64)

    def reset_initial_losses(self) -> None:
        """Forget L(0) and all else that the rule remembers; the next update starts anew."""
        self._take_back_overflow()
        for name, array in self.rule.start(self.n_loss).items():
            overwrite(getattr(self, name), np.asarray(array, np.float64))
        self._run.faults.forget()

    def extra_state(self) -> dict[str, Any]:
        """The state for a checkpoint; see ``PicklableLayer``.

        Raises:
            RuntimeError: A step still awaits micro-batches.
        """
        self._settle()
        run = self._run
        if run.accumulation is not None and run.accumulation.is_within_a_step:
            raise RuntimeError(
                "a checkpoint cannot be made between the micro-batches of a step; make it after "
                "the optimizer's step"
            )
        last = run.last
        gram = np.full([self.n_loss] * 2, np.nan) if last.gram is None else last.gram
        return {
            "frozen": run.frozen,
            "passes": {None: 0, False: 1, True: 2}[run.in_two_passes],
            "names": list(run.order.names),
            "named": run.order.named,
            "imbalance": run.imbalance,
            "last": {"step": last.step, "rate": last.rate, "losses": last.losses, "gram": gram},
            "caller": {} if run.caller is None else run.caller.extra_state(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the ``extra_state`` of an equal balancer."""
        run = self._run
        run.order.resume(state["names"] if state["named"] else None)
        if run.caller is not None:
            run.caller.set_extra_state(state["caller"])
        last = state["last"]
        if not self.rule.needs:
            last = {**last, "gram": None}
        if last["step"] >= 0:  # otherwise the names are not known
            are_equations = _equations.are_equations(self.equations, run.order.names)
            last = {**last, "equations": np.array(are_equations)}
        self._run = _Run(
            run.order,
            run.caller,
            Measurement(**last, interval=self.update_every, floor=self.floor),
            frozen=state["frozen"],
            in_two_passes={1: False, 2: True}.get(state["passes"]),
            imbalance=state["imbalance"],
        )

    def set_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights, rule state and step count; see ``paddle.nn.Layer.set_state_dict``."""
        self.discard_micro_batches()
        return super().set_state_dict(self._in_double(state_dict), *args, **kwargs)

    def discard_micro_batches(self) -> None:
        """Forget the micro-batches of a step that will not be finished, and how to undo a step.

        Call it if you leave a step between ``backward(losses, update=False)`` and its last
        micro-batch. Loading a state dict does so too.
        """
        run = self._run
        run.accumulation = run.unchecked = None
        if run.caller is not None:
            run.caller.awaited = -1

    set_dict = set_state_dict
    load_dict = set_state_dict

    def _in_double(self, state_dict: Any, prefix: str = "") -> dict[str, Any]:
        """The state dict with the rule's arrays as float64, which version 0.1 did not use."""
        remembered = {prefix + name for name in self._remembered}
        return {
            key: np.asarray(value, np.float64) if key in remembered else value
            for key, value in state_dict.items()
        }

    def _settle(self) -> int:
        """Handle what has happened since the last step; return the number of the next one.

        A scaler may have found an overflow, or the caller's optimizer may have stepped. On an
        accelerator, losses between updates are checked only now, so that it need not wait.
        """
        if not paddle.in_dynamic_mode():
            return -1  # an export reads the state while it builds a program
        run = self._run
        self._take_back_overflow()
        step: int = self.step_count.item()
        if run.caller is not None and not run.caller.settle(self.loss_weights, step):
            fault = "has made the loss weights NaN or infinite"
            consequence = "they are put back to what acted last"
            run.faults.report(step, "the optimizer", fault, consequence=consequence)
        self._check()
        return step

    def _take_back_overflow(self) -> None:
        """Undo the last step if the scaler has found an overflow in it."""
        if self._run.accumulation is not None:
            before = self._run.accumulation.take_back_overflow()
            # Otherwise a state has been loaded since.
            if before is not None and self.step_count.item() == before.step + 1:
                self._restore(before)

    def _check(self) -> None:
        """Report losses that were NaN or infinite in a step between updates."""
        run = self._run
        if run.unchecked is not None:
            (step, total, values), run.unchecked = run.unchecked, None
            if not math.isfinite(total.item()):
                for name, loss in zip(run.order.names, values.numpy().tolist()):
                    if not math.isfinite(loss):
                        run.faults.report(step, f"loss {name!r}", f"is {loss}")

    def _update(
        self,
        step: int,
        values: paddle.Tensor,
        rows: _one_pass.Rows | None,
        is_scaled: bool = False,
        scaling: paddle.Tensor | None = None,
        wants_imbalance: bool = False,
    ) -> None:
        """Put the rule's weights in place and count the step."""
        run, rule, loss_weights = self._run, self.rule, self.loss_weights
        numbers, weights = _one_pass.measured(values, loss_weights, rows, rule.needs)
        if run.equations is None:
            run.equations = np.array(_equations.are_equations(self.equations, run.order.names))
            self._announce(run.equations)
        rate = math.nan if self.weight_lr is None else self.weight_lr
        if self.warmup_steps:
            rate *= min(1.0, (step // self.update_every + 1) / self.warmup_steps)
        measurement = Measurement(
            **numbers,
            equations=run.equations,
            step=step,
            interval=self.update_every,
            rate=rate,
            floor=self.floor,
        )
        before, caller = self.rule_state, run.caller
        largest_norm = None if caller is None else caller.largest_norm
        new, state, good = updated(rule, weights, before, measurement, largest_norm, is_scaled)
        if not good.all() and scaling is None:  # a scaler reports overflows itself
            self._report(step, measurement)
        if caller is not None:
            caller.offer(loss_weights, new, weights, good, step + 1, scaling)
        else:
            if loss_weights.grad is not None:
                loss_weights.clear_gradient(False)  # so that no optimizer steps them
            overwrite(loss_weights, new)
        for name, array in state.items():
            if array is not before[name]:
                overwrite(getattr(self, name), array)
        if wants_imbalance:
            some = _only(good, weights, state, measurement)
            run.imbalance = rule.imbalance(*some) if good.any() else math.nan
        run.last = measurement
        _paddle.host_count(self.step_count).value = step + 1

    def _rest(self, step: int) -> None:
        """Count a step without an update, in which the weights must not move."""
        run = self._run
        if run.caller is not None:
            run.caller.rest(self.loss_weights, step, run.frozen)
        elif self.loss_weights.grad is not None:
            self.loss_weights.clear_gradient(False)
        _paddle.host_count(self.step_count).value = step + 1

    def _state(self) -> BalancerState:
        """Everything that a step may change."""
        weights = self.loss_weights.numpy().astype(np.float64)
        return BalancerState(self.step_count.item(), weights, self.rule_state, self._run.last)

    def _restore(self, before: BalancerState) -> None:
        """Restore this state."""
        if self._run.caller is None:
            overwrite(self.loss_weights, before.weights)
        for name, array in before.rule.items():
            overwrite(getattr(self, name), array)
        self._run.last = before.last
        _paddle.host_count(self.step_count).value = before.step

    def _settle_for_saving(self, state: Any) -> None:
        self._settle()

    def _two_passes_are_better(self, losses: Sequence[paddle.Tensor]) -> bool:
        # With several processes there must be only one backward pass, because
        # paddle.DataParallel averages gradients only in the first pass that reaches them.
        return _ranks.number() > 1 or _one_pass.two_passes_are_cheaper(losses, self.shared)

    def _report(self, step: int, measurement: Measurement) -> None:
        """Warn of losses that cannot be balanced, once for each loss and fault."""
        run = self._run
        largest_norm = None if run.caller is None else run.caller.largest_norm
        names = run.order.names
        faults = [fault_of(self.rule, measurement, i, largest_norm) for i in range(self.n_loss)]
        for name, fault in zip(names, faults):
            if fault:
                run.faults.report(step, f"loss {name!r}", fault)
        if not any(faults):
            run.faults.report(step, str(self.rule), "gives no finite weights")

    def _announce(self, are_equations: np.ndarray) -> None:
        """Log the rule, its pace and the losses that it balances."""
        names = np.array(self._run.order.names)
        groups = {"losses": names}
        if self.rule.tells_equations:
            groups = {"equations": names[are_equations], "conditions": names[~are_equations]}
        losses = "; ".join(
            f"{kind} {', '.join(map(repr, group.tolist()))}"
            for kind, group in groups.items()
            if len(group)
        )
        pace = "in every step" if self.update_every == 1 else f"every {self.update_every} steps"
        _log.info("loss weights by %s, updated %s: %s", self.rule, pace, losses)


@dataclass
class _Run:
    """What changes from step to step besides parameters and buffers.

    It is a separate object, because setting an attribute of a layer takes 5 us.
    """

    order: LossOrder
    caller: CallerStepped | None  # None: the balancer steps the weights itself
    last: Measurement  # of the last update
    frozen: bool = False
    in_two_passes: bool | None = None  # None until a step has shown the losses' graphs
    equations: np.ndarray | None = None  # None until a step has shown the losses' names
    accumulation: Accumulation | None = None
    imbalance: float = math.nan  # of the last update by step()
    # Number, total and losses of a step between updates, until they have been checked.
    unchecked: tuple[int, paddle.Tensor, paddle.Tensor] | None = None

    faults: FaultReporter = field(
        default_factory=lambda: FaultReporter("it is left out of the balancing while this lasts")
    )

    @property
    def is_unsettled(self) -> bool:
        """Whether there may be anything for ``LossBalancer._settle`` to do."""
        return not (self.caller is None and self.accumulation is None and self.unchecked is None)


def updated(
    rule: Rule,
    weights: np.ndarray,
    state: RuleState,
    measurement: Measurement,
    largest_norm: float | None = None,
    is_scaled: bool = False,
) -> tuple[np.ndarray, RuleState, np.ndarray]:
    """Apply a rule to the losses that can be balanced; the others keep their weights.

    Args:
        rule: The rule.
        weights: The current weights, shape [T].
        state: What the rule remembers.
        measurement: The measurement of this step, which may hold NaN and infinity.
        largest_norm: None to get weights. To get a gradient for the caller's optimizer: the
            largest norm that it can square.
        is_scaled: Whether the gradients are scaled. Then a gradient that is not finite is an
            overflow, and nothing is balanced, because the step will not count.

    Returns:
        The new weights, or the gradient, shape [T], which is 0 where a weight must not move; the
        new state; and which losses have been balanced, boolean, shape [T].

    Raises:
        ValueError: The rule returns weights of the wrong shape.
    """
    least = _SMALLEST_LOSS if rule.needs_positive_losses else -math.inf
    most = math.inf if largest_norm is None else largest_norm
    # Python numbers, because each numpy operation takes 5 us after a network's pass.
    losses, norms = measurement.losses.tolist(), measurement.norms.tolist()
    finite = [math.isfinite(loss) for loss in losses]
    good = [is_finite and loss >= least for is_finite, loss in zip(finite, losses)]
    overflows = False
    if rule.needs:
        overflows = any(f and not math.isfinite(norm) for f, norm in zip(finite, norms))
        good = [is_good and 0 < norm < most for is_good, norm in zip(good, norms)]
    stays = weights if largest_norm is None else np.zeros_like(weights)
    # The conditions have no reference if no equation can be balanced.
    equations = measurement.equations.tolist()
    lacks_equation = rule.tells_equations and any(equations) and not any(map(min, equations, good))
    if sum(good) < 2 or lacks_equation or (is_scaled and overflows):
        return stays, state, np.zeros(len(good), bool)
    which, whole = np.array(good), all(good)
    some, share = (weights, state, measurement), 1.0
    if not whole:
        some = _only(which, *some)
        if rule.keeps_sum:  # the sum of these weights stays the same
            share = len(some[0]) / some[0].sum()
            floor = measurement.floor * share
            if floor > 1 - 1e-9:  # all of them are on the floor
                return stays, state, np.zeros(len(good), bool)
            some = (some[0] * share, some[1], dataclasses.replace(some[2], floor=floor))
    if largest_norm is None:
        new, new_state = rule.weigh(*some)
        limit = _LARGEST_WEIGHT
    else:
        assert isinstance(rule, GradientRule)  # as checked_rate ensures
        _, new, new_state = rule.gradient(*some)
        limit = math.inf
    if np.shape(new) != some[0].shape:
        raise ValueError(f"{rule} must give {len(some[0])} weights, got {new!r}")
    values = np.asarray(new, np.float64).tolist()
    if largest_norm is None:
        values = [max(value / share, measurement.floor) for value in values]  # NaN stays NaN
    if not all(abs(value) < limit for value in values):
        return stays, state, np.zeros(len(good), bool)
    if new_state is not some[1]:
        _check_state(rule, new_state, some[1])
    if whole:
        return np.array(values), new_state, which
    all_new = stays.copy()
    all_new[which] = values
    return all_new, {k: _spread(which, new_state[k], old) for k, old in state.items()}, which


def fault_of(rule: Rule, measurement: Measurement, i: int, largest_norm: float | None) -> str:
    """Why loss i cannot be balanced; empty if it can. Arguments are as for ``updated``."""
    loss = measurement.losses[i]
    if not math.isfinite(loss):
        return f"is {loss}"
    if rule.needs_positive_losses and loss < _SMALLEST_LOSS:
        if loss < 0:
            return "is negative and has no training rate"
        return f"is {loss:.3g} and has no training rate"
    norm = measurement.norms[i]
    if not rule.needs or measurement.gram is None:
        return ""
    if not math.isfinite(norm):
        return f"has a gradient of norm {norm}"
    if norm == 0:
        return "has no gradient on the shared parameters"
    if largest_norm is not None and norm >= largest_norm:
        most = f"{largest_norm:.0e}"
        return f"has a gradient of norm above {most}, too large for an optimizer to square"
    return ""


def _check_state(rule: Rule, new: RuleState, old: RuleState) -> None:
    """Raise a ``ValueError`` if a rule returns other names or shapes than it has been given."""
    shapes, expected = ({name: np.shape(x) for name, x in s.items()} for s in (new, old))
    if shapes != expected:
        raise ValueError(f"{rule} must return a state of shapes {expected}, got {shapes}")


def _only(
    which: np.ndarray, weights: np.ndarray, state: RuleState, measurement: Measurement
) -> tuple[np.ndarray, RuleState, Measurement]:
    """A rule's arguments for some losses only; ``which`` is boolean, shape [T]."""
    of_state = {name: array[which] if array.ndim else array for name, array in state.items()}
    return weights[which], of_state, measurement.of(which)


def _spread(which: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The array of all losses, with new values for the losses in ``which``."""
    if not old.ndim:
        return new
    spread = old.copy()
    spread[which] = new
    return spread


def _registered(layer: paddle.nn.Layer, rule: Rule, n_loss: int) -> tuple[str, ...]:
    """Register what the rule remembers as buffers of the layer; return their names."""
    start = rule.start(n_loss)
    for name, array in start.items():
        array = np.asarray(array, np.float64)
        if array.ndim and len(array) != n_loss:
            raise ValueError(
                f"{rule} must remember arrays of shape [{n_loss}, ...] or [], but start() gives "
                f"{name!r} of shape {list(array.shape)}"
            )
        if hasattr(layer, name):
            raise ValueError(f"{rule} must not remember {name!r}, a name that a balancer has")
        layer.register_buffer(name, on_host(array))
    return tuple(start)
