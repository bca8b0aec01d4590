import numpy as np
import paddle
import pytest
import sympy

from paddlescience_gradnorm.pde._paddle_printer import compile_expressions

x, y = sympy.symbols("x y")
EXPRESSIONS = [
    sympy.sin(x) * sympy.cosh(y) + sympy.exp(-x) / 3 + sympy.Rational(1, 7),
    sympy.sqrt(2) * x + sympy.pi * y + sympy.E,
    sympy.sqrt(y + 3) ** 3 + x**2 - y**-2,
    (y + 3) ** sympy.Rational(1, 3) + (y + 3) ** 0.7,
    sympy.Max(x, y, 0.1) - sympy.Min(x, sympy.Rational(1, 3)),
    sympy.Abs(x) + sympy.sign(y) + sympy.atan2(x, y) + sympy.erf(x),
    sympy.Piecewise(
        (x, sympy.And(x < 0.3, y > 0)), (sympy.pi, sympy.Or(x > 0.9, y < -0.5)), (y, True)
    ),
    sympy.Piecewise((sympy.Rational(1, 3), sympy.Not(sympy.And(x < 0, y < 0))), (2, True)),
    sympy.Piecewise((x, sympy.Eq(x, y)), (y, sympy.Ne(sympy.floor(x), 0)), (0, True)),
    sympy.Heaviside(x - y) + sympy.floor(3 * x) + sympy.ceiling(y),
    sympy.log(y + 3) * sympy.tanh(x) ** 2 + sympy.asinh(x) + sympy.acos(x / 2),
]


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("float64", 1e-14)])
def test_values_are_those_of_sympy(expression, dtype, tolerance):
    points = np.random.default_rng(0).uniform(-1, 1, (16, 2)).astype(dtype)
    columns = [paddle.to_tensor(points[:, k : k + 1]) for k in range(2)]
    (result,) = compile_expressions([expression], [x, y])(*columns)
    expected = [[float(expression.subs({x: a, y: b}))] for a, b in points.tolist()]
    assert result.dtype == getattr(paddle, dtype)
    np.testing.assert_allclose(result.numpy(), expected, rtol=tolerance, atol=tolerance)


def test_applied_functions_and_derivatives_can_be_arguments():
    u = sympy.Function("u")(x)
    evaluate = compile_expressions([u.diff(x) * u - x], [x, u, u.diff(x)])
    (result,) = evaluate(*(paddle.to_tensor([value]) for value in (2.0, 3.0, 5.0)))
    assert result.tolist() == [13.0]


@pytest.mark.parametrize(
    "expression, culprit",
    [
        (sympy.gamma(x), "gamma"),
        (x + sympy.I, "ImaginaryUnit"),
        (x * sympy.oo, "Infinity"),
        (sympy.Integral(x * y, x), "Integral"),
        (sympy.Function("f")(x), "f"),
    ],
)
def test_what_has_no_counterpart_is_named(expression, culprit):
    with pytest.raises(ValueError, match=rf"{culprit} has no counterpart in Paddle"):
        compile_expressions([expression], [x, y])


@pytest.mark.parametrize("number", [123456789, sympy.Rational(10**9 + 1, 10**9), 0.1])
def test_numbers_keep_double_precision(number):
    (result,) = compile_expressions([x + number], [x])(paddle.zeros([1], "float64"))
    assert result.item() == float(number)


def test_a_piecewise_that_is_not_defined_everywhere_is_refused():
    with pytest.raises(ValueError, match="not defined everywhere"):
        compile_expressions([sympy.Piecewise((x, x < 0))], [x])
