"""Which losses the Solver's constraints give, and which of them are equations."""

import contextlib
import itertools
import re

import numpy as np
import paddle
import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import ppsci
import ppsci_problem as problem
from ppsci_problem import (
    LOADER,
    NAMES,
    apart,
    equations_found,
    first_step,
    pinn,
    trained,
    values_of,
    weights_of,
)

from paddlescience_gradnorm import LossBalancer
from paddlescience_gradnorm.balancing import PinnRule
from paddlescience_gradnorm.ppsci import GradNormAggregator


def test_names_and_number_of_losses_are_checked(solve):
    message = "n_loss is 2, but the constraints give 3: laplace, u, v. Pass n_loss=3"
    with pytest.raises(ValueError, match=message):
        solve(lambda model: GradNormAggregator(model, num_losses=2, alpha=1.0))


def test_a_single_loss_needs_no_aggregator(tmp_path):
    solver, _ = problem.solver(tmp_path, lambda model: GradNormAggregator(model))
    del solver.constraint["BC"]
    with pytest.raises(ValueError, match=r"one loss only, 'laplace', .* leave loss_aggregator out"):
        solver.train()


def test_the_first_step_tells_the_number_of_losses(solve):
    _, aggregator, rows = solve(lambda model: GradNormAggregator(model))
    _, _, expected = solve(pinn())
    assert rows == expected and aggregator.balancer.n_loss == 3


@pytest.mark.parametrize("equation", ["laplacian", "EQ"])
def test_a_misspelled_equation_is_an_error_before_any_gradient(tmp_path, equation):
    solver, aggregator = problem.solver(tmp_path, pinn(equations=[equation]))
    with pytest.raises(ValueError, match=f"equations names '{equation}', but .*'laplace', 'u'"):
        solver.train()
    assert all(parameter.grad is None for parameter in aggregator.model.parameters())


def test_other_losses_need_another_aggregator(solve, tmp_path):
    solver, _, _ = solve()
    label = solver.constraint["BC"].loss
    solver.constraint["BC"].loss = lambda *arguments: {"u": label(*arguments)["u"]}
    with pytest.raises(ValueError, match=r"give the losses laplace, u, but before they .*new"):
        solver.train()


@pytest.mark.parametrize("optimizer", [None, ppsci.optimizer.LBFGS(1.0, max_iter=4)])
def test_the_order_of_the_constraints_does_not_matter(solve, tmp_path, optimizer):
    whole, _, rows = solve(optimizer=optimizer, epochs=6)
    first, aggregator, _ = solve(optimizer=optimizer, epochs=3)
    second, _ = problem.solver(
        tmp_path / "second",
        lambda model: aggregator,
        adapt=lambda _: first.model,
        optimizer=lambda model: first.optimizer,
        epochs=3,
    )
    second.constraint = {name: second.constraint[name] for name in ("BC", "EQ")}
    more = problem.record(second)
    second.train()
    assert aggregator.names == NAMES
    np.testing.assert_allclose(weights_of(more), weights_of(rows[3:]), rtol=1e-5)
    for mine, others in zip(values_of(second.model), values_of(whole.model)):
        np.testing.assert_allclose(mine, others, rtol=1e-4, atol=1e-6)


def run_of_three(
    steps,
    kinds=("EQ", "left", "right"),
    aggregate=GradNormAggregator.of,
    weight_lr=0.2,
    **settings,
):
    """As in a process of its own, because optimizers know parameters by name."""
    with paddle.utils.unique_name.guard():
        model, constraint, equation = apart(kinds)
        aggregator = aggregate(model, constraint, equation, weight_lr=weight_lr, update_every=1)
        return aggregator, trained(model, constraint, equation, aggregator, steps, **settings)


