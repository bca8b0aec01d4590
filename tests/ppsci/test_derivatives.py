"""Taylor propagation in a Solver: against PaddleScience's own derivatives, to rounding."""

import numpy as np
import paddle
import pytest
import sympy

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import ppsci
import ppsci_problem as problem

from paddlescience_gradnorm.ppsci import GradNormAggregator, propagate_derivatives
from paddlescience_gradnorm.ppsci._told import differentiates

t, x, y, nu = sympy.symbols("t x y nu")
u, v, w = (sympy.Function(name)(x, y) for name in ("u", "v", "w"))
sdf = sympy.Function("sdf")(x, y)
hessian, jacobian = ppsci.autodiff.hessian, ppsci.autodiff.jacobian


@pytest.fixture(autouse=True)
def float64():
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


def equation_of(**expressions):
    """An equation with these parts, which learns nu."""
    made = ppsci.equation.PDE()
    learned = paddle.create_parameter(
        [], "float64", default_initializer=paddle.nn.initializer.Constant(2.0)
    )
    learned.name = "nu"  # by which PaddleScience finds it
    made.learnable_parameters.append(learned)
    for name, expression in expressions.items():
        made.add_equation(name, expression)
    return made


def solver_of(equation, inputs=("x", "y"), outputs=("u", "v"), adapt=None, more=(), **settings):
    """A Solver with one constraint for all parts of an equation, and one for values of u."""
    ppsci.utils.misc.set_random_seed(1)
    model = ppsci.arch.MLP(inputs, outputs, num_layers=3, hidden_size=8)
    if adapt is not None:
        adapt(model)
    points = np.random.default_rng(0).random((16, len(inputs)))
    data = {"name": "NamedArrayDataset", "input": dict(zip(inputs, np.hsplit(points, len(inputs))))}
    data["input"].update(dict.fromkeys(more, points[:, :1] + 2))

    def constraint(name, expressions):
        label = dict.fromkeys(expressions, 0 * points[:, :1])
        of_name = {"dataset": {**data, "label": label}, "batch_size": 16}
        return ppsci.constraint.SupervisedConstraint(
            of_name, ppsci.loss.MSELoss(), expressions, name=name
        )

    constraints = {
        "EQ": constraint("EQ", dict(equation.equations)),
        "BC": constraint("BC", {"u": lambda out: out["u"]}),
    }
    settings = {"epochs": 1, "iters_per_epoch": 1, "equation": {"own": equation}, **settings}
    trained = [model, *([equation] if len(equation.learnable_parameters) else [])]
    optimizer = ppsci.optimizer.SGD(0.01)(tuple(trained))
    return ppsci.solver.Solver(model, constraints, None, optimizer, **settings)


def losses_and_gradients(solver):
    """Of one step, as the Solver makes it."""
    batches = [next(each.data_iter) for each in solver.constraint.values()]
    for inputs, _, _ in batches:
        for tensor in inputs.values():
            tensor.stop_gradient = False
    expressions = tuple(each.output_expr for each in solver.constraint.values())
    inputs, labels, weights = zip(*batches)
    losses, _ = solver.forward_helper.train_forward(
        expressions, inputs, solver.model, solver.constraint, labels, weights
    )
    trained = [*solver.model.parameters(), *solver.equation["own"].learnable_parameters]
    seen = {name: differentiates(loss) for name, loss in losses.items()}
    sum(losses.values()).backward()
    found = [np.zeros(p.shape) if p.grad is None else p.grad.numpy() for p in trained]
    return {name: float(loss) for name, loss in losses.items()}, found, seen


LAPLACE = {"laplace": u.diff(x, 2) + u.diff(y, 2)}
SYSTEMS = {
    "first order": {"a": u.diff(x) + v.diff(y)},
    "the root is a derivative": {"a": u.diff(x), "b": v.diff(x, y)},
    "second order": LAPLACE,
    "flow": {
        "continuity": u.diff(x) + v.diff(y),
        "momentum": u * u.diff(x) + v * u.diff(y) - nu * (u.diff(x, 2) + u.diff(y, 2)),
    },
    "third order": {"a": u.diff(y, 3) + u * u.diff(x)},
    "fourth order": {"a": u.diff(x, 4) + 2 * u.diff(x, 2, y, 2) + u.diff(y, 4) - nu * v},
    "functions": {"a": sympy.exp(u.diff(x)) * sympy.Max(v.diff(y), u) + sympy.Heaviside(u)},
    "from the data": {"a": nu * u.diff(x) + sympy.Symbol("c") * v.diff(y, 2) + x * u},
    "without derivatives beside": {"a": u.diff(x, 2), "b": u * v - 1},
    "detached": {"a": sympy.Function("detach")(v) * u.diff(x) + u},
    "distance": {"a": sdf.diff(x) * u.diff(x) + sdf * u},
}


