"""GradNorm in PaddleScience: a loss aggregator for its Solver. Importing this imports ``ppsci``."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable

import numpy as np
import paddle

from paddlescience_gradnorm import _arguments, _paddle
from paddlescience_gradnorm.balancing import _equations, _one_pass
from paddlescience_gradnorm.balancing._losses import NamedLosses
from paddlescience_gradnorm.balancing.balancer import LossBalancer
from paddlescience_gradnorm.balancing.rules import find_rule
from paddlescience_gradnorm.network import GradNorm
from paddlescience_gradnorm.network._shared_layer import find_shared
from paddlescience_gradnorm.training.history import History

try:
    from ppsci import constraint as constraints
    from ppsci.loss.base import Loss
    from ppsci.loss.mtl import LossAggregator
    from ppsci.utils import logger, misc
except ModuleNotFoundError as error:
    if error.name != "ppsci":
        raise
    raise ImportError(
        "paddlescience_gradnorm.ppsci needs PaddleScience, which is not installed: "
        "pip install 'paddlescience_gradnorm[ppsci]'"
    ) from error

__all__ = ["GradNormAggregator", "build_aggregator"]

# Options of PaddleScience's aggregators that ours does not have, and what to write instead.
_THEIR_OPTIONS = {
    "init_weights": "write weight_attr=",
    "momentum": "leave it out, because weight_lr= sets how fast the weights move",
    "update_freq": "write update_every=",
}
_CONDITIONS = (
    constraints.BoundaryConstraint,
    constraints.InitialConstraint,
    constraints.IntegralConstraint,
    constraints.PeriodicConstraint,
)
_APART = (
    "; or write GradNormAggregator.of(model, constraint, equation), which balances them apart: the "
    "Solver adds up losses of the same name"
)
# If one step of the optimizer evaluates the losses so often, and the weights are still those of the
# start, they are likely to stay so. L-BFGS in short steps makes up to 25 evaluations.
_EVALUATIONS_TO_MOVE = 50


class GradNormAggregator(LossAggregator):
    """Learns the weights of a Solver's losses, in one backward pass.

    Source: Chen et al., "GradNorm", ICML 2018, arXiv:1711.02257. The default is ``PinnRule``.
    The Solver's checkpoints hold the weights and the rule's state. ``log_to`` adds the weights to
    the Solver's logs.

    ``PinnRule`` needs to know which losses are equations. Unless you pass ``equations``, it asks
    the constraints given to ``of``. Without ``of`` it asks the Solver's constraints first, if
    ``log_to`` has been called. Then it takes values of the model's outputs for conditions, and
    goes by the names of the other losses. If a loss is still in doubt, the first step raises an
    error that names it.

    With ``update_freq`` the weights stay fixed while gradients accumulate. Then they take one
    step, from the means over all micro-batches. With L-BFGS they stay fixed within each step of
    the optimizer, and each evaluation of the losses counts as a step towards the next update.
    Several ranks give the same weights as one rank with all points.

    Args:
        model: The Solver's model. If it is a ``GradNorm``, its own weights are used, and the
            options below must be given to it instead.
        n_loss: Number of losses T, at least 2; by default the first step tells it. The Solver
            has one loss for each output name, and adds up losses of the same name from different
            constraints.
        alpha: As for ``LossBalancer``: it selects the paper's rule; the default is ``"pinn"``.
        num_losses: PaddleScience's word for ``n_loss``.
        shared: The shared parameters, as for ``GradNorm``.
        *positional: Not accepted; the error says what to write.
        **options: Options of ``LossBalancer``: ``rule``, ``equations``, ``weight_lr``,
            ``update_every``, ``warmup_steps``, ``weight_attr``, ``floor``, ``absent``. With the
            paper's rule and ``weight_lr=None`` the Solver's optimizer steps the weights: build it
            as ``ppsci.optimizer.Adam(1e-3)((model, aggregator.balancer))``.

    Raises:
        TypeError: An argument is of the wrong type, or missing.
        ValueError: An argument is out of range, or no shared layer is found.

    Examples:
        >>> import paddle, ppsci
        >>> model = ppsci.arch.MLP(("x", "y"), ("u",), num_layers=2, hidden_size=8)
        >>> aggregator = GradNormAggregator(model, n_loss=2, alpha=0.12)
        >>> # solver = ppsci.solver.Solver(model, ..., loss_aggregator=aggregator)
        >>> # aggregator.log_to(solver); in a loop of one's own:
        >>> u = model({"x": paddle.rand([4, 1]), "y": paddle.rand([4, 1])})["u"]
        >>> total = aggregator({"laplace": u.square().mean(), "u": (u - 1).square().mean()})
        >>> total.backward()
        >>> round(float(aggregator.get_weights().sum()), 4)
        2.0
    """

    should_persist = True

    def __init__(
        self,
        model: paddle.nn.Layer,
        n_loss: int | None = None,
        *positional: Any,
        alpha: float | None = None,
        num_losses: int | None = None,
        shared: Any = None,
        **options: Any,
    ) -> None:
        _check_arguments(model, positional, options)
        super().__init__(model)
        if num_losses is not None:
            if n_loss not in (None, num_losses):
                raise ValueError(
                    f"n_loss is {n_loss}, but num_losses, which means the same, is {num_losses}"
                )
            n_loss = num_losses
        if isinstance(model, GradNorm):
            _check_that_they_agree(model, n_loss, alpha, {"shared": shared, **options})
            self.balancer = model.balancer
        else:
            rule = find_rule(options.pop("rule", None), alpha)
            found = find_shared(model, shared, rule)
            self.balancer = LossBalancer(found, n_loss, rule=rule, **options)
        self.names: list[str] = []
        self._equations: tuple[str, ...] = ()
        # The number of the current step, how often it has been evaluated, its weights, the scale
        # of its gradients, and the parameters that have a gradient since then.
        self._last_step: int | None = None
        self._evaluations = 0
        self._acting = self._start = np.ones(0)
        self._scale = 1.0
        self._with_gradient: list[paddle.Tensor] = []
        # The constraints that ``take`` has got, and for each expression the equation it is part of.
        self._constraint: dict[str, Any] = {}
        self._part_of: dict[str, str] = {}
        self._solver: Callable[[], Any] = lambda: None
        self._quantities: dict[str, Callable[[], np.ndarray]] = {}
        # The weights since ``log_to``; and whether losses have joined in this step.
        self._history = History()
        self._is_new = False

    @classmethod
    def of(
        cls,
        model: paddle.nn.Layer,
        constraint: Mapping[str, Any],
        equation: Mapping[str, Any] | None = None,
        *positional: Any,
        **options: Any,
    ) -> GradNormAggregator:
        """An aggregator that balances every constraint's losses apart.

        Otherwise the Solver adds up losses of the same name from different constraints before
        they are balanced. Here each loss is called ``CONSTRAINT.OUTPUT``, such as ``"BC.u"``, in
        messages, logs and ``equations``. The constraints also tell which losses are equations. An
        expression with derivatives inside the domain is one. What holds on the boundary, at the
        start, or for a value of the network is a condition. If a loss is in doubt, the first step
        raises an error that names it. An expression of ``equation`` that is used both inside the
        domain and on its boundary is in doubt on the boundary.

        Args:
            model: The Solver's model.
            constraint: The Solver's constraints by name. Their losses are wrapped, in place.
            equation: The Solver's equations by name.
            *positional: Not accepted; the error says what to write.
            **options: As for the class, except ``n_loss``, which the first step tells.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: There are no constraints, one of them has two names, or an option is out of
                range.

        Warns:
            UserWarning: In the first step, if a loss has a weight set by hand.

        Examples:
            >>> import ppsci
            >>> model = ppsci.arch.MLP(("x", "y"), ("u",), num_layers=2, hidden_size=8)
            >>> square = ppsci.geometry.Rectangle((0, 0), (1, 1))
            >>> laplace = ppsci.equation.Laplace(2)
            >>> loader = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1}
            >>> loader["batch_size"] = 8
            >>> inside = ppsci.constraint.InteriorConstraint(
            ...     laplace.equations, {"laplace": 0}, square, loader, ppsci.loss.MSELoss()
            ... )
            >>> constraint, equation = {"EQ": inside}, {"laplace": laplace}
            >>> for edge in ("left", "right"):
            ...     constraint[edge] = ppsci.constraint.BoundaryConstraint(
            ...         {"u": lambda out: out["u"]}, {"u": 0}, square, loader,
            ...         ppsci.loss.MSELoss(), name=edge,
            ...     )
            >>> aggregator = GradNormAggregator.of(model, constraint, equation)
            >>> solver = ppsci.solver.Solver(
            ...     model, constraint, None, ppsci.optimizer.Adam(1e-3)(model), epochs=1,
            ...     iters_per_epoch=1, equation=equation, loss_aggregator=aggregator,
            ... )
            >>> solver.train()
            >>> aggregator.names
            ['EQ.laplace', 'left.u', 'right.u']
        """
        _check_arguments(model, positional, {})
        for option in ("n_loss", "num_losses"):
            if option in options:
                raise TypeError(
                    f"GradNormAggregator.of takes no {option}: the first step tells how many "
                    "losses the constraints give. With weight_lr=None, pass weight_attr= with a "
                    "number for each"
                )
        _check_constraints(constraint, equation)
        aggregator = cls(model, **options)
        aggregator.take(constraint, equation)
        return aggregator

    def take(
        self, constraint: Mapping[str, Any], equation: Mapping[str, Any] | None = None
    ) -> None:
        """Balance the losses of these constraints from now on, with the weights as they are.

        For the next Solver, if it has constraints of its own, as in the stages of a curriculum.
        They must have the names of those before. ``of`` calls this for the first constraints.

        Args:
            constraint: The Solver's constraints by name. Their losses are wrapped, in place.
            equation: The Solver's equations by name.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: There are no constraints, or one of them has two names.
        """
        _check_constraints(constraint, equation)
        self._constraint = {str(name): each for name, each in constraint.items()}
        self._part_of = {part: n for n, e in (equation or {}).items() for part in e.equations}
        for name, each in self._constraint.items():
            inner = each.loss.inner if isinstance(each.loss, _LossOfOne) else each.loss
            each.loss = _LossOfOne(inner, name)

    def log_to(self, solver: Any, norms: bool = False) -> None:
        """Let the Solver log the weights beside its losses, as ``weight/NAME``.

        They appear wherever its losses do: in the terminal, VisualDL, W&B and TensorBoard. And
        ``solver.plot_loss_history()`` draws them too, in a picture beside that of the losses. Call
        this before the training, because from then on the aggregator can ask the Solver's
        constraints which losses are equations.

        Args:
            solver: The Solver that has this aggregator.
            norms: Whether to log the norms of the losses' gradients too, as
                ``gradient_norm/NAME``.
        """
        self._solver = weakref.ref(solver)
        self._quantities = {"weight": self.get_weights}
        if norms:
            self._quantities["gradient_norm"] = lambda: self.balancer.gradient_norms
        self._history = History()
        solver.plot_loss_history = functools.partial(self._plot_with_weights, self._solver)

    def _plot_with_weights(
        self,
        solver: Callable[[], Any],
        by_epoch: bool = False,
        smooth_step: int = 1,
        use_semilogy: bool = True,
    ) -> None:
        """What ``solver.plot_loss_history`` does after ``log_to``."""
        made = solver()
        type(made).plot_loss_history(made, by_epoch, smooth_step, use_semilogy)
        steps = smooth_step * (made.iters_per_epoch if by_epoch else 1)
        self.plot_weights(made.output_dir, steps, use_semilogy)

    def plot_weights(
        self, output_dir: str, smooth_step: int = 1, use_semilogy: bool = True
    ) -> None:
        """Draw the weights of the steps since ``log_to`` as ``Iteration-Weight_curve.jpg``.

        Of a run of more than 20,000 steps not all are kept (see ``History``); weights between two
        of these are drawn as those of the first.

        ``solver.plot_loss_history`` calls this after ``log_to``, with its own arguments.

        Args:
            output_dir: The folder of the picture.
            smooth_step: Number of steps whose mean is one point of the curves.
            use_semilogy: Whether the axes are logarithmic.

        Raises:
            ValueError: No step has been made since ``log_to``.
        """
        if not len(self._history):
            raise ValueError(
                "there are no weights to draw: call aggregator.log_to(solver) before solver.train()"
            )
        os.makedirs(output_dir, exist_ok=True)
        lasts = np.diff(self._history.steps, append=len(self._history))
        weights = np.repeat(self._history.to_numpy()["weights"], lasts, axis=0)
        curves = dict(zip(self.names, map(list, weights.T)))
        misc.plot_curve(curves, "Iteration", "Weight", output_dir, smooth_step, use_semilogy)

    def forward(
        self, losses: Mapping[str, paddle.Tensor], step: int | None = None
    ) -> paddle.Tensor:
        """The weighted sum. Its ``backward()`` runs the whole backward pass and the update.

        Args:
            losses: Name -> scalar, ``n_loss`` of them, in any order.
            step: Number of the optimizer's step, or None in a loop that evaluates each step
                once. A repeated number means another evaluation in the same step, in which
                the weights stay fixed.

        Returns:
            A tensor of shape [], which may be multiplied (loss scaling) or divided
            (accumulation) before its ``backward()``. Errors and warnings of
            ``LossBalancer.backward`` come from there.

        Raises:
            ValueError: The number or the names of the losses are wrong, it is in doubt whether
                one is an equation, or the Solver's optimizer cannot step the weights.

        Warns:
            UserWarning: One step of the optimizer evaluates the losses many times, and their
                weights have never moved.
        """
        losses = self._known(losses)
        if _paddle.is_amp_on():
            self._check_that_nobody_else_steps("use_amp=True")
        again = step is not None and step == self._last_step
        self._last_step = step
        self._evaluations = self._evaluations + 1 if again else 1
        self._enter_meters()
        with paddle.amp.auto_cast(enable=False):
            if again:
                self._check_that_nobody_else_steps("L-BFGS")
                self._count_evaluation()
                run = self._backward_at_rest
            else:
                if self._goes_on():
                    self.balancer.take_back()
                self._scale = 1.0
                self._acting = self.balancer.get_weights()
                if self._quantities:
                    self._record()
                run = self._backward
            weights = self._weights_of(losses)
            values = paddle.stack([x.detach().astype(weights.dtype) for x in losses.values()])
            return _Total(paddle.dot(weights, values), functools.partial(run, losses))

    def _record(self) -> None:
        """Keep the acting weights for the picture."""
        # Losses that have not come yet have no name.
        names = [f"losses[{i}]" for i in range(len(self._acting))]
        self._history.record(names, np.full(len(names), np.nan), self._acting)

    def _backward(self, losses: Mapping[str, paddle.Tensor], scale: float) -> None:
        # The Solver numbers its steps, so the balancer need not find out whether L-BFGS calls.
        self.balancer._schedule.knows_steps = self._last_step is not None
        if self._is_new:
            self._warn_of_weights_by_hand()
        in_solver = self._is_new and self._last_step is not None
        with _said_by_the_solver() if in_solver else contextlib.nullcontext():
            self.balancer.backward(losses, scale=scale)
        self._is_new = False
        self._scale = scale
        if scale != 1:
            parameters = {id(p): p for p in (*self.model.parameters(), *self.balancer.shared)}
            self._with_gradient = _with_gradient(parameters.values())

    def _backward_at_rest(self, losses: Mapping[str, paddle.Tensor], scale: float) -> None:
        weights = self._weights_of(losses) * scale
        _one_pass.backward_of_sum(list(losses.values()), weights, list(losses))

    def _weights_of(self, losses: Mapping[str, paddle.Tensor]) -> paddle.Tensor:
        return paddle.to_tensor(self._acting[[self.names.index(name) for name in losses]])

    def _goes_on(self) -> bool:
        """Whether this is another micro-batch: no gradient has been cleared since the last one.

        This looks at all gradients, because the optimizer clears only those of the parameters that
        it holds.
        """
        known = self._with_gradient
        return self._scale != 1 and bool(known) and len(_with_gradient(known)) == len(known)

    def _count_evaluation(self) -> None:
        """Let another evaluation in the same step count towards the next update.

        An update follows in the next step of the optimizer at the earliest. Without this, updates
        would be rare with L-BFGS, because each of its steps evaluates the losses many times.
        """
        count = _paddle.host_count(self.balancer.step_count)
        if count.value % self.balancer.update_every:
            count.value += 1
        if (
            self._evaluations == _EVALUATIONS_TO_MOVE
            and np.array_equal(self._acting, self._start)
            and not self.balancer._schedule.frozen
        ):
            warnings.warn(
                f"the losses have been evaluated {self._evaluations} times in one step of the "
                "optimizer, in which their weights rest, and these are still those of the start. "
                "If the optimizer takes only a few such steps, the losses are not balanced: "
                "let L-BFGS take many short steps, such as max_iter=10 and more epochs; or train "
                "by Adam first, and then by L-BFGS with the same aggregator. If the weights are "
                "meant to stay, call aggregator.balancer.freeze()",
                UserWarning,
                stacklevel=4,
            )

    def _known(self, losses: Mapping[str, paddle.Tensor]) -> NamedLosses:
        """The losses in the order of ``names``, checked, with those that are equations."""
        names = [*self.names, *(name for name in losses if name not in self.names)]
        if len(names) > len(self.names) or len(losses) < len(names):
            self._check_names(names, losses)
            self._check_programs(losses)
            if self.balancer.n_loss is None:
                self.balancer.set_n_loss(len(names))
            if not self.names:
                self._start = self.get_weights()
            # Names last, because faulty losses must not set them.
            self._equations, self.names = self._find_equations(names, losses), names
            self._is_new = True
        return NamedLosses({n: losses[n] for n in names if n in losses}, self._equations)

    def _check_names(self, names: list[str], losses: Mapping[str, paddle.Tensor]) -> None:
        n_loss, may_be_absent = self.balancer.n_loss, self.balancer.absent == "skip"
        for name in losses:
            if self._constraint and not self._constraint_of(name):
                raise ValueError(
                    f"loss {name!r} comes from none of the constraints that this aggregator has "
                    f"been given, {', '.join(self._constraint)}: call aggregator.take(constraint, "
                    "equation) with those of the Solver"
                )
        if may_be_absent and (n_loss is None or len(names) <= n_loss):
            return
        if self.names:
            raise ValueError(
                f"the constraints give the losses {', '.join(losses)}, but before they gave "
                f"{', '.join(self.names)}: make a new GradNormAggregator for other losses; or, if "
                'some are only absent from some steps, pass absent="skip"'
                + ("" if self._constraint else " and the number of all")
            )
        if len(names) == 1:
            raise ValueError(
                f"the constraints give one loss only, {names[0]!r}, so there is nothing to "
                "balance: leave loss_aggregator out" + ("" if self._constraint else _APART)
            )
        if n_loss not in (None, len(names)) and self._constraint:
            raise ValueError(
                f"weight_attr or a checkpoint is for {n_loss} losses, but the constraints give "
                f"{len(names)}: {', '.join(names)}"
            )
        if n_loss not in (None, len(names)):
            raise ValueError(
                f"n_loss is {n_loss}, but the constraints give {len(names)}: {', '.join(names)}. "
                f"Pass n_loss={len(names)} (len(constraint) is another number){_APART}"
            )

    def _check_programs(self, losses: Mapping[str, paddle.Tensor]) -> None:
        try:
            _one_pass.refuse_a_static_program(list(losses.values()), list(losses))
        except ValueError as error:
            raise ValueError(f"{error}. In a Solver, pass to_static=False") from None

    def _find_equations(
        self, names: list[str], losses: Mapping[str, paddle.Tensor]
    ) -> tuple[str, ...]:
        """The losses that are residuals of equations, unless the user has told them."""
        rule, solver = self.balancer.rule, self._solver()
        if self.balancer.equations is not None or not rule.tells_equations:
            return ()
        if self._constraint:
            differentiates = {name: _differentiates(loss) for name, loss in losses.items()}
            known = {name: self._is_equation(name, differentiates) for name in losses}
        else:
            known = dict.fromkeys(conditions_known(losses, self.model), False)
            if solver is not None:
                known.update(equations_of(solver.constraint, solver.equation or {}))
        known.update({name: name in self._equations for name in self.names})
        try:
            return tuple(_equations.by_name(names, type(rule).__name__, known))
        except ValueError as error:
            if solver is not None or self._constraint:
                raise
            raise ValueError(
                f"{error}. Or write GradNormAggregator.of(model, constraint, equation), because "
                "the Solver's constraints may tell"
            ) from None

    def _constraint_of(self, loss: str) -> str:
        """Name of the constraint that gives this loss; empty if none does."""
        return max((n for n in self._constraint if loss.startswith(f"{n}.")), key=len, default="")

    def _is_equation(self, name: str, differentiates: Mapping[str, bool]) -> bool | None:
        """Whether a constraint's loss is the residual of an equation; None if that is in doubt.

        Args:
            name: Name of the loss.
            differentiates: Whether each loss of the step holds derivatives.
        """
        of = self._constraint_of(name)
        output, constraint = name[len(of) + 1 :], self._constraint[of]
        part_of, of_supervised = self._part_of.get(output), of.replace("sup", "")
        if isinstance(constraint, _CONDITIONS):
            inside = {
                expression
                for each in self._constraint.values()
                if not isinstance(each, _CONDITIONS)
                for expression in each.output_expr
            }
            # A traction is a condition, because the equation that defines it holds inside by its
            # other expressions. But a residual may be required on the boundary too.
            if part_of is None:
                is_clear = not _equations.is_equation(output)
            else:
                is_clear = output not in inside and part_of in map(self._part_of.get, inside)
            return False if is_clear or not differentiates[name] else None
        is_inside = isinstance(constraint, constraints.InteriorConstraint)
        if part_of is not None:
            of_condition = not is_inside and _equations.is_equation(of_supervised) is False
            return None if of_condition else True
        if is_inside and differentiates[name]:
            return True
        if output in (getattr(self.model, "output_keys", None) or ()) and not differentiates[name]:
            return False
        # A constraint at given points may be of either kind, so only the names are left to ask. If
        # it holds losses both with and without derivatives, its own name tells nothing of one.
        kinds = {differentiates[n] for n in differentiates if self._constraint_of(n) == of}
        by_words = {_equations.is_equation(output)}
        if len(kinds) == 1:
            by_words.add(_equations.is_equation(of_supervised))
        by_words.discard(None)
        return by_words.pop() if len(by_words) == 1 else None

    def _warn_of_weights_by_hand(self) -> None:
        found = [
            text for each in self._constraint.values() for text in each.loss.weights_by_hand or ()
        ]
        if found:
            warnings.warn(
                f"{', '.join(found)}: these weights multiply with those that are learned here. "
                "Take them out, unless you want the losses to differ by them",
                UserWarning,
                stacklevel=4,
            )

    def _check_that_nobody_else_steps(self, what: str) -> None:
        if self.balancer.weight_lr is None and not self.balancer._schedule.frozen:
            raise ValueError(
                f"with {what} the Solver's optimizer cannot step the loss weights: pass "
                "weight_lr=, so that the aggregator steps them. If they are meant to stay, call "
                "aggregator.balancer.freeze()"
            )

    def _enter_meters(self) -> None:
        """Give the Solver the values to log, because it drops them after every epoch."""
        solver = self._solver()
        if solver is not None:
            for kind, values in self._quantities.items():
                for i, name in enumerate(self.names):
                    meter = _Meter(functools.partial(_entry, values, i))
                    solver.train_output_info[f"{kind}/{name}"] = meter

    def get_weights(self) -> np.ndarray:
        """The weights that the next step will use, in the order of ``names``, shape [T]."""
        return self.balancer.get_weights()

    def diagnose(self) -> list[str]:
        """What a user should act on, in words: see ``LossBalancer.diagnose``."""
        return self.balancer.diagnose()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Weights, rule state and step count, because the Solver saves the model itself."""
        self._last_step = None  # the step is over, though the next one may have its number
        return self.balancer.state_dict()

    def set_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load what ``state_dict`` returned."""
        self._last_step = None
        return self.balancer.set_state_dict(state_dict)


def conditions_known(losses: Mapping[str, paddle.Tensor], model: paddle.nn.Layer) -> set[str]:
    """The losses that are surely conditions: values of an output, under the output's own name.

    The name alone does not tell, because a constraint may give the name of an output to the
    residual of an equation: ``{"u": lambda out: hessian(out["u"], out["x"])}``. A loss with
    derivatives may also be a condition on a derivative, so it is not in the result.

    Args:
        losses: Name -> scalar, with their graphs.
        model: The network; its ``output_keys`` are the names of its outputs, if it has any.

    Examples:
        >>> import paddle, ppsci
        >>> model = ppsci.arch.MLP(("x",), ("u", "v"), num_layers=1, hidden_size=4)
        >>> x = paddle.rand([4, 1])
        >>> x.stop_gradient = False
        >>> out = model({"x": x})
        >>> slope = ppsci.autodiff.jacobian(out["u"], x)
        >>> losses = {"u": slope.square().mean(), "v": out["v"].square().mean()}
        >>> conditions_known(losses, model)
        {'v'}
    """
    outputs = getattr(model, "output_keys", None) or ()
    return {name for name, loss in losses.items() if name in outputs and not _differentiates(loss)}


def _differentiates(loss: paddle.Tensor) -> bool:
    """Whether the loss holds derivatives of the network's outputs."""
    # A derivative is a backward pass of its own, and this is how Paddle names the way back through
    # one: TanhDoubleGradNode, TanhTripleGradNode.
    return any(
        "DoubleGrad" in node.name() or "TripleGrad" in node.name()
        for node in _one_pass.graph_nodes(loss)
    )


