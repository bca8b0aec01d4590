"""PDE residuals written in sympy, as functions of a network and of points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Callable, Union

import numpy as np
import paddle
import sympy
from sympy.core.function import AppliedUndef, UndefinedFunction

from paddlescience_gradnorm import _arguments, _inputs
from paddlescience_gradnorm.network._structure import (
    by_name,
    constraint_of,
    piecewise_linear_activation,
    takes_dicts,
    unwrapped,
)
from paddlescience_gradnorm.network._taylor import (
    HIGHEST_ORDER,
    Layers,
    Part,
    in_each,
    order_of,
    propagate,
    singles,
    summands,
    summed,
)
from paddlescience_gradnorm.pde._combinations import carried
from paddlescience_gradnorm.pde._derivative_path import way_of
from paddlescience_gradnorm.pde._paddle_printer import compile_expressions

Network = Callable[[paddle.Tensor], paddle.Tensor]


class Residual(paddle.nn.Layer):
    """A residual, or a system of them, ready to be evaluated on a network.

    An ``FCNet``, and other networks of linear layers and activations (``derivative_path`` says
    which), carry derivatives up to the fourth forward through their layers. All else is
    differentiated by ``paddle.grad``, each derivative once however often it appears, with higher
    ones built on lower ones. That goes up to any order that Paddle can differentiate the network
    to; ``tanh`` networks have no limit.

    Args:
        expression: The residual, a sympy expression, or a list or tuple of them that
            share their points. Anything that sympy can differentiate: derivatives
            of the fields, sources in the coordinates, unknown coefficients.
        inputs: The coordinates, sympy symbols, in the order of the points' columns.
        outputs: The fields, sympy functions such as ``sympy.Function("u")``, in the
            order of the network's outputs.
        unknowns: Coefficients to be learned (inverse problems): symbol -> initial value,
            or -> a parameter that is shared with something else. They are
            parameters of this layer and go into the optimizer beside the network's.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A symbol or function in the expression is not explained by the
            arguments, or a field is asked for elsewhere than at the point itself.

    Examples:
        >>> import paddle, sympy
        >>> from paddlescience_gradnorm import FCNet
        >>> x, y = sympy.symbols("x y")
        >>> u = sympy.Function("u")
        >>> laplace = Residual(u(x, y).diff(x, 2) + u(x, y).diff(y, 2), (x, y), (u,))
        >>> list(laplace(FCNet(2, 1, 3, 16), paddle.rand([8, 2])).shape)
        [8, 1]
        >>> laplace(lambda p: p[:, :1] ** 2 - p[:, 1:] ** 2, paddle.rand([2, 2])).tolist()
        [[0.0], [0.0]]
    """

    def __init__(
        self,
        expression: sympy.Expr | Sequence[sympy.Expr],
        inputs: Sequence[sympy.Symbol],
        outputs: Sequence[UndefinedFunction],
        unknowns: Mapping[sympy.Symbol, Union[float, paddle.Tensor]] | None = None,
    ) -> None:
        super().__init__()
        unknowns = dict(unknowns or {})
        _check_types(inputs, outputs, unknowns)
        self._is_system = isinstance(expression, (list, tuple))
        expressions = [
            _checked_expression(e) for e in (expression if self._is_system else [expression])
        ]
        if not expressions:
            raise ValueError(f"expression must hold at least one residual, got {expression!r}")
        self._fields = [output(*inputs) for output in outputs]
        self._input_names = [symbol.name for symbol in inputs]
        self._output_names = [output.__name__ for output in outputs]
        derivatives = sorted(
            set().union(*(e.atoms(sympy.Derivative) for e in expressions)), key=str
        )
        # Sorted coordinate numbers, field first: (0, 1, 1) is d^2 u / dy^2 of field 0.
        # Sorting makes u_xy and u_yx one, and lets u_xx build on u_x.
        indices = [_multi_index(d, self._fields, inputs, expressions) for d in derivatives]
        _check_explained(expressions, inputs, self._fields, derivatives, unknowns)
        self._unknown_names = [symbol.name for symbol in unknowns]
        for name, value in zip(self._unknown_names, unknowns.values()):
            if name.startswith("_") or "." in name or hasattr(self, name):
                raise ValueError(
                    f"unknowns has {name!r}, a name that a layer cannot have (or not twice); "
                    "call the symbol something else"
                )
            self.add_parameter(name, _parameter(name, value))
        of_index = dict(zip(indices, derivatives))
        parts = carried(expressions, of_index)
        # A sum takes the place of its first summand, and the others that of 0.
        firsts = [of_index[summands(part)[0][1]] for part in parts]
        self._derivatives = parts
        self._evaluate = compile_expressions(
            expressions,
            [*inputs, *self._fields, *firsts, *unknowns],
            zeros=[derivative for derivative in derivatives if derivative not in firsts],
        )
        self._text = ", ".join(str(e) for e in expressions)

    def forward(
        self, network: Network, points: Union[paddle.Tensor, np.ndarray]
    ) -> paddle.Tensor | list[paddle.Tensor]:
        """The residual at the points.

        Args:
            network: Maps points of shape [N, d] to fields of shape [N, number of
                outputs]. Any callable made of Paddle operations. Or a network of PaddleScience,
                which takes and gives columns by the names of the inputs and outputs.
            points: Shape [N, d]; not changed. A numpy array, such as those of
                ``sample_interior``, becomes a tensor of the network's dtype. That takes about
                0.1 ms for 2,000 points.

        Returns:
            Shape [N, 1], or for a system a list of these. Differentiable with
            respect to the network and the unknowns, unless gradients are switched off.

        Raises:
            TypeError: The points are a tensor of another dtype than the network's, or neither a
                tensor nor an array of real numbers.
            ValueError: The points' or the network's columns, or the names of PaddleScience's
                network, do not match inputs and outputs. Or the expression has a second derivative
                and the network is piecewise linear, as with ReLU.
        """
        points = _inputs.as_input("points", points, network)
        dimension = len(self._fields[0].args)
        if points.ndim != 2 or points.shape[1] != dimension:
            raise _inputs.wrong_shape("points", points.shape, dimension)
        fields = [(k,) for k in range(len(self._fields))]
        values = self._values(network, points, [*fields, *self._derivatives])
        coordinates = paddle.split(points.detach(), dimension, axis=1)
        unknowns = [getattr(self, name) for name in self._unknown_names]
        residuals = self._evaluate(*coordinates, *values, *unknowns)
        return list(residuals) if self._is_system else residuals[0]

    def _values(
        self, network: Network, points: paddle.Tensor, parts: Sequence[Part]
    ) -> list[paddle.Tensor]:
        """Fields and derivatives at the points, shape [N, 1] each; indices have the field first."""
        constraint = constraint_of(network)
        if constraint is None:
            return self._of_network(network, points, parts)
        if len(self._fields) != len(constraint.distances):
            raise ValueError(
                f"the network is a HardConstraint with {len(constraint.distances)} distances, and "
                f"the outputs are {self._output_names}: it must have one for each of them"
            )
        indices = singles(parts)
        needed = constraint.needed(indices)
        found = dict(zip(needed, self._values(constraint.network, points, needed)))
        derivatives = constraint.derivatives(points.detach(), indices, found)
        return summed(parts, dict(zip(indices, derivatives)))

    def _of_network(
        self, network: Network, points: paddle.Tensor, parts: Sequence[Part]
    ) -> list[paddle.Tensor]:
        fields = [summands(part)[0][1][0] for part in parts]
        of_coordinates = [in_each(part, lambda index: index[1:]) for part in parts]
        distinct = list(dict.fromkeys(of_coordinates))
        by_coordinates = self._asked_of_network(network, points, distinct)
        if by_coordinates is not None:
            self._check_prediction(by_coordinates[()], points)
            if len(self._fields) == 1:
                return [by_coordinates[part] for part in of_coordinates]
            return [by_coordinates[part][:, k : k + 1] for k, part in zip(fields, of_coordinates)]
        with paddle.enable_grad():
            leaf = points.detach()
            leaf.stop_gradient = not self._derivatives
            function = network
            if takes_dicts(network):
                function = by_name(network, self._input_names, self._output_names)
            prediction = _called(network, function, leaf)
            self._check_prediction(prediction, points)
            table = _DerivativeTable(prediction, leaf)
            values = summed(parts, {index: table[index] for index in singles(parts)})
        return values if paddle.is_grad_enabled() else [value.detach() for value in values]

    def _asked_of_network(
        self, network: Any, points: paddle.Tensor, parts: Sequence[Part]
    ) -> dict[Part, paddle.Tensor] | None:
        """The derivatives by a faster way than ``paddle.grad``, if the network has one."""
        if parts == [()]:
            return None
        way, order = way_of(network), max(map(order_of, parts))
        derivatives: list[paddle.Tensor] | None
        if isinstance(way, str):
            _check_not_zero(network, order)
            return None
        if not isinstance(way, Layers):
            indices = singles(parts)
            found = _called(network, way, points, indices)
            derivatives = None if found is None else summed(parts, dict(zip(indices, found)))
        elif order > HIGHEST_ORDER or way.num_ins != points.shape[1]:
            return None
        elif takes_dicts(network):
            derivatives = self._by_name(unwrapped(network), way, points, parts)
        else:
            derivatives = _called(network, partial(propagate, way), points, parts)
        return None if derivatives is None else dict(zip(parts, derivatives))

    def _by_name(
        self,
        network: Any,
        layers: Layers,
        points: paddle.Tensor,
        parts: Sequence[Part],
    ) -> list[paddle.Tensor] | None:
        """The same from layers in the order of the network's keys; None if a name is missing."""
        inputs, outputs = list(network.input_keys), list(network.output_keys)
        names = self._input_names
        if set(inputs) != set(names) or not set(self._output_names) <= set(outputs):
            return None
        if inputs != names:
            columns = paddle.split(points, len(names), axis=1)
            points = paddle.concat([columns[names.index(name)] for name in inputs], axis=1)
        own = [
            in_each(part, lambda index: tuple(inputs.index(names[i]) for i in index))
            for part in parts
        ]
        found: list[paddle.Tensor] = _called(network, partial(propagate, layers), points, own)
        if outputs == self._output_names:
            return found
        wanted = paddle.to_tensor([outputs.index(name) for name in self._output_names])
        return [paddle.index_select(derivative, wanted, axis=1) for derivative in found]

    def _check_prediction(self, prediction: paddle.Tensor, points: paddle.Tensor) -> None:
        expected = [points.shape[0], len(self._fields)]
        if list(prediction.shape) != expected:
            raise ValueError(
                f"the network must return shape {expected}, got {list(prediction.shape)}"
            )

    def extra_repr(self) -> str:
        return self._text