@pytest.fixture
def checkpoint(tmp_path):
    """Of a run of 12 steps with three losses: where it is, and the weights by name."""
    aggregator, _ = run_of_three(12, output=tmp_path / "first", save_freq=12)
    weights = dict(zip(aggregator.names, aggregator.get_weights().tolist()))
    assert len({round(weight, 2) for weight in weights.values()}) == 3
    return str(tmp_path / "first/checkpoints/latest"), weights


@pytest.mark.parametrize("kinds", list(itertools.permutations(("EQ", "left", "right"))))
def test_a_resumed_run_finds_its_weights_by_name(checkpoint, kinds):
    path, weights = checkpoint
    _, (row,) = run_of_three(13, kinds, weight_lr=1e-9, checkpoint_path=path)
    assert {name: row[f"train/weight/{name}"] for name in weights} == pytest.approx(weights)
    # And in a process that has made steps already.
    aggregator, _ = run_of_three(1, kinds)
    aggregator.set_state_dict(paddle.load(f"{path}.pdagg"))
    assert dict(zip(aggregator.names, aggregator.get_weights())) == pytest.approx(weights)


def test_a_resumed_run_with_other_losses_is_refused(checkpoint):
    path, _ = checkpoint
    with pytest.raises(ValueError, match=r"has weights of .* right.u, but .* give .* slope.q: res"):
        run_of_three(13, ("EQ", "left", "slope"), checkpoint_path=path)
    aggregator, _ = run_of_three(1, ("EQ", "left", "slope"))
    with pytest.raises(
        ValueError, match=r"weights of .* right.u, but this aggregator has .* slope"
    ):
        aggregator.set_state_dict(paddle.load(f"{path}.pdagg"))


def test_frozen_weights_stay_so_in_a_resumed_run(tmp_path):
    def frozen(*arguments, **options):
        aggregator = GradNormAggregator.of(*arguments, **options)
        aggregator.balancer.freeze()
        return aggregator

    run_of_three(3, aggregate=frozen, output=tmp_path)
    path = str(tmp_path / "checkpoints/latest")
    aggregator, rows = run_of_three(6, checkpoint_path=path)
    assert len(rows) == 3 and aggregator.get_weights().tolist() == [1, 1, 1]


def test_a_loss_may_be_absent_from_a_step(fc_net, make_losses):
    options = {"equations": ["a"], "update_every": 1, "absent": "skip"}
    aggregator = GradNormAggregator(fc_net, 3, **options)
    balancer = LossBalancer(fc_net, 3, **options)
    for step, names in enumerate(["b", "ab", "bc", "abc", "ca"]):
        pairs = [dict(zip("abc", make_losses(fc_net, seed=step))) for _ in range(2)]
        mine, others = ({name: losses[name] for name in names} for losses in pairs)
        total = aggregator(mine)
        total.backward()
        assert total.item() == pytest.approx(balancer.backward(others).item(), rel=1e-6)
        assert (aggregator.get_weights() == balancer.get_weights()).all()
    assert aggregator.names == ["b", "a", "c"]
    with pytest.raises(ValueError, match="but before they gave b, a, c"):
        aggregator({"d": fc_net(paddle.ones([4, 2])).mean()})


def test_a_static_program_is_refused(tmp_path):
    net = ppsci.arch.MLP(("x",), ("u", "v"), 1, 4)

    def losses(x):
        out = net({"x": x})
        return {"u": out["u"].square().mean(), "v": out["v"].square().mean()}

    forward = paddle.jit.to_static(losses, full_graph=True)
    aggregator = GradNormAggregator(net, num_losses=2, alpha=1.0)
    try:
        paddle.jit.enable_to_static(True)
        with pytest.raises(ValueError, match=r"'u', 'v' come from one run of .*to_static=False"):
            aggregator(forward(paddle.ones([4, 1])))
    finally:
        paddle.jit.enable_to_static(False)


