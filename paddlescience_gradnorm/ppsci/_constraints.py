"""Which losses a Solver's constraints give, and which of them are residuals of equations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import paddle
from ppsci.constraint import Constraint
from ppsci.loss.base import Loss

from paddlescience_gradnorm import _paddle
from paddlescience_gradnorm.balancing import _equations, _one_pass
from paddlescience_gradnorm.balancing._losses import NamedLosses
from paddlescience_gradnorm.balancing.balancer import LossBalancer
from paddlescience_gradnorm.ppsci._told import Told, conditions_known
from paddlescience_gradnorm.ppsci._weights_by_hand import (
    WeightsByHand,
    weights_by_hand,
    without_weights_by_hand,
)

_APART = (
    "; or write GradNormAggregator.of(model, constraint, equation), which balances them apart: the "
    "Solver adds up losses of the same name"
)


class SolverLosses:
    """The losses that a Solver gives, checked in every step."""

    def __init__(self, balancer: LossBalancer, model: paddle.nn.Layer) -> None:
        self.names: list[str] = []  # in the order of the first step, or of a checkpoint before it
        # Since this was last set False: losses have joined or been absent, or constraints taken.
        self.have_changed = False
        self.equations: tuple[str, ...] = ()
        self._balancer, self._model = balancer, model
        self._expected: list[str] = []  # what the first step has to give, after a checkpoint
        # Those that ``take`` has got, and what they tell.
        self._constraint: Mapping[str, Any] = {}
        self._told = Told({}, None, model)
        self.by_hand = WeightsByHand(balancer)

    def take(self, constraint: Mapping[str, Any], equation: Mapping[str, Any] | None) -> None:
        """Balance the losses of these constraints apart: see ``GradNormAggregator.take``."""
        check_constraints(constraint, equation)
        self._constraint = {str(name): each for name, each in constraint.items()}
        self._told = Told(self._constraint, equation, self._model)
        self.have_changed = True
        for name, each in self._constraint.items():
            inner = each.loss.inner if isinstance(each.loss, _LossOfOne) else each.loss
            each.loss = _LossOfOne(inner, name, weights_by_hand(each, inner))

    def expect(self, names: list[str]) -> None:
        """Before the first step: its losses must be those of a checkpoint, in whatever order."""
        self._expected = names

    def checked(
        self, losses: Mapping[str, paddle.Tensor], find_solver: Callable[[], Any], learns: bool
    ) -> NamedLosses:
        """The losses of a step in the order of ``names``, with those that are equations.

        If no constraints have been taken, those of the Solver that ``find_solver`` gives are asked,
        unless it gives None. If the losses' weights are learned, these replace weights by hand: see
        ``WeightsByHand``.
        """
        known = self.names or self._expected
        names = [*known, *(name for name in losses if name not in known)]
        if len(names) > len(self.names) or len(losses) < len(names):
            self._check_names(names, losses)
            try:
                _one_pass.refuse_a_static_program(list(losses.values()), list(losses))
            except ValueError as error:
                raise ValueError(f"{error}. In a Solver, pass to_static=False") from None
            if self._balancer.n_loss is None:
                self._balancer.set_n_loss(len(names))
            # Names last, because faulty losses must not set them.
            self.equations, self.names = self._find_equations(names, losses, find_solver), names
            self.have_changed = True
        if self.have_changed:
            weights = {
                name: of_loss
                for each in self._constraint.values()
                for name, of_loss in each.loss.weights_by_hand.items()
            }
            self.by_hand.meet(weights, self.names, self.equations, learns)
            for each in self._constraint.values():
                each.loss.gives_both = any(
                    name in self.by_hand.replaced or name not in self.names
                    for name in each.loss.weights_by_hand
                )
        losses = self._without_replaced(losses)
        return NamedLosses({n: losses[n] for n in names if n in losses}, self.equations)

    def _without_replaced(self, losses: Mapping[str, paddle.Tensor]) -> dict[str, paddle.Tensor]:
        """The losses without the weights by hand that learned ones replace."""
        bare = {
            name: without
            for each in self._constraint.values()
            for name, (loss, without) in each.loss.both.items()
            if name in self.by_hand.replaced and losses.get(name) is loss
        }
        return {**losses, **bare}

    def _check_names(self, names: list[str], losses: Mapping[str, paddle.Tensor]) -> None:
        n_loss, may_be_absent = self._balancer.n_loss, self._balancer.absent == "skip"
        for name in losses:
            if self._constraint and not self._told.constraint_of(name):
                raise ValueError(
                    f"loss {name!r} comes from none of the constraints that this aggregator has "
                    f"been given, {', '.join(self._constraint)}: call aggregator.take(constraint, "
                    "equation) with those of the Solver"
                )
        if may_be_absent and (n_loss is None or len(names) <= n_loss):
            return
        if self._expected and not self.names and set(losses) != set(self._expected):
            raise ValueError(
                f"the checkpoint has weights of the losses {', '.join(self._expected)}, but the "
                f"constraints give {', '.join(losses)}: resume with constraints of the same names, "
                "or make a new GradNormAggregator and load only the model"
            )
        if self.names:
            joined = (
                "if losses join later, pass a weight for each from the start, "
                f"weight_attr=[1.0] * {len(names)}"
                if may_be_absent
                else 'if some are only absent from some steps, pass absent="skip"'
                + ("" if self._constraint else " and the number of all")
            )
            raise ValueError(
                f"the constraints give the losses {', '.join(losses)}, but before they gave "
                f"{', '.join(self.names)}: make a new GradNormAggregator for other losses; or, "
                f"{joined}"
            )
        if len(names) == 1:
            raise ValueError(
                f"the constraints give one loss only, {names[0]!r}, so there is nothing to "
                "balance: leave loss_aggregator out. If it is the sum of several losses, as that "
                "of a FunctionalLoss may be, return these in its dict"
                + ("" if self._constraint else _APART)
            )
        if n_loss in (None, len(names)):
            return
        if self._constraint:
            raise ValueError(
                f"weight_attr or a checkpoint is for {n_loss} losses, but the constraints give "
                f"{len(names)}: {', '.join(names)}"
            )
        raise ValueError(
            f"n_loss is {n_loss}, but the constraints give {len(names)}: {', '.join(names)}. "
            f"Pass n_loss={len(names)} (len(constraint) is another number){_APART}"
        )

    def _find_equations(
        self,
        names: list[str],
        losses: Mapping[str, paddle.Tensor],
        find_solver: Callable[[], Any],
    ) -> tuple[str, ...]:
        """The losses that are residuals of equations, unless the user has told them."""
        rule, solver = self._balancer.rule, None
        if self._balancer.equations is not None or not rule.tells_equations:
            return ()
        if self._constraint:
            known = self._told.apart(losses)
        else:
            solver = find_solver()
            known = dict.fromkeys(conditions_known(losses, self._model), False)
            if solver is not None:
                told = Told(solver.constraint, solver.equation, self._model)
                known.update(told.added_up(losses))
        known.update({name: name in self.equations for name in self.names})
        try:
            return tuple(_equations.by_name(names, type(rule).__name__, known))
        except ValueError as error:
            if self._constraint:
                raise ValueError(
                    f"{error}. Write GradNormAggregator.of(model, constraint, equation, "
                    "equations=[...])"
                ) from None
            if solver is not None:
                raise
            raise ValueError(
                f"{error}. Or write GradNormAggregator.of(model, constraint, equation), because "
                "the Solver's constraints may tell"
            ) from None


class _LossOfOne(Loss):
    """A constraint's loss that gives its parts the constraint's name too.

    Everything else is read from the loss itself, ``inner``.

    Args:
        inner: The loss.
        name: The constraint's name.
        found: The weights by hand of its outputs.

    Attributes:
        weights_by_hand: The same, by the losses' names.
        gives_both: Whether a weight is replaced, or may yet be.
        both: If so, each loss of the last call, with its weight and without. Only the aggregator
            knows which of the two acts.
    """

    def __init__(
        self, inner: Callable[..., Any], name: str, found: Mapping[str, Mapping[str, float]]
    ) -> None:
        super().__init__(getattr(inner, "reduction", None), getattr(inner, "weight", None))
        self.inner = inner
        self._of, self._found = name, found
        self.weights_by_hand = {f"{name}.{output}": each for output, each in found.items()}
        self.gives_both = bool(found)
        self.both: dict[str, tuple[paddle.Tensor, paddle.Tensor]] = {}

    def forward(
        self, output: Any, label: Any = None, weight: Mapping[str, paddle.Tensor] | None = None
    ) -> dict[str, paddle.Tensor]:
        losses = self._named(self.inner(output, label, weight))
        self.both = {}
        if self.gives_both:
            bare = without_weights_by_hand(self._found, self.inner, output, label, weight)
            self.both = {n: (losses[n], each) for n, each in self._named(bare).items()}
        return losses

    def _named(self, losses: Any) -> dict[str, paddle.Tensor]:
        if not isinstance(losses, Mapping):
            raise TypeError(
                f"the loss of constraint {self._of!r} must return a dict name -> scalar, got "
                f"{type(losses).__name__}"
            )
        return {f"{self._of}.{name}": loss for name, loss in losses.items()}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = _paddle.sublayer(self, "inner")
            if inner is None:
                raise
        return getattr(inner, name)


def check_constraints(constraint: Any, equation: Any) -> None:
    """Refuse what is not a Solver's constraints and equations, or cannot be told apart."""
    if not isinstance(constraint, Mapping):
        raise TypeError(f"constraint must be the Solver's dict, got {constraint!r}")
    if not constraint:
        raise ValueError("constraint is empty, so there are no losses to balance")
    names: dict[int, str] = {}
    for name, each in constraint.items():
        if not isinstance(each, Constraint):
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
    for name, each in (equation or {}).items():
        if not hasattr(each, "equations"):
            raise TypeError(
                f"equation must hold PaddleScience's equations, got {each!r} as {name!r}: write "
                '{"laplace": laplace} for an equation laplace, not laplace.equations'
            )
