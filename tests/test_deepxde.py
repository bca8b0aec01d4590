"""Balanced losses in DeepXDE's real Model, on Paddle."""

import importlib.util
import os
import pickle
import re
import sys

import numpy as np
import paddle
import pytest
import sympy

os.environ.setdefault("DDE_BACKEND", "paddle")
pytest.importorskip("deepxde", reason="needs DeepXDE: pip install -e '.[deepxde]'")

import deepxde as dde

from paddlescience_gradnorm import LossBalancer
from paddlescience_gradnorm.balancing import RULES, Rule
from paddlescience_gradnorm.deepxde import LossWeights, balance
from paddlescience_gradnorm.pde import Residual, derivative_path, residual

LINE = dde.geometry.Interval(-1, 1)
PLANE = dde.geometry.GeometryXTime(LINE, dde.geometry.TimeDomain(0, 1))


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own():
    """Optimizers know parameters by name. DeepXDE's seed is numpy's too."""
    dde.config.set_random_seed(0)
    with paddle.utils.unique_name.guard():
        yield


def exact(x):
    return np.sin(np.pi * x[:, :1])


def poisson(x, u):
    return dde.grad.hessian(u, x) + np.pi**2 * paddle.sin(np.pi * x)


def at_ends(x, on):
    return on


def at_right(x, on):
    return on and dde.utils.isclose(x[0], 1)


def line_data(conditions=None, **settings):
    """Poisson's equation on a line."""
    if conditions is None:
        conditions = dde.icbc.DirichletBC(LINE, exact, at_ends)
    settings = {"num_domain": 16, "num_boundary": 2, "solution": exact, **settings}
    return dde.data.PDE(LINE, settings.pop("pde", poisson), conditions, **settings)


def plane_data(conditions=(), pde=None, **settings):
    """An equation on a line, in time."""

    def diffusion(x, u):
        return dde.grad.jacobian(u, x, i=0, j=1) - dde.grad.hessian(u, x)

    points = {"num_domain": 12, "num_boundary": 6, "num_initial": 6}
    return dde.data.TimePDE(PLANE, pde or diffusion, list(conditions), **{**points, **settings})


def in_plane():
    """A condition at the ends, and one at the start."""
    return [
        dde.icbc.DirichletBC(PLANE, exact, at_ends),
        dde.icbc.IC(PLANE, exact, lambda x, on: on),
    ]


def fnn(n_in=1, n_out=1):
    return dde.nn.FNN([n_in, 8, 8, n_out], "tanh", "Glorot normal")


def compiled(data=None, net=None, optimizer="adam", **settings):
    model = dde.Model(line_data() if data is None else data, fnn() if net is None else net)
    lr = 1e-2 if optimizer == "adam" else None
    model.compile(optimizer, lr=lr, verbose=0, **settings)
    return model


def trained(model, steps=20, **settings):
    return model.train(steps, verbose=0, **settings)


def losses_of(model):
    points = model.data.train_next_batch()
    return model.outputs_losses_train(*points)[1].numpy()


def parameters_of(model):
    return [parameter.numpy() for parameter in model.net.parameters()]


@pytest.fixture
def few_lbfgs_steps(monkeypatch):
    options = {"maxiter": 7, "iter_per_step": 7, "fun_per_step": 20}
    for name, value in options.items():
        monkeypatch.setitem(dde.optimizers.config.LBFGS_options, name, value)


# Training.


def test_the_model_trains_as_a_loop_with_a_balancer_does():
    model = compiled()
    other = fnn()
    other.set_state_dict(model.net.state_dict())
    weights = balance(model, update_every=2, weight_lr=0.3)
    trained(model, 15)

    options = {"update_every": 2, "weight_lr": 0.3, "total_steps": 15}
    balancer = LossBalancer(other, n_loss=2, equations=[0], **options)
    optimizer = paddle.optimizer.Adam(1e-2, parameters=other.parameters())
    inside = paddle.to_tensor(model.data.train_x_all, stop_gradient=False)
    ends = paddle.to_tensor(model.data.train_x_bc)
    for _ in range(15):
        residual = poisson(inside, other(inside))
        misfit = other(ends) - paddle.to_tensor(exact(ends.numpy()))
        balancer.backward([residual.square().mean(), misfit.square().mean()])
        optimizer.step()
        optimizer.clear_grad()
        dde.grad.clear()
    np.testing.assert_allclose(weights.get_weights(), balancer.get_weights(), rtol=1e-5)
    assert abs(weights.get_weights() - 1).max() > 0.1
    for ours, its in zip(parameters_of(model), other.parameters()):
        np.testing.assert_allclose(ours, its.numpy(), rtol=1e-4, atol=1e-6)


