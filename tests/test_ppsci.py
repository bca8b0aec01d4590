"""GradNormAggregator in PaddleScience's real Solver."""

import contextlib
import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import ppsci

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer
from paddlescience_gradnorm.balancing import Rule
from paddlescience_gradnorm.ppsci import GradNormAggregator

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


def test_loss_scaling_leaves_the_weights_alone(solve, tmp_path, monkeypatch, recorded_warnings):
    """The arithmetic of AMP on an accelerator: scaled backward, unscaled step, skipped overflow."""
    from paddle.amp import grad_scaler

    class Accelerator:
        _expected_place = type("Place", (), {"is_gpu_place": lambda self: True})()

    _, _, rows = solve(epochs=8)
    steps = {}

    def amp(scale):
        with monkeypatch.context() as patch:  # a GradScaler turns itself off on a CPU
            patch.setattr(grad_scaler, "_dygraph_tracer", Accelerator)
            return paddle.amp.GradScaler(init_loss_scaling=scale)

    monkeypatch.setattr(grad_scaler.amp_global_state(), "amp_dtype", "float16")
    for scale in (2.0**15, 2.0**127):
        with paddle.utils.unique_name.guard():
            solver, _ = problem.solver(tmp_path, gradnorm(), epochs=8)
        solver.scaler = amp(scale)
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
    assert set(state) == {"loss_weights", "initial_losses", "step_count"}
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
    solver, aggregator = problem.solver(tmp_path, gradnorm(), epochs=3, **{f"use_{logger}": True})
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


def test_a_loss_that_misses_the_shared_layer_is_named(solve):
    with pytest.raises(ValueError, match="'laplace' does not depend on the shared parameters"):
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
        with pytest.raises(ValueError, match=r"loss 'u' comes from a static program.*to_static="):
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
        ({"alpha": 1.0}, TypeError, "n_loss is missing"),
        ({"n_loss": 2, "num_losses": 3}, ValueError, "n_loss is 2, but num_losses.* is 3"),
        ({"n_loss": 2, "lr": 0.1}, TypeError, "no option 'lr', which is called 'weight_lr' now"),
        ({"num_losses": 2, "rule": "published"}, TypeError, "alpha is missing"),
    ],
)
def test_bad_arguments_are_named(fc_net, arguments, error, message):
    with pytest.raises(error, match=message):
        GradNormAggregator(fc_net, **arguments)


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