@pytest.mark.usefixtures("both_operators")
@pytest.mark.parametrize("system", SYSTEMS)
def test_losses_and_gradients_are_those_of_paddlescience(system):
    made = [
        solver_of(equation_of(**SYSTEMS[system]), more=("c", "sdf", "sdf__x")) for _ in range(2)
    ]
    paths = propagate_derivatives(made[1])
    assert paths
    assert all(path.startswith("Taylor propagation up to order 4") for path in paths.values())
    reference, ours = map(losses_and_gradients, made)
    assert list(reference[2].values()) != list(ours[2].values()), "nothing was served"
    assert not any(ours[2].values())
    for name, loss in reference[0].items():
        assert ours[0][name] == pytest.approx(loss, rel=1e-11)
    for one, other in zip(ours[1], reference[1]):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_parts_of_an_equation_that_hold_derivatives_are_named():
    solver = solver_of(equation_of(**SYSTEMS["without derivatives beside"]))
    assert list(propagate_derivatives(solver)) == ["EQ.a"]


def test_functions_are_those_of_fewer_coordinates_than_the_model_has():
    system = {"a": u.diff(x, 2) + v.diff(y)}
    made = [solver_of(equation_of(**system), inputs=("y", "t", "x")) for _ in range(2)]
    propagate_derivatives(made[1])
    reference, ours = map(losses_and_gradients, made)
    assert ours[0] == pytest.approx(reference[0], rel=1e-11)
    for one, other in zip(ours[1], reference[1]):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_functions_in_python_keep_their_way():
    def both(out):
        return hessian(out["u"], out["x"]) * out["u"]

    system = {"a": u * u.diff(x, 2), "python": both}
    made = [solver_of(equation_of(**system)) for _ in range(2)]
    assert list(propagate_derivatives(made[1])) == ["EQ.a"]
    assert made[1].constraint["EQ"].output_expr["python"] is both
    reference, ours = map(losses_and_gradients, made)
    assert ours[2] == {"a": False, "python": True, "u": False}
    assert ours[0] == pytest.approx(reference[0], rel=1e-11)
    for one, other in zip(ours[1], reference[1]):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def no_transform(model):
    model.register_output_transform(lambda inputs, outputs: outputs)


