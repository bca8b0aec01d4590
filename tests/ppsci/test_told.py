"""Which losses are equations, as a Solver's constraints tell."""

import re

import numpy as np
import paddle
import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import ppsci
import ppsci_problem as problem
from ppsci_problem import apart, equations_found, trained

from paddlescience_gradnorm import GradNorm
from paddlescience_gradnorm.ppsci import GradNormAggregator
from paddlescience_gradnorm.ppsci._told import Told, conditions_known


def _losses_on(model):
    """Values of all outputs under their names, as the Solver makes them."""
    points = {key: paddle.rand([4, 1]) for key in ("x", "y")}
    for value in points.values():
        value.stop_gradient = False
    out = model(points)
    return points, out, {name: value.square().mean() for name, value in out.items()}


@pytest.mark.parametrize(
    "adapt",
    [
        lambda net: net,
        lambda net: GradNorm(net, 3),
        lambda net: ppsci.arch.ModelList((net, ppsci.arch.MLP(("x", "y"), ("w",), 1, 4))),
    ],
)
def test_values_of_outputs_are_known_to_be_conditions(adapt):
    model = adapt(ppsci.arch.MLP(("x", "y"), ("u", "v"), 1, 4))
    points, out, losses = _losses_on(model)
    losses["other"] = out["u"].mean()
    losses["constant"] = paddle.ones([])
    losses["v"] = ppsci.autodiff.hessian(out["v"], points["x"]).square().mean()
    ppsci.autodiff.clear()
    assert conditions_known(losses, model) == set(out) - {"v"}


def test_a_network_without_names_knows_no_conditions(fc_net, make_losses):
    assert conditions_known(dict(zip("uvp", make_losses(fc_net))), fc_net) == set()


class Unlogged(GradNormAggregator):
    """One that has not been told its Solver."""

    def log_to(self, solver, norms=False):
        pass


def test_an_output_is_a_condition_without_being_told(tmp_path, solver_log):
    solver, _ = problem.solver(tmp_path, Unlogged, epochs=1)
    said = solver_log()
    solver.train()
    assert re.search("equations 'laplace' .*; conditions 'u', 'v'", said())


def test_a_residual_under_the_name_of_an_output_is_asked_for_where_there_is_no_solver():
    model = ppsci.arch.MLP(("x", "y"), ("u",), 1, 4)
    points, out, losses = _losses_on(model)
    residual = ppsci.autodiff.hessian(out["u"], points["x"]).square().mean()
    ppsci.autodiff.clear()
    with pytest.raises(ValueError, match=r"which 'u' is.* Or write GradNormAggregator\.of\("):
        GradNormAggregator(model)({"u": residual, "boundary": losses["u"]})
    assert all(parameter.grad is None for parameter in model.parameters())


def _constraints():
    """Of all kinds, with the equations that they may hold."""
    elasticity = ppsci.equation.LinearElasticity(E=1.0, nu=0.3, dim=2)
    equation = {"elasticity": elasticity, "laplace": ppsci.equation.Laplace(2)}
    square = ppsci.geometry.Rectangle((0.0, 0.0), (1.0, 1.0))
    in_time = ppsci.geometry.TimeXGeometry(ppsci.geometry.TimeDomain(0, 1, 0.25), square)
    loader = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1, "batch_size": 8}
    loss = ppsci.loss.MSELoss()
    value = {"edge": lambda out: out["u"], "start": lambda out: out["u"], "own": lambda out: 0}
    kinds = ppsci.constraint
    laplace, of_elasticity = equation["laplace"].equations, elasticity.equations
    points = {key: np.zeros([8, 1], "float32") for key in ("x", "y")}
    dataset = {"name": "NamedArrayDataset", "input": points, "label": {"laplace": points["x"]}}
    at_points = {"dataset": dataset, "batch_size": 8, "sampler": {"name": "BatchSampler"}}
    return {
        "inside": kinds.InteriorConstraint(
            {**of_elasticity, **value}, {"equilibrium_x": 0, "own": 0}, square, loader, loss
        ),
        "edge": kinds.BoundaryConstraint(
            {**of_elasticity, **value}, {"traction_x": 0, "edge": 0}, square, loader, loss
        ),
        "start": kinds.InitialConstraint(value, {"start": 0}, in_time, loader, loss),
        "PDE": kinds.SupervisedConstraint(at_points, loss, dict(laplace)),
    }, equation


