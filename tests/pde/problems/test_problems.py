"""Every problem's solution fulfils its own conditions, and a network can be trained on them."""

import mpmath
import numpy as np
import paddle
import pytest
import sympy
from scipy.interpolate import RectBivariateSpline

from paddlescience_gradnorm import FCNet, GradNorm, NetworkBase
from paddlescience_gradnorm.pde.problems import PROBLEMS, problem
from paddlescience_gradnorm.pde.problems import _reference_solutions as reference_solutions

LOSSES = {
    "laplace": "pde left right bottom top",
    "poisson": "pde left right bottom top",
    "helmholtz": "pde left right bottom top",
    "heat": "pde boundary initial data",
    "wave": "pde u0 ut0 boundary",
    "burgers": "pde initial boundary",
    "allen_cahn": "pde initial boundary boundary_x",
    "klein_gordon": "pde u0 ut0 boundary",
    "plate": "pde deflection moment_x moment_y",
    "convection": "pde initial boundary",
    "kovasznay": "continuity momentum_x momentum_y boundary",
    "cavity": "momentum_x momentum_y lid walls",
    "burgers_inverse": "pde initial boundary data",
    "helmholtz_inverse": "pde boundary data",
    "laplace_jump": "pde left right bottom top",
    "channel": "continuity momentum_x momentum_y inflow outflow walls",
    "step": "continuity momentum_x momentum_y inflow outflow walls",
    "taylor_green": "continuity momentum_x momentum_y boundary initial pressure",
    "lid": "continuity momentum_x momentum_y lid walls pressure",
    "couette": "continuity momentum_x momentum_y inner outer pressure",
    "beltrami": "continuity momentum_x momentum_y momentum_z boundary initial pressure",
    "laplace_holes": "pde sides holes",
    "helmholtz_3d": "pde boundary",
    "poisson_boltzmann": "pde sides holes",
    "poisson_3d": "pde faces hole",
    "first_order": "pde boundary",
    "lotka_volterra": "prey predators initial",
    "beam": "pde deflection slope moment shear",
    "vibration": "pde u0 ut0 deflection moment",
    "kdv": "pde initial boundary slope",
    "schroedinger": "pde_u pde_v initial boundary",
    "reaction_diffusion": "pde_u pde_v initial boundary",
    "heat_multiscale": "pde initial boundary",
    "elasticity": "equilibrium_x equilibrium_y bottom top top_stress sides sides_stress",
    "pipe": "equilibrium_x equilibrium_y inner outer bottom left",
    "heat_inverse": "pde boundary initial data",
    "transport_inverse": "pde data",
}
# An ordinary differential equation in time, and one of which only measurements are known.
WITHOUT_BOUNDARY = ("transport_inverse", "lotka_volterra")
WITH_FORMULA = [name for name in PROBLEMS if not callable(problem(name).reference)]


class Analytic(NetworkBase):
    """Fields given as sympy expressions, with derivatives of any order on any Paddle."""

    def __init__(self, expressions, coordinates):
        super().__init__()
        self.expressions, self.coordinates = expressions, coordinates

    def partial_derivatives(self, ins, indices):
        columns = ins.numpy().T
        return [
            paddle.to_tensor(
                np.stack(
                    [
                        np.broadcast_to(
                            sympy.lambdify(
                                self.coordinates,
                                e.diff(*(self.coordinates[i] for i in index)) if index else e,
                                "numpy",
                            )(*columns),
                            len(ins),
                        )
                        for e in self.expressions
                    ],
                    axis=1,
                ).astype(columns.dtype)
            )
            for index in indices
        ]

    def nn_func(self, ins):
        return self.partial_derivatives(ins, [()])[0]


