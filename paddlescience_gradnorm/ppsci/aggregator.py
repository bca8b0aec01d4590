"""``GradNormAggregator``, which a Solver calls in every step."""

from __future__ import annotations

import contextlib
import functools
import warnings
import weakref
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np
import paddle
from ppsci.loss.mtl import LossAggregator
from ppsci.solver import Solver

from paddlescience_gradnorm import _arguments, _paddle
from paddlescience_gradnorm.balancing import _one_pass
from paddlescience_gradnorm.balancing.balancer import LossBalancer
from paddlescience_gradnorm.balancing.rules import find_rule
from paddlescience_gradnorm.network import GradNorm
from paddlescience_gradnorm.network._shared_layer import find_shared, unwrapped_of_ranks
from paddlescience_gradnorm.ppsci._constraints import SolverLosses, check_constraints
from paddlescience_gradnorm.ppsci._solver_log import SolverLog, plot_weights, said_by_the_solver
from paddlescience_gradnorm.ppsci._total import Total, with_gradient
from paddlescience_gradnorm.ppsci._training import (
    expect_the_steps_of,
    held_by,
    is_lbfgs,
    training_solver,
)

# Options of PaddleScience's aggregators that ours does not have, and what to write instead.
_THEIR_OPTIONS = {
    "beta": "write rule=ReLoBRaLo(beta=...), of paddlescience_gradnorm.balancing",
    "tau": "write rule=ReLoBRaLo(tau=...), of paddlescience_gradnorm.balancing",
    "init_weights": "write weight_attr=",
    "momentum": "leave it out, because weight_lr= sets how fast the weights move",
    "update_freq": "write update_every=",
}
# If one step of the optimizer evaluates the losses so often, and the weights are still those of the
# start, they are likely to stay so. L-BFGS in short steps makes up to 25 evaluations.
_EVALUATIONS_TO_MOVE = 50
_TRAIN_FIRST = (
    "call solver.train() first. If that has been done, the Solver does not have this aggregator: "
    "write Solver(..., loss_aggregator=aggregator)"
)
# What a checkpoint has besides the balancer's tensors.
_NAMES, _FROZEN, _BY_HAND = "names", "frozen", "weights_by_hand_are_replaced"
_PLANNED = "planned_steps"


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

    ``PinnRule`` also wants to know how long the run is. The Solver's epochs tell it.

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
        shared: The shared parameters, as for ``GradNorm``, without those that the Solver's
            optimizer does not hold.
        *positional: Not accepted; the error says what to write.
        **options: Options of ``LossBalancer``: ``rule``, ``equations``, ``weight_lr``,
            ``update_every``, ``warmup_steps``, ``weight_attr``, ``floor``, ``absent``,
            ``total_steps``. With the paper's rule and ``weight_lr=None`` the Solver's optimizer
            steps the weights: build it as
            ``ppsci.optimizer.Adam(1e-3)((model, aggregator.balancer))``.

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
        model: paddle.nn.Layer | None = None,  # without it, a sentence says what to write
        n_loss: int | None = None,
        *positional: Any,
        alpha: float | None = None,
        num_losses: int | None = None,
        shared: Any = None,
        **options: Any,
    ) -> None:
        _check_arguments(model, positional, options)
        super().__init__(model)
        if None not in (n_loss, num_losses) and n_loss != num_losses:
            raise ValueError(
                f"n_loss is {n_loss}, but num_losses, which means the same, is {num_losses}"
            )
        n_loss = num_losses if n_loss is None else n_loss
        wrapper = unwrapped_of_ranks(model)
        if isinstance(wrapper, GradNorm):
            _check_that_they_agree(wrapper, n_loss, alpha, {"shared": shared, **options})
            self.balancer = wrapper.balancer
        else:
            rule = find_rule(options.pop("rule", None), alpha)
            found = find_shared(model, shared, rule)
            self.balancer = LossBalancer(found, n_loss, rule=rule, **options)
        # The shared parameters, unless the user has chosen them. Those that the Solver does not
        # train do not count.
        chosen = isinstance(wrapper, GradNorm) or shared is not None
        self._shared = () if chosen else self.balancer.shared
        self._losses = SolverLosses(self.balancer, model)
        self._log = SolverLog()
        # The current step: its number, how often it has been evaluated, its and the first weights.
        self._last_step: int | None = None
        self._trains: Callable[[], Any] = lambda: None  # the last Solver, which is not kept alive
        self._evaluations = 0
        self._acting = self._start = np.ones(0)
        # The parameters with a gradient after a scaled pass, which may be of a micro-batch.
        self._with_gradient: list[paddle.Tensor] = []
        self._adds_to: list[paddle.Tensor] = []  # those whose gradient a micro-batch adds to

    @classmethod
    def of(
        cls,
        model: paddle.nn.Layer | None = None,
        constraint: Mapping[str, Any] | None = None,
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
        raises an error that names it. For example, a residual that is required both inside the
        domain and on its boundary is in doubt on the boundary.

        With a rule that tells equations from conditions, such as ``PinnRule``, learned weights
        replace the weights by hand of conditions (``weight_dict=`` of a constraint, ``weight=`` of
        its loss). Those of equations stay as factors, because they say how much an equation counts
        beside others. So do those below ``floor`` or above 1 / ``floor``. All of them stay if the
        first step is one of L-BFGS, which may leave no step to learn in, or if the weights are
        frozen in it. The first step logs what it has replaced.

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
            UserWarning: In the first step, if a loss has a weight by hand and the rule does not
                tell conditions from equations, because both weights act then.

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
        check_constraints(constraint, equation)
        aggregator = cls(model, **options)
        assert constraint is not None  # which the check refuses
        aggregator.take(constraint, equation)
        return aggregator

    @property
    def names(self) -> list[str]:
        """Names of the losses, in the order of the weights; empty before the first step."""
        return self._losses.names

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
        self._losses.take(constraint, equation)

    def log_to(self, solver: Any, norms: bool = False) -> None:
        """Let the Solver log the weights beside its losses, as ``weight/NAME``.

        They appear wherever its losses do: in the terminal, VisualDL, W&B and TensorBoard. And
        ``solver.plot_loss_history()`` draws them too, in a picture beside that of the losses. Call
        this before the training.

        Args:
            solver: The Solver that has this aggregator.
            norms: Whether to log the norms of the losses' gradients too, as
                ``gradient_norm/NAME``.

        Raises:
            ValueError: The Solver has another aggregator.
        """
        if solver.loss_aggregator is not self:
            raise ValueError(
                f"solver has the loss_aggregator {type(solver.loss_aggregator).__name__}, not this "
                "one: write Solver(..., loss_aggregator=aggregator)"
            )
        quantities = {"weight": self.get_weights}
        if norms:
            quantities["gradient_norm"] = lambda: self.balancer.gradient_norms
        self._log.start(solver, quantities)

    def plot_weights(
        self, output_dir: str, smooth_step: int = 1, use_semilogy: bool = True
    ) -> None:
        """Draw the weights of the steps since ``log_to`` as ``Iteration-Weight_curve.jpg``.

        Of a run of more than 20,000 steps not all are kept (see ``History``); weights between two
        of these are drawn as those of the first. After ``log_to``, ``solver.plot_loss_history``
        does this too, with its own arguments.

        Args:
            output_dir: The folder of the picture.
            smooth_step: Number of steps whose mean is one point of the curves.
            use_semilogy: Whether the axes are logarithmic.

        Raises:
            ValueError: No step has been made since ``log_to``.
        """
        plot_weights(self._log.history, output_dir, smooth_step, use_semilogy)

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
        is_first, learns = not self.names, not self.balancer._schedule.frozen
        # Not in a loop of the user's own, which need not give the step.
        if step is not None and (self._last_step is None or step <= self._last_step):
            solver = training_solver(self)
            # L-BFGS repeats the number of its step, and so does the first step of the next Solver
            # after a training of one step.
            if solver is not None and (step != self._last_step or solver is not self._trains()):
                self._begin(solver)
                # L-BFGS may end in the first step, in which the weights stay as they are.
                learns = learns and not is_lbfgs(solver)
        losses = self._losses.checked(
            losses, lambda: training_solver(self) or self._log.solver(), learns
        )
        if is_first and losses:
            self._start = self.get_weights()
        if _paddle.is_amp_on():
            self._check_that_nobody_else_steps("use_amp=True")
        again = step is not None and step == self._last_step
        self._last_step = step
        self._evaluations = self._evaluations + 1 if again else 1
        self._log.enter(self.names)
        with paddle.amp.auto_cast(enable=False):
            if again:
                self._check_that_nobody_else_steps("L-BFGS")
                self._count_evaluation()
            else:
                # If no gradient has been cleared, this is another micro-batch. All of them count,
                # because the optimizer clears only those of the parameters that it holds.
                known, self._adds_to, self._with_gradient = self._with_gradient, [], []
                if known and len(with_gradient(known)) == len(known):
                    self.balancer.take_back()
                    self._adds_to = with_gradient(known)  # none if gradients are combined
                self._acting = self.balancer.get_weights()
                self._log.record(self._acting)
            run = self._backward_at_rest if again else self._backward
            weights = self._weights_of(losses)
            values = paddle.stack([x.detach().astype(weights.dtype) for x in losses.values()])
            return Total(paddle.dot(weights, values), functools.partial(run, losses))

    def _begin(self, solver: Solver) -> None:
        """Take over from a Solver how long its training is, and what it trains."""
        self._last_step, self._trains = None, weakref.ref(solver)
        with said_by_the_solver():
            expect_the_steps_of(solver, self.balancer)
        held = held_by(solver.optimizer)
        trained = tuple(p for p in self._shared if id(p) in held)
        if trained:
            self.balancer.shared = trained

    def _backward(self, losses: Mapping[str, paddle.Tensor], scale: float) -> None:
        if self._adds_to and not with_gradient(self._adds_to):
            raise RuntimeError(
                "the gradients were there when the aggregator was given the losses, which makes "
                "them a micro-batch's, and are cleared now: call optimizer.clear_grad() before the "
                "aggregator or after optimizer.step(), not between aggregator(losses) and "
                "backward()"
            )
        # The Solver numbers its steps, so the balancer need not find out whether L-BFGS calls.
        self.balancer._schedule.knows_steps = self._last_step is not None
        in_solver = self._losses.have_changed and self._last_step is not None
        with said_by_the_solver() if in_solver else contextlib.nullcontext():
            if self._losses.have_changed:
                self._losses.by_hand.tell()
            self.balancer.backward(losses, scale=scale)
        self._losses.have_changed = False
        if scale != 1:
            parameters = {id(p): p for p in (*self.model.parameters(), *self.balancer.shared)}
            self._with_gradient = with_gradient(parameters.values())

    def _backward_at_rest(self, losses: Mapping[str, paddle.Tensor], scale: float) -> None:
        weights = self._weights_of(losses) * scale
        _one_pass.backward_of_sum(list(losses.values()), weights, list(losses))

    def _weights_of(self, losses: Mapping[str, paddle.Tensor]) -> paddle.Tensor:
        return paddle.to_tensor(self._acting[[self.names.index(name) for name in losses]])

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

    def _check_that_nobody_else_steps(self, what: str) -> None:
        if self.balancer.weight_lr is None and not self.balancer._schedule.frozen:
            raise ValueError(
                f"with {what} the Solver's optimizer cannot step the loss weights: pass "
                "weight_lr=, so that the aggregator steps them. If they are meant to stay, call "
                "aggregator.balancer.freeze()"
            )

    def get_weights(self) -> np.ndarray:
        """The weights that the next step will use, in the order of ``names``, shape [T].

        Raises:
            RuntimeError: There has been no step to tell how many losses there are.
        """
        if self.balancer.n_loss is None:
            raise RuntimeError(f"there are no weights yet: {_TRAIN_FIRST}")
        return self.balancer.get_weights()

    def diagnose(self) -> list[str]:
        """What a user should act on, in words: see ``LossBalancer.diagnose``.

        Raises:
            RuntimeError: There has been no update of the weights.
        """
        if not self.names:
            raise RuntimeError(f"there is nothing to diagnose yet: {_TRAIN_FIRST}")
        return self.balancer.diagnose()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Names, weights, rule state and step count, because the Solver saves the model itself."""
        self._last_step = None  # the step is over, though the next one may have its number
        more = {
            _NAMES: list(self.names),
            _FROZEN: self.balancer._schedule.frozen,
            _BY_HAND: self._losses.by_hand.are_replaced,
            # Of a training by L-BFGS, which cannot tell it again from its middle.
            _PLANNED: self.balancer.total_steps,
        }
        return {**self.balancer.state_dict(), **more}

    def set_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load what ``state_dict`` returned. The constraints may be in another order by now.

        Raises:
            ValueError: Here, or in the first step, if the state is of losses of other names.
        """
        self._last_step = None
        state = dict(state_dict)
        names, frozen = state.pop(_NAMES, []), state.pop(_FROZEN, None)
        are_replaced, planned = state.pop(_BY_HAND, None), state.pop(_PLANNED, None)
        if self.names and names and names != self.names:
            state = _in_order(state, names, self.names)
        elif not self.names:
            self._losses.expect(names)
        found = self.balancer.set_state_dict(state)
        if frozen is not None:  # an older version did not save it
            self.balancer._schedule.frozen = frozen
        self._losses.by_hand.are_replaced = are_replaced
        if planned is not None:
            self.balancer._schedule.plan(planned)
        return found


def _in_order(state: dict[str, Any], before: list[str], now: list[str]) -> dict[str, Any]:
    """A balancer's state, of losses in the order ``before``, for losses in the order ``now``."""
    if sorted(before) != sorted(now):
        raise ValueError(
            f"the state has weights of the losses {', '.join(before)}, but this aggregator has "
            f"{', '.join(now)}"
        )
    numbers = [before.index(name) for name in now]
    arrays = {name: np.asarray(value) for name, value in state.items()}
    return {
        name: array[numbers] if array.ndim and len(array) == len(now) else array
        for name, array in arrays.items()
    }


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
    _arguments.refuse("GradNormAggregator", options, LossBalancer.__init__)


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