def equations_of(constraint: Mapping[str, Any], equation: Mapping[str, Any]) -> dict[str, bool]:
    """Whether losses are residuals of equations, where a Solver's constraints leave no doubt.

    A loss of a boundary, initial, integral or periodic constraint is a condition, even if it holds
    derivatives, as a traction does. A loss inside the domain, or at given points, is an equation if
    one of the Solver's equations has its name. The result does not have any other losses, nor names
    for which the Solver adds up losses of both kinds.

    Args:
        constraint: The Solver's constraints by name.
        equation: The Solver's equations by name.

    Examples:
        >>> import ppsci
        >>> laplace, square = ppsci.equation.Laplace(2), ppsci.geometry.Rectangle((0, 0), (1, 1))
        >>> loader = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1}
        >>> loader["batch_size"] = 8
        >>> loss = ppsci.loss.MSELoss()
        >>> inside = ppsci.constraint.InteriorConstraint(
        ...     laplace.equations, {"laplace": 0}, square, loader, loss
        ... )
        >>> edge = ppsci.constraint.BoundaryConstraint(
        ...     {"u": lambda out: out["u"]}, {"u": 0}, square, loader, loss
        ... )
        >>> equations_of({"EQ": inside, "BC": edge}, {"laplace": laplace})
        {'laplace': True, 'u': False}
    """
    of_equations = {name for each in equation.values() for name in each.equations}
    kinds: dict[str, set[bool | None]] = {}
    for each in constraint.values():
        for name in each.output_expr:
            inside = True if name in of_equations else None
            kinds.setdefault(name, set()).add(False if isinstance(each, _CONDITIONS) else inside)
    found = {name: kind.pop() for name, kind in kinds.items() if len(kind) == 1}
    return {name: kind for name, kind in found.items() if kind is not None}


