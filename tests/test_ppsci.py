"""GradNormAggregator in PaddleScience's real Solver."""

import contextlib
import gc
import importlib.util
import itertools
import logging
import re
import struct
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import numpy as np
import paddle
import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import hydra
import ppsci
from omegaconf import OmegaConf

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer
from paddlescience_gradnorm.balancing import RULES, Rule
from paddlescience_gradnorm.ppsci import (
    GradNormAggregator,
    build_aggregator,
    conditions_known,
    equations_of,
)
from paddlescience_gradnorm.training import History

ROOT = Path(__file__).parents[1]
PROBLEM = Path(__file__).with_name("ppsci_problem.py")
spec = importlib.util.spec_from_file_location("ppsci_problem", PROBLEM)
problem = importlib.util.module_from_spec(spec)
spec.loader.exec_module(problem)
NAMES, gradnorm = problem.NAMES, problem.gradnorm


@pytest.fixture
def solve(tmp_path):
    """Trains; returns the Solver, the aggregator, and losses and weights of every step."""

    def run(aggregate=None, **settings):
        settings = {"epochs": 5, "output": tmp_path / "run", **settings}
        # As in a process of its own: optimizers know parameters by name.
        with paddle.utils.unique_name.guard():
            solver, aggregator = problem.solver(aggregate=aggregate or gradnorm(), **settings)
            rows = problem.record(solver)
            solver.train()
        return solver, aggregator, rows

    return run


def weights_of(rows):
    return np.array([[row[f"train/weight/{name}"] for name in NAMES] for row in rows])


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


def test_a_network_that_the_optimizer_does_not_hold_ends_no_update(tmp_path):
    """Its gradients are never cleared, so they do not tell that a step goes on."""
    other = ppsci.arch.MLP(("x", "y"), ("w",), 1, 4)
    solver, aggregator = problem.solver(
        tmp_path,
        pinn(update_every=1),
        adapt=lambda net: ppsci.arch.ModelList((net, other)),
        optimizer=lambda model: ppsci.optimizer.Adam(1e-3)(model.model_list[0]),
        epochs=4,
        iters_per_epoch=6,
        update_freq=3,
    )
    solver.constraint["BC"].output_expr["u"] = lambda out: out["u"] + out["w"]
    solver.train()
    assert aggregator.balancer.step_count.item() == 8
    assert all((parameter.grad != 0).any() for parameter in other.parameters())


def test_sparse_gradients_tell_micro_batches_too():
    net = paddle.nn.Sequential(paddle.nn.Embedding(5, 3, sparse=True), paddle.nn.Linear(3, 1))
    optimizer = paddle.optimizer.Adam(1e-2, parameters=net.parameters())
    aggregator = GradNormAggregator(net, equations=["pde"], update_every=1)
    for i in range(6):
        values = net(paddle.to_tensor([0, 1, i % 5]))
        losses = {"pde": values.square().mean(), "data": (values - 1).square().mean()}
        (aggregator(losses) / 2).backward()
        if i % 2:
            optimizer.step()
            optimizer.clear_grad()
    assert aggregator.balancer.step_count.item() == 3


def test_update_freq_with_one_batch_an_epoch_steps_every_time(solve):
    _, aggregator, rows = solve(pinn(update_every=1), epochs=5, update_freq=4)
    assert aggregator.balancer.step_count.item() == 5
    assert (np.diff(weights_of(rows), axis=0)[:, 1:] != 0).all()


@pytest.mark.skipif(not hasattr(ppsci.optimizer, "SOAP"), reason="came with PaddleScience 1.4.0")
def test_soap_trains_with_balanced_losses(solve):
    _, aggregator, rows = solve(pinn(), optimizer=ppsci.optimizer.SOAP(1e-3), epochs=11)
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


def pinn(**options):
    return gradnorm(**{"alpha": None, "weight_lr": 0.01, **options})


