"""Taylor propagation for the equations of a Solver, in place of nested ``paddle.grad``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import paddle
import sympy
from ppsci.solver import Solver
from ppsci.utils.expression import ExpressionSolver
from ppsci.utils.symbolic import ComposedNode, DerivativeNode, FusedDerivativeNode

from paddlescience_gradnorm.network._shared_layer import unwrapped_of_ranks
from paddlescience_gradnorm.network._taylor import HIGHEST_ORDER
from paddlescience_gradnorm.pde import Residual, derivative_path

_NESTED = "nested paddle.grad: "
Expressions = dict[str, Any]  # by the names of outputs


def propagate_derivatives(solver: Solver) -> dict[str, str]:
    """Let a Solver's equations get their derivatives by Taylor propagation.

    PaddleScience computes the derivatives in a sympy expression by nested ``paddle.grad``. If the
    model is one that ``derivative_path`` knows, such as ``ppsci.arch.MLP``, this carries them
    forward through the layers instead, which takes a fraction of the time. They are the same up to
    rounding, and PaddleScience computes the expression from them as before. Call it once, before
    ``solver.train()``. It serves the Solver's constraints, validators and visualizers, with any
    ``loss_aggregator`` or none.

    PaddleScience's own way remains for expressions that are Python functions, for derivatives
    above the fourth or of something else than an output of the model, and for all expressions
    beside one that is called like an output of the model.

    Args:
        solver: The Solver. Its constraints stay as they are; a later Solver with them needs a call
            of its own.

    Returns:
        For each sympy expression with derivatives, as ``"CONSTRAINT.OUTPUT"``: which way they go,
        and why, as in ``derivative_path``.

    Raises:
        TypeError: It is no Solver.

    Examples:
        >>> import ppsci
        >>> model = ppsci.arch.MLP(("x", "y"), ("u",), num_layers=2, hidden_size=8)
        >>> laplace = ppsci.equation.Laplace(2)
        >>> inside = ppsci.constraint.InteriorConstraint(
        ...     laplace.equations, {"laplace": 0}, ppsci.geometry.Rectangle((0, 0), (1, 1)),
        ...     {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1, "batch_size": 8},
        ...     ppsci.loss.MSELoss(),
        ... )
        >>> solver = ppsci.solver.Solver(model, {"EQ": inside}, None, epochs=1)
        >>> for name, path in propagate_derivatives(solver).items():
        ...     print(name, path)  # doctest: +ELLIPSIS
        EQ.laplace Taylor propagation up to order 4: linear layers with tanh, ...
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a ppsci.solver.Solver, got {type(solver).__name__}")
    model = unwrapped_of_ranks(solver.model)
    path = derivative_path(model)
    if getattr(solver, "to_static", False):
        path = _NESTED + "the Solver has to_static=True"
    paths, helper = {}, Propagating(model)
    for containers in (solver.constraint, solver.validator, solver.visualizer):
        for name, container in (containers or {}).items():
            expressions, of_container = container.output_expr, path
            differentiated = [each for each in expressions if derivatives_in(expressions[each])]
            if differentiated and not path.startswith(_NESTED):
                why_not = _why_not(model, expressions, differentiated)
                of_container = _NESTED + why_not if why_not else path
                if not why_not:
                    helper.serve(expressions, differentiated)
            paths.update({f"{name}.{output}": of_container for output in differentiated})
    helper.nvtx_flag = solver.forward_helper.nvtx_flag
    solver.forward_helper = helper
    return paths


class Propagating(ExpressionSolver):
    """What computes a Solver's expressions, with propagated derivatives where it has been told to.

    The expressions themselves stay as they are, because other Solvers, with other models, may have
    them too.

    Args:
        model: The network. With another one everything goes as without this class.
    """

    def __init__(self, model: paddle.nn.Layer) -> None:
        super().__init__()
        self._model = model
        # By the id of a dict of expressions: that dict, what it held, and what is computed instead.
        self._served: dict[int, tuple[Expressions, Expressions, Expressions]] = {}

    def serve(self, expressions: Expressions, differentiated: Sequence[str]) -> None:
        """Propagate the derivatives in these expressions, from now on."""
        propagated = Propagated(self._model, _keys(self._model, expressions, differentiated))
        instead = dict(expressions)
        for output in differentiated:
            instead[output] = ComposedNode([propagated, *expressions[output].callable_nodes])
        self._served[id(expressions)] = expressions, dict(expressions), instead

    def train_forward(
        self, expr_dicts: Any, input_dicts: Any, model: Any, *others: Any, **named: Any
    ) -> Any:
        instead = tuple(self._instead_of(each, model) for each in expr_dicts)
        return super().train_forward(instead, input_dicts, model, *others, **named)

    def eval_forward(
        self, expr_dict: Any, input_dict: Any, model: Any, *others: Any, **named: Any
    ) -> Any:
        instead = self._instead_of(expr_dict, model)
        return super().eval_forward(instead, input_dict, model, *others, **named)

    def visu_forward(self, expr_dict: Any, input_dict: Any, model: Any) -> Any:
        return super().visu_forward(self._instead_of(expr_dict, model), input_dict, model)

    def _instead_of(self, expressions: Any, model: Any) -> Any:
        _, before, instead = self._served.get(id(expressions), (None, {}, {}))
        is_same = before == expressions and unwrapped_of_ranks(model) is self._model
        return instead if is_same else expressions