class _LossOfOne(Loss):
    """A constraint's loss that gives its parts the constraint's name too.

    Everything else is read from the loss itself.

    Args:
        inner: The constraint's loss.
        name: Name of the constraint.

    Attributes:
        weights_by_hand: What weights other than 1 the losses have had in the first step, in words.
    """

    def __init__(self, inner: Callable[..., Any], name: str) -> None:
        super().__init__(getattr(inner, "reduction", None), getattr(inner, "weight", None))
        self.inner = inner
        self._of = name
        self.weights_by_hand: list[str] | None = None

    def forward(
        self, output: Any, label: Any = None, weight: Mapping[str, paddle.Tensor] | None = None
    ) -> dict[str, paddle.Tensor]:
        losses = self.inner(output, label, weight)
        if not isinstance(losses, Mapping):
            raise TypeError(
                f"the loss of constraint {self._of!r} must return a dict name -> scalar, got "
                f"{type(losses).__name__}"
            )
        if self.weights_by_hand is None:
            self.weights_by_hand = [
                f"loss '{self._of}.{name}' has weight {value:g} ({where})"
                for where, weights in (("weight_dict", weight), ("weight", self.weight))
                for name in losses
                if (value := _constant(weights, name)) not in (None, 1)
            ]
        return {f"{self._of}.{name}": loss for name, loss in losses.items()}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = _paddle.sublayer(self, "inner")
            if inner is None:
                raise
        return getattr(inner, name)