def _called(network: Any, function: Callable[..., Any], points: paddle.Tensor, *more: Any) -> Any:
    """What a function of the network gives; an error that says so if the dtypes differ."""
    try:
        return function(points, *more)
    except (TypeError, ValueError, RuntimeError) as error:
        form = _inputs.form_of(network)
        # Not before the call, because a network may well cast its inputs itself.
        if form is not None and not _inputs.fits(points.dtype, form.dtype):
            raise _inputs.wrong_dtype("points", points.dtype, form.dtype) from error
        raise


def _check_not_zero(network: Any, order: int) -> None:
    """An equation of second order would be trained on a constant, and nothing would tell."""
    activation = piecewise_linear_activation(network) if order > 1 else None
    if activation is not None:
        raise ValueError(
            f"the network's activation {activation!r} is piecewise linear, so its derivatives of "
            f"order 2 and above are 0 everywhere, and the expression has one of order {order}; "
            "use a smooth activation, such as 'tanh'"
        )


class _DerivativeTable:
    """Derivatives of a network's outputs at fixed points, each computed when first asked for."""

    def __init__(self, prediction: paddle.Tensor, points: paddle.Tensor) -> None:
        self._points = points
        fields = paddle.split(prediction, prediction.shape[1], axis=1)
        self._values: dict[tuple[int, ...], paddle.Tensor] = {
            (k,): field for k, field in enumerate(fields)
        }
        self._gradients: dict[tuple[int, ...], list[paddle.Tensor]] = {}

    def __getitem__(self, index: tuple[int, ...]) -> paddle.Tensor:
        if index not in self._values:
            self._values[index] = self._gradient(index[:-1])[index[-1]]
        return self._values[index]

    def _gradient(self, index: tuple[int, ...]) -> list[paddle.Tensor]:
        """All first derivatives of one entry, by one differentiation, in columns."""
        if index not in self._gradients:
            value = self[index]
            gradient = None
            if not value.stop_gradient:
                gradient = self._differentiate(value)
            if gradient is None:  # constant in the points
                gradient = paddle.zeros_like(self._points)
            self._gradients[index] = paddle.split(gradient, gradient.shape[1], axis=1)
        return self._gradients[index]

    def _differentiate(self, value: paddle.Tensor) -> paddle.Tensor | None:
        try:
            return paddle.grad([value], [self._points], create_graph=True, allow_unused=True)[0]
        except RuntimeError as error:
            if "higher order" not in str(error):
                raise
            raise RuntimeError(
                "the network uses a function that Paddle cannot differentiate often enough "
                "for this residual; 'tanh' is one that it can differentiate any number of times"
            ) from error


