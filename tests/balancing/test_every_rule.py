"""Every rule of the package through everything that a balancer promises of a rule."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.__main__ import main
from paddlescience_gradnorm.balancing import Measurement
from paddlescience_gradnorm.balancing.rules import (
    RULES,
    ConFIG,
    Directed,
    Fixed,
    GradNormRule,
    ReLoBRaLo,
    find_rule,
)
from paddlescience_gradnorm.training import Trainer, write_report

ROOT = Path(__file__).parents[2]
FLOOR = 1e-3
EVERY_RULE = {
    **{name: find_rule(name) for name in RULES if name not in ("published", "fixed")},
    "published": GradNormRule(1.0),
    "fixed": Fixed({"pde": 2, "bc": 5}),
    "directed each": Directed(ReLoBRaLo(), ConFIG(), "each"),
}
DIRECTIONS = {name: rule for name, rule in EVERY_RULE.items() if rule.acts_now}
every_rule = pytest.mark.parametrize("rule", EVERY_RULE.values(), ids=EVERY_RULE)
every_direction = pytest.mark.parametrize("rule", DIRECTIONS.values(), ids=DIRECTIONS)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
# Weights that never move, so that a test of what moves them must leave them out.
AT_REST = (type(EVERY_RULE["equal"]), Fixed)
NAMES = ["pde", "bc", "data"]


def losses_of(net, step, part=slice(None), share=False):
    """Three losses, all above 0, at the points of a step."""
    dtype = net.parameters()[0].dtype
    points = paddle.to_tensor(np.random.default_rng(step).random((3, 12, 2)), dtype)[:, part]
    outputs = [net(points[0])] * 3 if share else [net(each) for each in points]
    return {
        "pde": 4 * (outputs[0] - 1).square().mean(),
        "bc": (outputs[1] + 1).square().mean(),
        "data": (outputs[2] - points[2, :, :1]).square().mean() / 4,
    }


def balanced(rule, **options):
    """A network with a balancer, and plain SGD for it."""
    paddle.seed(0)
    net = GradNorm(
        FCNet(2, 1, 3, 8), 3, rule=rule, weight_lr=0.01, **{"update_every": 1, **options}
    )
    return net, paddle.optimizer.SGD(1e-3, parameters=net.net.parameters())


def parameters_of(net):
    return np.concatenate([p.numpy().ravel() for p in net.net.parameters()])


def gradient_of(net):
    return np.concatenate([p.grad.numpy().ravel() for p in net.net.parameters()])


def train(net, sgd, steps, parts=1, **options):
    """Trains; weights and parameters after each step."""
    found = []
    for step in steps:
        for i in range(parts):
            losses = losses_of(net, step, slice(i, None, parts))
            net.backward(losses, update=i == parts - 1, scale=1 / parts, **options)
        sgd.step()
        sgd.clear_grad()
        found.append(np.concatenate([net.get_weights(), parameters_of(net)]))
    return np.array(found)


def rows_of(net, losses):
    """The gradient of each loss by Paddle, shape [T, parameters], float64."""
    parameters = net.net.parameters()
    rows = []
    for loss in losses.values():
        gradients = paddle.grad([loss], parameters, retain_graph=True)
        rows.append(np.concatenate([g.numpy().ravel() for g in gradients]).astype(np.float64))
    return np.array(rows)


def measurement_of(losses, rows, step, weights=1.0):
    values = np.array([loss.item() for loss in losses.values()])
    return Measurement(
        values,
        gram=rows @ rows.T,
        names=tuple(losses),
        equations=np.array([name == "pde" for name in losses]),
        step=step,
        floor=FLOOR,
    )


@every_direction
@both_dtypes
@pytest.mark.parametrize("share", [False, True], ids=["disjoint", "shared"])
def test_the_gradient_is_the_combination_by_the_pure_rule(rule, dtype, share):
    paddle.set_default_dtype(dtype)
    tolerance = 1e-6 if dtype == "float32" else 1e-12
    net, sgd = balanced(rule)
    state = rule.start(3)
    for step in range(3):
        losses = losses_of(net, step, share=share)
        rows = rows_of(net, losses)
        measured = measurement_of(losses, rows, step)
        coefficients, state = rule.weigh(np.ones(3), state, measured)
        expected = coefficients @ rows
        total = net.backward(losses)
        error = np.linalg.norm(gradient_of(net) - expected) / np.linalg.norm(expected)
        assert error < tolerance
        np.testing.assert_allclose(net.get_weights(), coefficients, rtol=1e3 * tolerance)
        assert total.item() == pytest.approx(coefficients @ measured.losses, rel=1e3 * tolerance)
        sgd.step()
        sgd.clear_grad()


@every_rule
def test_a_resumed_run_is_the_same_to_the_last_bit(rule, tmp_path):
    net, sgd = balanced(rule)
    train(net, sgd, range(3))
    paddle.save(net.state_dict(), str(tmp_path / "net.pdparams"))
    expected = train(net, sgd, range(3, 7))
    other, sgd = balanced(rule)
    other.set_state_dict(paddle.load(str(tmp_path / "net.pdparams")))
    np.testing.assert_array_equal(train(other, sgd, range(3, 7)), expected)
    if not isinstance(rule, AT_REST):
        assert (expected[0][:3] != expected[-1][:3]).any()


@every_rule
@pytest.mark.filterwarnings("ignore:update_every is 3")
def test_a_trainer_goes_on_between_two_updates_to_the_last_bit(rule, tmp_path):
    def trainer():
        with paddle.utils.unique_name.guard():  # as in another process
            net, _ = balanced(rule, update_every=3, total_steps=8)
            adam = paddle.optimizer.Adam(1e-3, parameters=net.net.parameters())
        return Trainer(net, lambda net, batch: losses_of(net, int(batch.item())), adam), net, adam

    batches = [paddle.to_tensor([float(step)]) for step in range(4)]
    first, *whole = trainer()
    first.fit(batches)
    first.save(tmp_path / "after_4.ckpt")
    first.fit(batches)
    second, *resumed = trainer()
    second.load(tmp_path / "after_4.ckpt")
    second.fit(batches)
    assert second.step == first.step == 8
    for one, two in zip(whole, resumed):
        pairs = list(zip(one.state_dict().items(), two.state_dict().items()))
        assert len(pairs) == len(one.state_dict()) > 0
        for (name, expected), (_, found) in pairs:
            if isinstance(expected, paddle.Tensor):
                np.testing.assert_array_equal(found.numpy(), expected.numpy(), name)


@every_rule
@pytest.mark.filterwarnings("ignore:update_every is 3")
@pytest.mark.parametrize("update_every", [1, 3])
@both_dtypes
def test_micro_batches_give_what_one_batch_gives(rule, dtype, update_every):
    paddle.set_default_dtype(dtype)
    # Coefficients come from a linear system, which makes more of the rounding of its matrix.
    of_weights, of_parameters = (4e-6, 1e-6) if dtype == "float32" else (1e-12, 1e-12)
    expected = train(*balanced(rule, update_every=update_every), range(5))
    found = train(*balanced(rule, update_every=update_every), range(5), parts=3)
    error = np.abs(found - expected) / np.maximum(np.abs(expected), 1)
    assert error[:, :3].max() < of_weights and error[:, 3:].max() < of_parameters


@every_rule
@pytest.mark.filterwarnings("ignore:.*makes no effect")
def test_an_overflow_that_the_scaler_finds_is_undone(rule, make_scaler):
    (net, sgd), scaler = balanced(rule), make_scaler()
    found = []
    for step in range(5):
        losses = losses_of(net, step)
        if step == 2:
            scaler._scale.fill_(3e38)
        net.backward(losses, scaler=scaler)
        scaler.step(sgd)
        scaler.update()
        scaler._scale.fill_(2.0**16)
        sgd.clear_grad()
        found.append(np.concatenate([net.get_weights(), parameters_of(net)]))
    np.testing.assert_array_equal(found[2], found[1])
    plain, sgd = balanced(rule)
    expected = train(plain, sgd, [0, 1, 3, 4])
    np.testing.assert_allclose(np.delete(found, 2, axis=0), expected, rtol=1e-5, atol=1e-6)
    assert plain.balancer.step_count.item() == net.balancer.step_count.item() == 4
    for name, array in plain.balancer.rule_state.items():
        np.testing.assert_allclose(net.balancer.rule_state[name], array, rtol=1e-5, atol=1e-7)


BAD = {
    "is nan": lambda loss: loss * float("nan"),
    "has no gradient on the shared parameters": lambda loss: loss.detach() + 0 * loss,
    "is absent": None,
}


@every_rule
@pytest.mark.parametrize("fault", BAD)
def test_a_loss_that_cannot_be_balanced_keeps_its_weight(rule, fault, recorded_warnings):
    net, sgd = balanced(rule, absent="skip")
    train(net, sgd, range(2))
    before, state, parameters = net.get_weights(), net.balancer.rule_state, parameters_of(net)
    losses = losses_of(net, 2)
    bad = losses.pop("bc")
    alone, rows = dict(losses), rows_of(net, losses)
    if BAD[fault] is not None:
        losses["bc"] = BAD[fault](bad)
    net.backward(losses)
    after = net.get_weights()
    told = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    needs_no_gradient = not rule.needs and "gradient" in fault
    if BAD[fault] is None or needs_no_gradient:
        assert not told
    else:
        assert len(told) == 1 and f"step 2: loss 'bc' {fault}" in told[0]
    assert np.isfinite(after).all()
    if not needs_no_gradient:
        assert after[1] == before[1]
        for name, array in net.balancer.rule_state.items():
            assert np.isfinite(array).all()
            if array.ndim:
                np.testing.assert_array_equal(array[1], state[name][1])
    if rule.acts_now and "nan" not in fault:
        # The combination is that of the two others.
        which = np.array([True, False, True])
        state = {name: x[which] if x.ndim else x for name, x in state.items()}
        of_others = measurement_of(alone, rows, 2)
        coefficients, _ = rule.weigh(np.ones(2), state, of_others)
        np.testing.assert_allclose(after[which], coefficients, rtol=1e-4)
        np.testing.assert_allclose(gradient_of(net), coefficients @ rows, rtol=1e-4, atol=1e-6)
    elif "nan" in fault:  # what is wrong is not hidden from the network
        assert np.isnan(gradient_of(net)).any()
    sgd.clear_grad()
    np.testing.assert_array_equal(parameters_of(net), parameters)
    last = train(net, sgd, range(3, 5))
    assert np.isfinite(last).all()
    if not isinstance(rule, AT_REST):
        assert (last[-1][:3] != after).any()


@every_rule
@pytest.mark.parametrize("share", [False, True], ids=["disjoint", "shared"])
def test_a_step_leaves_no_tensors_to_the_garbage_collector(rule, share, waiting_tensors):
    net, sgd = balanced(rule)

    def step():
        net.backward(losses_of(net, 0, share=share))
        sgd.step()
        sgd.clear_grad()

    assert waiting_tensors(step) == 0


@every_rule
@pytest.mark.filterwarnings("ignore:update_every is 3")
def test_weights_rest_between_updates_and_act(rule):
    net, sgd = balanced(rule, update_every=3)
    rests = []
    for step in range(7):
        losses, before = losses_of(net, step), net.get_weights()
        rows = rows_of(net, losses)
        net.backward(losses)
        acted = net.get_weights() if rule.acts_now else before
        if step == 0 and isinstance(rule, Fixed):
            acted = [2, 5, 1]
        np.testing.assert_allclose(gradient_of(net), acted @ rows, rtol=1e-4, atol=1e-5)
        rests.append((net.get_weights() == before).all())
        sgd.step()
        sgd.clear_grad()
    assert rests[1:3] == rests[4:6] == [True, True]
    if not isinstance(rule, AT_REST):
        assert not rests[6]


@every_rule
@pytest.mark.filterwarnings("ignore:the last coefficients")
def test_a_trainer_records_the_run_and_frozen_weights_stay_through_lbfgs(rule, tmp_path, caplog):
    pytest.importorskip("matplotlib").use("agg")
    net, sgd = balanced(rule)
    acted = []

    def losses(net, batch):
        return losses_of(net, int(batch.item()))

    batches = [paddle.to_tensor([float(step)]) for step in range(6)]
    trainer = Trainer(net, losses, sgd)
    for batch in batches:
        before = net.get_weights()
        trainer.fit([batch])
        acted.append(net.get_weights() if rule.acts_now else before)
    if isinstance(rule, Fixed):
        acted[0] = [2, 5, 1]
    history = trainer.history
    np.testing.assert_array_equal(history.to_numpy()["weights"], acted)
    assert history.names == NAMES
    norms = np.isfinite(history.to_numpy()["gradient_norms"])
    assert norms.all() if rule.needs else not norms.any()
    assert all(isinstance(finding, str) for finding in trainer.diagnose())
    history.plot_weights().figure.canvas.draw()

    with caplog.at_level(logging.INFO, "paddlescience_gradnorm"):
        net.freeze()
    said = "the last coefficients stay as weights" in caplog.text
    assert said == rule.acts_now
    weights = net.get_weights()
    if (weights < 0).any():
        with pytest.raises(ValueError, match="fit_lbfgs minimises a weighted sum, which has no"):
            trainer.fit_lbfgs([batches[0]])
        net.renormalize()
        weights = net.get_weights()
        assert weights.min() == pytest.approx(FLOOR)
    trainer.fit_lbfgs([batches[0]] * 2, max_iter=3)
    np.testing.assert_array_equal(net.get_weights(), weights)
    values = history.to_numpy()["losses"][-2:]
    assert values[1] @ weights < values[0] @ weights


@pytest.mark.parametrize("name", [name for name in RULES if name != "fixed"])
def test_the_command_line_trains_by_every_rule_with_a_name(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("paddlescience_gradnorm.__main__._plot_training", lambda *_: None)
    monkeypatch.setattr("paddlescience_gradnorm.__main__._plot_solution", lambda *_, **__: None)
    options = ["--steps", "2", "--points", "8", "--output", str(tmp_path)]
    assert main(["run", "laplace", "--balance", name, *options]) == 0
    assert "relative L2 error of u" in capsys.readouterr().out
    assert f"<td>{name}</td>" in write_report(tmp_path).read_text(encoding="utf-8")


RANKS = """
import sys

