import subprocess
import sys

import numpy as np
import paddle
import pytest
import scipy.special
import sympy

from paddlescience_gradnorm import FCNet, GradNorm, NetworkBase
from paddlescience_gradnorm.pde.problems import PROBLEMS, Condition, Problem, Region, problem
from paddlescience_gradnorm.point_weights import (
    CausalWeights,
    ResidualAttention,
    SelfAdaptiveWeights,
)
from paddlescience_gradnorm.training import Trainer

x, t = sympy.symbols("x t")
u = sympy.Function("u")
U = u(x, t)
INSIDE = Region("interior", 1000)


class Counted(NetworkBase):
    """Counts how often it is evaluated."""

    def __init__(self, problem):
        super().__init__()
        self.net = FCNet(len(problem.coordinates), len(problem.fields), 3, 8)
        self.calls = 0

    def partial_derivatives(self, ins, indices):
        self.calls += 1
        return self.net.partial_derivatives(ins, indices)

    def nn_func(self, ins):
        self.calls += 1
        return self.net(ins)


def make(*conditions):
    return Problem(
        "waves", "u = x t", (x, t), (u,), (0.0, 0.0), (2.0, 1.0), conditions, reference=(x * t,)
    )


def product(points):
    return points[:, :1] * points[:, 1:]


def test_losses_are_mean_squares_over_their_points(float64):
    ends = Region("ends", 40, faces=({x: 0.0}, {x: 2.0}))
    training = make(
        Condition("pde", "pde", INSIDE, (U.diff(x) - 3 * t, U.diff(t) - sympy.cos(x))),
        Condition("boundary", "boundary", ends, (2 * (U - x * t**2),)),
    ).sample(n_points=200, seed=4)
    losses = training.losses(product)
    a, b = training.points["interior"].numpy().T
    expected = ((b - 3 * b) ** 2).mean() + ((a - np.cos(a)) ** 2).mean()
    assert losses["pde"].item() == pytest.approx(expected, rel=1e-12)
    a, b = training.points["ends"].numpy().T
    assert losses["boundary"].item() == pytest.approx(
        (4 * (a * b - a * b**2) ** 2).mean(), rel=1e-12
    )
    assert {k: v.item() for k, v in training(product).items()} == {
        k: v.item() for k, v in losses.items()
    }


def test_periodic_conditions_compare_opposite_faces(float64):
    around = Region("around", 40, periodic=x)
    training = make(
        Condition("u", "boundary", around, (U,)),
        Condition("sources_too", "boundary", around, (U - x**2,)),
        Condition("u_t", "boundary", around, (U.diff(t),)),
    ).sample(seed=4)
    assert (training.points["around"].numpy()[:, 0] == 0).all()
    time = training.points["around"].numpy()[:, 1]
    losses = training.losses(product)
    assert losses["u"].item() == pytest.approx((4 * time**2).mean(), rel=1e-12)
    assert losses["sources_too"].item() == pytest.approx(((2 * time - 4) ** 2).mean(), rel=1e-12)
    assert losses["u_t"].item() == pytest.approx(4, rel=1e-12)


def test_conditions_of_a_region_keep_their_order_among_others():
    start = Region("start", 10, faces=({t: 0.0},))
    conditions = [
        Condition("u0", "initial", start, (U - 1,)),
        Condition("pde", "pde", INSIDE, (U.diff(x),)),
        Condition("ut0", "initial", start, (U.diff(t) - x - 2,)),
    ]
    losses = make(*conditions).sample(seed=0).losses(product)
    assert list(losses) == ["u0", "pde", "ut0"]
    assert [losses["u0"].item(), losses["ut0"].item()] == pytest.approx([1, 4])


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_region_is_evaluated_once(name):
    p = problem(name)
    net = Counted(p)
    if name in (
        "plate",
        "cavity",
        "kdv",
        "beam",
        "vibration",
    ):  # of higher order, by differentiation of one evaluation
        net.partial_derivatives = lambda ins, indices: None
    losses = p.sample(n_points=10, seed=0).losses(net)
    assert net.calls == len(p.regions)
    assert all(loss.shape == [] and not loss.stop_gradient for loss in losses.values())


def test_data_is_the_solution_with_noise(float64):
    seen = Region("data", 2000)

    def loss(noise, seed=0):
        training = make(Condition("data", "data", seen, (U,), noise=noise)).sample(seed=seed)
        return training.losses(product)["data"].item()

    assert loss(0.0) == 0.0
    assert loss(0.1) == pytest.approx(0.01, rel=0.1)
    assert loss(0.1) == loss(0.1) != loss(0.1, seed=1)