def _multi_index(
    derivative: sympy.Derivative,
    fields: Sequence[sympy.Expr],
    inputs: Sequence[sympy.Symbol],
    expressions: Sequence[sympy.Expr],
) -> tuple[int, ...]:
    if derivative.expr not in fields or not set(derivative.variables) <= set(inputs):
        raise ValueError(
            f"expression {expressions} has {derivative}, which is no derivative of one "
            f"of the outputs {list(fields)} in the inputs {list(inputs)} (a symbol of the "
            "same name but with other assumptions is another one)"
        )
    coordinates = sorted(list(inputs).index(v) for v in derivative.variables)
    return (list(fields).index(derivative.expr), *coordinates)


def _check_types(inputs: Any, outputs: Any, unknowns: Mapping[Any, Any]) -> None:
    for name, items, kind in (
        ("inputs", inputs, sympy.Symbol),
        ("outputs", outputs, UndefinedFunction),
        ("unknowns", list(unknowns), sympy.Symbol),
    ):
        if not isinstance(items, (list, tuple)) or not all(
            isinstance(item, kind) for item in items
        ):
            raise TypeError(
                f"{name} must be sympy {kind.__name__}s in a list or tuple, got {items!r}"
            )
    for name, items in (("inputs", inputs), ("outputs", outputs)):
        if not items or len(set(items)) != len(items):
            raise ValueError(f"{name} must be distinct and at least one, got {items!r}")
    names = {symbol.name for symbol in inputs}
    if any(symbol.name in names for symbol in unknowns):
        raise ValueError(f"unknowns {list(unknowns)} share symbols with inputs {inputs}")


