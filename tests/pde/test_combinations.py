"""Which derivatives are carried as one; that the numbers are the same is in test_residual.py."""

import pytest
import sympy

from paddlescience_gradnorm.network._taylor import Combination
from paddlescience_gradnorm.pde import Residual

x, y, k = sympy.symbols("x y k")
u, v, p = (sympy.Function(name) for name in "uvp")
U, V, P = u(x, y), v(x, y), p(x, y)


def laplacian(f):
    return f.diff(x, 2) + f.diff(y, 2)


NAVIER_STOKES = [
    U * U.diff(x) + V * U.diff(y) + P.diff(x) - laplacian(U) / 40,
    U * V.diff(x) + V * V.diff(y) + P.diff(y) - laplacian(V) / 40,
    U.diff(x) + V.diff(y),
]


def in_sums(*expressions, inputs=(x, y), outputs=(u,), **more):
    residual = Residual(list(expressions), inputs, outputs, **more)
    return [part.summands for part in residual._derivatives if isinstance(part, Combination)]


@pytest.mark.parametrize(
    "expressions, sums",
    [
        ([laplacian(U)], [((1, (0, 0, 0)), (1, (0, 1, 1)))]),
        ([3 * U.diff(x, 2) - U.diff(y, 2) / 2 + U], [((1, (0, 1, 1)), (-6, (0, 0, 0)))]),
        ([U.diff(y, 2) - 4 * U.diff(x, 2) + U**3], [((1, (0, 1, 1)), (-4, (0, 0, 0)))]),
        ([(1 + U**2) * laplacian(U) + U.diff(x)], [((1, (0, 0, 0)), (1, (0, 1, 1)))]),
        ([laplacian(U) ** 2 - 1], [((1, (0, 0, 0)), (1, (0, 1, 1)))]),
        ([0.01 * laplacian(U) + U], [((1, (0, 0, 0)), (1, (0, 1, 1)))]),
        ([0.5 * U.diff(x, 2) + 1.5 * U.diff(y, 2)], [((1, (0, 0, 0)), (3, (0, 1, 1)))]),
        ([0.01 * x * laplacian(U)], [((1, (0, 0, 0)), (1, (0, 1, 1)))]),
        (
            [laplacian(laplacian(U))],
            [((1, (0, 0, 0, 0, 0)), (1, (0, 1, 1, 1, 1)), (2, (0, 0, 0, 1, 1)))],
        ),
        # Each is needed for itself:
        ([U.diff(x, 2) + x * U.diff(y, 2)], []),
        ([U.diff(x, 2) + U.diff(y, 2) * sympy.Rational(2, 3)], []),
        ([U.diff(x, 2) + 10**9 * U.diff(y, 2)], []),  # not exact in float32
        ([U.diff(x, 2) + 0.3 * U.diff(y, 2)], []),
        ([laplacian(U), U.diff(x, 2)], []),
        ([U.diff(x, 2) * U.diff(y, 2)], []),
        ([laplacian(U) + sympy.Abs(U.diff(x, 2))], []),
        # Steps, and roots, which may be steps. The slope of one is 0:
        ([laplacian(U) + sympy.sqrt((U.diff(x, 2) + U) ** 2) / (U.diff(x, 2) + U)], []),
        ([laplacian(U) + ((U.diff(x, 2) + U) ** 3) ** sympy.Rational(1, 3) / U.diff(x, 2)], []),
        ([laplacian(U) + sympy.Piecewise((1, U.diff(x, 2) > 0), (0, True))], []),
        # A third derivative is made of them:
        ([laplacian(U) + U.diff(x, 3) + U.diff(y, 3) * x], []),
        ([U.diff(x) + U.diff(y)], []),  # first derivatives are needed by all others
    ],
    ids=str,
)
def test_derivatives_that_are_in_a_sum_only_are_carried_as_one(expressions, sums):
    found = in_sums(*expressions)
    assert [set(one) for one in found] == [set(one) for one in sums]
    assert all(one[0][0] == 1 for one in found)


def test_all_fields_have_to_have_the_same_sum():
    both = [((1, (k, 0, 0)), (1, (k, 1, 1))) for k in range(2)]
    assert in_sums(*NAVIER_STOKES, outputs=(u, v, p)) == both
    assert in_sums(laplacian(U), V.diff(x), outputs=(u, v)) == both[:1]
    assert in_sums(laplacian(U), V.diff(x, 2), outputs=(u, v)) == []
    assert in_sums(laplacian(U), V.diff(x, 2) - V.diff(y, 2), outputs=(u, v)) == []
    # As if it were one expression: k is the same for both.
    assert in_sums(k * laplacian(U), laplacian(V), outputs=(u, v), unknowns={k: 1.0}) == both


def test_numbers_stay_exact_where_a_sum_begins_with_another_derivative():
    """Each is a million times the next, so the first is too many times the last."""
    z = sympy.Symbol("z")
    W = u(x, y, z)
    expression = 10**12 * W.diff(x, 2) + 10**6 * W.diff(y, 2) + W.diff(z, 2)
    (found,) = in_sums(expression, inputs=(x, y, z))
    assert len(found) == 2
    assert all(abs(count) <= 2**24 for count, _ in found)
