"""Sympy expressions turned into Paddle calls, by sympy's own printer and lambdify."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Callable

import paddle
import sympy
from sympy.core.relational import Relational
from sympy.functions.elementary.piecewise import ExprCondPair
from sympy.logic.boolalg import Boolean, BooleanAtom
from sympy.printing.str import StrPrinter


class PaddlePrinter(StrPrinter):
    """Prints functions by name, and what has no such form in Paddle: branches, numbers.

    Args:
        like: Name of a tensor in the printed code whose dtype and shape a number
            takes on where Paddle wants a tensor.
    """

    def __init__(self, like: str) -> None:
        super().__init__()
        self._like = like

    def _tensor(self, expr: sympy.Expr) -> str:
        if expr.is_number:
            return f"full_like({self._like}, {float(expr)!r})"
        return self._print(expr)

    def _print_Float(self, expr: sympy.Float) -> str:
        # Paddle 2.6 rounds a Python number that is added to float32.
        return f"full([], {float(expr)!r}, {self._like}.dtype)"

    def _print_Integer(self, expr: sympy.Integer) -> str:
        exact = abs(int(expr)) <= 2**24  # in float32
        return str(int(expr)) if exact else self._print_Float(expr)

    def _print_Rational(self, expr: sympy.Rational) -> str:
        return self._print_Float(expr)

    def _print_Piecewise(self, expr: sympy.Piecewise) -> str:
        check_defined_everywhere(expr)
        text = self._tensor(expr.args[-1].expr)
        for value, condition in reversed(expr.args[:-1]):
            text = f"where({self._print(condition)}, {self._tensor(value)}, {text})"
        return text

    def _print_And(self, expr: sympy.And) -> str:
        return self._fold("logical_and", expr.args)

    def _print_Or(self, expr: sympy.Or) -> str:
        return self._fold("logical_or", expr.args)

    def _print_Not(self, expr: sympy.Not) -> str:
        return f"logical_not({self._print(expr.args[0])})"

    def _print_Max(self, expr: sympy.Max) -> str:
        return self._fold("maximum", expr.args)

    def _print_Min(self, expr: sympy.Min) -> str:
        return self._fold("minimum", expr.args)

    def _fold(self, name: str, arguments: Sequence[Any]) -> str:
        texts = [self._print(a) if isinstance(a, Boolean) else self._tensor(a) for a in arguments]
        return functools.reduce(lambda a, b: f"{name}({a}, {b})", texts)


def check_defined_everywhere(expr: sympy.Piecewise) -> None:
    """Raise a ``ValueError`` unless the last branch holds wherever the others do not."""
    if expr.args[-1].cond != True:  # noqa: E712, a sympy truth value
        raise ValueError(f"{expr} is not defined everywhere; end it with a branch (value, True)")


_NAMES: dict[str, Any] = {
    name: getattr(paddle, name)
    for name in (
        "sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh exp log sqrt "
        "abs sign erf floor where full full_like logical_and logical_or logical_not maximum minimum"
    ).split()
}
_NAMES.update(
    Abs=paddle.abs,
    ceiling=paddle.ceil,
    Heaviside=lambda t, at_zero=0.5: paddle.heaviside(t, paddle.full_like(t, float(at_zero))),
    Eq=lambda a, b: a == b,
    Ne=lambda a, b: a != b,
)


_PRINTABLE = (
    *(sympy.Add, sympy.Mul, sympy.Pow, sympy.Symbol, sympy.Integer, sympy.Rational, sympy.Float),
    *(sympy.Piecewise, ExprCondPair, Relational, sympy.And, sympy.Or, sympy.Not),
    *(BooleanAtom, sympy.Max, sympy.Min),
)


def compile_expressions(
    expressions: Sequence[sympy.Expr],
    arguments: Sequence[sympy.Expr],
    zeros: Sequence[sympy.Expr] = (),
) -> Callable[..., list[paddle.Tensor]]:
    """A function of tensors, one for each argument, that gives one tensor for each expression.

    Common subexpressions are computed once. Numbers such as sqrt(2) take on the dtype
    of the tensors.

    Args:
        expressions: Expressions in the arguments.
        arguments: Symbols, applied functions and derivatives, in the order of the call.
        zeros: Others, in place of which the function has 0.

    Raises:
        ValueError: A function in the expressions has no counterpart in Paddle.

    Examples:
        >>> import paddle, sympy
        >>> x = sympy.Symbol("x")
        >>> double = compile_expressions([2 * x, sympy.sqrt(4) + x], [x])
        >>> [t.tolist() for t in double(paddle.ones([1]))]
        [[2.0], [3.0]]
    """
    names = {a: sympy.Symbol(f"t{i}") for i, a in enumerate(arguments)}
    replaced = {**names, **dict.fromkeys(zeros, sympy.S.Zero)}
    prepared = [_floats(e.xreplace(replaced)) for e in expressions]
    for original, expression in zip(expressions, prepared):
        for node in sympy.preorder_traversal(expression):
            if not isinstance(node, _PRINTABLE) and type(node).__name__ not in _NAMES:
                raise ValueError(
                    f"expression {original} has {node} in it, and {type(node).__name__} has "
                    "no counterpart in Paddle"
                )
    symbols = list(names.values())
    return sympy.lambdify(
        symbols, prepared, modules=[_NAMES], printer=PaddlePrinter(str(symbols[0])), cse=True
    )


def _floats(expression: sympy.Expr) -> sympy.Expr:
    """Irrational numbers as floats: Paddle's functions take tensors, not numbers."""
    if expression.is_number and expression.is_real and not expression.is_Rational:
        return expression.evalf(17)
    if not expression.args:
        return expression
    return expression.func(*(_floats(argument) for argument in expression.args))