import numpy as np
import paddle
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

tests, output = sys.argv[1:]
sys.path.insert(0, tests)
from test_every_rule import EVERY_RULE, FCNet, GradNorm, losses_of

paddle.set_device("cpu")
paddle.set_default_dtype("float64")
rank, ranks = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
if ranks > 1:
    paddle.distributed.init_parallel_env()


def train(rule, way):
    paddle.seed(0)
    every = 2 if way == "every second step" else 1
    bare = FCNet(2, 1, 3, 8)
    parallel = ranks > 1 and way == "DataParallel"
    inner = paddle.DataParallel(bare) if parallel else bare
    net = GradNorm(inner, 3, rule=rule, weight_lr=0.01, update_every=every)
    sgd = paddle.optimizer.SGD(1e-3, parameters=bare.parameters())
    parts, found = 1 + 2 * (way == "micro-batches"), []
    for step in range(3):
        # What others have left in the gradients is averaged as they are.
        for p in bare.parameters():
            (p * (1 + rank if ranks > 1 else 1.5)).sum().backward()
        for i in range(parts):
            own = slice(rank + i * ranks, None, ranks * parts)
            net.backward(losses_of(net, step, own), update=i == parts - 1, scale=1 / parts)
        if ranks > 1 and not parallel:
            fused_allreduce_gradients(bare.parameters(), None)
        sgd.step()
        sgd.clear_grad()
        parameters = [p.numpy().ravel() for p in bare.parameters()]
        found.append(np.concatenate([net.get_weights(), *parameters]))
    return np.array(found)