def _constant(weights: Any, name: str) -> float | None:
    """The weight of a loss; None if it has none, or one for each point."""
    value = weights.get(name) if isinstance(weights, Mapping) else weights
    if isinstance(value, paddle.Tensor):
        numbers = np.unique(value.astype("float32").numpy())
        return float(numbers[0]) if len(numbers) == 1 else None
    return float(value) if isinstance(value, (int, float)) else None


@contextlib.contextmanager
def _said_by_the_solver() -> Iterator[None]:
    """Put what this package logs into the Solver's log, and nowhere twice."""
    ours = logging.getLogger("paddlescience_gradnorm")
    before = ours.level, ours.propagate
    handler = _ToTheSolversLog()
    ours.addHandler(handler)
    ours.propagate = False
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before[0])
        ours.propagate = before[1]


class _ToTheSolversLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logger.info(record.getMessage())


class _Total(paddle.Tensor):
    """The weighted sum, whose ``backward()`` runs the whole backward pass and the update.

    A hook alone would do that too, but Paddle turns every error in a hook into an OSError of its
    own. So ``backward()`` calls ``run`` directly, also after a multiplication or division by a
    number. The hook is for a total that is used in any other way.

    Args:
        value: The weighted sum, shape [], without a graph.
        run: Called with the scale of all gradients.
        scale: Factor of the gradients that ``value`` contains already.
    """

    def __init__(
        self, value: paddle.Tensor, run: Callable[[float], None], scale: float = 1.0
    ) -> None:
        super().__init__(value)
        self.stop_gradient = False
        self._run, self._scale = run, scale
        # Without self, because a tensor that its own hook holds is never freed.
        self.register_hook(lambda gradient: run(scale * gradient.item()))

    def backward(
        self, grad_tensor: paddle.Tensor | None = None, retain_graph: bool = False
    ) -> None:
        self._run(self._scale * (1.0 if grad_tensor is None else grad_tensor.item()))

    def __mul__(self, other: Any) -> paddle.Tensor:
        factor = _number(other)
        if factor is None:
            return super().__mul__(other)
        return _Total(self.detach() * other, self._run, self._scale * factor)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> paddle.Tensor:
        divisor = _number(other)
        if divisor is None:
            return super().__truediv__(other)
        return _Total(self.detach() / other, self._run, self._scale / divisor)