def test_data_may_be_a_derived_quantity(float64):
    p = Problem(
        "slope",
        "u_x = t",
        (x, t),
        (u,),
        (0.0, 0.0),
        (2.0, 1.0),
        (Condition("data", "data", Region("data", 30), (U.diff(x),)),),
        reference=lambda points: np.stack([points.prod(1), points[:, 1]], axis=1),
        quantities={"u": U, "u_x": U.diff(x)},
    )
    assert p.sample().losses(product)["data"].item() == pytest.approx(0, abs=1e-30)
    assert p.relative_errors(product) == pytest.approx({"u": 0, "u_x": 0}, abs=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_is_of_the_default_dtype(dtype):
    paddle.set_default_dtype(dtype)
    training = problem("burgers_inverse").sample(n_points=10, seed=0)
    losses = training.losses(FCNet(2, 1, 3, 8))
    tensors = [*training.points.values(), *training.parameters(), *losses.values()]
    assert {str(tensor.dtype) for tensor in tensors} == {f"paddle.{dtype}"}


def test_unknown_coefficients_are_parameters():
    training = problem("burgers_inverse").sample(n_points=50, seed=0)
    assert [name for name, _ in training.named_parameters()] == ["l1", "log_l2"]
    assert training.coefficients() == pytest.approx({"l1": 0, "l2": np.exp(-6)})
    errors = {"l1": 1, "l2": 1 - np.exp(-6) * 100 * np.pi}
    assert training.coefficient_errors() == pytest.approx(errors)
    training.losses(FCNet(2, 1, 3, 8))["pde"].backward()
    assert all(p.grad is not None for p in training.parameters())
    assert problem("heat").sample().parameters() == []
    assert problem("heat").sample().coefficient_errors() == {}


def test_unknown_coefficient_is_found_on_the_true_field(float64):
    """With the field known, the equation's loss alone leads to k."""
    training = problem("helmholtz_inverse").sample(n_points=100, seed=0)
    exact = problem("helmholtz_inverse").reference[0]

    class Exact(NetworkBase):
        def partial_derivatives(self, ins, indices):
            a, b = training.problem.coordinates
            values = [
                sympy.lambdify((a, b), exact.diff(*((a, b)[i] for i in index)) if index else exact)
                for index in indices
            ]
            columns = ins.numpy().T
            return [paddle.to_tensor(f(*columns)[:, None]) for f in values]

        def nn_func(self, ins):
            return self.partial_derivatives(ins, [()])[0]

    adam = paddle.optimizer.Adam(0.05, parameters=training.parameters())
    field = Exact()
    for _ in range(200):
        training.losses(field)["pde"].backward()
        adam.step()
        adam.clear_grad()
    assert training.coefficient_errors()["k"] < 1e-3


@pytest.mark.parametrize("name", PROBLEMS)
def test_trainer_takes_two_steps_by_the_pinn_rule(name):
    p = problem(name)
    training = p.sample(n_points=20, seed=0)
    net = GradNorm(FCNet(len(p.coordinates), len(p.fields), 3, 8), len(p.conditions))
    parameters = [*net.parameters(), *training.parameters()]
    adam = paddle.optimizer.Adam(1e-3, parameters=parameters)
    history = Trainer(net, training.losses, adam).fit(epochs=2)
    assert list(history.losses) == [condition.name for condition in p.conditions]
    assert all(np.isfinite(values).all() for values in history.losses.values())
    assert all(np.isfinite(values).all() for values in history.weights.values())


def test_trainer_takes_the_losses():
    training = problem("heat").sample(n_points=50, seed=0)
    net = FCNet(2, 1, 3, 8)
    adam = paddle.optimizer.Adam(1e-2, parameters=net.parameters())
    history = Trainer(net, training.losses, adam).fit(epochs=20)
    assert set(history.losses) == {"pde", "boundary", "initial", "data"}
    assert history.losses["initial"][-1] < history.losses["initial"][0]


def test_weights_of_points_multiply_the_residuals_of_the_equations():
    """A condition of several expressions has one weight for a point."""
    plain = problem("kovasznay").sample(64, seed=0)
    training = problem("kovasznay").sample(64, seed=0, point_weights="rba")
    equations = [c.name for c in training.problem.conditions if c.kind == "pde"]
    assert list(training.point_weights) == equations
    assert not plain.buffers() and not plain.point_weights
    paddle.seed(0)
    net = FCNet(2, 3, 3, 8)
    expected = {name: loss.item() for name, loss in plain.losses(net).items()}
    found = {name: loss.item() for name, loss in training.losses(net).items()}
    assert found == pytest.approx(expected, rel=1e-6)  # the weights begin at 1
    for layer in training.point_weights.values():
        layer.weights.set_value(paddle.full_like(layer.weights, 3.0))
    factors = {name: 9.0 if name in equations else 1.0 for name in expected}
    found = {name: loss.item() for name, loss in training.losses(net).items()}
    assert found == pytest.approx({n: factors[n] * expected[n] for n in expected}, rel=1e-5)


def test_weights_of_points_are_chosen_by_condition():
    seen = []

    def build(points):
        seen.append(points)
        return SelfAdaptiveWeights(len(points), initial=2.0)

    training = problem("heat").sample(64, point_weights={"pde": "causal", "initial": build})
    assert {n: type(x) for n, x in training.point_weights.items()} == {
        "pde": CausalWeights,
        "initial": SelfAdaptiveWeights,
    }
    np.testing.assert_allclose(seen[0], training.points["initial"].numpy(), rtol=1e-6)
    pair = problem("schroedinger").sample(
        64, point_weights={"initial": lambda points: ResidualAttention(len(points))}
    )
    pair.losses(FCNet(2, 2, 3, 8))
    assert (pair.point_weights["initial"].weights < 1).any()


@pytest.mark.parametrize(
    "name, choice, error, text",
    [
        ("heat", "rbc", ValueError, "must be 'rba', 'self_adaptive' or 'causal'.*got 'rbc'"),
        ("heat", {"edge": "rba"}, ValueError, "'edge', which is no condition of heat; its"),
        ("laplace", "causal", ValueError, "no coordinate of laplace is called t"),
        ("heat", ["rba"], TypeError, "must be the name of a kind, or a dict"),
        ("heat", {"pde": lambda points: 3}, TypeError, r"\['pde'\] must give a layer.*got 3"),
    ],
)
def test_weights_of_points_that_there_are_not(name, choice, error, text):
    with pytest.raises(error, match=text):
        problem(name).sample(64, point_weights=choice)


@pytest.mark.parametrize(
    "function, by_scipy",
    [
        (sympy.erf, scipy.special.erf),
        (lambda z: sympy.besselj(0, z), scipy.special.j0),
        (sympy.gamma, scipy.special.gamma),
    ],
)
def test_special_functions_in_sources_and_solutions_are_those_of_scipy(function, by_scipy, float64):
    solution = function(x + 1)
    whole = Problem(
        *("special", "u_x = f(x + 1)", (x, t), (u,), (0.0, 0.0), (1.0, 1.0)),
        conditions=(Condition("pde", "pde", INSIDE, (U.diff(x) - solution,)),),
        reference=(solution,),
    )
    points = np.array([[0.25, 0.5], [0.75, 0.0]])
    expected = by_scipy(points[:, :1] + 1)
    np.testing.assert_allclose(whole.solution(points), expected, rtol=1e-14)
    training = whole.sample(n_points=50, seed=0)
    source = by_scipy(training.points["interior"].numpy()[:, 0] + 1)
    loss = training.losses(lambda points: 0.0 * points[:, :1])["pde"].item()
    assert loss == pytest.approx((source**2).mean(), rel=1e-12)


def test_special_functions_import_no_more_of_scipy():
    code = (
        "import sys, numpy, sympy; from paddlescience_gradnorm.pde.problems import problem\n"
        "from paddlescience_gradnorm.pde.problems.sampled_problem import numerical\n"
        "before = set(sys.modules); x = sympy.Symbol('x')\n"
        "numerical([sympy.erf(x) + sympy.besselj(0, x)], [x])(numpy.ones((2, 1)))\n"
        "print([name for name in set(sys.modules) - before if name.startswith('scipy')])"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "source, match",
    [
        (sympy.Piecewise((1, x < 0.5)), r"not defined everywhere; end it with a branch"),
        (x + 2 * sympy.Piecewise((t, x < 0.5), (1, x < 0.7)), "not defined everywhere"),
        (sympy.Chi(x), r"expression Chi\(x\) has a function that neither .*'Chi'.*; write it in"),
    ],
)
def test_sources_without_a_value_are_named(source, match):
    with pytest.raises(ValueError, match=match):
        make(Condition("pde", "pde", INSIDE, (U.diff(x) - source,))).sample(n_points=10)