def test_the_evaluations_of_lbfgs_count_towards_the_next_update(solve):
    _, aggregator, rows = solve(
        pinn(update_every=10), optimizer=ppsci.optimizer.LBFGS(1.0, max_iter=15), epochs=6
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


def _enabled_scaler(scale, monkeypatch):
    """A GradScaler that scales on a CPU too, where it would turn itself off."""
    from paddle.amp import grad_scaler

    class Accelerator:
        _expected_place = type("Place", (), {"is_gpu_place": lambda self: True})()

    monkeypatch.setattr(grad_scaler.amp_global_state(), "amp_dtype", "float16")
    with monkeypatch.context() as patch:
        patch.setattr(grad_scaler, "_dygraph_tracer", Accelerator)
        return paddle.amp.GradScaler(init_loss_scaling=scale)


def test_loss_scaling_leaves_the_weights_alone(solve, tmp_path, monkeypatch, recorded_warnings):
    """The arithmetic of AMP on an accelerator: scaled backward, unscaled step, skipped overflow."""
    _, _, rows = solve(epochs=8)
    steps = {}
    for scale in (2.0**15, 2.0**127):
        with paddle.utils.unique_name.guard():
            solver, _ = problem.solver(tmp_path, gradnorm(), epochs=8)
        solver.scaler = _enabled_scaler(scale, monkeypatch)
        solver.use_amp = True
        solver.autocast_context_manager = lambda *_: contextlib.nullcontext()
        steps[scale] = problem.record(solver)
        solver.train()
        assert solver.scaler._enable
    np.testing.assert_allclose(weights_of(steps[2.0**15]), weights_of(rows), rtol=1e-5)
    overflowed = weights_of(steps[2.0**127])
    assert (overflowed[0] == 1).all() and (overflowed[-1] != 1).any()
    assert solver.scaler._scale.item() < 2.0**127
    assert any("has a gradient of norm" in str(w.message) for w in recorded_warnings)


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
    assert set(state) == {"loss_weights", "initial_losses", "step_count", "missed"}
    assert (np.asarray(state["loss_weights"]) == aggregator.get_weights()).all()


@pytest.mark.parametrize("update_freq", [1, 2])
def test_two_ranks_with_half_the_points_hold_the_weights_of_one(solve, tmp_path, update_freq):
    _, _, rows = solve(epochs=6)
    script = tmp_path / "rank.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + PROBLEM.read_text())
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    launch += ["--log_dir", str(tmp_path / "log")]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *launch, str(script), str(tmp_path), str(update_freq)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr + result.stdout
    ranks = [np.load(tmp_path / f"rank_{rank}.npy") for rank in range(2)]
    assert np.ptp(weights_of(rows), axis=0).max() > 5e-3
    np.testing.assert_allclose(ranks[0], weights_of(rows), rtol=0, atol=1e-5)
    assert (ranks[0] == ranks[1]).all()


@pytest.fixture
def expected_scalars():
    def check(read, aggregator):
        norms = aggregator.balancer.gradient_norms.tolist()
        for name, weight, norm in zip(NAMES, aggregator.get_weights(), norms):
            assert read(f"train/weight/{name}") == pytest.approx(weight, rel=1e-6)
            assert read(f"train/gradient_norm/{name}") == pytest.approx(norm, rel=1e-6)
        assert read("train/EQ") > 0

    return check


def _train_with(logger, tmp_path):
    settings = {"epochs": 3, "wandb_config": {}, f"use_{logger}": True}
    solver, aggregator = problem.solver(tmp_path, gradnorm(), **settings)
    solver.train()
    return solver, aggregator


def test_visualdl_gets_weights_and_norms_beside_the_losses(tmp_path, expected_scalars):
    pytest.importorskip("visualdl", reason="needs visualdl: pip install -e '.[ppsci-test]'")
    from visualdl import LogReader

    solver, aggregator = _train_with("vdl", tmp_path)
    solver.vdl_writer.close()
    reader = LogReader(file_path=str(next((tmp_path / "vdl").iterdir())))
    assert [point.id for point in reader.get_data("scalar", "train/weight/u")] == [1, 2, 3]
    expected_scalars(lambda tag: reader.get_data("scalar", tag)[-1].value, aggregator)


def test_tensorboard_gets_weights_and_norms_beside_the_losses(tmp_path, expected_scalars):
    pytest.importorskip("tensorboardX", reason="needs tensorboardX: pip install -e '.[ppsci-test]'")
    from tensorboardX.proto.event_pb2 import Event

    solver, aggregator = _train_with("tbd", tmp_path)
    solver.tbd_writer.close()
    content = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    logged, at = {}, 0
    while at < len(content):  # records: length, its checksum, an event, its checksum
        (length,) = struct.unpack("<Q", content[at : at + 8])
        for value in Event.FromString(content[at + 12 : at + 12 + length]).summary.value:
            logged[value.tag] = value.simple_value
        at += length + 16
    expected_scalars(logged.get, aggregator)


def test_wandb_gets_weights_and_norms_beside_the_losses(tmp_path, expected_scalars, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb: pip install -e '.[ppsci-test]'")
    for name, value in [("MODE", "offline"), ("DIR", str(tmp_path)), ("SILENT", "true")]:
        monkeypatch.setenv(f"WANDB_{name}", value)
    solver, aggregator = _train_with("wandb", tmp_path)
    summary = dict(solver.wandb_writer.summary)
    solver.wandb_writer.finish()
    assert summary["step"] == 3
    expected_scalars(summary.get, aggregator)


def test_other_aggregators_log_as_before(solve):
    _, _, rows = solve(lambda model: None)
    assert set(rows[-1]) == {"train/lr", "train/loss", "train/EQ", "train/BC"}


def test_importing_the_adapter_changes_nothing_in_paddlescience():
    code = (
        "import zlib, paddle\nfrom ppsci.solver import printer\nbefore = dict(vars(printer))\n"
        "import paddlescience_gradnorm.ppsci\nassert vars(printer) == before"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert result.returncode == 0, result.stderr.decode()


def test_norms_are_logged_on_request_only(tmp_path):
    solver, aggregator = problem.solver(tmp_path, gradnorm(), epochs=2)
    aggregator.log_to(solver)
    rows = problem.record(solver)
    solver.train()
    assert set(rows[-1]) == {
        *("train/lr", "train/loss", "train/EQ", "train/BC"),
        *(f"train/weight/{name}" for name in NAMES),
    }


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


@pytest.fixture
def solver_log(caplog):
    """What a Solver logs from now on, as text."""
    log = logging.getLogger("ppsci")

    def listen():
        caplog.clear()
        log.setLevel("INFO")
        log.addHandler(caplog.handler)
        return lambda: caplog.text

    yield listen
    log.removeHandler(caplog.handler)
    log.setLevel("ERROR")


class Unlogged(GradNormAggregator):
    """One that does not know its Solver."""

    def log_to(self, solver, norms=False):
        pass


def test_an_output_is_a_condition_without_being_told(tmp_path, solver_log):
    solver, _ = problem.solver(tmp_path, Unlogged, epochs=1)
    said = solver_log()
    solver.train()
    assert re.search("equations 'laplace' .*; conditions 'u', 'v'", said())


def test_a_residual_under_the_name_of_an_output_is_asked_for():
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
        "points": kinds.SupervisedConstraint(at_points, loss, dict(laplace)),
    }, equation


def test_constraints_tell_equations_from_conditions():
    constraint, equation = _constraints()
    expected = {
        **{"equilibrium_x": True, "laplace": True},
        **{"traction_x": False, "edge": False, "start": False},
    }
    assert equations_of(constraint, equation) == expected
    # An equation on the boundary too: the Solver adds both up.
    on_edge = constraint["edge"]
    on_edge.output_expr = {**on_edge.output_expr, "laplace": lambda out: out["u"]}
    del expected["laplace"]
    assert equations_of(constraint, equation) == expected
    assert equations_of(constraint, {}) == {"traction_x": False, "edge": False, "start": False}


def test_the_solver_tells_after_log_to_what_names_leave_open(tmp_path, solver_log):
    solver, aggregator = problem.solver(tmp_path, lambda model: Unlogged(model), epochs=1)
    inside, equation = solver.constraint["EQ"], solver.equation["laplace"]
    inside.output_expr = equation.equations = {"f": equation.equations["laplace"]}
    loss = inside.loss
    inside.loss = lambda out, label, weight: loss(out, {"f": label["laplace"]}, weight)
    with pytest.raises(ValueError, match=r"which 'f' is\. .*Aggregator\.of\("):
        solver.train()
    GradNormAggregator.log_to(aggregator, solver)
    said = solver_log()
    solver.train()
    assert re.search("equations 'f' .*; conditions 'u', 'v'", said())


def test_losses_that_miss_the_shared_layer_are_named(solve):
    with pytest.raises(ValueError, match=r"none of the losses .* depends on the shared param"):
        solve(gradnorm(shared=lambda model: paddle.nn.Linear(2, 2)))


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


def test_a_number_in_place_of_the_model_is_refused():
    with pytest.raises(TypeError, match=r"model must be the network .*, got 2: write Grad.*\.of\("):
        GradNormAggregator(2)


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


class Refusing(Rule):
    """A rule of a user's own that raises an error in an update."""

    update_every = 3

    class Refusal(Exception):
        pass

    def start(self, n_loss):
        return {}

    def weigh(self, weights, state, measurement):
        if measurement.step == 3:
            raise self.Refusal("not today")
        return weights, state


def values_of(model):
    return [parameter.numpy().copy() for parameter in model.parameters()]


@pytest.mark.parametrize(
    "way, evaluations", [("plain", 4), ("micro-batches", 7), ("loss scaling", 4)]
)
def test_an_error_in_the_backward_pass_comes_out_as_it_is(tmp_path, way, evaluations, monkeypatch):
    accumulated = {"iters_per_epoch": 2, "update_freq": 2} if way == "micro-batches" else {}
    refusing = gradnorm(rule=Refusing(), alpha=None)
    solver, aggregator = problem.solver(tmp_path, refusing, epochs=4, **accumulated)
    if way == "loss scaling":
        solver.scaler, solver.use_amp = _enabled_scaler(2.0**10, monkeypatch), True
        solver.autocast_context_manager = lambda *_: contextlib.nullcontext()
    values = []
    aggregator.register_forward_pre_hook(lambda *_: values.append(values_of(solver.model)))
    with pytest.raises(Refusing.Refusal, match="not today"):
        solver.train()
    assert len(values) == evaluations
    # The gradients of a pass that has failed are used for no step, not even after the last one.
    for now, before in zip(values_of(solver.model), values[-1]):
        np.testing.assert_array_equal(now, before)
    assert not np.array_equal(values[0][0], values[-1][0])


def test_a_warning_that_is_made_an_error_comes_out_as_it_is(solve):
    def with_nan(model):
        model.register_output_transform(lambda x, out: {**out, "v": out["v"] * np.nan})
        return model

    with pytest.raises(RuntimeWarning, match="loss 'v' is nan"), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        solve(adapt=with_nan)


@pytest.mark.parametrize("optimizer", [None, ppsci.optimizer.LBFGS(1.0, max_iter=4)])
def test_what_was_computed_once_before_the_loop_is_named(tmp_path, optimizer):
    solver, _ = problem.solver(tmp_path, gradnorm(), optimizer=optimizer, epochs=5)
    scale = paddle.zeros([1])
    scale.stop_gradient = False
    factor, laplace = scale.exp(), solver.constraint["EQ"].output_expr["laplace"]
    solver.constraint["EQ"].output_expr["laplace"] = lambda out: laplace(out) * factor
    with pytest.raises(RuntimeError, match=r"graph of .*'laplace'.* is gone.*computed once, bef"):
        solver.train()


@pytest.mark.parametrize(
    "used",
    [
        lambda total: total,
        lambda total: total / 4,
        lambda total: 3 * total * 2.0,
        lambda total: total * paddle.full([1], 8.0) / np.float32(2),
        lambda total: paddle.full([], 8.0) * total,
        lambda total: total + 1,
        lambda total: (total / 100).square() * 2,
    ],
)
def test_a_total_may_be_used_in_any_way(fc_net, make_losses, used):
    plain = sum(make_losses(fc_net))
    total = GradNormAggregator(fc_net, 3, alpha=1.0)(dict(zip("abc", make_losses(fc_net))))
    assert total.item() == pytest.approx(plain.item(), rel=1e-6)
    assert used(total).item() == pytest.approx(used(plain).item(), rel=1e-6)
    used(total).backward()
    found = [parameter.grad.numpy().copy() for parameter in fc_net.parameters()]
    fc_net.clear_gradients()
    used(plain).backward()
    for mine, parameter in zip(found, fc_net.parameters()):
        np.testing.assert_allclose(mine, parameter.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_a_total_is_freed_with_its_losses(fc_net, make_losses):
    aggregator = GradNormAggregator(fc_net, 3, alpha=1.0)
    losses = dict(zip("abc", make_losses(fc_net)))
    kept = [weakref.ref(loss) for loss in losses.values()]
    total = aggregator(losses) / 2
    total.backward()
    del total, losses
    gc.collect()
    assert not any(loss() for loss in kept)


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


# GradNormAggregator.of: every constraint's losses apart.


LOADER = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1}


def cosh(points):
    return np.cos(points["x"]) * np.cosh(points["y"])


def apart(kinds=("EQ", "left", "right"), loss=None):
    """A model, constraints of these kinds, and equations; both sides are called ``u``."""
    ppsci.utils.misc.set_random_seed(1)
    model = ppsci.arch.MLP(("x", "y"), ("u",), num_layers=2, hidden_size=8)
    square = ppsci.geometry.Rectangle((0.0, 0.0), (1.0, 1.0))
    equation = {"laplace": ppsci.equation.Laplace(2)}
    hessian, jacobian = ppsci.autodiff.hessian, ppsci.autodiff.jacobian
    mse, loader = ppsci.loss.MSELoss, {**LOADER, "batch_size": 16}

    def residual(out):
        return hessian(out["u"], out["x"]) + hessian(out["u"], out["y"])

    def inside(expression, name):
        return ppsci.constraint.InteriorConstraint(
            expression, dict.fromkeys(expression, 0), square, loader, mse(), name=name
        )

    def edge(expression, name, value, loss=None):
        return ppsci.constraint.BoundaryConstraint(
            expression, dict.fromkeys(expression, value), square, loader, loss or mse(), name=name
        )

    def supervised(expression, name):
        points = np.random.default_rng(0).random((16, 2)).astype("float32")
        data = {"name": "NamedArrayDataset", "input": {"x": points[:, :1], "y": points[:, 1:]}}
        data["label"] = dict.fromkeys(expression, 0 * points[:, :1])
        return ppsci.constraint.SupervisedConstraint(
            {"dataset": data, "batch_size": 16}, mse(), expression, name=name
        )

    value = {"u": lambda out: out["u"]}
    makers = {
        "EQ": lambda: inside(equation["laplace"].equations, "EQ"),
        "own": lambda: inside({"anything": residual}, "own"),
        "inner": lambda: inside(value, "inner"),
        "left": lambda: edge(value, "left", cosh, loss),
        "right": lambda: edge(value, "right", lambda points: 9 + 0 * points["x"]),
        "slope": lambda: edge({"q": lambda out: jacobian(out["u"], out["x"])}, "slope", 0),
        "traction": lambda: edge(equation["laplace"].equations, "traction", 0),
        "data": lambda: supervised(value, "data"),
        "EQ_sup": lambda: supervised({"chip": residual}, "interior_sup"),
        "Sup": lambda: supervised({"chip": residual}, "Sup"),
        "wall": lambda: supervised(equation["laplace"].equations, "wall"),
    }
    return model, {kind: makers[kind]() for kind in kinds}, equation


def trained(
    model, constraint, equation, aggregator, steps=30, output=None, optimizer=None, **settings
):
    """Trains by a Solver; what it has logged in every step."""
    solver = ppsci.solver.Solver(
        model,
        constraint,
        None if output is None else str(output),
        optimizer or ppsci.optimizer.Adam(1e-3)(model),
        epochs=steps,
        iters_per_epoch=1,
        equation=equation,
        loss_aggregator=aggregator,
        log_freq=1,
        **settings,
    )
    if aggregator is not None:
        aggregator.log_to(solver)
    rows = problem.record(solver)
    solver.train()
    return rows


def equations_found(aggregator):
    flags = aggregator.balancer.last_measurement.equations
    return [name for name, flag in zip(aggregator.names, flags) if flag]


def test_losses_of_one_name_are_balanced_apart_without_a_word(tmp_path):
    model, constraint, equation = apart()
    aggregator = GradNormAggregator.of(model, constraint, equation)
    rows = trained(model, constraint, equation, aggregator, steps=60)
    assert aggregator.names == ["EQ.laplace", "left.u", "right.u"]
    assert equations_found(aggregator) == ["EQ.laplace"]
    weights = aggregator.get_weights()
    assert weights[0] == 1 and (weights[1:] > 1.5).all()
    # Sixty steps are too few for weights that go 1 % a step, and it is said.
    assert [finding[:16] for finding in aggregator.diagnose()] == ["After 60 steps w"]
    # The Solver goes on logging a loss for each constraint, and the weights beside them.
    logged = {"EQ", "left", "right", "weight/EQ.laplace", "weight/left.u", "weight/right.u"}
    assert {f"train/{name}" for name in logged} <= set(rows[-1])
    model, constraint, equation = apart()
    together = GradNormAggregator(model)
    trained(model, constraint, equation, together, steps=1)
    assert together.names == ["laplace", "u"]


def test_the_solvers_lines_show_weights_with_three_digits(solver_log):
    model, constraint, equation = apart()
    aggregator = GradNormAggregator.of(model, constraint, equation)
    said = solver_log()
    trained(model, constraint, equation, aggregator, steps=2)
    line = next(line for line in said().splitlines() if "[Train]" in line)
    shown = dict(re.findall(r"weight/(\S+): (\S+),", line))
    assert list(shown) == aggregator.names
    assert all(number == f"{float(number):.3g}" for number in shown.values())


def test_the_first_step_is_that_of_the_plain_solver():
    weights = []
    for balanced in (False, True):
        model, constraint, equation = apart()
        aggregator = GradNormAggregator.of(model, constraint, equation) if balanced else None
        trained(model, constraint, equation, aggregator, steps=1)
        weights.append(model.last_fc.weight.numpy())
    np.testing.assert_allclose(*weights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "kinds, expected",
    [
        (["left", "EQ"], ["EQ.laplace"]),
        (["own", "slope"], ["own.anything"]),
        (["EQ", "inner", "data"], ["EQ.laplace"]),
        (["EQ_sup", "data"], ["EQ_sup.chip"]),
        (["EQ", "own", "left"], ["EQ.laplace", "own.anything"]),
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
        (["inner", "traction"], "traction.laplace", ["traction.laplace"]),
        (["EQ", "wall"], "wall.laplace", ["EQ.laplace", "wall.laplace"]),
        (["Sup", "data"], "Sup.chip", ["Sup.chip"]),
    ],
)
def test_what_constraints_do_not_tell_is_asked(kinds, doubtful, pasted):
    model, constraint, equation = apart(kinds)
    aggregator = GradNormAggregator.of(model, constraint, equation)
    message = re.escape(f"which {doubtful!r} is. Pass equations={pasted}, without")
    with pytest.raises(ValueError, match=message):
        trained(model, constraint, equation, aggregator, steps=1)


def test_what_is_asked_may_be_said():
    model, constraint, equation = apart(["EQ", "traction"])
    aggregator = GradNormAggregator.of(model, constraint, equation)
    pasted = r"Pass equations=\['EQ\.laplace', 'traction\.laplace'\], without"
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


def test_what_of_cannot_take_is_named():
    model, constraint, equation = apart()
    with pytest.raises(TypeError, match="constraint must be the Solver's dict, got"):
        GradNormAggregator.of(model, list(constraint.values()), equation)
    with pytest.raises(TypeError, match="constraint must hold PaddleScience's constraints, got"):
        GradNormAggregator.of(model, equation, constraint)
    with pytest.raises(TypeError, match="equation must be the Solver's dict, got"):
        GradNormAggregator.of(model, constraint, equation["laplace"])
    with pytest.raises(TypeError, match=r"got 1000, 0.9 by position too: write update_every="):
        GradNormAggregator.of(model, constraint, equation, 1000, 0.9)
    with pytest.raises(TypeError, match="'momentum', which is PaddleScience's: leave it out"):
        GradNormAggregator.of(model, constraint, equation, momentum=0.9)
    with pytest.raises(ValueError, match="constraint is empty"):
        GradNormAggregator.of(model, {}, equation)
    for option in ("n_loss", "num_losses"):
        with pytest.raises(TypeError, match=rf"takes no {option}: .* weight_attr="):
            GradNormAggregator.of(model, constraint, equation, **{option: 3})


# PaddleScience's ways to use a Solver.


def first_step(prepare=None, kinds=("EQ", "left", "right"), make=None, optimizer=None, **settings):
    """Parameters after one step, plainly and balanced, and the aggregator.

    All weights are 1 in the first step, so both must be the same.
    """
    parameters = []
    for balanced in (False, True):
        model, constraint, equation = apart(kinds)
        if make is not None:
            model = make()
        if prepare is not None:
            prepare(constraint, equation)
        aggregator = GradNormAggregator.of(model, constraint, equation) if balanced else None
        trained(
            *(model, constraint, equation, aggregator, 1),
            optimizer=None if optimizer is None else optimizer(model),
            **settings,
        )
        parameters.append(values_of(model))
    for plain, mine in zip(*parameters):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-6)
    return aggregator


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
    assert all(each.loss.inner is shared for each in aggregator._constraint.values())


def test_a_constraint_under_two_names_is_refused():
    model, constraint, equation = apart()
    constraint["again"] = constraint["left"]
    with pytest.raises(ValueError, match="'left' and 'again' are one object"):
        GradNormAggregator.of(model, constraint, equation)


def test_weights_by_hand_are_named_once(recorded_warnings):
    def prepare(constraint, equation):
        constraint["EQ"].loss.weight = {"laplace": 0.5, "other": 3.0}
        constraint["left"].loss.weight = 100
        constraint["right"].loss.weight = 1.0
        ones = np.ones([16, 1], "float32")
        for name, weight in ("right", 10 * ones), ("slope", ones * np.arange(16)[:, None]):
            batch = next(constraint[name].data_iter)
            key = next(iter(batch[1]))
            weighted = (*batch[:2], {key: paddle.to_tensor(weight, "float32")})
            constraint[name].data_iter = itertools.repeat(weighted)

    first_step(prepare, ["EQ", "left", "right", "slope"])
    found = [str(w.message) for w in recorded_warnings if "multiply" in str(w.message)]
    assert len(found) == 1
    assert found[0].startswith(
        "loss 'EQ.laplace' has weight 0.5 (weight), loss 'left.u' has weight 100 (weight), "
        "loss 'right.u' has weight 10 (weight_dict): "
    )


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
    aggregator = GradNormAggregator.of(model, constraint, equation, update_every=1)
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


def test_a_traction_is_a_condition_where_its_equation_holds_inside():
    ppsci.utils.misc.set_random_seed(1)
    square = ppsci.geometry.Rectangle((0.0, 0.0), (1.0, 1.0))
    equation = {"elasticity": ppsci.equation.LinearElasticity(E=1.0, nu=0.3, dim=2)}
    outputs = ("u", "v", "sigma_xx", "sigma_yy", "sigma_xy")
    model = ppsci.arch.MLP(("x", "y"), outputs, 2, 8)

    def constraints(inside):
        kinds, loader, mse = ppsci.constraint, {**LOADER, "batch_size": 16}, ppsci.loss.MSELoss()
        of, expressions = square, equation["elasticity"].equations
        return {
            "EQ": kinds.InteriorConstraint(expressions, dict.fromkeys(inside, 0), of, loader, mse),
            "BC": kinds.BoundaryConstraint(expressions, {"equilibrium_y": 0}, of, loader, mse),
        }

    constraint = constraints(["equilibrium_x", "stress_disp_xx"])
    aggregator = GradNormAggregator.of(model, constraint, equation)
    trained(model, constraint, equation, aggregator, steps=1)
    assert equations_found(aggregator) == ["EQ.equilibrium_x", "EQ.stress_disp_xx"]
    constraint = constraints(["equilibrium_x", "equilibrium_y"])
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
    pasted = rf"Pass equations=\['{name}\.chip', '{name}\.twice'\], without"
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
        ValueError, match=r"one loss only, 'EQ\.laplace', .*leave loss_aggregator out$"
    ):
        trained(model, constraint, equation, aggregator, steps=1)


