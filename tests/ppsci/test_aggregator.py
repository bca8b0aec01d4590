"""GradNormAggregator in PaddleScience's real Solver."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import ppsci
import ppsci_problem as problem
from ppsci_problem import (
    NAMES,
    apart,
    equations_found,
    first_step,
    gradnorm,
    pinn,
    trained,
    values_of,
    weights_of,
)

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer
from paddlescience_gradnorm.balancing import RULES, Fixed, GradNormRule, PinnRule, Rule, find_rule
from paddlescience_gradnorm.ppsci import GradNormAggregator

ROOT = Path(__file__).parents[2]
PROBLEM = Path(problem.__file__)


# Weights that move at their full pace in runs of a few steps.
AT_ONCE = PinnRule(late=False)


def step_losses(solver, model):
    """The Solver's own losses at this moment."""
    batches = [next(iter(c.data_loader)) for c in solver.constraint.values()]
    for inputs, _, _ in batches:
        for value in inputs.values():
            value.stop_gradient = False
    losses, _ = solver.forward_helper.train_forward(
        tuple(c.output_expr for c in solver.constraint.values()),
        [b[0] for b in batches],
        model,
        solver.constraint,
        [b[1] for b in batches],
        [b[2] for b in batches],
    )
    return losses


def test_the_solver_trains_as_a_loop_with_a_balancer_does(solve, tmp_path):
    _, aggregator, rows = solve(epochs=10)

    other, _ = problem.solver(tmp_path, lambda model: None)
    balancer = LossBalancer(other.model.last_fc.weight, n_loss=3, alpha=1.0, weight_lr=1e-3)
    weights, totals = [], []
    for _ in range(10):
        totals.append(balancer.backward(step_losses(other, other.model)).item())
        other.optimizer.step()
        other.optimizer.clear_grad()
        weights.append(balancer.get_weights())
    np.testing.assert_allclose(weights_of(rows), weights, rtol=1e-6)
    np.testing.assert_allclose([row["train/loss"] for row in rows], totals, rtol=1e-6)
    assert np.ptp(weights, axis=0).max() > 1e-2
    assert aggregator.names == NAMES
    assert aggregator.get_weights().sum() == pytest.approx(3, abs=1e-5)


def test_evaluating_during_training_changes_nothing(solve):
    _, _, rows = solve()
    _, _, watched = solve(eval_during_train=True, eval_freq=1)
    assert rows == [{k: v for k, v in row.items() if "eval" not in k} for row in watched]


def test_micro_batches_give_the_weights_of_the_whole_batch(solve):
    _, whole, rows = solve()
    _, aggregator, parts = solve(
        batch=problem.POINTS // 3, epochs=5, iters_per_epoch=3, update_freq=3
    )
    np.testing.assert_allclose(weights_of(parts[2::3]), weights_of(rows), rtol=1e-5)
    np.testing.assert_allclose(
        aggregator.balancer.initial_losses, whole.balancer.initial_losses, rtol=1e-5
    )
    assert aggregator.balancer.step_count.item() == 5


def test_an_epoch_may_end_within_an_accumulation(solve):
    # Two batches, two and one to a step, which the Solver does not tell the aggregator.
    _, aggregator, rows = solve(
        batch=problem.POINTS // 2, epochs=4, iters_per_epoch=3, update_freq=2
    )
    assert aggregator.balancer.step_count.item() == 8
    assert np.isfinite(weights_of(rows)).all()


def test_update_freq_with_one_batch_an_epoch_steps_every_time(solve):
    _, aggregator, rows = solve(pinn(update_every=1), epochs=5, update_freq=4)
    assert aggregator.balancer.step_count.item() == 5
    assert (np.diff(weights_of(rows), axis=0)[:, 1:] != 0).all()


@pytest.mark.skipif(not hasattr(ppsci.optimizer, "SOAP"), reason="came with PaddleScience 1.4.0")
def test_soap_trains_with_balanced_losses(solve):
    _, aggregator, rows = solve(pinn(rule=AT_ONCE), optimizer=ppsci.optimizer.SOAP(1e-3), epochs=11)
    assert aggregator.get_weights()[1:] == pytest.approx(np.exp(0.2), rel=1e-5)
    assert rows[-1]["train/BC"] < rows[0]["train/BC"]