def test_train_tells_the_balancer_how_long_the_run_is():
    model = compiled()
    balancer = balance(model).balancer
    trained(model, 20)
    assert balancer.total_steps == 20 and balancer.last_measurement.progress == 10 / 20
    model.train(iterations=30, verbose=0)
    assert balancer.total_steps == 50
    given = balance(compiled(), total_steps=400).balancer
    trained(model, 5)
    assert given.total_steps == 400


def test_with_frozen_weights_of_1_the_model_trains_as_deepxde_does():
    model = compiled(plane_data(in_plane()), fnn(2))
    balance(model).balancer.freeze()
    net = fnn(2)
    net.set_state_dict(model.net.state_dict())
    theirs = compiled(model.data, net)
    for each in model, theirs:
        trained(each)
    for ours, its in zip(parameters_of(model), parameters_of(theirs)):
        np.testing.assert_allclose(ours, its, rtol=1e-4, atol=1e-6)


def test_each_loss_has_a_graph_of_its_own():
    """The gradient of a condition does not come through the equation's second derivatives."""
    model = compiled()
    weights = balance(model)
    _, ends = weights._losses(*model.data.train_next_batch())
    nodes = [ends.grad_fn]
    names = []
    while nodes:
        node = nodes.pop()
        names.append(node.name())
        nodes += [child for child in node.next_functions if child is not None]
    assert "SliceGradNode" in names
    assert not any("DoubleGrad" in name or "Stack" in name for name in names)


def test_the_data_keep_their_own_losses():
    model = compiled()
    balance(model)
    trained(model, 2)
    assert "losses_train" not in vars(model.data)

    def of_the_user(*arguments, **keywords):
        calls.append(1)
        return type(model.data).losses_train(model.data, *arguments, **keywords)

    calls = []
    model.data.losses_train = of_the_user
    trained(model, 3)
    assert model.data.losses_train is of_the_user
    assert len(calls) > 3  # DeepXDE's table evaluates them too


def test_an_error_in_the_pde_leaves_the_data_as_they_were():
    def pde(x, u):
        if fails:
            raise ArithmeticError("of the user")
        return poisson(x, u)

    fails = False
    model = compiled(line_data(pde=pde))
    balance(model)
    fails = True
    with pytest.raises(ArithmeticError, match="of the user"):
        model.train_step(*model.data.train_next_batch())
    assert "losses_train" not in vars(model.data)


# What DeepXDE has.


def slope(x, u, _):
    return dde.grad.jacobian(u, x, i=0, j=0)


def system(x, u):
    return [dde.grad.jacobian(u, x, i=0, j=0) - u[:, 1:], dde.grad.jacobian(u, x, i=1, j=0)]


POINTS = np.linspace(-1, 1, 5)[:, None]


@pytest.mark.parametrize(
    "data, n_out, names",
    [
        (lambda: line_data(), 1, ["pde", "DirichletBC"]),
        (
            lambda: line_data(
                [
                    dde.icbc.NeumannBC(LINE, lambda x: 0, at_ends),
                    dde.icbc.RobinBC(LINE, lambda x, u: u, at_right),
                    dde.icbc.PeriodicBC(LINE, 0, at_right),
                    dde.icbc.PeriodicBC(LINE, 0, at_right, derivative_order=1),
                    dde.icbc.OperatorBC(LINE, slope, at_right),
                    dde.icbc.PointSetBC(POINTS, exact(POINTS)),
                    dde.icbc.PointSetOperatorBC(POINTS, exact(POINTS), slope),
                ]
            ),
            1,
            "pde NeumannBC RobinBC PeriodicBC PeriodicBC_2 OperatorBC PointSetBC "
            "PointSetOperatorBC".split(),
        ),
        (
            lambda: line_data(
                [
                    dde.icbc.DirichletBC(LINE, exact, at_ends, component=0),
                    dde.icbc.DirichletBC(LINE, exact, at_right, component=1),
                    dde.icbc.DirichletBC(LINE, exact, at_ends, component=1),
                    dde.icbc.NeumannBC(LINE, exact, at_ends, component=1),
                ],
                pde=system,
                solution=None,
            ),
            2,
            "pde0 pde1 DirichletBC_y0 DirichletBC_y1 DirichletBC_y1_2 NeumannBC".split(),
        ),
        (lambda: plane_data(in_plane()), 1, ["pde", "DirichletBC", "IC"]),
        (lambda: line_data([], pde=system, solution=None), 2, ["pde0", "pde1"]),
        (
            lambda: line_data(
                [
                    dde.icbc.DirichletBC(LINE, exact, at_ends),
                    dde.icbc.PointSetBC(POINTS, exact(POINTS)),
                ],
                pde=None,
            ),
            1,
            ["DirichletBC", "PointSetBC"],
        ),
        (
            lambda: dde.data.IDE(
                LINE,
                lambda x, u, integral: (
                    u[: len(integral)] - paddle.matmul(paddle.to_tensor(integral), u)
                ),
                dde.icbc.DirichletBC(LINE, exact, at_ends),
                quad_deg=3,
                num_domain=4,
                num_boundary=2,
            ),
            1,
            ["pde", "DirichletBC"],
        ),
    ],
    ids="poisson conditions system time two_equations no_equation integral".split(),
)
def test_the_data_say_which_losses_are_equations(data, n_out, names):
    data = data()
    model = compiled(data, fnn(data.geom.dim, n_out))
    weights = balance(model)
    assert [name.replace(" ", "_") for name in weights.names] == names
    trained(model, 11)
    assert weights.get_weights().shape == (len(names),)
    equations = [name.startswith("pde") for name in names]
    assert weights.balancer.last_measurement.equations.tolist() == equations
    assert abs(weights.get_weights() - 1).max() > 0.01