def _number(value: Any) -> float | None:
    """The value of a number, or of a tensor that holds one and has no graph; None otherwise."""
    if isinstance(value, paddle.Tensor):
        return float(value.item()) if value.size == 1 and value.stop_gradient else None
    return float(value) if isinstance(value, (int, float, np.number)) else None


def _with_gradient(parameters: Iterable[paddle.Tensor]) -> list[paddle.Tensor]:
    """Those whose gradient is not 0. An accelerator is read only once."""
    found = [parameter for parameter in parameters if parameter.grad is not None]
    if not found:
        return []
    others = [(_paddle.dense(p.grad, p).abs() != 0).any() for p in found]
    return [p for p, is_other in zip(found, paddle.stack(others).tolist()) if is_other]


class _Meter:
    """A number in the Solver's log, which is read when the log is written."""

    def __init__(self, value: Callable[[], float]) -> None:
        self._value = value

    @property
    def avg(self) -> float:
        """The value that the Solver logs."""
        return _Short(self._value())


class _Short(float):
    """A number that the Solver's lines show with three digits: weights differ in size."""

    def __format__(self, spec: str) -> str:
        return f"{float(self):.3g}"


def _entry(values: Callable[[], np.ndarray], i: int) -> float:
    return float(values()[i])


def build_aggregator(
    cfg: Mapping[str, Any],
    model: paddle.nn.Layer,
    constraint: Mapping[str, Any],
    equation: Mapping[str, Any] | None = None,
) -> GradNormAggregator:
    """The aggregator that a configuration describes, such as a part of a YAML file.

    PaddleScience 1.4 reads no aggregator from a configuration: its examples write them in Python,
    and its ``ppsci.loss.mtl.build_mtl_aggregator`` knows its own only.

    Args:
        cfg: ``{"name": "GradNormAggregator", ...}``, a dict or a ``DictConfig``. All other entries
            are options of ``GradNormAggregator.of``.
        model: The Solver's model.
        constraint: The Solver's constraints by name.
        equation: The Solver's equations by name.

    Raises:
        TypeError: ``cfg`` is no mapping, or an option does not exist.
        ValueError: Another aggregator is named, or an option is out of range.

    Examples:
        >>> build_aggregator({"name": "NTK"}, None, {})
        Traceback (most recent call last):
        ValueError: cfg names the aggregator 'NTK', but only 'GradNormAggregator' is built here
    """
    if not isinstance(cfg, Mapping):
        raise TypeError(f'cfg must be a mapping such as {{"name": ...}}, got {cfg!r}')
    options = {
        option: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for option, value in cfg.items()
    }
    name = options.pop("name", None)
    if name != "GradNormAggregator":
        raise ValueError(
            f"cfg names the aggregator {name!r}, but only 'GradNormAggregator' is built here"
        )
    return GradNormAggregator.of(model, constraint, equation, **options)