class Watched(GradNormAggregator):
    """Notes step, losses, and total of every evaluation."""

    def forward(self, losses, step=None):
        total = super().forward(losses, step)
        self.evaluations = [
            *getattr(self, "evaluations", []),
            (step, [loss.item() for loss in losses.values()], total.item()),
        ]
        return total


def test_lbfgs_sees_the_same_weights_throughout_a_step(solve):
    _, aggregator, rows = solve(
        lambda model: Watched(model, 3, alpha=1.0, weight_lr=1e-2),
        optimizer=ppsci.optimizer.LBFGS(1.0, max_iter=4),
        epochs=6,
    )
    acted = np.vstack([np.ones(3), weights_of(rows)[:-1]])
    evaluations = [0] * 6
    for step, losses, total in aggregator.evaluations:
        evaluations[step] += 1
        assert total == pytest.approx(acted[step] @ losses, rel=1e-5)
    assert min(evaluations) > 1
    assert np.abs(np.diff(acted, axis=0)).max() > 1e-3
    assert rows[-1]["train/loss"] < 0.5 * rows[0]["train/loss"]
    assert aggregator.balancer.step_count.item() == 6


def test_the_evaluations_of_lbfgs_count_towards_the_next_update(solve):
    _, aggregator, rows = solve(
        pinn(update_every=10, rule=AT_ONCE),
        optimizer=ppsci.optimizer.LBFGS(1.0, max_iter=15),
        epochs=6,
    )
    # Every step evaluates the losses more than ten times, so each of them updates the weights.
    steps = np.log(np.vstack([np.ones(3), weights_of(rows)])[:, 1:])
    assert (np.abs(np.diff(steps, axis=0)).max(axis=1) > 0.05).all()
    assert aggregator.balancer.step_count.item() == 60


def test_short_steps_of_lbfgs_share_an_update(solve):
    _, aggregator, rows = solve(
        lambda model: Watched(model, 3, update_every=10),
        optimizer=ppsci.optimizer.LBFGS(1.0, max_iter=1),
        epochs=8,
    )
    steps = [step for step, *_ in aggregator.evaluations]
    weights, moved, count = np.ones(3), [], 0
    for step, now in enumerate(weights_of(rows)):
        if count % 10 == 0:
            moved.append(step)
            assert (now != weights).any()
        else:
            assert (now == weights).all()
        for evaluation in range(steps.count(step)):
            count += evaluation == 0 or count % 10 != 0
        weights = now
    assert 1 < len(moved) < 8 and aggregator.balancer.step_count.item() == count


LONG = {"optimizer": ppsci.optimizer.LBFGS(1.0, max_iter=80, tolerance_change=0.0), "epochs": 1}


def test_one_long_step_of_lbfgs_says_that_the_weights_rest(solve):
    with pytest.warns(UserWarning, match=r"evaluated 50 times in one step .* max_iter=10 .*freeze"):
        solve(pinn(), **LONG)


@pytest.mark.parametrize("why", ["frozen", "after Adam"])
def test_weights_that_rest_on_purpose_are_not_warned_of(tmp_path, why, recorded_warnings):
    solver, aggregator = problem.solver(tmp_path, pinn(), epochs=2)
    if why == "frozen":
        aggregator.balancer.freeze()
    else:
        solver.train()
    weights = aggregator.get_weights() if why == "after Adam" else np.ones(3)
    second, _ = problem.solver(
        tmp_path, lambda model: aggregator, adapt=lambda _: solver.model, **LONG
    )
    second.train()
    assert not any("evaluated" in str(warning.message) for warning in recorded_warnings)
    assert (weights != 1).any() or (aggregator.get_weights() == 1).all()


def test_a_second_solver_may_count_its_steps_from_0_again(tmp_path):
    _, aggregator = first = problem.solver(tmp_path, pinn(update_every=1), epochs=1)
    second = problem.solver(
        tmp_path, lambda model: aggregator, adapt=lambda _: first[0].model, epochs=1
    )
    weights = [np.ones(3)]
    for solver, _ in (first, second):
        solver.train()
        weights.append(aggregator.get_weights())
    assert (np.diff(weights, axis=0)[:, 1:] != 0).all()
    assert aggregator.balancer.step_count.item() == 2