def test_the_losses_of_an_operator_are_known_too():
    space = dde.data.PowerSeries(N=3)
    sensors = np.linspace(-1, 1, 6)[:, None].astype("float32")

    def pde(x, u, v):
        return dde.grad.jacobian(u, x) - v

    inner = dde.data.PDE(LINE, pde, dde.icbc.DirichletBC(LINE, exact, at_ends), 8, 2)
    data = dde.data.PDEOperator(inner, space, sensors, 4)
    net = dde.nn.DeepONet([6, 8, 8], [1, 8, 8], "tanh", "Glorot normal")
    data.train_aux_vars = data.test_aux_vars = paddle.to_tensor(data.train_aux_vars)
    model = compiled(data, net)
    assert balance(model).names == ["pde", "DirichletBC"]
    trained(model, 11)
    assert model.balance.get_weights()[1] > 1


@pytest.mark.parametrize(
    "net, last",
    [
        (lambda: fnn(2, 2), [[8, 2]]),
        (lambda: dde.nn.PFNN([2, 8, [4, 6], 2], "tanh", "Glorot normal"), [[4, 1], [6, 1]]),
        (lambda: dde.nn.PFNN([2, 8, 8, 2], "tanh", "Glorot normal"), [[8, 2]]),
        (lambda: dde.nn.MsFFN([2, 8, 8, 2], "tanh", "Glorot normal", sigmas=[1, 2]), [[16, 2]]),
        (
            lambda: dde.nn.STMsFFN([2, 8, 8, 2], "tanh", "Glorot normal", [1], [1, 2]),
            [[16, 2]],
        ),
    ],
    ids="FNN PFNN PFNN_of_one MsFFN STMsFFN".split(),
)
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_every_network_of_deepxde_can_be_balanced(net, last, alpha):
    net = net()
    model = compiled(plane_data(in_plane()), net)
    weights = balance(model, alpha=alpha, update_every=1)
    shapes = [list(parameter.shape) for parameter in weights.balancer.shared]
    of_all = [list(parameter.shape) for parameter in net.parameters()]
    assert shapes == (last if alpha else of_all)
    trained(model, 5)
    assert np.ptp(weights.get_weights()) > 1e-3


@pytest.mark.parametrize("rule", sorted(RULES.keys() - {"fixed"}))  # which needs numbers
def test_every_rule_balances(rule):
    model = compiled()
    weights = balance(model, rule=rule, alpha=0.5 if rule == "published" else None)
    trained(model, weights.balancer.update_every + 1)
    assert np.isfinite(weights.get_weights()).all()
    assert weights.balancer.last_measurement.step >= 0


class HalfTheLoss(Rule):
    needs = frozenset()
    tells_equations = False
    update_every = 1

    def start(self, n_loss):
        return {}

    def weigh(self, weights, state, measurement):
        return 0.5 / measurement.losses, state


def test_a_rule_of_ones_own_balances():
    model = compiled()
    balance(model, rule=HalfTheLoss())
    before = losses_of(model)
    trained(model, 1)
    np.testing.assert_allclose(model.balance.get_weights(), 0.5 / before, rtol=1e-5)


