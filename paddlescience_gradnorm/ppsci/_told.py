"""Which losses are residuals of equations, as far as a Solver's constraints tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import paddle
from ppsci import constraint as constraints

from paddlescience_gradnorm.balancing import _equations, _one_pass
from paddlescience_gradnorm.ppsci.derivatives import derivatives_in

_CONDITIONS = (
    constraints.BoundaryConstraint,
    constraints.InitialConstraint,
    constraints.IntegralConstraint,
    constraints.PeriodicConstraint,
)

# The losses that hold derivatives: (constraint, output).
Pairs = set[tuple[str, str]]


class Told:
    """What constraints, equations and the network's outputs tell about losses.

    Args:
        constraint: The Solver's constraints by name.
        equation: The Solver's equations by name.
        model: The network.
    """

    def __init__(
        self,
        constraint: Mapping[str, Any],
        equation: Mapping[str, Any] | None,
        model: paddle.nn.Layer,
    ) -> None:
        self._constraint = constraint
        # The equation that each expression is a part of.
        self._equation_of = {part: n for n, e in (equation or {}).items() for part in e.equations}
        self._outputs = getattr(model, "output_keys", None) or ()

    def apart(self, losses: Mapping[str, paddle.Tensor]) -> dict[str, bool | None]:
        """Whether losses that are called CONSTRAINT.OUTPUT are equations; None if in doubt."""
        parts = {name: (of := self.constraint_of(name), name[len(of) + 1 :]) for name in losses}
        pairs = list(parts.values())
        differentiated = {parts[name] for name, loss in losses.items() if differentiates(loss)}
        differentiated |= self._in_sympy(pairs)
        return {
            name: self._is_equation(pair, pairs, differentiated) for name, pair in parts.items()
        }

    def added_up(self, losses: Mapping[str, paddle.Tensor]) -> dict[str, bool | None]:
        """The same for losses called OUTPUT, of all constraints that have it.

        A loss is in doubt if they are not of one kind. Those that no constraint has are left out.
        """
        pairs = [(n, out) for n, each in self._constraint.items() for out in each.output_expr]
        held = {name for name, loss in losses.items() if differentiates(loss)}
        differentiated = {(of, output) for of, output in pairs if output in held}
        differentiated |= self._in_sympy(pairs)
        kinds: dict[str, set[bool | None]] = {}
        for pair in pairs:
            if pair[1] in losses:
                kind = self._is_equation(pair, pairs, differentiated)
                kinds.setdefault(pair[1], set()).add(kind)
        return {name: kind.pop() if len(kind) == 1 else None for name, kind in kinds.items()}

    def constraint_of(self, loss: str) -> str:
        """Name of the constraint that gives this loss; empty if none does."""
        return max((n for n in self._constraint if loss.startswith(f"{n}.")), key=len, default="")

    def _in_sympy(self, pairs: Iterable[tuple[str, str]]) -> Pairs:
        """Those with a derivative in sympy, which the graph need not show: it may be propagated."""
        expressions = {name: each.output_expr for name, each in self._constraint.items()}
        return {(of, output) for of, output in pairs if derivatives_in(expressions[of].get(output))}

    def _is_equation(
        self, pair: tuple[str, str], pairs: Iterable[tuple[str, str]], differentiated: Pairs
    ) -> bool | None:
        """Whether a constraint's loss is the residual of an equation; None if that is in doubt.

        Args:
            pair: Names of the constraint and the output.
            pairs: Those of all losses of this step.
            differentiated: Those of the losses that hold derivatives.
        """
        of, output = pair
        constraint, has_derivatives = self._constraint[of], pair in differentiated
        if isinstance(constraint, _CONDITIONS):
            in_doubt = has_derivatives and self._may_hold_there(output, pairs, differentiated)
            return None if in_doubt else False
        is_inside = isinstance(constraint, constraints.InteriorConstraint)
        place = _place(of)
        by_constraint = _equations.is_equation(place)
        if output in self._equation_of:
            if is_inside or by_constraint:
                return True
            return None if by_constraint is False or self._is_beside_another(output) else True
        if is_inside and has_derivatives:
            return None if by_constraint is False else True
        if not has_derivatives and (output in self._outputs or _is_a_value(constraint, output)):
            return False
        # A constraint at given points may be of either kind, so only the names are left to ask. If
        # it holds losses both with and without derivatives, its own name tells nothing of one. Nor
        # does the name of data: a residual is often required at the points of the data too.
        kinds = {each in differentiated for each in pairs if each[0] == of}
        is_of_data = _equations.is_measured(place) or "supervised" in of.lower()
        if len(kinds) > 1 or (has_derivatives and is_of_data):
            by_constraint = None
        by_words = {_equations.is_equation(output), by_constraint} - {None}
        return by_words.pop() if len(by_words) == 1 else None

    def _may_hold_there(
        self, output: str, pairs: Iterable[tuple[str, str]], differentiated: Pairs
    ) -> bool:
        """Whether an expression with derivatives may be required on the boundary as a residual.

        A traction is not, because the equation that defines it holds inside by other expressions,
        and its name is not an equation's.
        """
        known = set(pairs)
        inside = {
            expression
            for name, each in self._constraint.items()
            if not isinstance(each, _CONDITIONS)
            for expression in each.output_expr
            # A loss that is absent from this step may hold derivatives.
            if (name, expression) in differentiated or (name, expression) not in known
        }
        if output in inside or _equations.is_equation(output):
            return True
        equation = self._equation_of.get(output)
        return equation is not None and equation not in map(self._equation_of.get, inside)

    def _is_beside_another(self, output: str) -> bool:
        """Whether surely another of ``equation``'s entries holds inside, and not this output's.

        Then this one may be an object that has been written for a boundary condition.
        """
        sure = {
            self._equation_of.get(expression)
            for name, each in self._constraint.items()
            if isinstance(each, constraints.InteriorConstraint)
            or (not isinstance(each, _CONDITIONS) and _equations.is_equation(_place(name)))
            for expression in each.output_expr
        } - {None}
        return bool(sure) and self._equation_of[output] not in sure


class _AnyOutputs(dict[str, object]):
    """Has an object of its own for each name."""

    def __missing__(self, name: str) -> object:
        self[name] = object()
        return self[name]


def _is_a_value(constraint: Any, output: str) -> bool:
    """Whether an expression is a value of the network under another name.

    So is "u0" in ``{"u0": lambda out: out["u"]}``.
    """
    outputs = _AnyOutputs()
    try:
        value = constraint.output_expr[output](outputs)
    except Exception:  # because it computes something from the values
        return False
    return any(value is each for each in outputs.values())


def _place(constraint: str) -> str:
    """Where a constraint holds, by its name: "interior_sup" is supervised, and inside."""
    return constraint.replace("sup", "")


def conditions_known(losses: Mapping[str, paddle.Tensor], model: paddle.nn.Layer) -> set[str]:
    """The losses that are surely conditions: values of an output, under the output's own name.

    The name alone does not tell, because a constraint may give the name of an output to the
    residual of an equation: ``{"u": lambda out: hessian(out["u"], out["x"])}``. A loss with
    derivatives may also be a condition on a derivative, so it is not in the result.

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
    return {name for name, loss in losses.items() if name in outputs and not differentiates(loss)}


def differentiates(loss: paddle.Tensor) -> bool:
    """Whether the loss holds derivatives of the network's outputs."""
    # A derivative is a backward pass of its own, and this is how Paddle names the way back through
    # one: TanhDoubleGradNode, TanhTripleGradNode.
    return any(
        "DoubleGrad" in node.name() or "TripleGrad" in node.name()
        for node in _one_pass.graph_nodes(loss)
    )