def test_frozen_weights_may_be_in_lbfgs(tmp_path):
    solver, aggregator = problem.solver(tmp_path, gradnorm(weight_lr=None), epochs=3)
    solver.train()
    aggregator.balancer.freeze()
    weights = aggregator.get_weights()
    second, _ = problem.solver(
        tmp_path,
        lambda model: aggregator,
        adapt=lambda _: solver.model,
        optimizer=lambda model: ppsci.optimizer.LBFGS(max_iter=5)((model, aggregator.balancer)),
        epochs=2,
    )
    before = values_of(solver.model)
    second.train()
    assert (aggregator.get_weights() == weights).all()
    assert any((now != old).any() for now, old in zip(values_of(solver.model), before))


def test_lbfgs_cannot_step_the_weights_too(solve):
    with pytest.raises(ValueError, match=r"with L-BFGS the Solver's optimizer cannot .*weight_lr="):
        solve(gradnorm(weight_lr=None), optimizer=ppsci.optimizer.LBFGS(1.0, max_iter=4))


def test_the_solvers_optimizer_can_step_the_weights(solve):
    _, _, rows = solve(gradnorm(weight_lr=None), epochs=8)
    weights = weights_of(rows)
    np.testing.assert_allclose(weights.sum(axis=1), 3, atol=1e-5)
    # Adam's first step is as long as its rate, whatever the gradients.
    assert np.abs(weights[0] - 1).max() == pytest.approx(1e-2, rel=0.5)


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_amp_on_a_cpu_is_as_without(solve, level):
    _, _, rows = solve()
    with pytest.warns(UserWarning, match="only be enabled on CUDAPlace"):
        _, _, amp = solve(use_amp=True, amp_level=level)
    assert amp == rows


def test_amp_with_the_solvers_optimizer_on_the_weights_is_refused(solve, monkeypatch):
    from paddlescience_gradnorm import _paddle

    monkeypatch.setattr(_paddle, "is_amp_on", lambda: True)
    solve()
    with pytest.raises(ValueError, match="with use_amp=True the Solver's optimizer cannot step"):
        solve(gradnorm(weight_lr=None))


@pytest.mark.parametrize("lr", [1e-3, None], ids=["stepped here", "stepped by Adam"])
@pytest.mark.parametrize("wrap", [False, True], ids=["aggregator", "GradNorm model"])
def test_a_resumed_run_goes_on_as_if_never_interrupted(solve, tmp_path, lr, wrap):
    aggregate = GradNormAggregator if wrap else gradnorm(weight_lr=lr)
    adapt = (lambda net: GradNorm(net, 3, 1.0, weight_lr=lr)) if wrap else (lambda net: net)
    settings = {"adapt": adapt, "optimizer": ppsci.optimizer.Adam(1e-2) if wrap else None}
    whole_solver, whole, expected = solve(aggregate, epochs=9, **settings)

    class Interrupt(Exception):
        pass

    def interrupted(model):
        aggregator = aggregate(model)
        forward = aggregator.forward

        def until_the_sixth(losses, step=None):
            if step == 5:
                raise Interrupt
            return forward(losses, step)

        aggregator.forward = until_the_sixth
        return aggregator

    with pytest.raises(Interrupt):
        solve(interrupted, epochs=9, save_freq=4, output=tmp_path / "first", **settings)
    checkpoint = str(tmp_path / "first/checkpoints/epoch_4")
    solver, aggregator, rows = solve(aggregate, epochs=9, checkpoint_path=checkpoint, **settings)
    assert rows == expected[4:]
    for mine, others in zip(solver.model.parameters(), whole_solver.model.parameters()):
        assert (mine == others).all()
    assert (aggregator.get_weights() == whole.get_weights()).all()
    assert (aggregator.balancer.initial_losses == whole.balancer.initial_losses).all()
    assert aggregator.balancer.step_count.item() == 9


def test_a_checkpoint_of_the_aggregator_holds_no_copy_of_the_model(solve, tmp_path):
    _, aggregator, _ = solve()
    state = paddle.load(str(tmp_path / "run/checkpoints/latest.pdagg"))
    of_balancer = {"loss_weights", "initial_losses", "step_count", "missed"}
    of_aggregator = {"names", "frozen", "weights_by_hand_are_replaced", "planned_steps"}
    assert set(state) == of_balancer | of_aggregator
    assert (np.asarray(state["loss_weights"]) == aggregator.get_weights()).all()