def test_losses_of_one_name_are_balanced_apart_without_a_word(tmp_path):
    model, constraint, equation = apart()
    aggregator = GradNormAggregator.of(model, constraint, equation)
    rows = trained(model, constraint, equation, aggregator, steps=60)
    assert aggregator.names == ["EQ.laplace", "left.u", "right.u"]
    assert equations_found(aggregator) == ["EQ.laplace"]
    weights = aggregator.get_weights()
    assert weights[0] == 1 and (weights[1:] > 1.5).all()
    # Sixty steps are too few for weights that go 1 % a step, and it is said.
    assert [finding[:32] for finding in aggregator.diagnose()] == [
        "In the last update, in step 51, "
    ]
    # The Solver goes on logging a loss for each constraint, and the weights beside them.
    logged = {"EQ", "left", "right", "weight/EQ.laplace", "weight/left.u", "weight/right.u"}
    assert {f"train/{name}" for name in logged} <= set(rows[-1])
    model, constraint, equation = apart()
    together = GradNormAggregator(model)
    trained(model, constraint, equation, together, steps=1)
    assert together.names == ["laplace", "u"]


@pytest.mark.parametrize(
    "kinds, expected",
    [
        (["left", "EQ"], ["EQ.laplace"]),
        (["own", "slope"], ["own.anything"]),
        (["EQ", "inner", "data"], ["EQ.laplace"]),
        (["EQ_sup", "data"], ["EQ_sup.chip"]),
        (["EQ", "own", "left"], ["EQ.laplace", "own.anything"]),
        (["observed", "left"], ["observed.pde"]),
        (["BCI", "left"], ["BCI.item1"]),  # the only expression of an equation
        (["PDE", "left"], ["PDE.laplace"]),
    ],
)
def test_constraints_tell_which_losses_are_equations(kinds, expected):
    model, constraint, equation = apart(kinds)
    aggregator = GradNormAggregator.of(model, constraint, equation)
    trained(model, constraint, equation, aggregator, steps=1)
    assert equations_found(aggregator) == expected


@pytest.mark.parametrize(
    "kinds, doubtful, pasted",
    [
        (["inner", "traction"], "traction.laplace", []),
        (["EQ", "wall"], "wall.laplace", ["EQ.laplace"]),
        (["Sup", "data"], "Sup.chip", []),
        (["sensors", "left"], "sensors.f", []),
        # An object that may have been written for a boundary condition, beside the equation's.
        (["PDE", "BCI"], "BCI.item1", ["PDE.laplace"]),
        (["EQ", "BCI"], "BCI.item1", ["EQ.laplace"]),
        (["EQ", "initial"], "initial.u_y", ["EQ.laplace"]),
        (["f", "PDE_edge"], "PDE_edge.f", ["f.f"]),
    ],
)
def test_what_constraints_do_not_tell_is_asked(kinds, doubtful, pasted):
    model, constraint, equation = apart(kinds)
    aggregator = GradNormAggregator.of(model, constraint, equation)
    message = f"which {doubtful!r} is. Pass equations={pasted}, with those of [{doubtful!r}] added"
    message = re.escape(message)
    with pytest.raises(ValueError, match=message):
        trained(model, constraint, equation, aggregator, steps=1)


def test_a_loss_that_joins_needs_a_weight_from_the_start():
    model, constraint, equation = apart()
    aggregator = GradNormAggregator.of(model, constraint, equation, absent="skip")
    trained(model, constraint, equation, aggregator, steps=1)
    more = apart(["EQ", "left", "right", "slope"])[1]
    aggregator.take(more, equation)
    with pytest.raises(ValueError, match=r"before they gave .*weight_attr=\[1\.0\] \* 4"):
        trained(model, more, equation, aggregator, steps=1)
    options = {"absent": "skip", "weight_attr": [1.0] * 4}
    aggregator = GradNormAggregator.of(model, constraint, equation, **options)
    trained(model, constraint, equation, aggregator, steps=1)
    aggregator.take(more, equation)
    trained(model, more, equation, aggregator, steps=1)
    assert aggregator.names == ["EQ.laplace", "left.u", "right.u", "slope.q"]


