"""Residuals on exact solutions, given as networks made of Paddle operations.

Paddle 2.6 does not differentiate every function often enough, so the solutions of
higher order are made of products and tanh, which it differentiates any number of times.
"""

import numpy as np
import paddle
import pytest
import sympy
from paddle.nn import LeakyReLU, Linear, ReLU, Sequential, Tanh

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.network import HardConstraint, Scaling
from paddlescience_gradnorm.network._taylor import Combination, singles
from paddlescience_gradnorm.pde import Residual, sample_interior

x, y, t, k = sympy.symbols("x y t k")
u, v, p = (sympy.Function(name) for name in "uvp")
U, V, P = u(x, y), v(x, y), p(x, y)
W = u(x, t)


def exp(z):
    """e^z for |z| of about 1, to rounding, as a Taylor polynomial in Horner's form."""
    value = 1.0 + 0.0 * z
    for n in range(20, 0, -1):
        value = 1.0 + z * value / n
    return value


def columns(network):
    return lambda points: network(*(points[:, k : k + 1] for k in range(points.shape[1])))


def laplacian(f):
    return f.diff(x, 2) + f.diff(y, 2)


def kovasznay(a, b, viscosity=1 / 40):
    rate = 1 / (2 * viscosity) - np.sqrt(1 / (4 * viscosity**2) + 4 * np.pi**2)
    e = exp(rate * a)
    return paddle.concat(
        [
            1 - e * paddle.cos(2 * np.pi * b),
            rate / (2 * np.pi) * e * paddle.sin(2 * np.pi * b),
            (1 - e * e) / 2,
        ],
        axis=1,
    )


NAVIER_STOKES = [
    U * U.diff(x) + V * U.diff(y) + P.diff(x) - laplacian(U) / 40,
    U * V.diff(x) + V * V.diff(y) + P.diff(y) - laplacian(V) / 40,
    U.diff(x) + V.diff(y),
]

# name: (expression, inputs, outputs, exact solution)
PROBLEMS = {
    "Laplace": (laplacian(U), (x, y), (u,), lambda a, b: a * a * a - 3 * a * b * b),
    "Laplace, exponential": (
        laplacian(U),
        (x, y),
        (u,),
        lambda a, b: paddle.cos(a) * (exp(b) + exp(-b)) / 2,
    ),
    "Poisson with a source": (
        laplacian(U) + 2 * sympy.sin(x) * sympy.cos(y),
        (x, y),
        (u,),
        lambda a, b: paddle.sin(a) * paddle.cos(b),
    ),
    "Helmholtz": (
        laplacian(U) + 5 * U,
        (x, y),
        (u,),
        lambda a, b: paddle.sin(a) * paddle.sin(2 * b),
    ),
    "heat": (
        W.diff(t) - W.diff(x, 2),
        (x, t),
        (u,),
        lambda a, s: a * a * a * a + 12 * a * a * s + 12 * s * s,
    ),
    "wave": (W.diff(t, 2) - 4 * W.diff(x, 2), (x, t), (u,), lambda a, s: paddle.sin(a - 2 * s)),
    "Burgers, travelling wave": (
        W.diff(t) + W * W.diff(x) - W.diff(x, 2) / 2,
        (x, t),
        (u,),
        lambda a, s: 1 - paddle.tanh(a - s),
    ),
    "Korteweg-de Vries, soliton": (
        W.diff(t) + 6 * W * W.diff(x) + W.diff(x, 3),
        (x, t),
        (u,),
        lambda a, s: (1 - paddle.tanh((a - s) / 2) * paddle.tanh((a - s) / 2)) / 2,
    ),
    "plate, fourth order": (
        laplacian(laplacian(U)) - 8,
        (x, y),
        (u,),
        lambda a, b: (a * a + b * b) * (a * a + b * b) / 8,
    ),
    "divergence form": (
        ((1 + x) * U.diff(x)).diff(x) - 2 - 4 * x,
        (x, y),
        (u,),
        lambda a, b: a * a + 0 * b,
    ),
    "boundary value": (
        U - sympy.cos(x) * sympy.cosh(y),
        (x, y),
        (u,),
        lambda a, b: paddle.cos(a) * (exp(b) + exp(-b)) / 2,
    ),
    "system: Kovasznay flow": (NAVIER_STOKES, (x, y), (u, v, p), kovasznay),
    "three coordinates": (
        sympy.Function("u")(x, y, t).diff(t) - sympy.Function("u")(x, y, t).diff(x, y),
        (x, y, t),
        (u,),
        lambda a, b, s: a * b + s,
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-10)])
def test_residual_of_the_exact_solution_vanishes(problem, dtype, tolerance):
    expression, inputs, outputs, solution = PROBLEMS[problem]
    residual = Residual(expression, inputs, outputs)
    points = np.random.default_rng(0).random((64, len(inputs)))
    result = residual(columns(solution), paddle.to_tensor(points, dtype=dtype))
    results = result if isinstance(result, list) else [result]
    assert len(results) == (3 if isinstance(expression, list) else 1)
    for values in results:
        assert list(values.shape) == [64, 1]
        assert values.dtype == getattr(paddle, dtype)
        assert np.abs(values.numpy()).max() < tolerance