@pytest.mark.parametrize("update_freq, way", [(1, "own"), (2, "own"), (1, "propagated")])
def test_two_ranks_with_half_the_points_hold_the_weights_of_one(solve, tmp_path, update_freq, way):
    _, _, rows = solve(epochs=6)
    script = tmp_path / "rank.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + PROBLEM.read_text())
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    launch += ["--log_dir", str(tmp_path / "log")]
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            *launch,
            str(script),
            str(tmp_path),
            str(update_freq),
            way,
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr + result.stdout
    ranks = [np.load(tmp_path / f"rank_{rank}.npy") for rank in range(2)]
    assert np.ptp(weights_of(rows), axis=0).max() > 5e-3
    np.testing.assert_allclose(ranks[0], weights_of(rows), rtol=0, atol=1e-5)
    assert (ranks[0] == ranks[1]).all()


def test_importing_the_adapter_changes_nothing_in_paddlescience():
    code = (
        "import zlib, paddle\nfrom ppsci.solver import printer\nbefore = dict(vars(printer))\n"
        "import paddlescience_gradnorm.ppsci\nassert vars(printer) == before"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert result.returncode == 0, result.stderr.decode()


def test_losses_that_miss_the_shared_layer_are_named(solve):
    with pytest.raises(ValueError, match=r"none of the losses .* depends on the shared param"):
        solve(gradnorm(shared=lambda model: paddle.nn.Linear(2, 2)))


def test_a_loop_of_ones_own_needs_no_step(fc_net, make_losses):
    aggregator = GradNormAggregator(fc_net, num_losses=3, alpha=1.0, weight_lr=1e-5)
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, weight_lr=1e-5)
    for seed in range(3):
        aggregator(dict(zip("abc", make_losses(fc_net, seed=seed)))).backward()
        balancer.backward(make_losses(fc_net, seed=seed))
    assert (aggregator.get_weights() == balancer.get_weights()).all()
    assert aggregator.balancer.step_count.item() == 3


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"num_losses": 1, "alpha": 1.0}, ValueError, "n_loss must be at least 2, got 1"),
        ({"num_losses": "2", "alpha": 1.0}, TypeError, "n_loss must be an integer, got '2'"),
        ({"num_losses": 2, "alpha": -1.0}, ValueError, "alpha must be .* at least 0, got -1"),
        ({"n_loss": 2, "alpha": 1.0, "weight_lr": 0}, ValueError, "weight_lr must be .* above 0"),
        ({"alpha": 1.0, "weight_lr": None}, ValueError, "n_loss is missing"),
        ({"n_loss": 2, "num_losses": 3}, ValueError, "n_loss is 2, but num_losses.* is 3"),
        ({"n_loss": 2, "lr": 0.1}, TypeError, "no option 'lr', which is called 'weight_lr' now"),
        ({"residuals": [0]}, TypeError, "GradNormAggregator has no option 'residuals', which is"),
        ({"equation": [0]}, TypeError, "has no option 'equation'; did you mean 'equations'"),
        ({"update_freq": 10}, TypeError, "'update_freq', which is .*: write update_every="),
        ({"init_weights": [1, 2]}, TypeError, "'init_weights', which is .*: write weight_attr="),
        ({"momentum": 0.9}, TypeError, "'momentum', which is .*: leave it out, .* weight_lr="),
        ({"beta": 0.9}, TypeError, r"'beta', which is .*: write rule=ReLoBRaLo\(beta="),
        ({"tau": 0.1}, TypeError, r"'tau', which is .*: write rule=ReLoBRaLo\(tau="),
        ({"num_losses": 2, "rule": "published"}, TypeError, "alpha is missing"),
    ],
)
def test_bad_arguments_are_named(fc_net, arguments, error, message):
    with pytest.raises(error, match=message):
        GradNormAggregator(fc_net, **arguments)


@pytest.mark.parametrize("arguments", [(1000,), (1000, 0.9)])
def test_only_the_model_and_the_number_go_by_position(fc_net, arguments):
    """PaddleScience's GradNorm takes update_freq and momentum next, GradNorm takes alpha."""
    with pytest.raises(TypeError, match=r"got 1000.* too: write update_every= .* alpha="):
        GradNormAggregator(fc_net, 2, *arguments)