def test_what_is_asked_may_be_said():
    model, constraint, equation = apart(["EQ", "traction"])
    aggregator = GradNormAggregator.of(model, constraint, equation)
    pasted = r"Pass equations=\['EQ\.laplace'\], with those of \['traction\.laplace'\] added"
    with pytest.raises(ValueError, match=pasted):
        trained(model, constraint, equation, aggregator, steps=1)
    aggregator = GradNormAggregator.of(model, constraint, equation, equations=["EQ.laplace"])
    trained(model, constraint, equation, aggregator, steps=1)
    assert equations_found(aggregator) == ["EQ.laplace"]
    with pytest.raises(ValueError, match=r"did you mean 'EQ\.laplace'"):
        aggregator = GradNormAggregator.of(model, constraint, equation, equations=["EQ.laplac"])
        trained(model, constraint, equation, aggregator, steps=1)


def test_constraints_may_be_wrapped_twice_and_keep_their_losses_attributes():
    causal = ppsci.loss.MSELoss("sum", weight={"u": 3.0})
    model, constraint, equation = apart(["EQ", "left"], loss=causal)
    for _ in range(2):
        aggregator = GradNormAggregator.of(model, constraint, equation)
        trained(model, constraint, equation, aggregator, steps=1)
        assert aggregator.names == ["EQ.laplace", "left.u"]
    wrapped = constraint["left"].loss
    assert wrapped.inner is causal and wrapped.reduction == "sum" and wrapped.weight == {"u": 3.0}


def test_what_of_cannot_take_is_named():
    model, constraint, equation = apart()
    with pytest.raises(TypeError, match="constraint must be the Solver's dict, got"):
        GradNormAggregator.of(model, list(constraint.values()), equation)
    with pytest.raises(TypeError, match="constraint must hold PaddleScience's constraints, got"):
        GradNormAggregator.of(model, equation, constraint)
    with pytest.raises(TypeError, match="equation must be the Solver's dict, got"):
        GradNormAggregator.of(model, constraint, equation["laplace"])
    with pytest.raises(TypeError, match=r"as 'laplace': write \{\"laplace\": laplace\}"):
        GradNormAggregator.of(model, constraint, equation["laplace"].equations)
    with pytest.raises(TypeError, match=r"got 1000, 0.9 by position too: write update_every="):
        GradNormAggregator.of(model, constraint, equation, 1000, 0.9)
    with pytest.raises(TypeError, match="'momentum', which is PaddleScience's: leave it out"):
        GradNormAggregator.of(model, constraint, equation, momentum=0.9)
    with pytest.raises(ValueError, match="constraint is empty"):
        GradNormAggregator.of(model, {}, equation)
    for option in ("n_loss", "num_losses"):
        with pytest.raises(TypeError, match=rf"takes no {option}: .* weight_attr="):
            GradNormAggregator.of(model, constraint, equation, **{option: 3})


def _functional(output, label, weight=None):
    return {"misfit": (output["u"] - label["u"]).abs().mean()}


@pytest.mark.parametrize(
    "loss, name",
    [
        (ppsci.loss.L1Loss("mean"), "left.u"),
        (ppsci.loss.L2Loss(), "left.u"),
        (ppsci.loss.L2RelLoss(), "left.u"),
        (ppsci.loss.MAELoss(), "left.u"),
        (ppsci.loss.MSELoss("sum"), "left.u"),
        (ppsci.loss.MSELossWithL2Decay(regularization_dict={"u": 2.0}), "left.u"),
        (ppsci.loss.CausalMSELoss(4), "left.u"),
        (ppsci.loss.FunctionalLoss(_functional), "left.misfit"),
        (_functional, "left.misfit"),
    ],
)
def test_every_loss_of_paddlescience_is_balanced(loss, name):
    def prepare(constraint, equation):
        constraint["left"].loss = loss

    aggregator = first_step(prepare)
    assert aggregator.names == ["EQ.laplace", name, "right.u"]
    assert equations_found(aggregator) == ["EQ.laplace"]