def test_values_of_the_network_are_balanced_with_to_static_too():
    """PaddleScience 1.4 cannot make a static program of derivatives, whatever the aggregator."""
    try:
        first_step(kinds=["inner", "left"], to_static=True)
    finally:
        paddle.jit.enable_to_static(False)


def test_the_solvers_log_says_which_losses_are_equations(tmp_path, caplog):
    model, constraint, equation = apart()
    ppsci.utils.logger.init_logger("ppsci", str(tmp_path / "train.log"), "info")
    try:
        aggregator = GradNormAggregator.of(model, constraint, equation)
        trained(model, constraint, equation, aggregator, steps=12)
    finally:
        ppsci.utils.logger.init_logger("ppsci", None, "error")
    said = re.compile("ppsci INFO: loss weights by .*equations 'EQ.laplace' .*'left.u', 'right.u'")
    assert len(said.findall((tmp_path / "train.log").read_text())) == 1
    assert not caplog.text  # Paddle prints what it gets there, so the line would be there twice
    ours = logging.getLogger("paddlescience_gradnorm")
    assert (ours.level, ours.propagate, ours.handlers) == (logging.NOTSET, True, [])


@pytest.mark.parametrize("by_epoch", [False, True])
def test_the_solvers_picture_of_the_losses_has_one_of_the_weights_beside_it(
    tmp_path, by_epoch, monkeypatch
):
    drawn, plot_curve = [], ppsci.utils.misc.plot_curve

    def noted(data, xlabel, ylabel, output_dir, smooth_step, use_semilogy):
        drawn.append((ylabel, list(data), smooth_step, use_semilogy))
        plot_curve(data, xlabel, ylabel, output_dir, smooth_step, use_semilogy)

    monkeypatch.setattr(ppsci.utils.misc, "plot_curve", noted)
    model, constraint, equation = apart()
    aggregator = GradNormAggregator.of(model, constraint, equation)
    solver = ppsci.solver.Solver(
        *(model, constraint, str(tmp_path), ppsci.optimizer.Adam(1e-3)(model)),
        **{"epochs": 4, "iters_per_epoch": 5, "equation": equation},
        loss_aggregator=aggregator,
    )
    aggregator.log_to(solver)
    with pytest.raises(ValueError, match=r"no weights to draw: call aggregator\.log_to"):
        aggregator.plot_weights(str(tmp_path))
    solver.train()
    solver.plot_loss_history(by_epoch=by_epoch)
    loss = "Epoch-Loss_curve.jpg" if by_epoch else "Iteration-Loss_curve.jpg"
    assert drawn[1] == ("Weight", aggregator.names, 5 if by_epoch else 1, True)
    assert {path.name for path in tmp_path.glob("*.jpg")} == {loss, "Iteration-Weight_curve.jpg"}
    weights = aggregator._history.to_numpy()["weights"]
    assert weights.shape == (20, 3)
    assert (weights[0] == 1).all()
    assert (weights[19] == aggregator.get_weights()).all()