@pytest.mark.parametrize(
    "arguments, number, found", [((2,), None, "2"), ((), 2, "None"), ((), None, "None")]
)
def test_a_number_in_place_of_the_model_is_refused(arguments, number, found):
    """PaddleScience's Relobralo takes a number only."""
    message = rf"model must be the network .*, got {found}: write Grad.*\.of\("
    with pytest.raises(TypeError, match=message):
        GradNormAggregator(*arguments, num_losses=number)


def test_the_constraints_may_not_be_left_out(fc_net):
    with pytest.raises(TypeError, match="constraint must be the Solver's dict, got None"):
        GradNormAggregator.of(fc_net)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"num_losses": 3}, ValueError, "n_loss is 3, but the GradNorm .* has 2"),
        ({"alpha": 0.5}, ValueError, r"alpha is 0.5, but the GradNorm .* has 1\.0"),
        ({"weight_lr": 0.1}, TypeError, "weight_lr cannot be given here"),
        ({"shared": "all"}, TypeError, "shared cannot be given here"),
    ],
)
def test_a_gradnorm_model_has_its_own_settings(fc_net, arguments, error, message):
    model = GradNorm(fc_net, n_loss=2, alpha=1.0)
    assert GradNormAggregator(model, 2, alpha=1.0).balancer is model.balancer
    with pytest.raises(error, match=message):
        GradNormAggregator(model, **arguments)


def test_a_gradnorm_model_trains_as_the_bare_one_with_an_aggregator(solve):
    _, _, rows = solve()
    solver, aggregator, wrapped = solve(
        GradNormAggregator, adapt=lambda net: GradNorm(net, 3, 1.0, weight_lr=1e-3)
    )
    assert wrapped == rows
    assert (solver.model.get_weights() == aggregator.get_weights()).all()


def _pair(solve, tmp_path):
    """A bare network in a Solver, and the same wrapped in another, with its parameters."""

    def transformed(net):
        net.register_input_transform(lambda x: {"x": 2 * x["x"], "y": x["y"]})
        net.register_output_transform(lambda x, out: {**out, "v": out["v"] * x["x"]})
        return net

    bare, _, _ = solve(lambda model: None, adapt=transformed)
    with paddle.utils.unique_name.guard():
        wrapped, _ = problem.solver(
            tmp_path / "wrapped",
            lambda model: None,
            adapt=lambda net: transformed(GradNorm(net, 3, 1.0)),
            pretrained_model_path=str(tmp_path / "run/checkpoints/latest"),
        )
    return bare, wrapped


def test_a_gradnorm_model_evaluates_and_predicts_as_the_bare_one(solve, tmp_path):
    bare, wrapped = _pair(solve, tmp_path)
    assert wrapped.model.input_keys == ("x", "y") and wrapped.model.output_keys == ("u", "v")
    assert wrapped.model.num_params == bare.model.num_params
    assert wrapped.eval() == bare.eval()
    assert wrapped.model.training
    points = {key: np.linspace(0, 1, 50, dtype="float32")[:, None] for key in ("x", "y")}
    expressions = {"laplace": wrapped.constraint["EQ"].output_expr["laplace"]}
    mine, others = (
        solver.predict(
            points, {"laplace": solver.constraint["EQ"].output_expr["laplace"]}, no_grad=False
        )
        for solver in (wrapped, bare)
    )
    assert set(mine) == {"u", "v", *expressions}
    for key in mine:
        np.testing.assert_array_equal(mine[key].numpy(), others[key].numpy())


def test_a_gradnorm_model_is_visualized_as_the_bare_one(solve, tmp_path):
    points = {key: np.random.default_rng(i).random((20, 1)) for i, key in enumerate(("x", "y"))}
    points = {key: value.astype("float32") for key, value in points.items()}
    files = []
    for solver in _pair(solve, tmp_path):
        visualizer = ppsci.visualize.VisualizerVtu(points, {"u": lambda out: out["u"]}, prefix="u")
        solver.visualizer = {"u": visualizer}
        solver.visualize(7)
        files.append([path.read_bytes() for path in Path(solver.output_dir).rglob("*.vtu")])
    assert len(files[0]) == 1 and len(files[0][0]) > 20 * 4 * 4
    assert files[0] == files[1]