def _check_explained(
    expressions: Sequence[sympy.Expr],
    inputs: Sequence[sympy.Symbol],
    fields: Sequence[sympy.Expr],
    derivatives: Sequence[sympy.Expr],
    unknowns: Mapping[sympy.Symbol, Any],
) -> None:
    unused = set(unknowns) - set().union(*(e.free_symbols for e in expressions))
    if unused:
        raise ValueError(f"unknowns has {unused}, which is not in the expression {expressions}")
    for expression in expressions:
        if expression.has(sympy.Subs):
            raise ValueError(
                f"expression {expression} takes a derivative elsewhere than at the "
                f"point {tuple(inputs)} itself; use a residual at points of its own"
            )
        functions = expression.atoms(AppliedUndef) - set(fields)
        if functions:
            raise ValueError(
                f"expression {expression} has {functions}; the outputs, at the point "
                f"itself, are {list(fields)} (a symbol of the same name but with other "
                "assumptions is another one)"
            )
        symbols = expression.free_symbols - set(inputs) - set(unknowns)
        if symbols:
            raise ValueError(
                f"expression {expression} has the symbols {symbols}, which are neither "
                f"inputs {list(inputs)} nor unknowns {list(unknowns)} (one of the same name "
                "but with other assumptions is another symbol); substitute known "
                "coefficients with .subs"
            )
        if not expression.has(*fields):
            raise ValueError(f"expression {expression} has none of the outputs {list(fields)}")


def check_expression(name: str, expression: Any) -> None:
    """Raise a ``TypeError`` that has the name, unless it is a scalar expression of sympy."""
    if isinstance(expression, sympy.Eq):
        raise TypeError(
            f"{name} must be a sympy expression, which is to vanish, got {expression!r}; write "
            f"the left side minus the right side, {expression.lhs - expression.rhs}"
        )
    if not isinstance(expression, sympy.Expr) or expression.is_Matrix:
        raise TypeError(f"{name} must be a sympy expression, got {expression!r}")


def _checked_expression(expression: Any) -> sympy.Expr:
    check_expression("expression", expression)
    done: sympy.Expr = expression.doit()
    if done.has(sympy.re, sympy.im):
        raise ValueError(
            f"expression {expression} has real or imaginary parts, because sympy takes fields and "
            'coordinates for complex; make them real, sympy.Function("u", real=True) and '
            'sympy.symbols("x y", real=True)'
        )
    return done


def _parameter(name: str, value: Union[float, paddle.Tensor]) -> paddle.Tensor:
    if isinstance(value, paddle.Tensor):
        if value.size != 1 or value.stop_gradient:
            raise ValueError(
                f"unknowns[{name}] as a tensor must be a trainable parameter of one number, "
                f"got shape {list(value.shape)} and stop_gradient={value.stop_gradient}"
            )
        return value
    if not math.isfinite(_arguments.number(f"unknowns[{name}]", value)):
        raise ValueError(f"unknowns[{name}] must be finite, got {value}")
    return paddle.create_parameter(
        [1],
        paddle.get_default_dtype(),
        default_initializer=paddle.nn.initializer.Constant(float(value)),
    )
