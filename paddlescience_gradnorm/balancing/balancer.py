"""LossBalancer: measures a step, asks its rule for the weights, and puts them in place."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import paddle

from paddlescience_gradnorm import _arguments, _paddle
from paddlescience_gradnorm._layers import PreciseLayer, on_host, shielded_parameter
from paddlescience_gradnorm.balancing import _equations, _one_pass, _ranks
from paddlescience_gradnorm.balancing._accumulation import BalancerState, loss_scaling
from paddlescience_gradnorm.balancing._caller_stepped import CallerStepped, set_grad
from paddlescience_gradnorm.balancing._diagnosis import announcement, diagnose
from paddlescience_gradnorm.balancing._faults import FaultReporter, warn_the_caller
from paddlescience_gradnorm.balancing._losses import Losses, LossOrder, count
from paddlescience_gradnorm.balancing._one_pass import overwrite
from paddlescience_gradnorm.balancing._options import (
    Shared,
    checked_rate,
    given_weights,
    initial_weights,
    shared_parameters,
    warn_of_holding,
)
from paddlescience_gradnorm.balancing._run import Run
from paddlescience_gradnorm.balancing._schedule import Schedule
from paddlescience_gradnorm.balancing._update import Update, only_of, updated
from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, renormalized
from paddlescience_gradnorm.balancing.rules import find_rule
from paddlescience_gradnorm.balancing.rules._rates import inverse_training_rates

_log = logging.getLogger("paddlescience_gradnorm")
# After how many updates without enough losses a user is told.
_IDLE = 20


class LossBalancer(PreciseLayer):
    """Learns the weights of several losses inside any training loop.

    Source: Chen et al., "GradNorm", ICML 2018, arXiv:1711.02257. The default is ``PinnRule``,
    which keeps the equations' weights near 1. The published rule uses ``weight_attr`` as given in
    the first step; from then on its weights sum to ``n_loss``.

    Args:
        shared: The shared parameters W that every loss depends on: a parameter, a
            layer (all its trainable parameters), or a list of either. Pass the network for
            ``"pinn"``, and usually the weight of the last shared layer for ``"published"``.
        n_loss: Number of losses T, at least 2. By default the first step tells it, or a checkpoint
            that is loaded before. With ``weight_lr=None`` it must be given.
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
            of losses. All others are conditions. Only rules that tell them apart use this, such as
            ``"pinn"``. By default the names of the losses decide, such as ``pde`` and
            ``boundary``; if one of them leaves doubt, the first step raises an error.
        absent: What happens if a dict lacks a loss. ``"error"`` raises an error. ``"skip"`` leaves
            the loss out of this step; then losses may also join later, up to ``n_loss``.
        total_steps: Number of steps of the whole run, at least 1. ``"pinn"`` gives conditions
            their lead late in the run, if it knows how long that is. A ``Trainer``, a Solver and
            DeepXDE's ``model.train`` tell it. In a loop of your own pass it here. Without it the
            lead acts from the start if there is one equation. If there are several, only measured
            data have one.
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
        n_loss: int | None = None,
        alpha: float | None = None,
        weight_lr: float | None = 0.01,
        warmup_steps: int = 0,
        weight_attr: Sequence[float] | None = None,
        update_every: int | None = None,
        floor: float = 1e-3,
        rule: Union[str, Rule, None] = None,
        equations: Sequence[Union[int, str]] | None = None,
        absent: str = "error",
        total_steps: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        _arguments.refuse("LossBalancer", unknown, type(self).__init__)
        if n_loss is None and weight_attr is not None:
            n_loss = len(given_weights(weight_attr))
        self.n_loss = None if n_loss is None else _arguments.integer("n_loss", n_loss, at_least=2)
        self.rule = find_rule(rule, alpha)
        self.equations = _equations.checked(equations, self.n_loss)
        if absent not in ("error", "skip"):
            raise ValueError(f"absent must be 'error' or 'skip', got {absent!r}")
        self.absent = absent
        self.warmup_steps = _arguments.integer("warmup_steps", warmup_steps, at_least=0)
        self.weight_lr = checked_rate(weight_lr, self.rule, self.n_loss, self.warmup_steps)
        if update_every is None:
            update_every = self.rule.update_every
        self.update_every = _arguments.integer("update_every", update_every, at_least=1)
        if not 0 < _arguments.number("floor", floor) < 1:
            raise ValueError(f"floor must lie between 0 and 1, got {floor}")
        self.floor = float(floor)
        self.rule.check(self.floor)
        # A tuple, because a Layer would register a bare parameter as its own.
        self.shared = shared_parameters(shared)
        self._starts_by_rule = weight_attr is None
        self.register_buffer("step_count", on_host(np.zeros([], np.int64)))
        self._remembered: tuple[str, ...] = ()
        self._faults = FaultReporter("it is left out of the balancing while this lasts")
        self._schedule = Schedule(self.rule, self._faults)
        self._schedule.give(total_steps)
        self._run = Run.before_a_step(LossOrder(0))
        if self.n_loss is not None:
            self._make_weights(initial_weights(weight_attr, self.n_loss, self.floor, self.rule))
        self.register_state_dict_hook(self._settle_for_saving)

    def set_n_loss(self, n_loss: int) -> None:
        """Make the weights of ``n_loss`` losses, if the number has not been given before.

        The first step does so by itself. Call this to read or save the weights before it.

        Raises:
            TypeError: ``n_loss`` is no integer.
            ValueError: It is below 2, or another number has been given.
        """
        _arguments.integer("n_loss", n_loss, at_least=2)
        if self.n_loss is None:
            self.equations = _equations.checked(self.equations, n_loss)
            reason = f"n_loss is {n_loss} (the first step had so many: pass n_loss=)"
            self._make_weights(np.ones(n_loss), reason)
            self.n_loss = n_loss
        elif n_loss != self.n_loss:
            raise ValueError(f"n_loss is {self.n_loss} already, got {n_loss}")

    def _make_weights(self, start: np.ndarray, reason: str | None = None) -> None:
        warn_of_holding(self.rule, self.update_every, len(start))
        dtype = self.shared[0].dtype
        if dtype not in (paddle.float32, paddle.float64):
            dtype = paddle.float32  # half precision cannot resolve a step of the weights
        self.loss_weights = shielded_parameter(start, dtype)
        # Otherwise paddle.DataParallel waits for a gradient that no backward pass computes.
        self.loss_weights.no_sync = True
        n_loss = len(start)
        self.register_buffer("missed", on_host(np.zeros(n_loss, np.int64)))
        self._remembered = _registered(self, self.rule, n_loss)
        self._run = Run.before_a_step(
            LossOrder(n_loss, reason, self.absent),
            CallerStepped(self.floor, self.loss_weights) if self.weight_lr is None else None,
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "loss_weights" and "n_loss" in self.__dict__ and self.n_loss is None:
                raise AttributeError(
                    "there are no loss_weights yet, because backward(losses) has not been called, "
                    "and the first call tells how many losses there are. Does the loop still call "
                    "backward() of a sum of the losses? For weights before the first step, pass "
                    "n_loss="
                ) from None
            raise

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        equations = None if self.equations is None else list(self.equations)
        weights = ""
        if self._run.order.known:  # after the first step
            named = zip(self._run.order.names, self.loss_weights.tolist())
            weights = f", weights: {', '.join(f'{name} {weight:.3g}' for name, weight in named)}"
        return (
            f"rule={self.rule}, n_loss={self.n_loss}, equations={equations}, "
            f"weight_lr={self.weight_lr}, update_every={self.update_every}, floor={self.floor:g}"
            + weights
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

        A rule that combines gradients, such as ConFIG, adds sum_i c_i g_i to the ``.grad`` of the
        shared parameters. Its coefficients c act at once, and are the new weights. All other
        parameters get the gradient of the plain sum of the losses. A loss that is left out has its
        last coefficient. With micro-batches the last one adds the gradient.

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
            The weighted sum, detached, without ``scale`` and loss scaling, shape []. It is that of
            the weights that acted in this step.

        Raises:
            TypeError: A loss is not a floating-point tensor, or ``scaler`` is not a
                ``paddle.amp.GradScaler``.
            ValueError: The losses' number or names are wrong, or one is not scalar. The rule has to
                know which losses are equations, and their names leave doubt. No loss has a graph,
                or none depends on the shared parameters. The micro-batches of a step whose
                gradients are combined have different scales.
            RuntimeError: A loss's graph has been used before.

        Warns:
            RuntimeWarning: A loss cannot be balanced, once for each loss and fault. The update
                leaves it out, but its gradient still reaches the network.
        """
        step, due, scalars, values = self._begin(losses)
        run, weights, rows, before_pass = self._run, self.loss_weights, None, None
        with paddle.no_grad():
            scaling = None if scaler is None else loss_scaling(scaler, weights.dtype)
            multiplier = scale if scaling is None else scaling * scale
            may_not_stand = scaling is not None or scale != 1
            if may_not_stand and not isinstance(scale, paddle.Tensor):
                _check_scale(scale)
            combines = due and self.rule.acts_now
            factors = paddle.ones_like(weights) if combines else weights
            if may_not_stand:
                factors = factors * multiplier
            total, names = paddle.dot(weights, values), run.order.names
            if combines:
                run.accumulation.expect(scale)
                before_pass = _one_pass.gradients_of(self.shared, weights.dtype)
            if combines or (due and self.rule.needs):
                if run.in_two_passes is None:
                    run.in_two_passes = _one_pass.two_passes_are_better(scalars, self.shared)
                rows = _one_pass.backward_by_loss(
                    scalars, factors, self.shared, names, bool(run.in_two_passes)
                )
            else:
                # In the second step a graph that was built before the loop is gone.
                one_by_one = step == 1 and run.in_two_passes is False
                _one_pass.backward_of_sum(scalars, factors, names, one_by_one)
            if due:
                run.accumulation.add(values, rows, multiplier)
            elif values.place.is_cpu_place():
                self._check(step, values)
            else:
                run.unchecked = (step, values)
            if update:
                before = self._state() if may_not_stand else None
                is_scaled = scaling is not None or scale > 1  # not for micro-batches
                self._end(step, due, scalars, before, scaler, scaling, is_scaled, before_pass)
                if combines:
                    total = paddle.dot(weights, values)
            elif before_pass is not None:
                _one_pass.overwrite_gradients(self.shared, before_pass)
        return total

    def step(self, losses: Losses) -> paddle.Tensor:
        """Update the weights only, for a loop that calls backward itself.

        Call it after ``backward(retain_graph=True)`` of the weighted sum and before the
        optimizer's step. It differentiates each loss once more, on the shared parameters only,
        and changes no ``.grad`` except ``loss_weights.grad``. If the caller's optimizer steps the
        weights, call ``settle()`` after the optimizer's step. A ``GradNorm`` does that itself when
        it is next called.

        Args:
            losses: As for ``backward``.

        Returns:
            The imbalance that the rule reduces, such as Lgrad, detached, shape []. It is NaN if
            the rule defines none. Between updates it is the value of the last update.

        Raises:
            RuntimeError: A loss's graph has been freed, micro-batches of a step are missing, or the
                rule combines the gradients of ``backward``.
            TypeError: As for ``backward``.
            ValueError: As for ``backward``.
        """
        if self.rule.acts_now:
            raise RuntimeError(
                f"step(losses) updates the weights alone, but {self.rule} combines gradients: call "
                "backward(losses) in place of your own backward pass and step(losses)"
            )
        step, due, scalars, values = self._begin(losses)
        run, weights, rows = self._run, self.loss_weights, None
        if run.accumulation.is_within_a_step:
            raise RuntimeError(
                "step(losses) was called between the micro-batches of backward(losses, "
                "update=False); call backward(losses) for the last of them first"
            )
        if due and self.rule.needs:
            rows = _one_pass.gradients_alone(scalars, weights, self.shared, run.order.names)
        with paddle.no_grad():
            weights.clear_gradient(False)  # left by the caller's backward of the weighted sum
            if due:
                run.accumulation.add(values, rows)
            else:
                run.unchecked = (step, values)
            ended = self._end(step, due, scalars)  # without a state, so it cannot be undone
            if ended is not None:
                acted, update = ended
                some = only_of(update.balanced, acted, update.state, run.last)
                run.imbalance = self.rule.imbalance(*some) if update.balanced.any() else math.nan
            return paddle.to_tensor(run.imbalance, weights.dtype, weights.place)

    def settle(self) -> None:
        """Settle the weights after a step of the caller's optimizer, in place.

        Only a loop that forms the weighted sum from ``loss_weights`` itself needs to call this,
        because ``backward`` and ``get_weights`` settle the weights too.
        """
        self._settle()

    def get_weights(self) -> np.ndarray:
        """The weights that the next step will use, a copy, shape [n_loss].

        By a rule that combines gradients they are the coefficients of the last combination, some of
        which may be negative. They act where there is no new one: between updates, and when frozen.
        """
        self._settle()
        return self.loss_weights.numpy().copy()

    @property
    def acted_weights(self) -> Union[np.ndarray, paddle.Tensor]:
        """The weights that acted in the last step, a copy, shape [n_loss].

        It is a tensor unless they have been read in this step already, so that an accelerator need
        not wait. Before an optimizer of the caller's steps the weights they are those of this step.
        """
        acted = self._run.acted
        return self.loss_weights.detach().clone() if acted is None else acted.copy()

    @property
    def alpha(self) -> float | None:
        """The rule's strength of the pull towards equal training rates; None if it has none."""
        return getattr(self.rule, "alpha", None)

    @property
    def total_steps(self) -> int | None:
        """Number of steps of the whole run; None if it is not known.

        A number that you give, here or at first, stays. None asks for that of the next ``fit``.
        """
        return self._schedule.total_steps

    @total_steps.setter
    def total_steps(self, total_steps: int | None) -> None:
        self._schedule.give(total_steps)

    def _expect_steps(self, left: int | None) -> None:
        """Take over from what drives the run how many steps are to come; None if it cannot know."""
        count = _paddle.host_count(self.step_count).value
        self._schedule.plan(None if left is None else count + left)
        said = self._run.said and self._announcement()
        if said != self._run.said:  # such as because a training in several parts goes on
            steps, self._run.said = self._schedule.total_steps, said
            _log.info("%s: %s", f"the run has {steps} steps now" if steps else "from now on", said)

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

        They are NaN before the first update, and where there is no reference L(0).
        """
        losses = self._run.last.losses
        initial = self.rule_state.get("initial_losses", np.full(len(losses), np.nan))
        known = (initial > 0) & np.isfinite(losses)
        rates = np.full(len(losses), np.nan)
        if known.any():
            rates[known] = inverse_training_rates(losses[known], initial[known])
        return rates

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
        run, weights = self._run, self.get_weights().astype(np.float64)
        # A batch without points leaves a loss out once. Twice in succession is worth a finding.
        left_out = self._schedule.left_out
        lasting = {n: reason for n, reason in left_out.items() if reason[0] < run.last.step}
        names = run.order.names
        found = diagnose(names, weights, self.rule, self.rule_state, run.last, lasting)
        never = [n for n in self.equations or () if isinstance(n, str) and n not in names]
        if never:
            found.append(
                f"equations names {', '.join(map(repr, never))}, but the losses so far are "
                f"{', '.join(map(repr, run.order.known))}, and those that are not named count as "
                "conditions. Check the spelling."
            )
        return found

    def take_back(self) -> None:
        """Undo the last step, and let the next ``backward`` add to its micro-batches.

        This is for loops that accumulate gradients and never say which ``backward`` is the last
        one before the optimizer's step. The last step must have had a ``scale`` other than 1.

        Raises:
            RuntimeError: The last step had no ``scale``, or has been undone already.
        """
        accumulation = self._run.accumulation
        around = accumulation.around
        self._restore(accumulation.take_back())
        if around is not None:
            before, after = around
            now = _one_pass.gradients_of(self.shared, self.loss_weights.dtype)
            # Others may have added to the gradients since.
            _one_pass.overwrite_gradients(self.shared, before + (now - after))

    def freeze(self) -> None:
        """Stop updating the weights, such as for a final stage with L-BFGS.

        Of a rule that combines gradients the last coefficients stay, as weights.

        Warns:
            RuntimeWarning: One of these is negative, so the network climbs that loss.
        """
        if self.rule.acts_now and self.n_loss is not None and not self._schedule.frozen:
            order, weights = self._run.order, self.get_weights().tolist()
            stay = ", ".join(f"{name!r} {weight:.3g}" for name, weight in zip(order.names, weights))
            _log.info(
                "%s combines no gradients from now on: the last coefficients stay as weights (%s)",
                self.rule,
                stay,
            )
            if min(weights) < 0:
                warn_the_caller(
                    f"the last coefficients of {self.rule} stay as weights ({stay}), and the "
                    "network climbs a loss whose weight is negative: call renormalize(), which "
                    "raises it to the floor, or set loss_weights"
                )
        self._schedule.frozen = True

    def unfreeze(self) -> None:
        """Resume updating the weights."""
        self._schedule.frozen = False

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
        if self.n_loss is None:
            return
        self._take_back_overflow()
        for name, array in self.rule.start(len(self._run.last.losses)).items():
            overwrite(getattr(self, name), np.asarray(array, np.float64))
        self._faults.forget()

    def extra_state(self) -> dict[str, Any]:
        """The state for a checkpoint; see ``PicklableLayer``.

        Raises:
            RuntimeError: A step still awaits micro-batches.
        """
        self._settle()
        if self._run.accumulation.is_within_a_step:
            raise RuntimeError(
                "a checkpoint cannot be made between the micro-batches of a step; make it after "
                "the optimizer's step"
            )
        return {"frozen": self._schedule.frozen, **self._run.extra_state()}

    def expect_extra_state(self, state: dict[str, Any]) -> None:
        """Take the number of losses from a state that is to be loaded, if it is not known."""
        names = state.get("names") if isinstance(state, dict) else None
        # Who loads the state finds out what is wrong with another one.
        if self.n_loss is None and isinstance(names, list) and names:
            self.set_n_loss(len(names))

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the ``extra_state`` of an equal balancer."""
        self._faults.forget()
        self._schedule.resume(state["frozen"])
        self._run = self._run.resumed(state, bool(self.rule.needs), self.update_every, self.floor)

    def set_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights, rule state and step count; see ``paddle.nn.Layer.set_state_dict``."""
        return super().set_state_dict(self._completed(state_dict), *args, **kwargs)

    def discard_micro_batches(self) -> None:
        """Forget the micro-batches of a step that will not be finished, and how to undo a step.

        Call it if you abandon a step after ``backward(losses, update=False)``, before its last
        micro-batch. Loading a state dict does the same.
        """
        self._run.discard_step()
        self._schedule.forget_step()

    set_dict = set_state_dict
    load_dict = set_state_dict

    def _completed(self, state_dict: Any, prefix: str = "") -> dict[str, Any]:
        """A balancer's state dict as this version writes it; also prepares for loading it.

        Version 0.1 wrote the rule's arrays in float32, and not all of them.
        """
        weights = state_dict.get(prefix + "loss_weights")
        if weights is None:
            return dict(state_dict)
        if self.n_loss is None:
            self.set_n_loss(len(weights))
        self.discard_micro_batches()
        self._run.order.whole_first = not self._run.order.known
        completed = {prefix + "missed": np.zeros(len(weights), np.int64), **state_dict}
        for name, array in self.rule.start(len(weights)).items():
            key = prefix + name
            completed[key] = np.asarray(state_dict.get(key, array), np.float64)
        own = {prefix + name for name in self.state_dict()}
        others = [key for key in completed if key.startswith(prefix) and key not in own]
        if others:
            warn_the_caller(
                f"the state dict holds {', '.join(map(repr, others))}, which {self.rule} does not "
                "have: it is that of another rule. Its weights are loaded, and this rule begins "
                "anew with what it lacks"
            )
        return completed

    def _settle(self) -> None:
        """Handle what has happened since the last step.

        A scaler may have found an overflow, or the caller's optimizer may have stepped. On an
        accelerator, losses between updates are checked only now, because reading them at once
        would make the step wait for them.
        """
        if not paddle.in_dynamic_mode():
            return  # an export reads the state while it builds a program
        self._take_back_overflow()
        caller = self._run.caller
        if caller is not None:
            step: int = self.step_count.item()
            if not caller.settle(self.loss_weights, step):
                fault = "has made the loss weights NaN or infinite"
                consequence = "they are put back to what acted last"
                self._faults.report(step, "the optimizer", fault, consequence=consequence)
        if self._run.unchecked is not None:
            self._check(*self._run.unchecked)

    def _take_back_overflow(self) -> None:
        """Undo the last step if the scaler has found an overflow in it."""
        before = self._run.accumulation.take_back_overflow()
        # If the step count differs, a state has been loaded since, and stays.
        if before is not None and self.step_count.item() == before.step + 1:
            self._restore(before)

    def _check(self, step: int, values: paddle.Tensor) -> None:
        """Report losses that were NaN or infinite in a step between updates."""
        self._run.unchecked = None
        for name, loss in zip(self._run.order.names, values.numpy().tolist()):
            if not math.isfinite(loss):
                self._faults.report(step, f"loss {name!r}", f"is {loss}")

    def _begin(self, losses: Losses) -> tuple[int, bool, list[paddle.Tensor], paddle.Tensor]:
        """Begin a step or micro-batch.

        Losses that raise an error leave no trace in ``order``.

        Returns:
            The number of the step, whether it updates the weights, the losses as T scalars, and
            their values, shape [T], in the dtype of the weights.
        """
        if self.n_loss is None:
            n_loss = count(losses)
            if n_loss < 2:
                raise ValueError(
                    f"losses has {n_loss} entry, and there is nothing to balance: are the "
                    "conditions missing? Pass n_loss= if others join later, or leave the balancing "
                    "out"
                )
            self.set_n_loss(n_loss)
        _ranks.mark()  # others may wait in a backward pass of paddle.DataParallel
        order = self._run.order
        scalars = order.scalars(losses)
        if self._run.names is not order.names:
            try:
                self._meet(scalars)
            except ValueError:
                order.forget_last()
                raise
        self._settle()
        step = _paddle.host_count(self.step_count).value
        missed = _paddle.host_counts(self.missed)
        due = self._schedule.is_due(step, self.update_every, scalars, missed)
        dtype = self.loss_weights.dtype
        with paddle.no_grad():
            values = paddle.stack([x if x.dtype == dtype else x.astype(dtype) for x in scalars])
        return step, due, scalars, values

    def _meet(self, losses: Sequence[paddle.Tensor]) -> None:
        """Find out which losses are equations, as soon as there are new names."""
        order, kind = self._run.order, type(self.rule).__name__
        _ranks.check_alike(order.names, order.complete)
        _one_pass.refuse_a_static_program(losses, order.names)
        equations: _equations.Equations | None = self.equations
        if equations is None and self.rule.tells_equations:
            equations = order.equations
            if equations is None and not order.known:
                raise _equations.without_names(len(order.names), kind)
            if equations is None:
                equations = _equations.by_name(order.known, kind)
        are_equations = _equations.are_equations(equations or (), order.names, not order.complete)
        known = order.known or order.names
        self.rule.meet(tuple(known), order.complete)
        if self._starts_by_rule and not self.step_count.item():
            first = self.rule.first_weights(tuple(order.names))
            if first is not None:
                overwrite(self.loss_weights, first)
        self._run.equations, self._run.names = np.array(are_equations), order.names
        self._run.said = self._announcement()
        _log.info("%s", self._run.said)

    def _announcement(self) -> str:
        order, total_steps = self._run.order, self._schedule.total_steps
        kinds = self._run.equations.tolist()
        return announcement(
            self.rule, self.update_every, order.known or order.names, kinds, total_steps
        )

    def _end(
        self,
        step: int,
        due: bool,
        losses: Sequence[paddle.Tensor],
        before: BalancerState | None = None,
        scaler: paddle.amp.GradScaler | None = None,
        scaling: paddle.Tensor | None = None,
        is_scaled: bool = False,
        before_pass: _one_pass.Rows | None = None,
    ) -> tuple[np.ndarray, Update] | None:
        """End a step: update the weights if they are due, and count the step.

        Args:
            step: Number of the step.
            due: Whether it updates the weights.
            losses: The losses of the last micro-batch, T scalar tensors.
            before: The state to restore if the step is undone; None if it stands.
            scaler: The scaler that may find an overflow in this step, if any.
            scaling: Its loss scaling, shape [1]; None if it does nothing.
            is_scaled: Whether gradients that are not finite may have overflowed by their scale.
            before_pass: If the step combines the gradients of the losses, the shared parameters'
                gradients before its last pass, shape [values of W].

        Returns:
            What ``_update`` returns, if there was an update.
        """
        run, weights, ended = self._run, self.loss_weights, None
        run.acted = None
        if run.caller is None and weights.grad is not None:
            weights.clear_gradient(False)  # so that no optimizer steps them
        means, factor = run.accumulation.means() if due else None, run.accumulation.factor
        run.accumulation.end_step(before, None if scaling is None else scaler)
        if means is not None:
            ended = self._update(step, losses, *means, is_scaled, scaling)
            if not self.rule.acts_now:
                run.acted = ended[0]
            if before_pass is not None:
                self._combine(ended[1].values, means[1], factor, before_pass, before is not None)
        elif run.caller is not None:
            run.caller.rest(weights, step, self._schedule.frozen)
        _paddle.host_count(self.step_count).value = step + 1
        return ended

    def _update(
        self,
        step: int,
        losses: Sequence[paddle.Tensor],
        values: paddle.Tensor,
        rows: _one_pass.Rows | None,
        is_scaled: bool,
        scaling: paddle.Tensor | None,
    ) -> tuple[np.ndarray, Update]:
        """Put the rule's weights in place.

        Returns:
            The weights that acted in this step, shape [T], and the update.
        """
        run, missed, before = self._run, _paddle.host_counts(self.missed), self.rule_state
        numbers, acted = _one_pass.measured(
            values, self.loss_weights, rows, self.rule.needs, not self.rule.acts_now
        )
        rate = math.nan if self.weight_lr is None else self.weight_lr
        if self.warmup_steps:
            rate *= min(1.0, (step // self.update_every + 1) / self.warmup_steps)
        measurement = Measurement(
            **numbers,
            names=tuple(run.order.names),
            equations=run.equations,
            step=step,
            interval=self.update_every,
            rate=rate,
            floor=self.floor,
            progress=self._schedule.progress(step),
        )
        update = updated(
            self.rule,
            acted,
            before,
            measurement,
            None if run.caller is None else run.caller.largest_norm,
            is_scaled,
            self._schedule.only(missed),
        )
        if scaling is None and (any(update.faults) or not update.balanced.any()):
            self._report(step, update, losses)  # a scaler reports overflows itself
        run.idle += 1
        if update.balanced.any():
            run.idle = 0
            self._remark(step, update, measurement)
        if run.idle == _IDLE and any(map(run.order.is_absent, losses)):
            self._faults.report(
                step,
                str(self.rule),
                f"has had too few losses at a time in {_IDLE} updates",
                consequence=f"it needs {self.rule.fewest_losses} in one step, so the weights rest. "
                "Give backward the losses of several batches together, or take a rule that "
                "balances a loss by itself, such as the default",
            )
        if run.caller is None:
            overwrite(self.loss_weights, update.values)
        else:
            run.caller.offer(
                self.loss_weights, update.values, acted, update.balanced, step + 1, scaling
            )
        for name, array in update.state.items():
            if array is not before[name]:
                overwrite(getattr(self, name), array)
        known = run.order.known or run.order.names
        self._schedule.record(update, measurement, known, missed)
        run.last = measurement
        return acted, update

    def _combine(
        self,
        coefficients: np.ndarray,
        rows: _one_pass.Rows | None,
        factor: Any,
        before_pass: _one_pass.Rows,
        may_be_undone: bool,
    ) -> None:
        """Put the combined gradient in place of what the pass has added to the shared parameters.

        Args:
            coefficients: c, shape [T].
            rows: The losses' gradients, shape [T, values of W].
            factor: What multiplies them.
            before_pass: The gradients before the pass, shape [values of W].
            may_be_undone: Whether ``take_back`` may be called.
        """
        assert rows is not None
        kept: Any = before_pass
        if _ranks.number() > 1:
            # What paddle.DataParallel, or the caller afterwards, makes of all other gradients.
            kept = _ranks.mean(paddle.to_tensor(kept)).astype("float64")
            if isinstance(factor, paddle.Tensor):
                factor = factor.astype("float64")
        combined: Any = _one_pass.combination(rows, coefficients)
        _one_pass.overwrite_gradients(self.shared, kept + combined * factor)
        if may_be_undone:
            after = _one_pass.gradients_of(self.shared, self.loss_weights.dtype)
            self._run.accumulation.around = before_pass, after

    def _state(self) -> BalancerState:
        """Everything that a step may change."""
        names = ("step_count", "loss_weights", "missed", *self._remembered)
        return BalancerState({name: getattr(self, name).numpy() for name in names}, self._run.last)

    def _restore(self, before: BalancerState) -> None:
        """Restore this state, but not weights that are stepped by the caller's optimizer."""
        for name, array in before.tensors.items():
            if name != "loss_weights" or self._run.caller is None:
                overwrite(getattr(self, name), array)
        self._run.last = before.last

    def _settle_for_saving(self, state: Any) -> None:
        self._settle()

    def _remark(self, step: int, update: Update, measurement: Measurement) -> None:
        """Warn, once for each loss, of what the rule does otherwise because of it."""
        remark = self.rule.remark(measurement.losses[update.balanced])
        if remark is not None:
            which, fault, consequence = remark
            for i in np.flatnonzero(update.balanced)[which]:
                what = f"loss {measurement.names[i]!r}"
                self._faults.report(step, what, fault, consequence=consequence)

    def _report(self, step: int, update: Update, losses: Sequence[paddle.Tensor]) -> None:
        """Warn of losses that cannot be balanced, once for each loss and fault."""
        order = self._run.order
        for name, fault, loss in zip(order.names, update.faults, losses):
            if not fault or order.is_absent(loss):
                continue
            # Biases begin at 0, so a condition at the origin may be met exactly before training.
            if step > 0 or loss.item() != 0:
                self._faults.report(step, f"loss {name!r}", fault)
        if not any(update.faults):
            self._faults.report(step, str(self.rule), "gives no finite weights")


def _check_scale(scale: Any) -> None:
    value = _arguments.number("scale", scale)
    if not math.isfinite(value) or not value:
        raise ValueError(
            f"scale must be finite and not 0, got {scale}: it multiplies the gradients, such as "
            "1 / k for each of k micro-batches"
        )


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
