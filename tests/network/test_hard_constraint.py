"""The constraint as a layer, and its derivatives in a Residual, against sympy and paddle.grad."""

import copy
import pickle
import re

import numpy as np
import paddle
import pytest
import sympy

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.network import HardConstraint
from paddlescience_gradnorm.pde import Residual, derivative_path

x, y = sympy.symbols("x y")
u, v = sympy.Function("u"), sympy.Function("v")
U, V = u(x, y), v(x, y)
DISTANCE = x * (1 - x) * sympy.tanh(y)
VALUE = 3 * x * y * y * y + sympy.tanh(x * y)
ORDERS = {
    "value": [U],
    "first": [U.diff(x), U.diff(y)],
    "Laplace": [U.diff(x, 2) + U.diff(y, 2)],
    "mixed": [U.diff(x, y) * U, U.diff(y)],
    "Korteweg-de Vries": [U.diff(y) + U * U.diff(x) + U.diff(x, 3)],
    "plate": [U.diff(x, 4) + 2 * U.diff(x, 2, y, 2) + U.diff(y, 4), U.diff(x, y, y)],
    "mixed fourth": [U.diff(x, 3, y), U.diff(x, y, 3)],
}


class ByHand(paddle.nn.Layer):
    """The same with Paddle's operators, of those that it differentiates any number of times."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, ins):
        a, b = paddle.split(ins, 2, axis=1)
        return 3 * a * b * b * b + paddle.tanh(a * b) + a * (1 - a) * b.tanh() * self.network(ins)


class Polynomial(paddle.nn.Layer):
    """x y^2, which no path but nested ``paddle.grad`` takes."""

    def forward(self, ins):
        a, b = paddle.split(ins, 2, axis=1)
        return a * b * b


def results(system, network, points):
    """Residuals, and the gradients of a loss in all parameters."""
    network.clear_gradients()
    found = system(network, points)
    sum((f * f).sum() for f in found).backward()
    gradients = [np.zeros(p.shape) if p.grad is None else p.grad for p in network.parameters()]
    return [np.asarray(r) for r in [*found, *gradients]]


@pytest.mark.usefixtures("both_operators")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 5e-5), ("float64", 1e-12)])
def test_derivatives_are_those_of_nested_differentiation(order, dtype, tolerance):
    inner = FCNet(2, 1, 3, 6)
    inner.to(dtype=dtype)
    constrained, by_hand = HardConstraint(inner, (x, y), [DISTANCE], [VALUE]), ByHand(inner)
    assert derivative_path(constrained).startswith("Taylor")
    assert derivative_path(by_hand).startswith("nested")
    system = Residual(ORDERS[order], (x, y), (u,))
    points = paddle.rand([9, 2], dtype) - 0.5
    pairs = zip(results(system, constrained, points), results(system, by_hand, points))
    for ours, reference in pairs:
        scale = max(1.0, np.abs(reference).max())
        np.testing.assert_allclose(ours, reference, rtol=0, atol=tolerance * scale)


SMOOTH = [
    sympy.sin(sympy.pi * x) * sympy.exp(-y) + 2,
    x**4 * y**2 / (1 + x**2),
    sympy.sqrt(x + 2) * (y + 3) ** 2.5,
    sympy.log(y + 2) * sympy.cos(3 * x) + sympy.atan(x * y),
    sympy.Piecewise((x**5, x < 0.1), (sympy.sinh(y) * x**2, True)),
    sympy.pi + 0 * x,
]


@pytest.mark.parametrize("distance", SMOOTH, ids=str)
@pytest.mark.parametrize("value", [None, *SMOOTH[:2]], ids=str)
def test_any_expression_is_differentiated_by_sympy_around_any_network(distance, value):
    """Paddle itself differentiates many of these once or twice only."""
    network = HardConstraint(Polynomial(), (x, y), [distance], [value])
    exact = distance * x * y**2 + (0 if value is None else value)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (8, 2))
    for symbols in [(), (x,), (x, y), (x, x, y, y), (y, y, y), (x, x, x, x, y)]:
        system = Residual(U.diff(*symbols) if symbols else U, (x, y), (u,))
        found = system(network, paddle.to_tensor(points)).numpy()
        derivative = exact.diff(*symbols) if symbols else exact
        expected = [[float(derivative.subs({x: a, y: b}))] for a, b in points]
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_a_kink_has_the_slopes_beside_it_and_no_bend():
    distance = sympy.Min(x, 1 - x) * sympy.Abs(y)
    network = HardConstraint(Polynomial(), (x, y), [distance], [sympy.sign(x)])
    points = paddle.to_tensor([[0.25, -2.0], [0.75, 2.0]])  # u = -x^2 y^3 + 1, (1 - x) x y^3 + 1
    both = Residual([U.diff(x), U.diff(x, 2), U.diff(x, 1, y, 2)], (x, y), (u,))(network, points)
    assert [one.tolist() for one in both] == [[[4.0], [-4.0]], [[16.0], [-16.0]], [[6.0], [-6.0]]]


@pytest.mark.usefixtures("both_operators")
def test_each_field_has_its_own_or_none():
    inner = FCNet(2, 2, 3, 6)
    inner.to(dtype="float64")
    network = HardConstraint(inner, [x, y], [None, y], (x, None))
    points = paddle.rand([5, 2], "float64")
    a, b = points[:, :1].numpy(), points[:, 1:].numpy()
    plain = inner(points).numpy()
    np.testing.assert_allclose(network(points).numpy(), plain * np.hstack([a**0, b]) + [[1, 0]] * a)
    system = Residual([U.diff(x), V.diff(x, y), V.diff(x, y, y)], (x, y), (u, v))
    names = {"inputs": (x, y), "outputs": (u, v)}
    bare = Residual([U.diff(x) + 1, y * V.diff(x, y) + V.diff(x)], **names)(inner, points)
    third = Residual(y * V.diff(x, y, y) + 2 * V.diff(x, y) + 0 * U, **names)(inner, points)
    for ours, expected in zip(system(network, points), [*bare, third]):
        np.testing.assert_allclose(ours.numpy(), expected.numpy(), rtol=1e-13, atol=1e-14)


def test_the_condition_is_met_exactly():
    network = HardConstraint(FCNet(2, 1, 3, 6), (x, y), [x * (1 - x)], [sympy.sin(y)])
    points = np.array([[0.0, 0.3], [1.0, -0.7]])
    np.testing.assert_array_equal(
        network(points).numpy(), paddle.sin(paddle.to_tensor(points[:, 1:], "float32")).numpy()
    )


def test_a_constraint_of_a_constraint():
    inner = FCNet(2, 1, 3, 6)
    inner.to(dtype="float64")
    twice = HardConstraint(HardConstraint(inner, (x, y), [x], [y]), (x, y), [y], [2])
    once = HardConstraint(inner, (x, y), [x * y], [y * y + 2])
    points = paddle.rand([5, 2], "float64")
    plate = Residual(ORDERS["plate"], (x, y), (u,))
    for ours, expected in zip(plate(twice, points), plate(once, points)):
        np.testing.assert_allclose(ours.numpy(), expected.numpy(), rtol=1e-12, atol=1e-13)
    assert derivative_path(twice).endswith("in a hard constraint, in a hard constraint")


def test_it_copies_pickles_and_loads_like_a_network():
    network = HardConstraint(FCNet(2, 1, 3, 6), (x, y), [DISTANCE], [VALUE])
    points = paddle.rand([5, 2])
    laplace = Residual(*ORDERS["Laplace"], (x, y), (u,))
    expected = laplace(network, points).numpy()
    other = HardConstraint(FCNet(2, 1, 3, 6), (x, y), [DISTANCE], [VALUE])
    other.set_state_dict(network.state_dict())
    for twin in copy.deepcopy(network), pickle.loads(pickle.dumps(network)), other:
        np.testing.assert_array_equal(twin(points).numpy(), network(points).numpy())
        np.testing.assert_array_equal(laplace(twin, points).numpy(), expected)
    assert str(network).startswith("HardConstraint(3*x*y**3 + tanh(x*y) + (x*(1 - x)*tanh(y)) N\n")


def test_it_runs_in_a_static_graph():
    network = HardConstraint(FCNet(2, 1, 3, 6), (x, y), [DISTANCE], [2])
    points = paddle.rand([5, 2])
    expected = network(points).numpy()
    static = paddle.jit.to_static(lambda ins: network(ins))
    np.testing.assert_allclose(static(points).numpy(), expected, rtol=1e-6)


@pytest.mark.usefixtures("both_operators")
@pytest.mark.parametrize("options", [{}, {"alpha": 1.0}], ids=str)
def test_it_is_balanced_like_its_network(options):
    network = HardConstraint(FCNet(2, 1, 3, 6), (x, y), [DISTANCE])
    shared = network.network.linears[-1].weight
    assert [p is shared for p in network.get_last_shared_layer()] == [True]
    wrapped = GradNorm(network, 2, equations=[0], **options)
    assert derivative_path(wrapped).endswith("in a hard constraint")
    assert "linear layers with tanh, " in derivative_path(wrapped)
    laplace = Residual(*ORDERS["Laplace"], (x, y), (u,))
    points = np.random.default_rng(0).random((6, 2))
    np.testing.assert_array_equal(
        laplace(wrapped, points).numpy(), laplace(network, points).numpy()
    )
    pde, data = laplace(wrapped, points).square().mean(), wrapped(points).square().mean()
    wrapped.backward([pde, data])
    assert shared.grad is not None and np.isfinite(wrapped.get_weights()).all()


def test_without_gradients_nothing_is_recorded():
    network = HardConstraint(FCNet(2, 1, 3, 6), (x, y), [DISTANCE])
    with paddle.no_grad():
        found = Residual(*ORDERS["Laplace"], (x, y), (u,))(network, paddle.rand([5, 2]))
    assert found.stop_gradient


class Doubled(HardConstraint):
    def forward(self, ins):
        return 2 * super().forward(ins)


def hooked(network):
    network.register_forward_post_hook(lambda layer, ins, out: 2 * out)
    return network


def patched(network):
    network.forward = lambda ins: 2 * HardConstraint.forward(network, ins)
    return network


@pytest.mark.parametrize(
    "build, why",
    [
        (lambda given: Doubled(*given), "Doubled is none of the networks"),
        (lambda given: hooked(HardConstraint(*given)), "HardConstraint has hooks"),
        (lambda given: patched(HardConstraint(*given)), "HardConstraint has a forward of its own"),
        (
            lambda given: paddle.nn.Sequential(HardConstraint(*given), paddle.nn.Linear(1, 1)),
            "a HardConstraint is a part of the network and not all of it",
        ),
    ],
    ids=["subclass", "hooks", "patched", "part"],
)
def test_what_has_been_changed_is_differentiated_as_a_whole(build, why):
    network = build((FCNet(2, 1, 3, 6), (x, y), [x * (1 - x) * y]))
    network.to(dtype="float64")
    assert derivative_path(network).startswith(f"nested paddle.grad: {why}")
    points = paddle.rand([5, 2], "float64")
    found = Residual(U.diff(x), (x, y), (u,))(network, points)
    leaf = points.detach()
    leaf.stop_gradient = False
    expected = paddle.grad(network(leaf), leaf)[0][:, :1]
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-14)


def test_the_path_of_the_network_inside_is_named():
    network = HardConstraint(Polynomial(), (x, y), [x])
    assert derivative_path(network) == (
        "nested paddle.grad: Polynomial is none of the networks and layers that can be read, in a "
        "hard constraint"
    )


NET = FCNet(2, 1, 2, 4)
WRONG = {
    "network": ((lambda p: p, (x,), [x]), TypeError, r"network must be a paddle.nn.Layer, got <fu"),
    "inputs": ((NET, "xy", [x]), TypeError, "inputs must be distinct sympy Symbols.*got 'xy'"),
    "same inputs": ((NET, (x, x), [x]), TypeError, r"inputs must be distinct.*got \(x, x\)"),
    "no list": ((NET, (x, y), x * y), TypeError, r"distances must be.*in a list.*got x\*y"),
    "none": ((NET, (x, y), []), TypeError, r"distances must be.*got \[\]"),
    "text": ((NET, (x, y), ["x"]), TypeError, r"distances\[0\] must be a sympy.*got 'x'"),
    "symbol": (
        (NET, (x, y), [x], [sympy.Symbol("z")]),
        ValueError,
        r"values\[0\] is z and has the symbols \{z\}, which are none of the inputs \[x, y\]",
    ),
    "number": ((NET, (x, y), [x, y], [1]), ValueError, "values must have an entry for each of the"),
    "zero": ((NET, (x, y), [None, x - x]), ValueError, r"distances must not be 0.*got \[None, 0\]"),
    "function": ((NET, (x, y), [sympy.gamma(x)]), ValueError, r"distances\[0\].*gamma has no coun"),
    "complex": ((NET, (x, y), [x], [sympy.I]), ValueError, r"values\[0\] cannot be used.*Imagin"),
    "infinite": ((NET, (x, y), [x], [float("inf")]), ValueError, r"values\[0\].*Infinity has no"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_arguments_are_named(wrong):
    arguments, error, match = WRONG[wrong]
    with pytest.raises(error, match=match):
        HardConstraint(*arguments)


def test_sizes_that_do_not_fit_are_named():
    points = paddle.rand([3, 2])
    two = HardConstraint(FCNet(2, 1, 2, 4), (x, y), [x, y])
    with pytest.raises(ValueError, match=r"must return shape \[N, 2\].*distances, got \[3, 1\]"):
        two(points)
    one_residual = Residual(U.diff(x), (x, y), (u,))
    with pytest.raises(ValueError, match=r"HardConstraint with 2 distances.*\['u'\]"):
        one_residual(two, points)
    narrow = HardConstraint(FCNet(2, 1, 2, 4), (x,), [x])
    for evaluate in (narrow, lambda ins: one_residual(narrow, ins)):
        with pytest.raises(ValueError, match=re.escape("must have shape [N, 1], got [3, 2]")):
            evaluate(points)
    wide = HardConstraint(FCNet(2, 2, 2, 4), (x, y), [x])
    with pytest.raises(ValueError, match=r"must return shape \[3, 1\], got \[3, 2\]"):
        one_residual(wide, points)