@pytest.mark.parametrize("problem", PROBLEMS)
def test_residual_of_anything_else_does_not_vanish(problem):
    expression, inputs, outputs, solution = PROBLEMS[problem]

    def wrong(*z):
        return solution(*z) + 0.1 * z[0] * z[0] * z[0] * z[0] * z[0] * z[1]

    points = np.random.default_rng(0).random((64, len(inputs)))
    result = Residual(expression, inputs, outputs)(columns(wrong), paddle.to_tensor(points))
    results = result if isinstance(result, list) else [result]
    assert max(np.abs(values.numpy()).max() for values in results) > 0.01


def test_unknown_coefficient_is_found(float64):
    # Heat equation with diffusivity 0.3: u = x^2 + 2 * 0.3 t solves it.
    diffusivity = sympy.Symbol("D")
    residual = Residual(
        W.diff(t) - diffusivity * W.diff(x, 2), (x, t), (u,), unknowns={diffusivity: 1.0}
    )
    (parameter,) = residual.parameters()
    assert parameter.tolist() == [1.0] and not parameter.stop_gradient
    optimizer = paddle.optimizer.Adam(0.05, parameters=residual.parameters())
    points = paddle.rand([32, 2])
    for _ in range(300):
        residual(columns(lambda a, s: a * a + 0.6 * s), points).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    assert residual.D.item() == pytest.approx(0.3, abs=1e-3)


def test_unknown_can_be_a_parameter_shared_by_two_residuals():
    parameter = paddle.create_parameter([1], "float32")
    one, other = (Residual(k * U, (x, y), (u,), unknowns={k: parameter}) for _ in range(2))
    assert one.k is other.k is parameter


def test_gradients_reach_the_network_and_agree_with_finite_differences(float64):
    net = FCNet(2, 1, 3, 8)
    residual = Residual(laplacian(U) + U**2, (x, y), (u,))
    points = paddle.rand([16, 2])

    def loss():
        return residual(net, points).square().mean()

    loss().backward()
    weight = net.linears[1].weight
    gradient = weight.grad.numpy()[2, 3]
    values = []
    for shift in (1e-5, -2e-5):
        shifted = weight.numpy()
        shifted[2, 3] += shift
        weight.set_value(shifted)
        values.append(loss().item())
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(gradient, rel=1e-6)


