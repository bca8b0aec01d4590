"""A rule of a user's own, as on the page "Write a rule", through everything that takes a rule."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer
from paddlescience_gradnorm.balancing import GradientRule, GradientStep, Rule
from paddlescience_gradnorm.training import Checkpoints, Trainer, write_report

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/write_a_rule.md").read_text(encoding="utf-8")
SOURCE = re.search(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture(scope="module")
def SmoothInverseNorms(tmp_path_factory):
    """The page's rule, from a file of the user's."""
    path = tmp_path_factory.mktemp("mine") / "my_rule.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("my_rule", path)
    module = sys.modules["my_rule"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.SmoothInverseNorms
    del sys.modules["my_rule"]


def norms_of(losses, parameters):
    """||g_i||, each gradient taken by itself."""
    of_all = (paddle.grad([x], parameters, retain_graph=True, allow_unused=True) for x in losses)
    return np.array(
        [np.linalg.norm([g.norm().item() for g in found if g is not None]) for found in of_all]
    )


@pytest.mark.parametrize("form", ["backward", "step"])
def test_its_weights_and_memory_are_what_its_formula_says(
    SmoothInverseNorms, fc_net, make_losses, form
):
    balancer = LossBalancer(fc_net, 3, rule=SmoothInverseNorms(0.5))
    optimizer = paddle.optimizer.SGD(1e-4, parameters=fc_net.parameters())
    averages = np.zeros(3)
    for seed in range(4):
        norms = norms_of(make_losses(fc_net, seed=seed), fc_net.parameters())
        averages = np.where(averages > 0, (averages + norms) / 2, norms)
        losses = make_losses(fc_net, seed=seed)
        if form == "step":
            (balancer.loss_weights * paddle.stack(losses)).sum().backward(retain_graph=True)
        getattr(balancer, form)(losses)
        optimizer.step()
        optimizer.clear_grad()
        np.testing.assert_allclose(balancer.get_weights(), averages.mean() / averages, rtol=1e-5)
        np.testing.assert_allclose(balancer.rule_state["norms"], averages, rtol=1e-5)
    assert "SmoothInverseNorms(memory=0.5)" in repr(balancer)


def test_its_memory_is_in_copies_pickles_and_state_dicts(SmoothInverseNorms, fc_net, make_losses):
    net = GradNorm(fc_net, 3, rule=SmoothInverseNorms())
    for seed in range(3):
        net.backward(make_losses(net, seed=seed))
    fresh = GradNorm(copy.deepcopy(fc_net), 3, rule=SmoothInverseNorms())
    fresh.set_state_dict(net.state_dict())
    assert "balancer.norms" in net.state_dict()
    twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh]
    net.backward(make_losses(net, seed=9))
    for twin in twins:
        twin.backward(make_losses(twin, seed=9))
        assert (twin.get_weights() == net.get_weights()).all()
        assert (twin.balancer.rule_state["norms"] == net.balancer.rule_state["norms"]).all()


def test_micro_batches_give_what_the_whole_batch_gives(SmoothInverseNorms, float64):
    runs = []
    for parts in (1, 3):
        paddle.seed(0)
        net = GradNorm(FCNet(2, 1, 3, 8), 2, rule=SmoothInverseNorms())
        sgd = paddle.optimizer.SGD(1e-3, parameters=net.parameters())
        rng = np.random.default_rng(0)
        for _ in range(4):
            points = paddle.to_tensor(rng.random((2, 12, 2)))
            for i in range(parts):
                inside, edge = points[:, i::parts]
                losses = [(net(inside) - 1).square().mean(), 9 * net(edge).square().mean()]
                net.backward(losses, update=i == parts - 1, scale=1 / parts)
            sgd.step()
            sgd.clear_grad()
        runs.append((net.get_weights(), net.balancer.rule_state["norms"]))
    np.testing.assert_allclose(runs[1][0], runs[0][0], rtol=1e-12)
    np.testing.assert_allclose(runs[1][1], runs[0][1], rtol=1e-12)


def test_taking_a_step_back_restores_its_memory(SmoothInverseNorms, fc_net, make_losses):
    balancer = LossBalancer(fc_net, 3, rule=SmoothInverseNorms(0.5))
    balancer.backward(make_losses(fc_net))
    weights, memory = balancer.get_weights(), balancer.rule_state["norms"]
    balancer.backward(make_losses(fc_net, seed=1), scale=0.5)
    assert (balancer.rule_state["norms"] != memory).all()
    balancer.take_back()
    assert (balancer.get_weights() == weights).all()
    assert (balancer.rule_state["norms"] == memory).all()


def test_a_loss_that_is_no_number_is_left_out_with_its_memory(
    SmoothInverseNorms, fc_net, make_losses
):
    balancer = LossBalancer(fc_net, 3, rule=SmoothInverseNorms(0.5))
    balancer.backward(make_losses(fc_net))
    weights, memory = balancer.get_weights(), balancer.rule_state["norms"]
    losses = make_losses(fc_net, seed=1)
    losses[1] = losses[1] * float("nan")
    with pytest.warns(RuntimeWarning, match=r"'losses\[1\]' is nan; it is left out"):
        balancer.backward(losses)
    new, left = balancer.rule_state["norms"], [0, 2]
    assert new[1] == memory[1] and (new[left] != memory[left]).all()
    assert balancer.get_weights()[1] == weights[1]
    np.testing.assert_allclose(balancer.get_weights()[left], new[left].mean() / new[left], 1e-6)


@pytest.fixture
def trainer_of(SmoothInverseNorms, make_losses):
    def build():
        paddle.seed(0)
        net = GradNorm(FCNet(2, 1, 3, 16), 3, rule=SmoothInverseNorms())
        adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
        return Trainer(net, lambda net: dict(zip("abc", make_losses(net))), adam)

    return build


def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(trainer_of, tmp_path):
    whole = trainer_of()
    whole.fit(epochs=7)
    first = trainer_of()
    first.fit(epochs=4, checkpoints=Checkpoints(tmp_path))
    second = trainer_of()
    second.load(Checkpoints(tmp_path).paths()[-1])
    second.fit(epochs=3)
    for name, rows in whole.history.to_numpy().items():
        np.testing.assert_array_equal(second.history.to_numpy()[name], rows, err_msg=name)
    for mine, others in zip(second.net.parameters(), whole.net.parameters()):
        assert (mine == others).all()


def test_history_and_report_show_its_weights(trainer_of, tmp_path):
    trainer = trainer_of()
    trainer.fit(epochs=20)
    weights = trainer.history.weights
    assert weights["a"][0] == 1 and weights["c"][-1] > 10 > weights["b"][-1]
    assert np.isnan(trainer.history.training_rates["a"]).all()  # it keeps no references
    trainer.history.save(tmp_path / "history.npz")
    (tmp_path / "metrics.json").write_text('{"settings": {}}')
    report = write_report(tmp_path)
    assert "weight" in Path(report).read_text(encoding="utf-8")


RANKS = """
import sys
import numpy as np
import paddlescience_gradnorm as gradnorm
import paddle
from my_rule import SmoothInverseNorms