def test_the_weights_of_a_long_run_are_thinned_and_drawn_where_they_were(monkeypatch, tmp_path):
    """In the picture a weight between two kept steps is that of the first of them."""
    model = ppsci.arch.MLP(("x",), ("u",), 1, 4)
    aggregator = GradNormAggregator(model, 2, equations=["a"])
    aggregator.names, aggregator._history = ["a", "b"], History(limit=1000)
    for step in range(3000):
        aggregator._acting = np.array([1.0, step])
        aggregator._record()
    assert len(aggregator._history.steps) < 1010
    drawn = []
    monkeypatch.setattr(ppsci.utils.misc, "plot_curve", lambda *options: drawn.append(options))
    aggregator.plot_weights(str(tmp_path), smooth_step=7)
    ((curves, *_, smooth_step, _),) = drawn
    assert list(curves) == ["a", "b"] and len(curves["a"]) == 3000 and smooth_step == 7
    assert curves["b"][:2990] == [float(step // 4 * 4) for step in range(2990)]
    assert curves["b"][2990:] == [float(step) for step in range(2990, 3000)]


CONFIG = """
hydra: {run: {dir: .}, output_subdir: null}
TRAIN:
  epochs: 7
  loss_aggregator:
    name: GradNormAggregator
    update_every: ${TRAIN.epochs}
    equations: [EQ.laplace]
    weight_attr: [1, 2, 3]
"""


@pytest.mark.parametrize("kind", ["dict", "omegaconf", "hydra"])
def test_a_configuration_builds_the_aggregator(tmp_path, kind):
    (tmp_path / "laplace.yaml").write_text(CONFIG)
    if kind == "hydra":
        with hydra.initialize_config_dir(str(tmp_path), version_base=None):
            cfg = hydra.compose("laplace", overrides=["TRAIN.epochs=9"])
    else:
        cfg = OmegaConf.create(CONFIG)
    if kind == "dict":
        cfg = OmegaConf.to_container(cfg, resolve=True)
    model, constraint, equation = apart()
    aggregator = build_aggregator(cfg["TRAIN"]["loss_aggregator"], model, constraint, equation)
    assert aggregator.balancer.update_every == (9 if kind == "hydra" else 7)
    trained(model, constraint, equation, aggregator, steps=1)
    assert equations_found(aggregator) == ["EQ.laplace"]
    assert aggregator._start.tolist() == [1, 2, 3]
    assert cfg["TRAIN"]["loss_aggregator"]["name"] == "GradNormAggregator"


@pytest.mark.parametrize(
    "cfg, error, message",
    [
        ("GradNormAggregator", TypeError, r'cfg must be a mapping such as \{"name"'),
        ({"name": "Relobralo"}, ValueError, "names the aggregator 'Relobralo', but only"),
        ({}, ValueError, "names the aggregator None, but only"),
        ({"name": "GradNormAggregator", "momentum": 0.9}, TypeError, "'momentum', which is Paddle"),
        ({"name": "GradNormAggregator", "num_losses": 3}, TypeError, "of takes no num_losses"),
    ],
)
def test_a_configuration_that_names_something_else_is_an_error(cfg, error, message):
    with pytest.raises(error, match=message):
        build_aggregator(cfg, *apart())


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("published", "fixed")])
def test_every_rule_balances_in_the_solver(name, solve, caplog):
    _, aggregator, rows = solve(
        gradnorm(alpha=None, rule=name, weight_lr=0.01, update_every=1), epochs=3
    )
    assert len(rows) == 3
    weights = np.array([[row[f"train/weight/{each}"] for each in NAMES] for row in rows])
    assert np.isfinite(weights).all() and (weights[0] != weights[-1]).any() == (name != "equal")
    balancer = LossBalancer(aggregator.model, 3, rule=name, equations=["laplace"], update_every=1)
    assert aggregator.balancer.step_count.item() == 3
    assert repr(aggregator.balancer.rule) == repr(balancer.rule)


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