results = {}
for name, rule in EVERY_RULE.items():
    for way in ("alone", "DataParallel", "micro-batches", "every second step"):
        results[f"{name}, {way}"] = train(rule, way)
np.savez(f"{output}/{ranks}_{rank}.npz", **results)
"""


def test_two_processes_with_half_the_points_do_what_one_does_with_all(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RANKS)
    launch = ["-m", "paddle.distributed.launch", "--backend", "gloo", "--nproc_per_node", "2"]
    launch += ["--log_dir", str(tmp_path / "log")]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    for how in ([], launch):
        result = subprocess.run(
            [sys.executable, *how, str(script), str(Path(__file__).parent), str(tmp_path)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        logs = [log.read_text()[-3000:] for log in tmp_path.glob("log/workerlog.*")]
        assert result.returncode == 0, "\n".join([result.stderr, *logs])
    one, first, second = (np.load(tmp_path / f"{of}.npz") for of in ("1_0", "2_0", "2_1"))
    assert len(one.files) == 4 * len(EVERY_RULE)
    for name in one.files:
        scale = np.maximum(np.abs(one[name]), 1)
        np.testing.assert_allclose(first[name] / scale, one[name] / scale, atol=1e-11, err_msg=name)
        np.testing.assert_array_equal(second[name], first[name], err_msg=name)