REFUSED = {
    "the name of an output": ({"u": u.diff(x, 2)}, {}, "an expression is called 'u', which is an"),
    "fifth order": ({"a": u.diff(x, 5)}, {}, "is of order 5, above 4"),
    "another function": ({"a": u.diff(x) + w.diff(x)}, {"more": ("w",)}, "w(x, y) is no output"),
    "a transform": (LAPLACE, {"adapt": no_transform}, "output transform"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_keeps_its_way_and_says_why(case, monkeypatch):
    system, settings, why = REFUSED[case]
    if case == "another function":  # PaddleScience wants it of another model
        other = ppsci.arch.MLP(("x", "y"), ("w",), 1, 4)
        solver = solver_of(equation_of(**LAPLACE))
        lambdified = ppsci.lambdify(system["a"], (solver.model, other))
        solver.constraint["EQ"].output_expr["a"] = lambdified
    else:
        solver = solver_of(equation_of(**system), **settings)
    paths = propagate_derivatives(solver)
    assert all(path.startswith("nested paddle.grad: ") for path in paths.values())
    assert why in paths[f"EQ.{next(iter(system))}"]
    assert not solver.forward_helper._served


def test_a_static_program_keeps_its_way():
    solver = solver_of(equation_of(**LAPLACE))
    solver.to_static = True
    paths = propagate_derivatives(solver)
    assert paths == {"EQ.laplace": "nested paddle.grad: the Solver has to_static=True"}
    assert not solver.forward_helper._served


def test_several_networks_keep_their_way():
    solver = solver_of(equation_of(**LAPLACE))
    solver.model = ppsci.arch.ModelList((solver.model, ppsci.arch.MLP(("x", "y"), ("w",), 1, 4)))
    path = propagate_derivatives(solver)["EQ.laplace"]
    assert path.startswith("nested paddle.grad: of PaddleScience's networks only MLP")


def test_a_transform_that_is_set_later_counts():
    made = [solver_of(equation_of(**LAPLACE)) for _ in range(2)]
    propagate_derivatives(made[1])
    for solver in made:
        solver.model.register_output_transform(
            lambda inputs, outputs: {name: inputs["x"] * value for name, value in outputs.items()}
        )
    reference, ours = map(losses_and_gradients, made)
    assert ours[0] == pytest.approx(reference[0], rel=1e-11)


def test_an_input_of_two_columns_is_left_to_paddlescience():
    model = ppsci.arch.MLP(("x",), ("u",), 2, 8, input_dim=2)
    solver = solver_of(equation_of(a=sympy.Function("u")(x).diff(x)), ("x",), ("u",))
    solver.model = model
    propagate_derivatives(solver)
    data = {"x": paddle.rand([4, 2])}
    data["x"].stop_gradient = False
    expressions = solver.constraint["EQ"].output_expr
    found = solver.forward_helper.visu_forward(expressions, data, model)["a"]
    ppsci.autodiff.clear()
    expected = paddle.grad(model(data)["u"], data["x"])[0]
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-11, atol=1e-13)


def test_twice_is_as_once():
    solver = solver_of(equation_of(**LAPLACE))
    assert propagate_derivatives(solver) == propagate_derivatives(solver)
    losses, _, seen = losses_and_gradients(solver)
    reference, _, _ = losses_and_gradients(solver_of(equation_of(**LAPLACE)))
    assert losses == pytest.approx(reference, rel=1e-11)
    assert not seen["laplace"]


@pytest.mark.parametrize("how", ["another Solver", "another model of the Solver"])
def test_another_model_with_the_same_constraints_has_its_own_derivatives(how):
    first = solver_of(equation_of(**LAPLACE))
    propagate_derivatives(first)
    ppsci.utils.misc.set_random_seed(2)
    other = ppsci.arch.MLP(("x", "y"), ("u", "v"), num_layers=2, hidden_size=8)
    second = first
    if how == "another Solver":
        second = ppsci.solver.Solver(other, first.constraint, None, equation=first.equation)
    else:
        first.model = other
    reference = solver_of(equation_of(**LAPLACE))
    reference.model = other
    losses, _, seen = losses_and_gradients(second)
    assert losses == pytest.approx(losses_and_gradients(reference)[0], rel=1e-11)
    assert seen["laplace"]


def test_an_expression_that_is_changed_later_counts():
    solver = solver_of(equation_of(**LAPLACE))
    propagate_derivatives(solver)
    solver.constraint["EQ"].output_expr["laplace"] = lambda out: out["u"] - 7
    losses, _, _ = losses_and_gradients(solver)
    assert losses["laplace"] > 10


def test_validators_and_visualizers_are_served():
    points = np.random.default_rng(0).random((16, 2))
    data = {"name": "NamedArrayDataset", "input": {"x": points[:, :1], "y": points[:, 1:]}}
    data["label"] = {"laplace": 0 * points[:, :1]}
    validator = ppsci.validate.SupervisedValidator(
        {"dataset": data, "batch_size": 16},
        ppsci.loss.MSELoss(),
        dict(LAPLACE),
        metric={"MSE": ppsci.metric.MSE()},
        name="residual",
    )
    visualizer = ppsci.visualize.VisualizerVtu(data["input"], dict(LAPLACE))
    more = {"validator": {"residual": validator}, "visualizer": {"vtu": visualizer}}
    solver = solver_of(equation_of(**LAPLACE), **more)
    with_gradients = solver.eval()[0]
    paths = propagate_derivatives(solver)
    assert list(paths) == ["EQ.laplace", "residual.laplace", "vtu.laplace"]
    assert solver.eval()[0] == pytest.approx(with_gradients, rel=1e-11)
    solver.eval_with_no_grad = True  # which PaddleScience's own derivatives do not work with
    assert solver.eval()[0] == pytest.approx(with_gradients, rel=1e-11)


@pytest.mark.parametrize("of", [True, False])
def test_the_aggregator_tells_equations_as_before(of):
    model, constraint, equation = problem.apart(("EQ", "left", "right", "traction"))
    del constraint["traction"]
    make = GradNormAggregator.of if of else lambda model, *_: GradNormAggregator(model, 2)
    aggregator = make(model, constraint, equation)
    optimizer = ppsci.optimizer.Adam(1e-3)(model)
    solver = ppsci.solver.Solver(
        model, constraint, None, optimizer, epochs=1, iters_per_epoch=1, equation=equation,
        loss_aggregator=aggregator,
    )  # fmt: skip
    aggregator.log_to(solver)
    assert propagate_derivatives(solver)["EQ.laplace"].startswith("Taylor propagation")
    solver.train()
    assert aggregator._losses.equations == ("EQ.laplace" if of else "laplace",)


def test_an_equation_that_only_its_derivatives_tell():
    """Its name is in neither ``equation`` nor the words for equations."""
    model, constraint, equation = problem.apart(("own", "left"))
    constraint["own"].output_expr["anything"] = LAPLACE["laplace"]
    aggregator = GradNormAggregator.of(model, constraint, equation)
    solver = ppsci.solver.Solver(
        model, constraint, None, ppsci.optimizer.Adam(1e-3)(model), epochs=1, iters_per_epoch=1,
        loss_aggregator=aggregator,
    )  # fmt: skip
    propagate_derivatives(solver)
    solver.train()
    assert aggregator._losses.equations == ("own.anything",)


def test_training_is_as_without(solve, monkeypatch):
    paddle.set_default_dtype("float32")  # of the problem's points
    _, _, reference = solve()
    own = problem.solver

    def served(*args, **settings):
        solver, aggregator = own(*args, **settings)
        propagate_derivatives(solver)
        return solver, aggregator

    monkeypatch.setattr(problem, "solver", served)
    _, _, rows = solve()
    assert [row.keys() for row in rows] == [row.keys() for row in reference]
    for row, expected in zip(rows, reference):
        assert row == pytest.approx(expected, rel=1e-6)


def test_what_is_no_solver_is_refused():
    with pytest.raises(TypeError, match=r"solver must be a ppsci.solver.Solver, got MLP"):
        propagate_derivatives(ppsci.arch.MLP(("x",), ("u",), 1, 4))