def test_unknown_constants_are_learned_and_do_not_count_as_shared():
    factor = dde.Variable(2.0)

    def pde(x, u):
        return factor * dde.grad.hessian(u, x) + np.pi**2 * paddle.sin(np.pi * x)

    measured = dde.icbc.PointSetBC(POINTS, exact(POINTS))
    ends = dde.icbc.DirichletBC(LINE, exact, at_ends)
    model = compiled(line_data([ends, measured], pde=pde), external_trainable_variables=factor)
    weights = balance(model)
    trained(model, 30)
    assert abs(float(factor) - 2) > 0.01
    assert all(parameter is not factor for parameter in weights.balancer.shared)
    assert weights.names[-1] == "PointSetBC" and weights.get_weights()[-1] > 1


def test_auxiliary_variables_and_resampled_points_are_balanced():
    def pde(x, u, source):
        return dde.grad.hessian(u, x) + paddle.to_tensor(source)

    data = line_data(
        pde=pde,
        auxiliary_var_function=lambda x: np.pi**2 * np.sin(np.pi * x),
        train_distribution="pseudo",
        num_test=10,
    )
    model = compiled(data)
    weights = balance(model)
    before = data.train_x_all
    trained(model, 21, callbacks=[dde.callbacks.PDEPointResampler(period=5)])
    assert not np.array_equal(before, data.train_x_all)
    assert weights.get_weights()[1] > 1.1


def test_hard_constraints_leave_two_equations_to_balance():
    net = fnn(1, 2)
    net.apply_output_transform(lambda x, u: x * u)
    model = compiled(line_data([], pde=system, solution=None), net)
    balance(model, alpha=0.5)
    trained(model, 5)
    assert np.ptp(model.balance.get_weights()) > 1e-3


def test_an_optimizer_with_a_schedule_and_float64_work(float64):
    dde.config.set_default_float("float64")
    try:
        net = fnn()
        rate = paddle.optimizer.lr.ExponentialDecay(1e-2, gamma=0.5)
        optimizer = paddle.optimizer.Adam(rate, parameters=net.parameters())
        model = compiled(net=net, optimizer=optimizer)
        model.lr_scheduler = rate
        balance(model)
        trained(model, 3)
        assert model.balance.get_weights().dtype == np.float64
        assert optimizer.get_lr() == pytest.approx(1e-2 / 8)
    finally:
        dde.config.set_default_float("float32")


# The weights of compile, and what is shown.


def test_the_loss_weights_of_compile_are_the_start():
    model = compiled(loss_weights=[1, 50])
    balance(model)
    np.testing.assert_allclose(model.balance.get_weights(), [1, 50])
    history, _ = trained(model, 1)
    # Shown without weights: the first entry is from before the step.
    twin = compiled(model.data, fnn())
    assert model.loss_weights is None
    trained(twin, 0)
    model.net.set_state_dict(twin.net.state_dict())
    np.testing.assert_allclose(losses_of(model), losses_of(twin))
    assert len(history.loss_train[0]) == 2


def test_history_table_and_files_have_the_unweighted_losses(tmp_path, capsys):
    model = compiled(loss_weights=[1, 50])
    balance(model)
    unweighted = [losses_of(model)]
    history, state = model.train(10, display_every=10)
    unweighted.append(losses_of(model))
    np.testing.assert_allclose(history.loss_train, unweighted, rtol=1e-5)
    np.testing.assert_allclose(state.best_loss_train, min(map(np.sum, unweighted)), rtol=1e-5)
    assert dde.utils.list_to_str(unweighted[1].tolist()) in capsys.readouterr().out
    dde.saveplot(history, state, isplot=False, output_dir=str(tmp_path))
    saved = np.loadtxt(tmp_path / "loss.dat")
    np.testing.assert_allclose(saved[:, 1:3], unweighted, rtol=1e-5)


def test_the_weights_are_printed_kept_and_plotted(tmp_path, capsys):
    model = compiled()
    balance(model, weight_lr=0.1)
    shown = LossWeights(period=10)
    in_a_file = LossWeights(period=7, filename=tmp_path / "weights.txt", precision=4)
    with pytest.raises(RuntimeError, match="no weights to plot yet"):
        shown.plot()
    trained(model, 25, callbacks=[shown, in_a_file])
    assert shown.steps == [0, 10, 20, 25]
    assert in_a_file.steps == [0, 7, 14, 21, 25]
    np.testing.assert_allclose(shown.weights[0], 1)
    np.testing.assert_allclose(shown.weights[-1], model.balance.get_weights())
    printed = capsys.readouterr().out
    assert "Loss weights: pde, DirichletBC\nweights at step 0 [1.00e+00, 1.00e+00]\n" in printed
    assert "\nweights at step 10 [" in printed
    lines = (tmp_path / "weights.txt").read_text().splitlines()
    assert len(lines) == 6 and re.fullmatch(r"25 \[\d\.\d{4}e\+00, \d\.\d{4}e\+0\d\]", lines[-1])
    trained(model, 5, callbacks=[shown])
    assert shown.steps == [0, 10, 20, 25, 30]
    shown.plot(tmp_path / "weights.png")
    assert (tmp_path / "weights.png").stat().st_size > 1000