def test_each_derivative_is_taken_once(monkeypatch):
    calls = []
    grad = paddle.grad
    monkeypatch.setattr(paddle, "grad", lambda *a, **k: calls.append(a) or grad(*a, **k))
    uxx = U.diff(x, 2)
    residual = Residual(
        [uxx**2 + sympy.sin(uxx) + U.diff(x, y) + U.diff(y, x), uxx * U.diff(y)], (x, y), (u,)
    )
    net = FCNet(2, 1, 2, 4)
    residual(lambda points: net(points), paddle.rand([4, 2]))
    assert len(calls) == 2  # u, for u_x and u_y; u_x, for u_xx and u_xy


@pytest.mark.parametrize(
    "expressions",
    [
        [laplacian(U) + U.diff(x) * U],
        [U.diff(y, 2) - 4 * U.diff(x, 2), U * U.diff(x)],
        [laplacian(laplacian(U)) + U.diff(x)],
        [laplacian(U) ** 2],
    ],
    ids=str,
)
@pytest.mark.parametrize("which", ["FCNet", "GradNorm", "Sequential", "function", "HardConstraint"])
def test_a_sum_is_the_same_on_all_ways(expressions, which, float64):
    net = FCNet(2, 1, 3, 8)
    network = {
        "FCNet": net,
        "GradNorm": GradNorm(net),
        "Sequential": Sequential(net, Scaling(1.0)),
        "function": lambda points: net(points),
        "HardConstraint": HardConstraint(net, (x, y), [x * (1 - y)], [x * y]),
    }[which]
    points = paddle.rand([9, 2])
    leaf = points.detach()
    leaf.stop_gradient = False
    value = {(0,): network(leaf)}

    def derivative(index):
        if index not in value:
            before = derivative(index[:-1])
            found = paddle.grad(before, leaf, create_graph=True)[0]
            value[index] = found[:, index[-1] : index[-1] + 1]
        return value[index]

    residual = Residual(expressions, (x, y), (u,))
    assert any(isinstance(part, Combination) for part in residual._derivatives)
    for index in singles(residual._derivatives):
        derivative(index)
    numbers = {
        U.diff(*(symbol for i in index[1:] for symbol in [(x, y)[i]])) if index[1:] else U: tensor
        for index, tensor in value.items()
    }
    ours = residual(network, points)
    for expression, found in zip(expressions, ours):
        expected = [
            float(expression.doit().xreplace({s: t[n, 0].item() for s, t in numbers.items()}))
            for n in range(9)
        ]
        np.testing.assert_allclose(found.numpy()[:, 0], expected, rtol=1e-9, atol=1e-12)


def test_a_network_that_knows_its_derivatives_is_asked_for_them(monkeypatch):
    net = GradNorm(FCNet(2, 3, 4, 8), 3, 1.0)
    points = paddle.rand([16, 2])
    residual = Residual(NAVIER_STOKES, (x, y), (u, v, p))
    by_differentiation = residual(lambda z: net(z), points)
    monkeypatch.setattr(paddle, "grad", None)
    asked = residual(net, points)
    for one, other in zip(by_differentiation, asked):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("hooked", ["wrapper", "network", "layer"])
def test_hooks_are_not_passed_by(hooked):
    net = GradNorm(FCNet(2, 1, 3, 8), 2, 1.0)
    layer = {"wrapper": net, "network": net.net, "layer": net.linears[-1]}[hooked]
    residual, points = Residual(laplacian(U), (x, y), (u,)), paddle.rand([4, 2])
    before = residual(net, points).numpy()
    layer.register_forward_post_hook(lambda layer, ins, out: 2 * out)
    np.testing.assert_allclose(residual(net, points).numpy(), 2 * before, rtol=1e-5)


def plain():
    return paddle.nn.Sequential(paddle.nn.Linear(2, 8), paddle.nn.Tanh(), paddle.nn.Linear(8, 1))


class Doubled(FCNet):
    def nn_func(self, ins):
        return 2 * super().nn_func(ins)