def test_a_gradnorm_model_is_exported_as_the_bare_one(solve, tmp_path):
    points = {key: np.random.default_rng(i).random((20, 1)) for i, key in enumerate(("x", "y"))}
    points = {key: value.astype("float32") for key, value in points.items()}
    outputs = []
    for name, solver in zip(("bare", "wrapped"), _pair(solve, tmp_path)):
        spec = {
            key: paddle.static.InputSpec([None, 1], "float32", name=key)
            for key in solver.model.input_keys
        }
        solver.export([spec], str(tmp_path / name))
        config = paddle.inference.Config(*(f"{tmp_path / name}.{s}" for s in ("json", "pdiparams")))
        predictor = paddle.inference.create_predictor(config)
        assert predictor.get_input_names() == ["x", "y"]
        for key, value in points.items():
            predictor.get_input_handle(key).copy_from_cpu(value)
        predictor.run()
        handles = map(predictor.get_output_handle, predictor.get_output_names())
        outputs.append([handle.copy_to_cpu() for handle in handles])
    assert len(outputs[0]) == 2
    np.testing.assert_array_equal(*outputs)
    sizes = [(tmp_path / f"{name}.pdiparams").stat().st_size for name in ("bare", "wrapped")]
    assert sizes[0] == sizes[1]


def test_a_gradnorm_model_without_aggregator_is_summed_with_equal_weights(solve):
    _, _, rows = solve(lambda model: None)
    _, _, wrapped = solve(lambda model: None, adapt=lambda net: GradNorm(net, 3, 1.0))
    assert wrapped == rows


def _swish(_):
    return ppsci.arch.MLP(("x", "y"), ("u", "v"), 2, 8, "swish")


def _hard_constraint(model):
    model.register_output_transform(
        lambda x, out: {"u": (1 - x["x"] ** 2) * out["u"], "v": x["y"] ** 3 * out["v"]}
    )
    return model


def _both_in_a_list(_):
    nets = [ppsci.arch.MLP(("x", "y"), (name,), 2, 8, "swish") for name in "uv"]
    return ppsci.arch.ModelList(tuple(map(_hard_constraint_of_one, nets)))


def _hard_constraint_of_one(model):
    model.register_output_transform(
        lambda x, out: {name: (1 - x["x"] ** 2) * value for name, value in out.items()}
    )
    return model


@pytest.mark.parametrize("adapt", [_swish, _hard_constraint, _both_in_a_list])
@pytest.mark.parametrize("options", [{}, {"alpha": None, "weight_lr": 0.01}])
def test_networks_train_that_paddle_grad_cannot_differentiate(solve, adapt, options):
    """Parameters of shape [], and powers of the inputs, whose residuals only backward can take."""
    equal, _, _ = solve(lambda model: None, adapt=adapt, epochs=1)
    first, _, _ = solve(gradnorm(**options), adapt=adapt, epochs=1)
    for mine, others in zip(values_of(first.model), values_of(equal.model)):
        np.testing.assert_allclose(mine, others, rtol=1e-4, atol=1e-6)
    _, aggregator, rows = solve(gradnorm(**options), adapt=adapt, epochs=10)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert np.ptp(aggregator.get_weights()) > 1e-2


def test_losses_of_one_forward_pass_train_too_where_paddle_grad_fails(tmp_path):
    """The published rule would ask paddle.grad here, because that is cheaper."""
    model = _hard_constraint(ppsci.arch.MLP(("x", "y"), ("u", "v"), 2, 8))
    aggregator = GradNormAggregator(model, n_loss=3, alpha=1.0)
    for _ in range(3):
        points = {key: paddle.rand([8, 1]) for key in "xy"}
        for value in points.values():
            value.stop_gradient = False
        out = model(points)
        slope = ppsci.autodiff.jacobian(out["u"], points["x"])
        ppsci.autodiff.clear()
        losses = {"slope": slope.square(), "u": (out["u"] - 1).square(), "v": out["v"].square()}
        aggregator({name: loss.mean() for name, loss in losses.items()}).backward()
    assert np.ptp(aggregator.get_weights()) > 1e-3