def test_a_causal_loss_of_the_equation_is_an_equation():
    def prepare(constraint, equation):
        constraint["EQ"].loss = ppsci.loss.CausalMSELoss(4, tol=2.0)

    assert equations_found(first_step(prepare)) == ["EQ.laplace"]


def test_a_loss_that_returns_no_dict_is_named():
    """PaddleScience's ``KLLoss`` is one."""
    model, constraint, equation = apart()
    constraint["left"].loss = ppsci.loss.KLLoss()
    constraint["left"].output_expr = dict.fromkeys(("mu", "log_sigma"), lambda out: out["u"])
    aggregator = GradNormAggregator.of(model, constraint, equation)
    with pytest.raises(TypeError, match=r"loss of constraint 'left' must return a dict .* Tensor"):
        trained(model, constraint, equation, aggregator, steps=1)


def test_constraints_may_share_a_loss_object():
    shared = ppsci.loss.MSELoss()

    def prepare(constraint, equation):
        for each in constraint.values():
            each.loss = shared

    aggregator = first_step(prepare)
    assert aggregator.names == ["EQ.laplace", "left.u", "right.u"]
    assert all(each.loss.inner is shared for each in aggregator._losses._constraint.values())


def test_a_constraint_under_two_names_is_refused():
    model, constraint, equation = apart()
    constraint["again"] = constraint["left"]
    with pytest.raises(ValueError, match="'left' and 'again' are one object"):
        GradNormAggregator.of(model, constraint, equation)


def test_one_supervised_constraint_may_hold_data_and_an_equation_with_parameters_to_learn():
    """As in an inverse problem, where the optimizer holds the equation too."""
    learned = []
    for balanced in (False, True):
        ppsci.utils.misc.set_random_seed(1)
        model = ppsci.arch.MLP(("t_f",), ("eta",), 2, 8, "tanh")
        equation = {"VIV": ppsci.equation.Vibration(2.0, -4.0, 0.0)}
        times = np.linspace(0, 1, 16, dtype="float32")[:, None]
        data = {"name": "NamedArrayDataset", "input": {"t_f": times}}
        data["label"] = {"eta": np.sin(times), "f": np.cos(times)}
        value = {"eta": lambda out: out["eta"], **equation["VIV"].equations}
        constraint = {
            "Sup": ppsci.constraint.SupervisedConstraint(
                {"dataset": data, "batch_size": 16}, ppsci.loss.MSELoss(), value, name="Sup"
            )
        }
        aggregator = GradNormAggregator.of(model, constraint, equation) if balanced else None
        optimizer = ppsci.optimizer.Adam(1e-2)((model, *equation.values()))
        trained(model, constraint, equation, aggregator, 1, optimizer=optimizer)
        learned.append([*values_of(model), *values_of(equation["VIV"])])
    for plain, mine in zip(*learned):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-6)
    assert learned[1][-1] != 0
    assert aggregator.names == ["Sup.eta", "Sup.f"] and equations_found(aggregator) == ["Sup.f"]