def _check_constraints(constraint: Any, equation: Any) -> None:
    if not isinstance(constraint, Mapping):
        raise TypeError(f"constraint must be the Solver's dict, got {constraint!r}")
    if not constraint:
        raise ValueError("constraint is empty, so there are no losses to balance")
    names: dict[int, str] = {}
    for name, each in constraint.items():
        if not isinstance(each, constraints.Constraint):
            raise TypeError(
                f"constraint must hold PaddleScience's constraints, got {each!r} as {name!r}"
            )
        if id(each) in names:
            raise ValueError(
                f"the constraints {names[id(each)]!r} and {name!r} are one object, so their losses "
                "cannot be told apart: leave one out, or make another constraint"
            )
        names[id(each)] = name
    if not isinstance(equation or {}, Mapping):
        raise TypeError(f"equation must be the Solver's dict, got {equation!r}")


def _check_arguments(model: Any, positional: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    if not isinstance(model, paddle.nn.Layer):
        raise TypeError(
            f"model must be the network that the Solver trains, got {model!r}: write "
            "GradNormAggregator.of(model, constraint, equation)"
        )
    if positional:
        raise TypeError(
            f"GradNormAggregator got {', '.join(map(repr, positional))} by position too: write "
            "update_every= for PaddleScience's update_freq, weight_attr= for its init_weights, and "
            "alpha= for the strength of the published rule. There is no momentum"
        )
    for name in options:
        if name in _THEIR_OPTIONS:
            raise TypeError(
                f"GradNormAggregator has no option {name!r}, which is PaddleScience's: "
                f"{_THEIR_OPTIONS[name]}"
            )
    known = inspect.signature(LossBalancer.__init__).parameters
    unknown = {name: value for name, value in options.items() if name not in known}
    _arguments.refuse("GradNormAggregator", unknown, LossBalancer.__init__)


def _check_that_they_agree(
    model: GradNorm, n_loss: int | None, alpha: float | None, others: Mapping[str, Any]
) -> None:
    for name, value, own in ("n_loss", n_loss, model.n_loss), ("alpha", alpha, model.alpha):
        if value not in (None, own):
            raise ValueError(f"{name} is {value!r}, but the GradNorm that is the model has {own!r}")
    given = [name for name, value in others.items() if name != "shared" or value is not None]
    if given:
        raise TypeError(
            f"{', '.join(given)} cannot be given here, since the model is a GradNorm, which has "
            "loss weights of its own: give it to GradNorm"
        )