def test_early_stopping_looks_at_the_unweighted_losses():
    model = compiled()
    balance(model)
    stopping = dde.callbacks.EarlyStopping(patience=5, baseline=1e-9)
    trained(model, 40, callbacks=[stopping], display_every=1)
    assert model.train_state.step == 5
    assert stopping.get_monitor_value() == pytest.approx(losses_of(model).sum(), rel=1e-5)


# Another compile.


def test_for_lbfgs_the_weights_stay_and_count(few_lbfgs_steps):
    model = compiled()
    balance(model, weight_lr=0.5)
    trained(model, 40)
    learned = model.balance.get_weights()
    assert learned[1] > 1.5
    net = fnn()
    net.set_state_dict(model.net.state_dict())
    # DeepXDE's own training with the same weights by hand.
    theirs = compiled(model.data, net, "L-BFGS", loss_weights=learned.tolist())
    theirs.train(verbose=0)
    model.compile("L-BFGS", verbose=0)
    history, _ = model.train(verbose=0)
    np.testing.assert_array_equal(model.balance.get_weights(), learned)
    for ours, its in zip(parameters_of(model), parameters_of(theirs)):
        np.testing.assert_allclose(ours, its, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(history.loss_train[-1], losses_of(model), rtol=1e-4)
    assert history.steps[-1] == 47


def test_adam_goes_on_learning_after_lbfgs(few_lbfgs_steps):
    model = compiled()
    weights = balance(model)
    trained(model, 15)
    model.compile("L-BFGS", verbose=0)
    model.train(verbose=0)
    before = weights.get_weights()
    model.compile("adam", lr=1e-3, verbose=0)
    assert weights.balancer.step_count.item() == 15
    trained(model, 10)
    assert weights.balancer.step_count.item() == 25
    assert not np.array_equal(weights.get_weights(), before)


def test_compile_takes_no_weights_by_hand_any_more():
    model = compiled()
    balance(model)
    for arguments in {"loss_weights": [1, 9]}, {"lr": 1e-3, "loss_weights": np.ones(2)}:
        with pytest.raises(ValueError, match=r"loss_weights is .*: leave loss_weights out"):
            model.compile("adam", **arguments)
    trained(model, 1)  # as compiled before
    model.loss_weights = [1, 9]
    with pytest.raises(ValueError, match=r"model.loss_weights has been set to \[1, 9\]"):
        model.train_step(*model.data.train_next_batch())


def test_balancing_again_changes_nothing():
    model = compiled()
    weights = balance(model, rule="pinn", update_every=3)
    model.compile("L-BFGS", verbose=0)
    assert balance(model) is balance(model, rule="pinn", update_every=3) is weights
    with pytest.raises(ValueError, match=r"update_every is 4, but the model is balanced already"):
        balance(model, update_every=4)
    with pytest.raises(ValueError, match=r"rule is 'published', but the model is balanced"):
        balance(model, rule="published")


def test_a_balanced_model_is_still_one_of_its_class():
    class Mine(dde.Model):
        def compile(self, *arguments, **keywords):
            compiled.append(keywords["lr"])
            super().compile(*arguments, **keywords)

    compiled = []
    model = Mine(line_data(), fnn())
    model.compile("adam", lr=1e-2, verbose=0)
    balance(model)
    model.compile("adam", lr=1e-3, verbose=0)
    assert isinstance(model, Mine) and compiled == [1e-2, 1e-3]
    assert f"<{Mine.__module__}.Mine object" in repr(model)
    trained(model, 1)


# Checkpoints.


def test_a_restored_run_goes_on_to_the_same_numbers(tmp_path):
    model = compiled()
    weights = balance(model, update_every=3)
    saving = dde.callbacks.ModelCheckpoint(str(tmp_path / "run"), period=10)
    trained(model, 20, callbacks=[saving])
    uninterrupted = parameters_of(model), weights.get_weights()
    model.restore(str(tmp_path / "run-10.pdparams"))
    assert weights.balancer.step_count.item() == 10
    assert not np.array_equal(weights.get_weights(), uninterrupted[1])
    trained(model, 10)
    np.testing.assert_array_equal(weights.get_weights(), uninterrupted[1])
    for ours, its in zip(parameters_of(model), uninterrupted[0]):
        np.testing.assert_array_equal(ours, its)


def test_a_training_that_restores_counts_the_steps_of_the_checkpoint(tmp_path):
    with paddle.utils.unique_name.guard():  # as in a process of its own
        first = compiled()
        balance(first)
        trained(first, 15, model_save_path=str(tmp_path / "run"))
    with paddle.utils.unique_name.guard():
        model = compiled()
        balancer = balance(model).balancer
        path = str(tmp_path / "run-15.pdparams")
        model.train(20, None, 1000, model_restore_path=path, verbose=0)
    assert balancer.step_count.item() == balancer.total_steps == 35


def test_frozen_weights_stay_so_in_a_restored_model(tmp_path):
    with paddle.utils.unique_name.guard():
        first = compiled()
        weights = balance(first)
        trained(first, 15)
        weights.balancer.freeze()
        trained(first, 5, model_save_path=str(tmp_path / "run"))
    with paddle.utils.unique_name.guard():
        model = compiled()
        balance(model)
        model.restore(str(tmp_path / "run-20.pdparams"))
        trained(model, 20)
    assert (weights.get_weights() != 1).any()
    np.testing.assert_array_equal(model.balance.get_weights(), weights.get_weights())


def test_a_new_model_takes_weights_from_a_file(tmp_path):
    model = compiled()
    balance(model)
    path = trained(model, 15, model_save_path=str(tmp_path / "run")) and "run-15.pdparams"
    with paddle.utils.unique_name.guard():
        other = compiled()
    balance(other)
    other.train(0, verbose=0, model_restore_path=str(tmp_path / path))
    np.testing.assert_array_equal(other.balance.get_weights(), model.balance.get_weights())
    assert list(model.net.state_dict()) == list(fnn().state_dict())  # nothing stays in there
    plain = compiled()
    plain.restore(str(tmp_path / path))  # which DeepXDE alone reads too
    for ours, its in zip(parameters_of(plain), parameters_of(model)):
        np.testing.assert_array_equal(ours, its)


def test_a_model_that_was_restored_too_early_is_restored_again(tmp_path):
    with paddle.utils.unique_name.guard():
        model = compiled()
        balance(model, update_every=3)
        trained(model, 10)
    path = model.save(str(tmp_path / "run"))
    trained(model, 10)
    with paddle.utils.unique_name.guard():  # as in a process of its own
        other = compiled()
        other.restore(path)
        balance(other, update_every=3)
        assert (other.balance.get_weights() == 1).all()  # DeepXDE has skipped them
        other.restore(path)
        trained(other, 10)
    np.testing.assert_array_equal(other.balance.get_weights(), model.balance.get_weights())
    for ours, its in zip(parameters_of(other), parameters_of(model)):
        np.testing.assert_array_equal(ours, its)


def test_a_pickle_has_the_weights_too(tmp_path):
    model = compiled()
    balance(model)
    trained(model, 15)
    with open(model.save(str(tmp_path / "run"), protocol="pickle"), "rb") as file:
        saved = pickle.load(file)
    weights = saved["loss_balance.loss_weights"]
    np.testing.assert_array_equal(weights, model.balance.get_weights())
    assert saved["loss_balance.names"] == ["pde", "DirichletBC"]


def test_a_file_without_weights_leaves_them_with_a_warning(tmp_path):
    model = compiled()
    trained(model, 1)
    path = model.save(str(tmp_path / "plain"))
    balance(model)
    trained(model, 15)
    before = model.balance.get_weights()
    with pytest.warns(UserWarning, match="plain-1.pdparams has no loss weights"):
        model.restore(path)
    np.testing.assert_array_equal(model.balance.get_weights(), before)


def test_a_file_of_other_losses_is_refused_before_anything_is_loaded(tmp_path):
    other = compiled(line_data([dde.icbc.NeumannBC(LINE, exact, at_ends)]))
    balance(other)
    path = other.save(str(tmp_path / "other"))
    model = compiled()
    balance(model)
    before = parameters_of(model)
    with pytest.raises(ValueError, match="weights of the losses pde, NeumannBC, but the model has"):
        model.restore(path)
    for ours, its in zip(parameters_of(model), before):
        np.testing.assert_array_equal(ours, its)


# What the user says.


def test_names_and_equations_may_be_given():
    measured = dde.icbc.PointSetBC(POINTS, exact(POINTS))
    ends = dde.icbc.DirichletBC(LINE, exact, at_ends)
    names = ["rod", "ends", "sensors"]
    model = compiled(line_data([ends, measured]))
    weights = balance(model, names=names, equations=["rod", "sensors"])
    assert weights.names == names
    trained(model, 1)
    assert weights.balancer.last_measurement.equations.tolist() == [True, False, True]
    assert repr(weights).startswith("Balance(['rod', 'ends', 'sensors'], rule=PinnRule(")


def test_for_other_data_the_user_says_what_is_an_equation():
    class TwoLosses(dde.data.DataSet):
        def losses(self, targets, outputs, loss_fn, inputs, model, aux=None):
            return [loss_fn(targets, outputs), loss_fn(0 * outputs, outputs)]

    points = POINTS.astype("float32")
    data = TwoLosses(X_train=points, y_train=points, X_test=points, y_test=points)
    model = compiled(data)
    with pytest.raises(ValueError, match=r"of the losses 'losses\[0\]', 'losses\[1\]' the names"):
        balance(model)
    assert not hasattr(model, "balance")
    assert balance(model, names=["data", "equation"]).balancer.equations == ("equation",)
    model = compiled(data)
    balance(model, equations=[1])
    trained(model, 2)
    assert balance(compiled(data), alpha=1).names == ["losses[0]", "losses[1]"]


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"equations": ["pdf"]}, ValueError, "names 'pdf', but there is no such loss.*'pde'"),
        ({"names": "ab"}, TypeError, "names must be a list of strings, got 'ab'"),
        ({"names": ["a", "a"]}, ValueError, r"2 different names, one for each loss, got \['a'"),
        ({"names": ["a"]}, ValueError, r"2 different names, one for each loss, got \['a'\]"),
        ({"n_loss": 2}, TypeError, "balance takes no n_loss, because the data say"),
        ({"absent": "skip"}, TypeError, "balance takes no absent, because"),
        ({"weight_lr": None}, ValueError, "weight_lr is None, but DeepXDE's optimizer does not"),
        ({"update_evry": 3}, TypeError, "no option 'update_evry'; did you mean 'update_every'"),
        ({"lr": 3}, TypeError, "no option 'lr', which is called 'weight_lr' now"),
        ({"rule": "pin"}, ValueError, "rule"),
        ({"floor": 2}, ValueError, "floor must lie between 0 and 1, got 2"),
    ],
)
def test_a_wrong_argument_is_named(options, error, message):
    model = compiled()
    with pytest.raises(error, match=message):
        balance(model, **options)
    assert type(model) is dde.Model
    trained(model, 1)