class Differences(NetworkBase):
    """A field given as a function of x and t, with derivatives by differences of fourth order."""

    STEPS = (1e-4, 1e-4)

    def __init__(self, field, wrap=False):
        super().__init__()
        self.field, self.wrap = field, wrap

    def _at(self, points):
        if self.wrap:
            points = np.stack([(points[:, 0] + 1) % 2 - 1, points[:, 1]], axis=1)
        return self.field(points)

    def partial_derivatives(self, ins, indices):
        points = ins.numpy().copy()
        values = []
        for index in indices:
            p = points.copy()
            if index:  # the differences stay within the times of the solution
                p[:, 1] = np.clip(p[:, 1], 2 * self.STEPS[1], 1 - 2 * self.STEPS[1])
            value = self._at(p)
            if index:
                (axis,) = set(index)
                h = self.STEPS[axis]
                left2, left, right, right2 = (
                    self._at(p + k * h * np.eye(2)[axis]) for k in (-2, -1, 1, 2)
                )
                value = {
                    1: (left2 - 8 * left + 8 * right - right2) / (12 * h),
                    2: (-left2 + 16 * left - 30 * value + 16 * right - right2) / (12 * h**2),
                }[len(index)]
            values.append(paddle.to_tensor(value))
        return values

    def nn_func(self, ins):
        return self.partial_derivatives(ins, [()])[0]


def at_the_truth(training):
    """Sets the parameters behind the unknown coefficients to the true ones."""
    for unknown in training.problem.unknowns:
        (root,) = sympy.solve(unknown.value - unknown.true, unknown.symbol)
        getattr(training, unknown.symbol.name).set_value(np.array([float(root)]))
    return training


def test_names_kinds_and_texts():
    assert set(PROBLEMS) == set(LOSSES)
    for name, losses in LOSSES.items():
        p = problem(name)
        assert p is problem(name) and p.name == name and p.equation and PROBLEMS[name].__doc__
        assert [c.name for c in p.conditions] == losses.split()
        kinds = {c.kind for c in p.conditions}
        assert "pde" in kinds and ("boundary" in kinds) == (name not in WITHOUT_BOUNDARY)
        timed = sympy.Symbol("t") in p.coordinates
        assert ("initial" in kinds) == (timed and name != "transport_inverse")
        assert ("data" in kinds) == bool(p.unknowns or name == "heat")


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"no problem 'stokes'; the names are laplace, poisson"):
        problem("stokes")


@pytest.mark.parametrize("name", WITH_FORMULA)
def test_solution_fulfils_equation_and_conditions(name, float64):
    p = problem(name)
    training = at_the_truth(p.sample(n_points=64, seed=3))
    exact = Analytic(p.reference, p.coordinates)
    losses = {k: v.item() for k, v in training.losses(exact).items()}
    scale = 1e3 if name == "plate" else 1e2  # of the terms that cancel
    for condition in p.conditions:
        if condition.noise:
            found = losses.pop(condition.name)
            assert found == pytest.approx(condition.noise**2, rel=0.4)  # of 100 numbers and more
    assert losses == pytest.approx(dict.fromkeys(losses, 0.0), abs=(1e-14 * scale) ** 2 * 100)
    assert p.relative_errors(exact) == pytest.approx(dict.fromkeys(p.quantities, 0), abs=1e-14)
    points = training.points[p.regions[0].name].numpy()
    np.testing.assert_allclose(p.evaluate(exact, points), p.solution(points), atol=1e-12)


@pytest.mark.parametrize("name", WITH_FORMULA)
def test_every_loss_sees_what_is_no_solution(name, float64):
    p = problem(name)
    slopes = (0.4, 0.7, 0.5, 0.9)
    bump = sympy.exp(sum(slope * c for slope, c in zip(slopes, p.coordinates))) / 10
    off = Analytic([e + bump for e in p.reference], p.coordinates)
    losses = at_the_truth(p.sample(n_points=64, seed=3)).losses(off)
    assert min(loss.item() for loss in losses.values()) > 1e-6
    assert min(p.relative_errors(off).values()) > 0.01


@pytest.mark.parametrize("name", WITH_FORMULA)
def test_solution_simplifies_to_nothing_in_every_equation(name):
    """By algebra instead of numbers: at rational points, to 30 digits."""
    p = problem(name)
    exact = dict(zip((f(*p.coordinates) for f in p.fields), p.reference))
    true = {u.symbol: sympy.solve(u.value - u.true, u.symbol)[0] for u in p.unknowns}
    for condition in p.conditions:
        if condition.kind == "pde":
            for expression in condition.expressions:
                residual = expression.subs(true).subs(exact).doit()
                value = sympy.lambdify(p.coordinates, residual, "mpmath")
                for point in ((0.25, 0.375, 0.5, 0.75), (0.625, 0.8125, 0.125, 0.5)):
                    with mpmath.workdps(30):
                        assert abs(value(*map(mpmath.mpf, point[: len(p.coordinates)]))) < 1e-12