NETWORKS = {
    "asked for its derivatives": lambda: FCNet(2, 1, 3, 8),
    "wrapped": lambda: GradNorm(FCNet(2, 1, 3, 8), 2),
    "wrapped, published rule": lambda: GradNorm(FCNet(2, 1, 3, 8), 2, alpha=1.0),
    "differentiated": lambda: Doubled(2, 1, 3, 8),
    "of a user": plain,
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_of_the_samplers_go_straight_in(network, dtype):
    net = NETWORKS[network]()
    net.to(dtype=dtype)
    residual = Residual(laplacian(U) + x * U, (x, y), (u,))
    points = sample_interior(16, [0, 0], [1, 2], seed=0)
    before = points.copy()
    found, expected = residual(net, points), residual(net, paddle.to_tensor(points, dtype=dtype))
    assert found.dtype == getattr(paddle, dtype)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    np.testing.assert_array_equal(points, before)
    single = residual(net, points.astype("float32"))
    np.testing.assert_allclose(single.numpy(), expected.numpy(), rtol=1e-3, atol=1e-5)


def test_arrays_for_a_function_are_of_the_default_dtype(float64):
    residual = Residual(laplacian(U), (x, y), (u,))
    found = residual(lambda p: p[:, :1] ** 2 + p[:, 1:] ** 2, np.array([[0, 1], [2, 3]]))
    assert found.dtype == paddle.float64 and found.tolist() == [[4.0], [4.0]]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("given, own", [("float64", "float32"), ("float32", "float64")])
def test_a_tensor_of_another_dtype_is_named(network, given, own):
    net = NETWORKS[network]()
    net.to(dtype=own)
    points = paddle.rand([4, 2]).astype(given)
    match = f"points is a tensor of {given}, but .* parameters of {own}; .*points.astype.'{own}'"
    with pytest.raises(TypeError, match=match):
        Residual(laplacian(U), (x, y), (u,))(net, points)


def test_a_network_may_cast_its_inputs_itself():
    class Casting(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.linear = paddle.nn.Linear(2, 1)

        def forward(self, points):
            return self.linear(points.astype("float32")) ** 2

    net = Casting()
    residual, points = Residual(laplacian(U), (x, y), (u,)), paddle.rand([4, 2])
    np.testing.assert_allclose(
        residual(net, points.astype("float64")).numpy(), residual(net, points).numpy(), rtol=1e-5
    )


def test_an_error_of_the_network_that_has_another_cause_is_its_own():
    def fail(points):
        raise ValueError("no such point")

    for network in (fail, plain()):
        if network is not fail:
            network.register_forward_pre_hook(lambda layer, ins: fail(ins))
        with pytest.raises(ValueError, match="no such point"):
            Residual(laplacian(U), (x, y), (u,))(network, paddle.rand([4, 2]))


def test_derivatives_of_what_is_constant_are_zero():
    points = paddle.rand([4, 2])
    linear = paddle.nn.Linear(2, 1)
    assert Residual(laplacian(U), (x, y), (u,))(linear, points).tolist() == [[0.0]] * 4
    constant = Residual(U.diff(x), (x, y), (u,))(lambda z: paddle.ones([4, 1]), points)
    assert constant.tolist() == [[0.0]] * 4


def test_works_without_gradients_and_leaves_the_points_alone():
    points = paddle.rand([4, 2])
    with paddle.no_grad():
        result = Residual(laplacian(U), (x, y), (u,))(FCNet(2, 1, 3, 8), points)
    assert result.stop_gradient and points.stop_gradient


def test_wrapped_network_serves_as_the_bare_one():
    net = FCNet(2, 1, 3, 8)
    residual, points = Residual(laplacian(U), (x, y), (u,)), paddle.rand([4, 2])
    np.testing.assert_array_equal(
        residual(net, points).numpy(), residual(GradNorm(net, 2, 1.0), points).numpy()
    )


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ((U + t, (x, y), (u,)), ValueError, r"has the symbols \{t\}.*\.subs"),
        ((v(x, y) + U, (x, y), (u,)), ValueError, r"has \{v\(x, y\)\}"),
        ((u(x, 0), (x, y), (u,)), ValueError, r"has \{u\(x, 0\)\}"),
        ((u(y, x), (x, y), (u,)), ValueError, r"has \{u\(y, x\)\}"),
        ((U.diff(x).subs(y, 0), (x, y), (u,)), ValueError, r"Derivative\(u\(x, 0\), x\)"),
        ((u(2 * x, y).diff(x), (x, y), (u,)), ValueError, "Subs|Derivative"),
        ((x + y, (x, y), (u,)), ValueError, "has none of the outputs"),
        ((sympy.gamma(U), (x, y), (u,)), ValueError, "gamma has no counterpart"),
        ((sympy.Eq(U, 0), (x, y), (u,)), TypeError, "expression must be a sympy expression"),
        ((U, "xy", (u,)), TypeError, "inputs must be sympy Symbols"),
        ((U, (x, y), (U,)), TypeError, "outputs must be sympy UndefinedFunctions"),
        ((U, (x, x), (u,)), ValueError, "inputs must be distinct"),
        ((U, (x, y), ()), ValueError, "outputs must be distinct and at least one"),
        ((U, (x, y), (u,), {"k": 1.0}), TypeError, "unknowns must be sympy Symbols"),
        ((U, (x, y), (u,), {x: 1.0}), ValueError, r"unknowns \[x\] share symbols"),
        (([], (x, y), (u,)), ValueError, r"at least one residual, got \[\]"),
        (([[U]], (x, y), (u,)), TypeError, "expression must be a sympy expression"),
        ((sympy.Matrix([U]), (x, y), (u,)), TypeError, "expression must be a sympy expression"),
        ((U, (sympy.Symbol("x", real=True), y), (u,)), ValueError, "other assumptions"),
        ((U.diff(x), (sympy.Symbol("x", real=True), y), (u,)), ValueError, "other assumptions"),
        ((k * U, (x, y), (u,), {k: "a"}), TypeError, r"unknowns\[k\] must be a number, got 'a'"),
        ((k * U, (x, y), (u,), {k: np.nan}), ValueError, r"unknowns\[k\] must be finite, got nan"),
        ((k * U, (x, y), (u,), {k: paddle.ones([3])}), ValueError, r"unknowns\[k\].*\[3\]"),
        ((U, (x, y), (u,), {k: 1.0}), ValueError, r"unknowns has \{k\}, which is not in"),
        (
            (
                k * sympy.Symbol("k", positive=True) * U,
                (x, y),
                (u,),
                {k: 1.0, sympy.Symbol("k", positive=True): 2.0},
            ),
            ValueError,
            "unknowns has 'k', a name that a layer cannot have",
        ),
        (
            (sympy.Symbol("training") * U, (x, y), (u,), {sympy.Symbol("training"): 1.0}),
            ValueError,
            "unknowns has 'training', a name",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        Residual(*arguments)


def test_shapes_that_do_not_fit_are_named():
    residual = Residual(laplacian(U), (x, y), (u,))
    with pytest.raises(ValueError, match=r"points must have shape \[N, 2\], got \[4, 3\]"):
        residual(FCNet(3, 1, 2, 4), paddle.rand([4, 3]))
    with pytest.raises(ValueError, match=r"got \[4\]; use points.reshape\(\[-1, 2\]\)"):
        residual(FCNet(2, 1, 2, 4), np.ones(4))
    with pytest.raises(TypeError, match=r"points must be .* got list \[\[0\.0, 1\.0\]\]"):
        residual(FCNet(2, 1, 2, 4), [[0.0, 1.0]])
    with pytest.raises(ValueError, match=r"must return shape \[4, 1\], got \[4, 2\]"):
        residual(FCNet(2, 2, 2, 4), paddle.rand([4, 2]))


def test_a_network_that_cannot_be_differentiated_often_enough_is_explained():
    net = FCNet(2, 1, 3, 8, activation="softsign")
    with pytest.raises(RuntimeError, match="cannot differentiate often enough"):
        Residual(laplacian(U), (x, y), (u,))(net, paddle.rand([4, 2]))


def relu_of_its_own():
    net = FCNet(2, 1, 3, 8, activation="relu")
    net.nn_func = lambda ins: FCNet.nn_func(net, ins) + ins[:, :1] ** 2
    return net


PIECEWISE_LINEAR = {
    "relu": lambda: FCNet(2, 1, 3, 8, activation="relu"),
    "leaky_relu": lambda: FCNet(2, 1, 3, 8, activation="leaky_relu"),
    "relu, wrapped": lambda: GradNorm(FCNet(2, 1, 3, 8, activation="relu"), 2),
    "relu, scaled": lambda: Sequential(Scaling(2.0), Linear(2, 8), ReLU(), Linear(8, 1)),
    "relu, last": lambda: Sequential(Linear(2, 8), ReLU(), Linear(8, 1), ReLU()),
    "leaky_relu, with a slope": lambda: Sequential(Linear(2, 8), LeakyReLU(0.2), Linear(8, 1)),
    "relu, constrained": lambda: HardConstraint(FCNet(2, 1, 3, 8, "relu"), (x, y), [x * y]),
}


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_second_derivatives_of_a_piecewise_linear_network_are_refused(name):
    net, points = PIECEWISE_LINEAR[name](), paddle.rand([4, 2])
    for order in 2, 3:
        match = f"activation '{name.split(',')[0]}' is .* one of order {order}; use .* 'tanh'"
        with pytest.raises(ValueError, match=match):
            Residual(U.diff(x, order) - U, (x, y), (u,))(net, points)
    assert Residual(U.diff(x) + U * U.diff(y), (x, y), (u,))(net, points).shape == [4, 1]


@pytest.mark.parametrize(
    "net",
    [
        Sequential(Linear(2, 8), Tanh(), Linear(8, 8), ReLU(), Linear(8, 1)),
        relu_of_its_own(),
        lambda ins: paddle.nn.functional.relu(ins[:, :1]) + ins[:, :1] ** 2,
    ],
)
def test_a_network_with_relu_that_is_not_piecewise_linear_is_left_alone(net):
    second = Residual(U.diff(x, 2), (x, y), (u,))(net, paddle.rand([16, 2]) + 0.1)
    assert second.abs().max().item() > 0


@pytest.mark.parametrize(
    "make, error, match",
    [
        (
            lambda: Residual(sympy.Eq(U.diff(x, 2), 1), (x, y), (u,)),
            TypeError,
            r"got Eq\(.*; write the left side minus the right side, Derivative\(.*\) - 1$",
        ),
        (
            lambda: Residual(abs(U).diff(x), (x, y), (u,)),
            ValueError,
            r'real or imaginary parts.*Function\("u", real=True\) and sympy.symbols\("x y", real=T',
        ),
    ],
)
def test_slips_in_an_expression_come_with_the_remedy(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_real_field_may_have_a_derivative_of_its_absolute_value():
    a, b = sympy.symbols("x y", real=True)
    field = sympy.Function("u", real=True)
    residual = Residual(abs(field(a, b)).diff(a), (a, b), (field,))
    found = residual(lambda points: -(points[:, :1] ** 2), paddle.to_tensor([[3.0, 0.0]]))
    assert found.tolist() == [[6.0]]


@pytest.mark.parametrize("name", ["\\nu", "lambda", "nu_{1}"])
def test_unknowns_may_have_the_names_of_the_field(name):
    symbol = sympy.Symbol(name)
    residual = Residual(symbol * U, (x, y), (u,), unknowns={symbol: 2.0})
    points = paddle.ones([1, 2])
    assert residual(lambda z: 3.0 * z[:, :1], points).tolist() == [[6.0]]
    assert getattr(residual, name).item() == 2.0