@pytest.mark.parametrize("given", [[1, 0], [1, -1], [1, np.inf], [1, 2, 3], 5.0])
def test_loss_weights_that_cannot_be_a_start_are_named(given):
    model = compiled(loss_weights=given)
    with pytest.raises(ValueError, match=r"loss_weights given to compile is .*pde, DirichletBC"):
        balance(model)
    assert model.loss_weights is given  # all as it was


def test_a_start_below_the_floor_names_loss_weights():
    model = compiled(loss_weights=[1e-6, 1])
    with pytest.raises(ValueError, match=r"below the floor of 0.001.*loss_weights of compile"):
        balance(model)
    np.testing.assert_allclose(balance(model, floor=1e-7).get_weights(), [1e-6, 1])


def test_two_starts_are_one_too_many():
    with pytest.raises(ValueError, match=r"weight_attr is \[1, 3\], but compile was given"):
        balance(compiled(loss_weights=[1, 2]), weight_attr=[1, 3])


def test_a_model_that_cannot_be_balanced_is_told_why(monkeypatch):
    with pytest.raises(TypeError, match=r"model must be a deepxde\.Model, got"):
        balance(fnn())
    with pytest.raises(ValueError, match=r"model has not been compiled: call model\.compile"):
        balance(dde.Model(line_data(), fnn()))
    with pytest.raises(ValueError, match="compiled with 'L-BFGS', which needs weights that stay"):
        balance(compiled(optimizer="L-BFGS"))
    with pytest.raises(ValueError, match="model has one loss only"):
        balance(compiled(line_data([])))
    model = compiled()
    monkeypatch.setattr(dde.backend, "backend_name", "pytorch")
    with pytest.raises(RuntimeError, match=r"backend 'pytorch', but .*DDE_BACKEND=paddle"):
        balance(model)