@pytest.mark.parametrize("name", ["burgers", "burgers_inverse"])
def test_cole_hopf_solution_fulfils_burgers_equation(name, float64):
    p = problem(name)
    training = at_the_truth(p.sample(n_points=256, seed=3))
    losses = training.losses(Differences(reference_solutions.burgers))
    assert losses.pop("pde").item() < 1e-8  # u_x reaches 150
    assert all(loss.item() < 1e-25 for loss in losses.values())


def test_spectral_solution_fulfils_allen_cahn_equation(float64):
    p = problem("allen_cahn")
    losses = p.sample(n_points=256, seed=3).losses(
        Differences(reference_solutions.allen_cahn, wrap=True)
    )
    # The initial values have a kink at the ends, which the spectrum rounds off.
    limits = {"pde": 1e-3, "initial": 1e-8, "boundary": 1e-20, "boundary_x": 1e-20}
    assert {k: v.item() for k, v in losses.items() if v.item() > limits[k]} == {}


def test_cavity_equations_are_those_of_its_stream_function():
    """Crossed derivatives of the two momentum equations, from which the pressure drops out."""
    p = problem("cavity")
    x, y = p.coordinates
    psi = p.fields[0](x, y)
    in_x, in_y = (c.expressions[0] for c in p.conditions[:2])

    def laplacian(f):
        return f.diff(x, 2) + f.diff(y, 2)

    vorticity = laplacian(psi)
    expected = psi.diff(y) * vorticity.diff(x) - psi.diff(x) * vorticity.diff(y)
    expected -= laplacian(vorticity) / 100
    crossed = in_x.diff(y) - in_y.diff(x)
    assert sympy.simplify((crossed - expected).doit().expand()) == 0


def test_cavity_conditions_hold_for_its_solution(float64):
    """Lid and walls through the stream function that the solution was made from."""
    p = problem("cavity")
    nodes, stream = reference_solutions.solve_cavity(128)
    spline = RectBivariateSpline(nodes, nodes, stream)

    class Stream(NetworkBase):
        def partial_derivatives(self, ins, indices):
            x, y = ins.numpy().T
            zero = np.zeros_like(x)
            columns = [
                spline.ev(x, y, dx=index.count(0), dy=index.count(1)) if len(index) < 3 else zero
                for index in indices
            ]
            return [paddle.to_tensor(np.stack([c, zero], axis=1)) for c in columns]

        def nn_func(self, ins):
            return self.partial_derivatives(ins, [()])[0]

    losses = p.sample(n_points=2000, seed=0).losses(Stream())
    assert max(losses[name].item() for name in ("walls", "lid")) < 0.01
    errors = p.relative_errors(Stream())
    assert set(errors) == {"u", "v", "speed"}
    assert max(errors.values()) < 3e-3  # that of the grid, before the extrapolation


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_short_training_lowers_the_total(name):
    p = problem(name)
    training = p.sample(n_points=50, seed=0)
    net = FCNet(len(p.coordinates), len(p.fields), 3, 20)
    parameters = [*net.parameters(), *training.parameters()]
    adam = paddle.optimizer.Adam(1e-2, parameters=parameters)
    start = {u.name: v for u, v in zip(p.unknowns, training.coefficients().values())}
    totals = []
    for _ in range(50):
        losses = training.losses(net)
        total = sum(losses.values())
        total.backward()
        adam.step()
        adam.clear_grad()
        totals.append(total.item())
    assert np.isfinite(totals).all()
    assert totals[-1] < 0.97 * totals[0]
    errors = p.relative_errors(net)
    assert list(errors) == list(p.quantities) and np.isfinite(list(errors.values())).all()
    assert all(training.coefficients()[name] != value for name, value in start.items())


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradnorm_balances_the_losses(name):
    p = problem(name)
    training = p.sample(n_points=20, seed=0)
    net = GradNorm(
        FCNet(len(p.coordinates), len(p.fields), 3, 8), n_loss=len(p.conditions), alpha=1.0
    )
    assert np.isfinite(net.backward(training.losses(net)).item())


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_step_leaves_no_tensors_to_the_garbage_collector(name, waiting_tensors):
    p = problem(name)
    training = p.sample(n_points=20, seed=0)
    net = FCNet(len(p.coordinates), len(p.fields), 3, 8)
    assert waiting_tensors(lambda: sum(training.losses(net).values()).backward()) == 0