def test_constraints_of_all_kinds_tell_equations_from_conditions():
    constraint, equation = _constraints()
    model = ppsci.arch.MLP(("x", "y"), ("u", "v"), 1, 4)
    points, out, _ = _losses_on(model)
    slope = ppsci.autodiff.jacobian(out["u"], points["x"]).square().mean()
    ppsci.autodiff.clear()
    value = out["u"].square().mean()
    losses = dict.fromkeys(("equilibrium_x", "laplace", "traction_x"), slope)
    losses.update(dict.fromkeys(("edge", "start", "own"), value))
    expected = {
        **{"equilibrium_x": True, "laplace": True},
        **{"traction_x": False, "edge": False, "start": False, "own": None},
    }
    assert Told(constraint, equation, model).added_up(losses) == expected
    # Names and derivatives tell as much here.
    assert Told(constraint, {}, model).added_up(losses) == expected
    # An equation on the boundary too: the Solver adds both up.
    on_edge = constraint["edge"]
    on_edge.output_expr = {**on_edge.output_expr, "laplace": lambda out: out["u"]}
    expected["laplace"] = None
    assert Told(constraint, equation, model).added_up(losses) == expected


def test_the_solver_that_trains_tells_what_names_leave_open(tmp_path, solver_log):
    solver, _ = problem.solver(tmp_path, Unlogged, epochs=1)
    inside, equation = solver.constraint["EQ"], solver.equation["laplace"]
    inside.output_expr = equation.equations = {"f": equation.equations["laplace"]}
    loss = inside.loss
    inside.loss = lambda out, label, weight: loss(out, {"f": label["laplace"]}, weight)
    said = solver_log()
    solver.train()
    assert re.search("equations 'f' .*; conditions 'u', 'v'", said())


@pytest.mark.parametrize("makes", [Unlogged, GradNormAggregator])
@pytest.mark.parametrize(
    "kinds, expected",
    [
        (["EQ", "left", "right"], ["laplace"]),
        (["own", "slope"], ["anything"]),
        (["BCI", "left"], ["item1"]),
        # Of one name, and added up by the Solver.
        (["left", "inner", "data", "PDE"], ["laplace"]),
    ],
)
def test_without_of_the_constraints_tell_the_same(makes, kinds, expected):
    model, constraint, equation = apart(kinds)
    aggregator = makes(model)
    trained(model, constraint, equation, aggregator, steps=1)
    assert equations_found(aggregator) == expected


@pytest.mark.parametrize("makes", [Unlogged, GradNormAggregator])
@pytest.mark.parametrize(
    "kinds, doubtful",
    [
        # An object that has been written for a boundary condition.
        (["PDE", "BCI", "left"], "item1"),
        (["Sup", "data"], "chip"),
        (["EQ", "initial"], "u_y"),
        # An equation inside and on the boundary: the Solver adds both up.
        (["EQ", "traction", "left"], "laplace"),
    ],
)
def test_without_of_the_constraints_leave_the_same_doubts(makes, kinds, doubtful):
    model, constraint, equation = apart(kinds)
    aggregator = makes(model)
    with pytest.raises(ValueError, match=f"which {doubtful!r} is. Pass equations="):
        trained(model, constraint, equation, aggregator, steps=1)


def _at_points(expression):
    points = np.zeros([8, 1], "float32")
    data = {"name": "NamedArrayDataset", "input": {"x": points, "y": points}}
    data["label"] = dict.fromkeys(expression, points)
    loader = {"dataset": data, "batch_size": 8, "sampler": {"name": "BatchSampler"}}
    return ppsci.constraint.SupervisedConstraint(loader, ppsci.loss.MSELoss(), expression)


@pytest.mark.parametrize(
    "expression, expected",
    [
        (lambda out: out["u"], False),
        (lambda out: out["u"] - 1, None),
        (lambda out: out["u"] * 2, None),
        (lambda out: out.get("u"), None),
    ],
)
def test_a_value_under_another_name_is_a_condition(expression, expected):
    model = ppsci.arch.MLP(("x", "y"), ("u",), 1, 4)
    _, _, losses = _losses_on(model)
    told = Told({"Sup": _at_points({"u0_sol": expression})}, None, model)
    assert told.apart({"Sup.u0_sol": losses["u"]}) == {"Sup.u0_sol": expected}
    assert told.added_up({"u0_sol": losses["u"], "other": losses["u"]}) == {"u0_sol": expected}


def test_a_value_that_holds_derivatives_may_be_either():
    """As of a stream function, or of a residual that the network's transform computes."""
    model = ppsci.arch.MLP(("x", "y"), ("psi",), 1, 4)
    points, out, _ = _losses_on(model)
    loss = ppsci.autodiff.jacobian(out["psi"], points["y"]).square().mean()
    ppsci.autodiff.clear()
    told = Told({"Sup": _at_points({"u": lambda out: out["u"]})}, None, model)
    assert told.apart({"Sup.u": loss}) == {"Sup.u": None}