class TowardsTheMean(Rule):
    """The inverse of a moving average of the norms; a rule of a user's own, with a memory."""

    def start(self, n_loss):
        return {"norms": np.zeros(n_loss)}

    def weigh(self, weights, state, measurement):
        norms = (state["norms"] + measurement.norms) / 2
        return norms.mean() / norms, {"norms": norms}


def test_a_rule_of_ones_own_balances_and_is_in_the_checkpoints(solve, tmp_path):
    own = gradnorm(rule=TowardsTheMean(), alpha=None)
    _, whole, rows = solve(own, epochs=6)
    norms = np.array([[row[f"train/gradient_norm/{name}"] for name in NAMES] for row in rows])
    averages = np.zeros(3)
    for weights, now in zip(weights_of(rows), norms):
        averages = (averages + now) / 2
        np.testing.assert_allclose(weights, averages.mean() / averages, rtol=1e-6)
    solve(own, epochs=3, save_freq=3, output=tmp_path / "first")
    checkpoint = str(tmp_path / "first/checkpoints/epoch_3")
    _, resumed, _ = solve(own, epochs=6, checkpoint_path=checkpoint)
    assert (resumed.get_weights() == whole.get_weights()).all()
    assert (resumed.balancer.rule_state["norms"] == whole.balancer.rule_state["norms"]).all()


def test_any_network_of_the_package_may_be_the_model():
    assert GradNormAggregator(FCNet(2, 1, 3, 8), 2, alpha=0.5).balancer.alpha == 0.5


def test_the_first_step_is_that_of_the_plain_solver():
    weights = []
    for balanced in (False, True):
        model, constraint, equation = apart()
        aggregator = GradNormAggregator.of(model, constraint, equation) if balanced else None
        trained(model, constraint, equation, aggregator, steps=1)
        weights.append(model.last_fc.weight.numpy())
    np.testing.assert_allclose(*weights, rtol=1e-5, atol=1e-7)


def test_a_checkpoint_of_such_a_run_goes_on_to_the_last_bit(tmp_path):
    def run(steps, resume=None):
        # As in a process of its own: optimizers know parameters by name.
        with paddle.utils.unique_name.guard():
            model, constraint, equation = apart()
            for each in constraint.values():  # the same points, however many are drawn before
                each.data_iter = itertools.repeat(next(each.data_iter))
            aggregator = GradNormAggregator.of(model, constraint, equation)
            output = tmp_path / str(steps)
            options = {} if resume is None else {"checkpoint_path": str(resume)}
            trained(
                *(model, constraint, equation, aggregator, steps, output),
                save_freq=steps,
                **options,
            )
        return aggregator.get_weights(), model.last_fc.weight.numpy()

    whole, half = run(24), run(12)
    resumed = run(24, tmp_path / "12" / "checkpoints" / "epoch_12")
    for one, other in zip(resumed, whole):
        np.testing.assert_array_equal(one, other)
    assert (resumed[0] != half[0]).any()


def _two_networks(outputs=("u", "v")):
    return ppsci.arch.ModelList(
        tuple(ppsci.arch.MLP(("x", "y"), (name,), 2, 8) for name in outputs)
    )


def _v_too(constraint, equation):
    """Conditions on ``v``, so that both networks are trained."""
    for name in ("left", "right"):
        constraint[name].output_expr = {"u": lambda out: out["u"] + out["v"]}


def _one_optimizer_each(model):
    return ppsci.optimizer.OptimizerList(
        tuple(ppsci.optimizer.Adam(1e-3)(net) for net in model.model_list)
    )


@pytest.mark.parametrize("optimizer", [None, _one_optimizer_each], ids=["Adam", "OptimizerList"])
def test_several_networks_are_balanced_together(optimizer):
    aggregator = first_step(_v_too, make=_two_networks, optimizer=optimizer)
    shared = {id(parameter) for parameter in aggregator.balancer.shared}
    assert shared == {id(parameter) for parameter in aggregator.model.parameters()}
    assert len(shared) == 12