class Propagated(paddle.nn.Layer):
    """Computes derivatives before the nodes of PaddleScience's expression that want them.

    Such a node takes what the data hold under its key, and differentiates only if there is nothing.

    Args:
        model: The network.
        keys: What the data shall hold, by PaddleScience's keys: "u__x__x", or "u" for the value.
    """

    def __init__(self, model: paddle.nn.Layer, keys: Mapping[str, sympy.Expr]) -> None:
        super().__init__()
        inputs = [sympy.Symbol(name) for name in model.input_keys]
        self._model, self._keys = model, list(keys)
        outputs = [sympy.Function(name) for name in model.output_keys]
        of_name = {each.__name__: each(*inputs) for each in outputs}
        self._system = Residual([_renamed(e, of_name) for e in keys.values()], inputs, outputs)

    def forward(self, data: dict[str, paddle.Tensor]) -> dict[str, paddle.Tensor]:
        columns = [data[name] for name in self._model.input_keys]
        in_columns = all(column.ndim == 2 and column.shape[1] == 1 for column in columns)
        # The first expression of a constraint computes them for all.
        if in_columns and self._keys[-1] not in data:
            data.update(zip(self._keys, self._system(self._model, paddle.concat(columns, axis=1))))
        return data


def _keys(
    model: Any, expressions: Expressions, differentiated: Sequence[str]
) -> dict[str, sympy.Expr]:
    """What the data shall hold before these expressions are computed, by PaddleScience's keys."""
    keys: dict[str, sympy.Expr] = {}
    # The value has the derivatives' graph then, and needs no pass of its own. A function in Python
    # may differentiate the value of the model's own pass.
    if all(isinstance(each, ComposedNode) for each in expressions.values()):
        roots = [expressions[output].callable_nodes[-1].expr for output in differentiated]
        fields = set().union(*(root.atoms(sympy.Function) for root in roots))
        keys.update({str(f.func): f for f in fields if str(f.func) in model.output_keys})
    for output in differentiated:
        for node in expressions[output].callable_nodes:
            if isinstance(node, FusedDerivativeNode):
                keys.update(zip(node.key, node.expr))
            elif isinstance(node, DerivativeNode):
                keys[node.key] = node.expr
    return {key: each for key, each in keys.items() if not _is_of_distance(each)}


def _why_not(model: Any, expressions: Expressions, differentiated: Sequence[str]) -> str:
    """Why derivatives of these expressions cannot be propagated; empty if they can."""
    for output in differentiated:
        # Its loss would be taken for one without derivatives, and so for a condition.
        if output in model.output_keys:
            return f"an expression is called {output!r}, which is an output of the model"
        for derivative in derivatives_in(expressions[output]):
            of, by = derivative.expr, derivative.variables
            if str(of.func) not in model.output_keys:
                return f"{of} is no output of the model"
            if not {symbol.name for symbol in by} <= set(model.input_keys):
                return f"{derivative} is in something that is no input of the model"
            if len(by) > HIGHEST_ORDER:
                return f"{derivative} is of order {len(by)}, above {HIGHEST_ORDER}"
    return ""


def derivatives_in(expression: Any) -> list[sympy.Derivative]:
    """The derivatives in one of a Solver's expressions; none in a function in Python."""
    if not isinstance(expression, ComposedNode):
        return []
    root = expression.callable_nodes[-1].expr  # the whole of it, or a number
    atoms = root.atoms(sympy.Derivative) if isinstance(root, sympy.Basic) else ()
    return [each for each in atoms if not _is_of_distance(each)]


def _is_of_distance(expression: sympy.Expr) -> bool:
    """Whether it is a derivative of the signed distance, which comes with the points."""
    is_derivative = isinstance(expression, sympy.Derivative)
    return is_derivative and str(expression.expr.func) == "sdf"


def _renamed(expression: sympy.Expr, of_name: Mapping[str, sympy.Expr]) -> sympy.Expr:
    """An output or its derivative, as a function of all inputs of the model.

    PaddleScience goes by names alone: u(x, y) is the output "u" of a model of t, x and y too.
    """
    if not isinstance(expression, sympy.Derivative):
        return of_name[str(expression.func)]
    field = of_name[str(expression.expr.func)]
    return field.diff(*(sympy.Symbol(symbol.name) for symbol in expression.variables))