def test_without_deepxde_the_import_says_what_to_install(monkeypatch):
    source = sys.modules[balance.__module__].__spec__
    again = importlib.util.module_from_spec(source)
    monkeypatch.setitem(sys.modules, "deepxde", None)
    with pytest.raises(ImportError, match="pip install 'deepxde"):
        source.loader.exec_module(again)


def test_other_losses_later_are_an_error():
    model = compiled()
    balance(model)
    model.data = line_data([])
    with pytest.raises(ValueError, match=r"give 1 losses, but when .* they were pde, DirichletBC"):
        model.train_step(*model.data.train_next_batch())


def test_the_callback_says_what_it_needs():
    with pytest.raises(ValueError, match=r"call balance\(model\) after model\.compile"):
        trained(compiled(), 1, callbacks=[LossWeights()])
    with pytest.raises(ValueError, match="period must be at least 1, got 0"):
        LossWeights(period=0)
    with pytest.raises(TypeError, match="precision must be an integer, got 'x'"):
        LossWeights(precision="x")


def test_diagnose_speaks_of_the_losses_by_name():
    ends = dde.icbc.DirichletBC(LINE, exact, at_ends)
    nothing = dde.icbc.OperatorBC(LINE, lambda x, u, _: 0 * u, at_ends)
    model = compiled(line_data([ends, nothing]))
    balance(model, update_every=1)
    with pytest.warns(RuntimeWarning, match="loss 'OperatorBC'"):
        trained(model, 3)
    assert "OperatorBC" in " ".join(model.balance.diagnose())