@pytest.mark.parametrize(
    "options",
    [
        {"fourier": {"scale": 1.0, "dim": 8}},
        {"periods": {"x": [2.0, False]}},
        {"random_weight": {"mean": 1.0, "std": 0.1}},
        {"weight_norm": True},
        {"activation": "stan"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_form_of_the_mlp_is_balanced(options):
    def make():
        ppsci.utils.misc.set_random_seed(3)
        return ppsci.arch.MLP(("x", "y"), ("u",), **{"num_layers": 2, "hidden_size": 8, **options})

    assert equations_found(first_step(make=make)) == ["EQ.laplace"]


@pytest.mark.parametrize("arch", ["ModifiedMLP", "PirateNet"])
def test_other_networks_are_balanced(arch):
    def make():
        ppsci.utils.misc.set_random_seed(3)
        fourier = {"scale": 1.0, "dim": 8}
        return getattr(ppsci.arch, arch)(("x", "y"), ("u",), 2, 8, fourier=fourier)

    assert equations_found(first_step(make=make)) == ["EQ.laplace"]


def test_adam_then_lbfgs_with_one_aggregator():
    model, constraint, equation = apart()
    aggregator = GradNormAggregator.of(model, constraint, equation)
    trained(model, constraint, equation, aggregator, steps=30)
    aggregator.balancer.freeze()
    weights, before = aggregator.get_weights(), values_of(model)
    optimizer = ppsci.optimizer.LBFGS(max_iter=5)(model)
    rows = trained(model, constraint, equation, aggregator, 2, optimizer=optimizer)
    assert (aggregator.get_weights() == weights).all() and (weights[1:] > 1).all()
    assert rows[0]["train/weight/left.u"] == weights[1]
    assert any((now != old).any() for now, old in zip(values_of(model), before))


def test_values_of_the_network_are_balanced_with_to_static_too():
    """PaddleScience 1.4 cannot make a static program of derivatives, whatever the aggregator."""
    try:
        first_step(kinds=["inner", "left"], to_static=True)
    finally:
        paddle.jit.enable_to_static(False)


def test_before_the_training_there_are_no_weights():
    aggregator = GradNormAggregator.of(*apart())
    with pytest.raises(RuntimeError, match=r"no weights yet: call solver\.train\(\) first"):
        aggregator.get_weights()
    with pytest.raises(RuntimeError, match=r"nothing to diagnose yet: call solver\.train\(\)"):
        aggregator.diagnose()


@pytest.mark.parametrize("name", RULES)
def test_every_rule_balances_in_the_solver(name, solve, caplog):
    given = {"published": GradNormRule(1.0), "fixed": Fixed([1, 2, 3])}.get(name, name)
    _, aggregator, rows = solve(
        gradnorm(alpha=None, rule=given, weight_lr=0.01, update_every=1), epochs=3
    )
    assert len(rows) == 3
    weights = np.array([[row[f"train/weight/{each}"] for each in NAMES] for row in rows])
    moved = name not in ("equal", "fixed")
    assert np.isfinite(weights).all() and (weights[0] != weights[-1]).any() == moved
    assert aggregator.balancer.step_count.item() == 3
    assert aggregator.balancer.rule == find_rule(given)


@pytest.mark.parametrize("update_freq", [1, 3])
def test_the_solver_steps_along_the_combined_gradient(tmp_path, update_freq):
    def run(make):
        made = {}

        def aggregate(model):
            made["aggregator"] = make(model)
            return made["aggregator"]

        solver, aggregator = problem.solver(
            tmp_path,
            aggregate,
            batch=problem.POINTS // update_freq,
            epochs=3,
            iters_per_epoch=update_freq,
            update_freq=update_freq,
            optimizer=ppsci.optimizer.SGD(1e-3),
        )
        with paddle.utils.unique_name.guard():
            solver.train()
        return np.concatenate([p.numpy().ravel() for p in solver.model.parameters()]), aggregator

    make = gradnorm(alpha=None, rule="config", weight_lr=0.01, update_every=1)
    found, aggregator = run(make)
    # In a loop of one's own, over whole batches.
    solver, _ = problem.solver(tmp_path, gradnorm(), optimizer=ppsci.optimizer.SGD(1e-3))
    balancer = LossBalancer(solver.model, 3, rule="config")
    for _ in range(3):
        balancer.backward(step_losses(solver, solver.model))
        solver.optimizer.step()
        solver.optimizer.clear_grad()
    expected = np.concatenate([p.numpy().ravel() for p in solver.model.parameters()])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(aggregator.get_weights(), balancer.get_weights(), rtol=1e-3)