def test_every_constraint_of_paddlescience_is_balanced():
    """Initial, periodic and integral constraints, in time."""
    square = ppsci.geometry.Rectangle((0.0, 0.0), (1.0, 1.0))
    in_time = ppsci.geometry.TimeXGeometry(ppsci.geometry.TimeDomain(0, 1, 0.25), square)
    loader, mse = {**LOADER, "batch_size": 16}, ppsci.loss.MSELoss()
    value = {"u": lambda out: out["u"]}
    kinds = ppsci.constraint
    wave = {"wave": ppsci.equation.Laplace(2)}
    integral = {**LOADER, "batch_size": 4, "integral_batch_size": 8}
    constraint = {
        "EQ": kinds.InteriorConstraint(
            wave["wave"].equations, {"laplace": 0}, in_time, loader, mse
        ),
        "IC": kinds.InitialConstraint(value, {"u": 0}, in_time, loader, mse),
        "PBC": kinds.PeriodicConstraint(
            value, {"u": 0}, in_time, "x", loader, ppsci.loss.PeriodicMSELoss()
        ),
    }
    model = ppsci.arch.MLP(("t", "x", "y"), ("u",), 2, 8)
    aggregator = GradNormAggregator.of(model, constraint, wave)
    trained(model, constraint, wave, aggregator, steps=2)
    assert aggregator.names == ["EQ.laplace", "IC.u", "PBC.u"]
    assert equations_found(aggregator) == ["EQ.laplace"]
    flow = {
        "EQ": kinds.InteriorConstraint(wave["wave"].equations, {"laplace": 0}, square, loader, mse),
        "IGC": kinds.IntegralConstraint(
            value, {"u": 1.0}, square, integral, ppsci.loss.IntegralLoss("sum")
        ),
    }
    points, *others = next(flow["IGC"].data_iter)
    points["area"] = paddle.full([4, 8, 1], 1 / 8)  # PaddleScience has areas of meshes only
    flow["IGC"].data_iter = itertools.repeat((points, *others))
    model = ppsci.arch.MLP(("x", "y"), ("u",), 2, 8)
    aggregator = GradNormAggregator.of(model, flow, wave)
    trained(model, flow, wave, aggregator, steps=2)
    assert aggregator.names == ["EQ.laplace", "IGC.u"]
    assert equations_found(aggregator) == ["EQ.laplace"]


@pytest.mark.parametrize("in_place", [True, False], ids=["data", "constraints"])
def test_a_curriculum_goes_on_with_the_weights_of_the_stage_before(in_place):
    model, constraint, equation = apart()
    rule = PinnRule(late=False)  # whose weights move from the first step on
    aggregator = GradNormAggregator.of(model, constraint, equation, update_every=1, rule=rule)
    trained(model, constraint, equation, aggregator, steps=3)
    before = aggregator.get_weights()
    if in_place:
        for name, each in apart()[1].items():
            constraint[name].data_iter, constraint[name].data_loader = (
                each.data_iter,
                each.data_loader,
            )
    else:
        _, constraint, equation = apart()
        with pytest.raises(
            ValueError, match=r"loss 'laplace' comes from none .*aggregator\.take\("
        ):
            trained(model, constraint, equation, aggregator, steps=1)
        aggregator.take(constraint, equation)
    trained(model, constraint, equation, aggregator, steps=1)
    ratio = aggregator.get_weights() / before
    assert (before[1:] > 1.02).all() and 0 < abs(ratio - 1).max() < 0.011
    assert aggregator.balancer.step_count.item() == 4


def test_other_constraints_need_another_aggregator():
    model, constraint, equation = apart()
    aggregator = GradNormAggregator.of(model, constraint, equation)
    trained(model, constraint, equation, aggregator, steps=1)
    _, constraint, equation = apart(["EQ", "left", "slope"])
    aggregator.take(constraint, equation)
    with pytest.raises(ValueError, match=r"but before they gave EQ\.laplace, left\.u, right\.u"):
        trained(model, constraint, equation, aggregator, steps=1)