paddle.set_device("cpu")
rank, ranks = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
if ranks > 1:
    paddle.distributed.init_parallel_env()
paddle.set_default_dtype("float64")
paddle.seed(0)
net = gradnorm.GradNorm(gradnorm.FCNet(2, 1, 3, 8), n_loss=2, rule=SmoothInverseNorms())
rng = np.random.default_rng(0)
for _ in range(4):
    inside, edge = paddle.to_tensor(rng.random((2, 12, 2)))[:, rank::ranks]
    net.backward([(net(inside) - 1).square().mean(), 9 * net(edge).square().mean()])
    net.clear_gradients()
np.save(f"{sys.argv[1]}/{ranks}_{rank}.npy", [net.get_weights(), net.balancer.rule_state["norms"]])
"""


def test_two_processes_hold_what_one_with_all_points_holds(tmp_path):
    (tmp_path / "my_rule.py").write_text(SOURCE)
    (tmp_path / "run.py").write_text(RANKS)
    path = os.pathsep.join([str(ROOT), str(tmp_path), os.environ.get("PYTHONPATH", "")])
    launch = ["-m", "paddle.distributed.launch", "--backend", "gloo", "--nproc_per_node", "2"]
    launch += ["--log_dir", str(tmp_path / "log")]
    for how in ([], launch):
        subprocess.run(
            [sys.executable, "-W", "ignore", *how, str(tmp_path / "run.py"), str(tmp_path)],
            check=True,
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
    one, *two = (np.load(tmp_path / f"{name}.npy") for name in ("1_0", "2_0", "2_1"))
    for of_rank in two:
        np.testing.assert_allclose(of_rank, one, rtol=0, atol=1e-11)


# Other things that a rule may ask for.


@dataclass(frozen=True)
class OfValues(Rule):
    """The weight of a loss grows with its value; nothing is asked of gradients."""

    needs = frozenset()

    def start(self, n_loss):
        return {"count": np.zeros([])}

    def weigh(self, weights, state, measurement):
        new = len(weights) * measurement.losses / measurement.losses.sum()
        return new, {"count": state["count"] + 1}


def test_a_rule_of_loss_values_needs_no_gradients(fc_net, make_losses):
    balancer = LossBalancer(fc_net, 3, rule=OfValues())
    losses = make_losses(fc_net)
    values = np.array([loss.item() for loss in losses])
    balancer.backward(losses)
    np.testing.assert_allclose(
        balancer.get_weights(), np.maximum(3 * values / values.sum(), 1e-3), rtol=1e-6
    )
    assert balancer.rule_state["count"] == 1
    assert np.isnan(balancer.gradient_norms).all() and balancer.diagnose() is not None


class OfEntries(Rule):
    """max |g| of the first loss over mean |g| of each."""

    needs = frozenset({"largest", "mean"})

    def weigh(self, weights, state, measurement):
        return measurement.largest[0] / measurement.mean, state


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.25]])
def test_statistics_of_the_entries_are_those_of_the_unweighted_gradients(
    fc_net, make_losses, weights
):
    entries = [
        np.concatenate([g.numpy().ravel() for g in paddle.grad([x], fc_net.parameters())])
        for x in make_losses(fc_net)
    ]
    balancer = LossBalancer(fc_net, 3, rule=OfEntries(), weight_attr=weights)
    balancer.backward(make_losses(fc_net))
    last = balancer.last_measurement
    np.testing.assert_allclose(last.largest, [np.abs(e).max() for e in entries], rtol=1e-5)
    np.testing.assert_allclose(last.mean, [np.abs(e).mean() for e in entries], rtol=1e-5)
    np.testing.assert_allclose(balancer.get_weights(), last.largest[0] / last.mean, rtol=1e-6)


class TowardsEqualNorms(GradientRule):
    """Descends half the variance of the logarithms of the weighted norms."""

    def gradient(self, weights, state, measurement):
        logs = np.log(weights * measurement.norms)
        excess = logs - logs.mean()
        return GradientStep(float(excess @ excess / 2), excess / weights, state)


def test_a_callers_optimizer_can_step_a_gradient_of_ones_own(fc_net, make_losses):
    net = GradNorm(fc_net, 3, rule=TowardsEqualNorms())
    assert any(p is net.loss_weights for p in net.parameters())
    adam = paddle.optimizer.Adam(0.05, parameters=[net.loss_weights])
    spreads = []
    for _ in range(150):
        net.backward(make_losses(net))
        spreads.append(np.ptp(np.log(net.get_weights() * net.balancer.gradient_norms)))
        adam.step()
        adam.clear_grad()
        fc_net.clear_gradients()
        assert net.get_weights().sum() == pytest.approx(3, abs=1e-5)
    assert spreads[-1] < 0.6 * spreads[0]


# What a rule may not do.


class Wrong(Rule):
    def __init__(self, result=None, start=None):
        self.result, self.remembered = result, start or {}

    def start(self, n_loss):
        return self.remembered

    def weigh(self, weights, state, measurement):
        return np.asarray(self.result), state


def test_weights_of_another_shape_are_an_error_that_names_the_rule(fc_net, make_losses):
    balancer = LossBalancer(fc_net, 3, rule=Wrong([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"Wrong.* must give 3 weights, got"):
        balancer.backward(make_losses(fc_net))


@pytest.mark.parametrize(
    "state", [{"a": np.ones(200_000)}, {"a": np.ones(1)}, {"b": np.ones(3)}, {}, {"a": 1.0}]
)
def test_a_state_of_other_names_or_shapes_is_an_error_that_names_the_rule(
    fc_net, make_losses, state
):
    class Forgetful(Wrong):
        def weigh(self, weights, _, measurement):
            return weights, state

    balancer = LossBalancer(fc_net, 3, rule=Forgetful(start={"a": np.zeros(3)}))
    with pytest.raises(ValueError, match=r"must return a state of shapes {'a': \(3,\)}, got"):
        balancer.backward(make_losses(fc_net))
    assert (balancer.get_weights() == 1).all()
    assert balancer.rule_state["a"].tolist() == [0, 0, 0]


def test_weights_that_are_no_numbers_are_not_used(fc_net, make_losses):
    balancer = LossBalancer(fc_net, 3, rule=Wrong([1.0, float("nan"), 1.0]))
    with pytest.warns(RuntimeWarning, match="Wrong.* gives no finite weights"):
        balancer.backward(make_losses(fc_net))
    assert (balancer.get_weights() == 1).all()


def test_weights_below_the_floor_are_raised_to_it(fc_net, make_losses):
    balancer = LossBalancer(fc_net, 3, rule=Wrong([-1.0, 1e-9, 1.0]), floor=0.01)
    balancer.backward(make_losses(fc_net))
    np.testing.assert_allclose(balancer.get_weights(), [0.01, 0.01, 1.0])


@pytest.mark.parametrize(
    "start, match",
    [
        ({"two": np.zeros(2)}, r"arrays of shape \[3, ...\] or \[\].*'two' of shape \[2\]"),
        ({"step_count": np.zeros(3)}, "must not remember 'step_count'"),
        ({"backward": np.zeros(3)}, "must not remember 'backward'"),
    ],
)
def test_a_memory_that_a_balancer_cannot_hold_is_named(fc_net, start, match):
    with pytest.raises(ValueError, match=match):
        LossBalancer(fc_net, 3, rule=Wrong(start=start))


def test_no_concrete_rule_is_asked_for_outside_its_file():
    rules = re.compile(r"isinstance\([^)]*(PinnRule|GradNormRule)")
    for file in ROOT.glob("paddlescience_gradnorm/**/*.py"):
        assert not rules.search(file.read_text(encoding="utf-8")), file