def network_of(activation, **options):
    net = dde.nn.FNN([2, 8, 6, 1], activation, "Glorot uniform", **options)
    net.to(dtype="float64")
    return net


def with_feature_transform():
    net = network_of("tanh")
    net.apply_feature_transform(lambda x: x**2)
    return net


def with_output_transform():
    net = network_of("tanh")
    net.apply_output_transform(lambda x, u: x[:, :1] * u)
    return net


class MyFNN(dde.nn.FNN):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


A, B = sympy.symbols("a b")
U = sympy.Function("u")(A, B)
FIRST = Residual(U.diff(A) * U + U.diff(B), (A, B), (sympy.Function("u"),))
SECOND = Residual(U.diff(A, 2) + U.diff(A, B) * U, (A, B), (sympy.Function("u"),))


def assert_is_nested(equation, net, monkeypatch):
    points = paddle.rand([9, 2], "float64") - 0.5
    found = []
    for way in (residual.way_of, lambda network: "as a reference"):
        with monkeypatch.context() as patch:
            patch.setattr(residual, "way_of", way)
            values = equation(net, points)
        net.clear_gradients()
        (values * values).sum().backward()
        gradients = [np.zeros(p.shape) if p.grad is None else p.grad for p in net.parameters()]
        found.append([np.array(x) for x in (values, *gradients)])
    for ours, reference in zip(*found):
        scale = max(1.0, np.abs(reference).max())
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-13 * scale)


@pytest.mark.usefixtures("both_operators")
@pytest.mark.parametrize(
    "activation",
    [
        *("tanh", "sigmoid", "silu", "swish", "sin"),
        *(paddle.tanh, paddle.sin, paddle.nn.Tanh(), paddle.nn.functional.silu),
        ["tanh", "sin", "tanh"],
    ],
)
def test_the_layers_of_a_network_serve_a_residual_of_this_package(activation, monkeypatch):
    net = network_of(activation)
    assert derivative_path(net).startswith("Taylor propagation up to order 4: linear layers with ")
    assert_is_nested(FIRST, net, monkeypatch)
    assert_is_nested(SECOND, net, monkeypatch)


@pytest.mark.parametrize(
    "make, why",
    [
        (with_feature_transform, "FNN has a feature transform or an output transform"),
        (with_output_transform, "FNN has a feature transform or an output transform"),
        (lambda: network_of("elu"), "the activation elu is none that can be read"),
        (
            lambda: network_of(lambda z: paddle.tanh(z)),
            "the activation <lambda> is none that can be read",
        ),
        (
            lambda: MyFNN([2, 8, 1], "tanh", "Glorot uniform").to(dtype="float64"),
            "MyFNN is none of the networks and layers that can be read",
        ),
        (
            lambda: dde.nn.PFNN([2, [4], 1], "tanh", "Glorot uniform").to(dtype="float64"),
            "PFNN is none of the networks and layers that can be read",
        ),
    ],
)
def test_other_networks_are_differentiated_and_say_why(make, why, monkeypatch):
    net = make()
    assert derivative_path(net) == f"nested paddle.grad: {why}"
    assert_is_nested(FIRST, net, monkeypatch)
    points = paddle.rand([9, 2], "float64")
    points.stop_gradient = False
    values = net(points)
    (first,) = paddle.grad(values, points)
    expected = first[:, :1] * values + first[:, 1:]
    np.testing.assert_allclose(FIRST(net, points).numpy(), expected.numpy(), rtol=1e-12, atol=1e-15)


def test_dropout_is_not_left_out():
    net = network_of("tanh", dropout_rate=0.5)
    assert derivative_path(net) == "nested paddle.grad: FNN has dropout"