def test_a_traction_is_a_condition_where_its_equation_holds_inside():
    ppsci.utils.misc.set_random_seed(1)
    square = ppsci.geometry.Rectangle((0.0, 0.0), (1.0, 1.0))
    equation = {"elasticity": ppsci.equation.LinearElasticity(E=1.0, nu=0.3, dim=2)}
    outputs = ("u", "v", "sigma_xx", "sigma_yy", "sigma_xy")
    model = ppsci.arch.MLP(("x", "y"), outputs, 2, 8)

    def constraints(inside, edge):
        kinds, loader, mse = ppsci.constraint, {**LOADER, "batch_size": 16}, ppsci.loss.MSELoss()
        of, expressions = square, equation["elasticity"].equations
        return {
            "EQ": kinds.InteriorConstraint(expressions, dict.fromkeys(inside, 0), of, loader, mse),
            "BC": kinds.BoundaryConstraint(expressions, {edge: 0}, of, loader, mse),
        }

    constraint = constraints(["equilibrium_x", "stress_disp_xx"], "traction_x")
    aggregator = GradNormAggregator.of(model, constraint, equation)
    trained(model, constraint, equation, aggregator, steps=1)
    assert equations_found(aggregator) == ["EQ.equilibrium_x", "EQ.stress_disp_xx"]
    # An equation's name is not a traction's, and what holds inside too may hold everywhere.
    for inside in (["equilibrium_x", "stress_disp_xx"], ["equilibrium_x", "equilibrium_y"]):
        constraint = constraints(inside, "equilibrium_y")
        aggregator = GradNormAggregator.of(model, constraint, equation)
        with pytest.raises(ValueError, match=r"which 'BC\.equilibrium_y' is"):
            trained(model, constraint, equation, aggregator, steps=1)


@pytest.mark.parametrize("name", ["EQ_sup", "data"])
def test_a_supervised_constraints_name_tells_nothing_of_residuals_beside_data(name):
    model, constraint, equation = apart(["left", "EQ_sup"])
    mixed = constraint.pop("EQ_sup")
    label = next(mixed.data_iter)
    mixed.output_expr["twice"] = lambda out: 2 * out["u"]
    labels = {"chip": label[1]["chip"], "twice": label[1]["chip"]}
    mixed.data_iter = itertools.repeat((label[0], labels, label[2]))
    constraint[name] = mixed
    aggregator = GradNormAggregator.of(model, constraint, equation)
    pasted = rf"Pass equations=\[\], with those of \['{name}\.chip', '{name}\.twice'\] added"
    with pytest.raises(ValueError, match=pasted):
        trained(model, constraint, equation, aggregator, steps=1)


def test_conditions_alone_are_known_too():
    model, constraint, equation = apart(["inner", "left"])
    aggregator = GradNormAggregator.of(model, constraint, equation)
    trained(model, constraint, equation, aggregator, steps=1)
    assert equations_found(aggregator) == [] and aggregator.names == ["inner.u", "left.u"]


def test_an_equation_that_is_not_given_is_asked_for_on_the_boundary():
    model, constraint, _ = apart(["EQ", "traction", "slope"])
    aggregator = GradNormAggregator.of(model, constraint)
    with pytest.raises(ValueError, match=r"not tell which 'traction\.laplace' is\. "):
        trained(model, constraint, None, aggregator, steps=1)


def test_the_solvers_optimizer_may_step_the_weights_of_all_constraints():
    model, constraint, equation = apart()
    options = {"alpha": 0.5, "weight_lr": None}
    for weights, error in ([1, 1, 1], None), ([1, 1], "for 2 losses, but .* give 3: EQ.laplace, "):
        aggregator = GradNormAggregator.of(
            model, constraint, equation, weight_attr=weights, **options
        )
        optimizer = ppsci.optimizer.Adam(1e-2)((model, aggregator.balancer))
        with contextlib.nullcontext() if error is None else pytest.raises(ValueError, match=error):
            trained(model, constraint, equation, aggregator, 3, optimizer=optimizer)
            assert np.ptp(aggregator.get_weights()) > 1e-3


def test_one_loss_of_one_constraint_needs_no_aggregator():
    model, constraint, equation = apart(["EQ"])
    aggregator = GradNormAggregator.of(model, constraint, equation)
    with pytest.raises(
        ValueError,
        match=r"one loss only, 'EQ\.laplace', .*leave loss_aggregator out\..* in its dict$",
    ):
        trained(model, constraint, equation, aggregator, steps=1)
