"""A network that meets conditions exactly, whatever its parameters are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Callable, NamedTuple, Union

import paddle
import sympy

from paddlescience_gradnorm import _inputs
from paddlescience_gradnorm.network._shared_layer import find_shared
from paddlescience_gradnorm.network._structure import takes_dicts
from paddlescience_gradnorm.network._taylor import Index, halves
from paddlescience_gradnorm.network.network_base import NetworkBase
from paddlescience_gradnorm.pde._paddle_printer import compile_expressions

Expression = Union[sympy.Expr, float, None]


class HardConstraint(NetworkBase):
    """A network N with an output transform: u = g(x) + d(x) N(x).

    Where the distance d is 0, u is g. So a boundary or initial condition is met exactly and needs
    no loss. A ``Residual`` differentiates d and g in sympy and N by itself, as fast as it would
    alone (``derivative_path`` says how), and puts them together by the product rule.

    Lagaris, Likas and Fotiadis, "Artificial neural networks for solving ordinary and partial
    differential equations", IEEE Trans. Neural Netw. 1998; Lu et al., "Physics-informed neural
    networks with hard constraints for inverse design", SIAM J. Sci. Comput. 2021,
    arXiv:2102.04626.

    Args:
        network: N, from points of shape [N, d] to fields of shape [N, number of fields].
        inputs: The coordinates, sympy symbols, in the order of the points' columns.
        distances: For each field d, a sympy expression in the inputs or a number. It is 0 where
            the condition holds and only there. None is 1, for a field without a constraint.
        values: For each field g, which takes the value of the condition where d is 0. None is 0,
            for one field or for all.

    Raises:
        TypeError: An argument is of the wrong type, or the network is one of PaddleScience's,
            which has ``register_output_transform``.
        ValueError: Distances and values do not fit each other, a distance is 0 everywhere, or
            an expression has something in it that is no input or that Paddle has no function for.

    Examples:
        >>> import paddle, sympy
        >>> from paddlescience_gradnorm import FCNet
        >>> x, t = sympy.symbols("x t")
        >>> net = HardConstraint(FCNet(2, 1, 3, 16), (x, t), [x * (1 - x) * t], [2 * x])
        >>> net(paddle.to_tensor([[0.0, 0.7], [1.0, 0.3], [0.25, 0.0]])).tolist()
        [[0.0], [2.0], [0.5]]
    """

    def __init__(
        self,
        network: paddle.nn.Layer,
        inputs: Sequence[sympy.Symbol],
        distances: Sequence[Expression],
        values: Sequence[Expression] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, paddle.nn.Layer):
            raise TypeError(f"network must be a paddle.nn.Layer, got {network!r}")
        if takes_dicts(network):
            raise TypeError(
                f"network is {type(network).__name__}, which takes and gives columns by name; use "
                "its register_output_transform"
            )
        if (
            not isinstance(inputs, (list, tuple))
            or not inputs
            or not all(isinstance(symbol, sympy.Symbol) for symbol in inputs)
            or len(set(inputs)) != len(inputs)
        ):
            raise TypeError(
                f"inputs must be distinct sympy Symbols in a list or tuple, got {inputs!r}"
            )
        self.network = network
        # Real, because sympy knows the derivative of |x| for a real x only.
        real = {symbol: sympy.Symbol(symbol.name, real=True) for symbol in inputs}
        self.inputs = tuple(real.values())
        self.distances = _checked("distances", distances, real, default=1)
        given = [None] * len(self.distances) if values is None else values
        self.values = _checked("values", given, real, default=0)
        if len(self.values) != len(self.distances):
            raise ValueError(
                f"values must have an entry for each of the {len(self.distances)} distances, got "
                f"{values!r}"
            )
        if 0 in self.distances:
            raise ValueError(
                f"distances must not be 0 everywhere, because the network would not matter, got "
                f"{distances!r}"
            )

    def nn_func(self, ins: paddle.Tensor) -> paddle.Tensor:
        """u, shape [N, number of fields], at points of shape [N, number of inputs].

        Raises:
            ValueError: The points have another number of columns, or what the network gives has.
        """
        outs = self.network(ins)
        if outs.ndim != 2 or outs.shape[1] != len(self.distances):
            raise ValueError(
                f"the network must return shape [N, {len(self.distances)}], a column for each of "
                f"the distances, got {list(outs.shape)}"
            )
        fields = [(k,) for k in range(len(self.distances))]
        of_network = dict(zip(fields, paddle.split(outs, len(fields), axis=1)))
        return paddle.concat(self.derivatives(ins, fields, of_network), axis=1)

    def needed(self, indices: Sequence[Index]) -> list[Index]:
        """Which derivatives of N those of u are made of.

        Args:
            indices: A field's number, then the numbers of coordinates in ascending order: (0,) is
                the value of field 0, (0, 1, 1) its second derivative in coordinate 1.
        """
        terms = [term for sum_ in self._rule(indices).sums for term in sum_.terms]
        return list(dict.fromkeys(of_network for _, of_network in terms))

    def derivatives(
        self,
        points: paddle.Tensor,
        indices: Sequence[Index],
        of_network: Mapping[Index, paddle.Tensor],
    ) -> list[paddle.Tensor]:
        """The derivatives of u by the product rule, shape [N, 1] each.

        Args:
            points: Shape [N, number of inputs].
            indices: As for ``needed``.
            of_network: The derivatives of N that are needed, shape [N, 1] each.

        Raises:
            ValueError: The points have another number of columns.
        """
        if points.ndim != 2 or points.shape[1] != len(self.inputs):
            raise _inputs.wrong_shape("points", points.shape, len(self.inputs))
        rule = self._rule(indices)
        factors = rule.evaluate(*paddle.split(points, len(self.inputs), axis=1))
        found = []
        for terms, value in rule.sums:
            summands = [
                of_network[index] if factor is None else factors[factor] * of_network[index]
                for factor, index in terms
            ]
            if value is not None:
                summands.append(factors[value])
            found.append(sum(summands[1:], summands[0]))
        return found

    def _rule(self, indices: Sequence[Index]) -> _ProductRule:
        return _product_rule(self.distances, self.values, self.inputs, tuple(indices))

    def get_last_shared_layer(self) -> list[paddle.Tensor]:
        """That of the network."""
        return list(find_shared(self.network))

    def extra_repr(self) -> str:
        return ", ".join(
            f"{value} + ({distance}) N" for distance, value in zip(self.distances, self.values)
        )


class _Sum(NamedTuple):
    """A derivative of u. Numbers are those of factors; None is the factor 1, or no value."""

    terms: list[tuple[int | None, Index]]  # each a factor and a derivative of N
    value: int | None


class _ProductRule(NamedTuple):
    """Derivatives of u as sums, and the function of the coordinates that gives all factors."""

    sums: list[_Sum]
    evaluate: Callable[..., list[paddle.Tensor]]


# Outside of the layer, because a compiled function cannot be pickled.
@cache
def _product_rule(
    distances: tuple[sympy.Expr, ...],
    values: tuple[sympy.Expr, ...],
    inputs: tuple[sympy.Symbol, ...],
    indices: tuple[Index, ...],
) -> _ProductRule:
    numbers: dict[sympy.Expr, int] = {}
    sums = []
    for k, *index in indices:
        terms: list[tuple[int | None, Index]] = []
        for (of_distance, of_network), count in halves(tuple(index)).items():
            factor = count * _derivative(distances[k], tuple(inputs[i] for i in of_distance))
            if factor != 0:
                number = None if factor == 1 else numbers.setdefault(factor, len(numbers))
                terms.append((number, (k, *of_network)))
        value = _derivative(values[k], tuple(inputs[i] for i in index))
        sums.append(_Sum(terms, None if value == 0 else numbers.setdefault(value, len(numbers))))
    return _ProductRule(sums, _compiled(list(numbers), inputs))


@cache
def _derivative(expression: sympy.Expr, symbols: tuple[sympy.Symbol, ...]) -> sympy.Expr:
    if not symbols:
        return expression
    *before, last = symbols
    derivative = _derivative(expression, tuple(before)).diff(last)
    # That of a jump, which is 0 at all points but one. Paddle takes it for 0 there too.
    return derivative.replace(sympy.DiracDelta, lambda *_: sympy.S.Zero)


def _compiled(
    expressions: Sequence[sympy.Expr], inputs: Sequence[sympy.Symbol]
) -> Callable[..., list[paddle.Tensor]]:
    """As by ``compile_expressions``, but a number is a column too."""
    of_inputs = compile_expressions([e for e in expressions if not e.is_number], inputs)

    def evaluate(*columns: paddle.Tensor) -> list[paddle.Tensor]:
        found = iter(of_inputs(*columns))
        return [
            paddle.full_like(columns[0], float(e)) if e.is_number else next(found)
            for e in expressions
        ]

    return evaluate


def _checked(
    name: str, given: Any, real: Mapping[sympy.Symbol, sympy.Symbol], default: int
) -> tuple[sympy.Expr, ...]:
    """The expressions in real symbols."""
    if not isinstance(given, (list, tuple)) or not given:
        raise TypeError(
            f"{name} must be sympy expressions, one for each field, in a list or tuple, got "
            f"{given!r}"
        )
    checked = []
    for k, one in enumerate(given):
        expression = sympy.Integer(default) if one is None else one
        if isinstance(expression, (int, float)):
            expression = sympy.Number(expression)
        if not isinstance(expression, sympy.Expr):
            raise TypeError(f"{name}[{k}] must be a sympy expression or None, got {one!r}")
        others = expression.free_symbols - set(real)
        if others:
            raise ValueError(
                f"{name}[{k}] is {one} and has the symbols {others}, which are none of the inputs "
                f"{list(real)} (one of the same name but with other assumptions is another symbol)"
            )
        expression = expression.doit().xreplace(real)
        try:
            compile_expressions([expression], list(real.values()))
        except ValueError as error:
            raise ValueError(f"{name}[{k}] cannot be used: {error}") from error
        checked.append(expression)
    return tuple(checked)
