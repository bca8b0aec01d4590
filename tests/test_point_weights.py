import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.balancing.rules import RULES, find_rule
from paddlescience_gradnorm.pde.problems import problem
from paddlescience_gradnorm.point_weights import (
    CausalWeights,
    PointWeights,
    ResidualAttention,
    SelfAdaptiveWeights,
    called,
    held,
)
from paddlescience_gradnorm.training import RunState, Trainer

ROOT = Path(__file__).parents[1]
N = 12
TIMES = np.linspace(0, 1, N)
KINDS = {
    "rba": lambda: ResidualAttention(N, gamma=0.9, eta=0.1),
    "self_adaptive": lambda: SelfAdaptiveWeights(N, rate=0.1),
    "causal": lambda: CausalWeights(TIMES, tolerance=0.5, chunks=4),
}


@pytest.fixture(params=KINDS)
def layer(request):
    return KINDS[request.param]()


def residuals(passes, columns=1, seed=0):
    return np.random.default_rng(seed).standard_normal((passes, N, columns)).astype("float32")


def give(layer, values, rows=None):
    return layer(paddle.to_tensor(values), rows)


def buffers(layer):
    return {name: buffer.numpy() for name, buffer in layer.named_buffers()}


def assert_equal(found, expected, rtol=0.0):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=rtol, err_msg=name)


def test_a_residual_is_multiplied_by_weights_that_do_not_know_it_yet(layer):
    for values in residuals(3, columns=2):
        before = layer.weights.numpy()
        np.testing.assert_array_equal(give(layer, values).numpy(), before * values)
        assert not np.array_equal(layer.weights.numpy(), before)


def test_the_gradient_is_that_with_constant_weights(layer):
    """Although the weights change before the backward pass."""
    for values in residuals(3):
        before = layer.weights.numpy()
        residual = paddle.to_tensor(values, stop_gradient=False)
        layer(residual).square().mean().backward()
        np.testing.assert_allclose(residual.grad.numpy(), 2 * before**2 * values / N, rtol=1e-5)
    assert not layer.parameters()


def test_rba_is_the_recursion_of_its_paper():
    layer = ResidualAttention(N, gamma=0.9, eta=0.02, initial=0.5)
    expected = np.full((N, 1), 0.5)
    for values in residuals(20):
        give(layer, values)
        expected = 0.9 * expected + 0.02 * np.abs(values) / np.abs(values).max()
    np.testing.assert_allclose(layer.weights.numpy(), expected, rtol=1e-5)


def test_rba_begins_at_its_bound_and_stays_below():
    layer = ResidualAttention(N, gamma=0.9, eta=0.3)
    values = np.zeros((N, 1), "float32")
    values[0] = 7
    for _ in range(50):
        give(layer, values)
    found = layer.weights.numpy().flatten()
    assert math.isclose(found[0], 3, rel_tol=1e-5)
    np.testing.assert_allclose(found[1:], 3 * 0.9**50, rtol=1e-4)


def test_rba_of_residuals_that_are_all_zero_decays():
    layer = ResidualAttention(N)
    give(layer, np.zeros((N, 1), "float32"))
    np.testing.assert_allclose(layer.weights.numpy(), 0.999, rtol=1e-6)


def test_self_adaptive_weights_are_adam_up_the_gradient_of_the_loss():
    layer = SelfAdaptiveWeights(N, rate=0.05, initial=np.linspace(0.1, 1, N))
    weights = paddle.create_parameter([N, 1], "float32")
    weights.set_value(np.linspace(0.1, 1, N, dtype="float32")[:, None])
    adam = paddle.optimizer.Adam(0.05, beta1=0.99, beta2=0.999, parameters=[weights])
    for values in residuals(30):
        give(layer, values)
        (-(weights * paddle.to_tensor(values)).square().mean()).backward()
        adam.step()
        adam.clear_grad()
    np.testing.assert_allclose(layer.weights.numpy(), weights.numpy(), rtol=1e-4)


def test_causal_weights_are_the_formula_of_their_paper():
    layer = CausalWeights(TIMES, tolerance=0.3, last=0.3, chunks=4)
    values = residuals(1)[0]
    give(layer, values)
    losses = np.square(values).reshape(4, 3).mean(axis=1)
    expected = np.exp(-0.3 * (np.cumsum(losses) - losses))
    np.testing.assert_allclose(
        layer.weights.numpy().flatten() ** 2, np.repeat(expected, 3), rtol=1e-5
    )


def test_the_tolerance_rises_when_all_of_time_counts():
    layer = CausalWeights(TIMES, tolerance=0.01, last=0.5, chunks=4)
    seen = []
    for size in (10.0, 0.1, 0.1, 0.1, 10.0):
        give(layer, np.full((N, 1), size, "float32"))
        seen.append(round(layer.tolerance.item(), 6))
    assert seen == [0.01, 0.1, 0.5, 0.5, 0.5]


def test_chunks_are_cut_in_the_span_and_may_be_empty():
    layer = CausalWeights([5.0, 5.1, 9.9], tolerance=1.0, last=1.0, chunks=10, span=(0.0, 10.0))
    give(layer, np.array([[1.0], [1.0], [1.0]], "float32"))
    found = layer.weights.numpy().flatten() ** 2
    np.testing.assert_allclose(found, [1, 1, math.exp(-1)], rtol=1e-6)


def test_the_columns_of_a_residual_share_a_weight():
    one, two = ResidualAttention(N), ResidualAttention(N)
    for values in residuals(3, columns=2):
        give(one, np.linalg.norm(values, axis=1, keepdims=True))
        give(two, values)
    np.testing.assert_allclose(two.weights.numpy(), one.weights.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "parts",
    [
        [slice(0, 5), slice(5, N)],
        [np.array([3, 1, 7]), np.array([0, 2, 4, 5, 6]), np.array([8, 11, 10, 9])],
        [paddle.to_tensor(list(range(0, N, 2))), list(range(1, N, 2))],
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_weights_of_one_batch(kind, parts):
    whole, parted = KINDS[kind](), KINDS[kind]()
    for values in residuals(5):
        expected = give(whole, values).numpy()
        for rows in parts:
            rows_of_array = rows.numpy() if isinstance(rows, paddle.Tensor) else rows
            found = give(parted, values[rows_of_array], rows).numpy()
            np.testing.assert_array_equal(found, expected[rows_of_array])
        assert_equal(buffers(parted), buffers(whole))


def test_points_that_never_come_are_told_once(layer, recorded_warnings):
    for values in residuals(100):
        give(layer, values[: N - 2], rows=slice(0, N - 2))
    (warning,) = recorded_warnings
    assert warning.filename == __file__
    assert f"have not changed for {30 * N} rows, because 2 of the {N} points" in str(
        warning.message
    )
    give(layer, residuals(1)[0][:2], rows=slice(N - 2, N))
    assert layer.weights.numpy().std() > 0


def test_rows_that_are_drawn_at_random_come_to_all_points(layer, recorded_warnings):
    random = np.random.default_rng(0)
    for values in residuals(400):
        rows = random.choice(N, 2, replace=False)
        give(layer, values[rows], rows=rows)
    assert not recorded_warnings


def test_a_point_may_come_twice_before_all_have_come():
    layer, values = ResidualAttention(N), residuals(2)
    give(layer, values[0][:8], slice(0, 8))
    give(layer, values[1][:8], slice(0, 8))
    assert (layer.weights == 1).all()
    give(layer, values[1][8:], slice(8, N))
    expected = ResidualAttention(N)
    give(expected, values[1])
    np.testing.assert_array_equal(layer.weights.numpy(), expected.weights.numpy())


def test_evaluation_leaves_the_weights_alone(layer):
    give(layer, residuals(1)[0])
    before = buffers(layer)
    layer.eval()
    give(layer, residuals(1, seed=1)[0])
    layer.train()
    with paddle.no_grad():
        give(layer, residuals(1, seed=1)[0])
    with held():
        with held():
            pass
        give(layer, residuals(1, seed=1)[0])
    assert_equal(buffers(layer), before)
    assert layer.training
    give(layer, residuals(1, seed=1)[0])
    assert not np.array_equal(layer.weights.numpy(), before["weights"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_pass_with_a_bad_number_changes_nothing(layer, bad):
    give(layer, residuals(1)[0])
    before = buffers(layer)
    values = residuals(1, seed=1)[0]
    values[4] = bad
    give(layer, values)
    assert_equal(buffers(layer), before)
    give(layer, residuals(1, seed=2)[0])
    assert np.isfinite(layer.weights.numpy()).all()
    assert not np.array_equal(layer.weights.numpy(), before["weights"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_all_of_it(kind, tmp_path):
    """Also in the middle of a pass."""
    one, other = KINDS[kind](), KINDS[kind]()
    for values in residuals(3):
        give(one, values)
    values = residuals(2, seed=5)
    give(one, values[0][:4], slice(0, 4))
    RunState(weights=one).save(tmp_path / "run.ckpt")
    RunState(weights=other).load(tmp_path / "run.ckpt")
    copied = pickle.loads(pickle.dumps(one))
    for layer in (one, other, copied):
        give(layer, values[0][4:], slice(4, N))
        give(layer, values[1])
    assert_equal(buffers(other), buffers(one))
    assert_equal(buffers(copied), buffers(one))


def test_half_precision_keeps_precise_weights(layer):
    layer.to(dtype="bfloat16")
    assert layer.weights.dtype == paddle.float32
    values = paddle.to_tensor(residuals(1)[0]).astype("bfloat16")
    assert layer(values).dtype == paddle.bfloat16
    assert layer(paddle.to_tensor(residuals(1)[0], dtype="float64")).dtype == paddle.float64


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"fixed"}))
def test_any_rule_works_on_top(rule):
    paddle.seed(0)
    training = problem("heat").sample(64, seed=0, point_weights="rba")
    rule = find_rule(rule, 1.0 if rule == "published" else None)
    net = GradNorm(FCNet(2, 1, 3, 8), 4, rule=rule, update_every=1)
    adam = paddle.optimizer.Adam(1e-2, parameters=net.parameters())
    trainer = Trainer(net, training.losses, adam)
    trainer.fit(epochs=5)
    weights = training.point_weights["pde"].weights.numpy()
    assert weights.min() < weights.max() <= 1
    assert all(np.isfinite(p.numpy()).all() for p in net.parameters())


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"fixed"}))
def test_any_rule_works_on_all_kinds_in_micro_batches(rule, float64):
    random = np.random.default_rng(0)
    points = {name: random.random((16, 2)) for name in ("pde", "initial", "boundary")}

    def trained(n_parts):
        paddle.seed(0)
        layers = {
            "pde": CausalWeights(points["pde"][:, 1], tolerance=1.0, chunks=4),
            "initial": SelfAdaptiveWeights(16, rate=0.05),
            "boundary": ResidualAttention(16, 0.9, 0.1),
        }
        chosen = find_rule(rule, 1.0 if rule == "published" else None)
        net = GradNorm(FCNet(2, 1, 3, 8), rule=chosen, total_steps=12, weight_lr=1e-2)
        adam = paddle.optimizer.Adam(1e-2, parameters=net.parameters())
        for _ in range(12):
            for part in range(n_parts):
                rows = slice(part * 16 // n_parts, (part + 1) * 16 // n_parts)
                losses = {
                    name: layer(net(paddle.to_tensor(points[name][rows])) - k, rows=rows)
                    for k, (name, layer) in enumerate(layers.items())
                }
                net.backward(
                    {name: x.square().mean() for name, x in losses.items()},
                    update=part == n_parts - 1,
                    scale=1 / n_parts,
                )
            adam.step()
            adam.clear_grad()
        found = [net.get_weights(), *(layer.weights.numpy() for layer in layers.values())]
        return [*found, *(p.numpy() for p in net.parameters())]

    whole, in_parts = trained(1), trained(2)
    assert all(np.ptp(weights) > 1e-3 for weights in whole[1:4])
    for ours, expected in zip(in_parts, whole):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-11)


def run_of(folder, epochs, resume=None):
    from paddlescience_gradnorm.training import Checkpoints

    paddle.seed(0)
    weights = {"pde": "causal", "initial": lambda points: SelfAdaptiveWeights(len(points))}
    training = problem("heat").sample(32, seed=0, point_weights=weights)
    net = GradNorm(FCNet(2, 1, 3, 8), 4)
    adam = paddle.optimizer.Adam(1e-2, parameters=net.parameters())
    trainer = Trainer(net, training.losses, adam)
    trainer.fit(epochs=epochs, checkpoints=Checkpoints(folder, every=4), resume=resume)
    return trainer, training


def test_a_resumed_run_has_the_weights_of_one_that_went_through(tmp_path):
    through, expected = run_of(tmp_path / "through", 10)
    run_of(tmp_path / "parted", 4)
    resumed, found = run_of(tmp_path / "parted", 10, resume="latest")
    assert_equal(buffers(found), buffers(expected))
    assert (found.point_weights["pde"].weights < 1).any()
    for one, other in zip(resumed.net.parameters(), through.net.parameters()):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_lbfgs_minimises_with_weights_that_stand(tmp_path):
    trainer, training = run_of(tmp_path, 5)
    before = buffers(training)
    trainer.fit_lbfgs(epochs=1, max_iter=5)
    assert_equal(buffers(training), before)
    trainer.fit(epochs=1)
    name = "weights of pde.weights"
    assert not np.array_equal(buffers(training)[name], before[name])


def test_lbfgs_holds_the_weights_that_a_function_closes_over():
    weights, x = SelfAdaptiveWeights(16, rate=0.1), paddle.rand([16, 2])
    net = FCNet(2, 1, 2, 4)

    def losses(net):
        return {"pde": weights(net(x) - 1).square().mean()}

    adam = paddle.optimizer.Adam(1e-2, parameters=net.parameters())
    trainer = Trainer(net, losses, adam)
    trainer.fit(epochs=2)
    before = buffers(weights)
    trainer.fit_lbfgs(epochs=1, max_iter=5)
    assert_equal(buffers(weights), before)


@pytest.mark.parametrize(
    "build, text",
    [
        (lambda: ResidualAttention(0), "n_points must be at least 1, got 0"),
        (lambda: ResidualAttention(3, gamma=1.0), "gamma must be above 0 and below 1, got 1.0"),
        (lambda: ResidualAttention(3, eta=0.0), "eta must be above 0 and finite, got 0.0"),
        (lambda: SelfAdaptiveWeights(3, rate=-1.0), "rate must be above 0 and finite, got -1.0"),
        (lambda: SelfAdaptiveWeights(3, initial=[1.0, 2.0]), "initial must be finite and above 0"),
        (lambda: SelfAdaptiveWeights(3, initial=0.0), "initial must be finite and above 0"),
        (lambda: CausalWeights([1.0, 1.0]), "times must be finite and lie in a span of time"),
        (lambda: CausalWeights([]), "times must be finite and lie in a span of time"),
        (lambda: CausalWeights([0.0, math.nan]), "times must be finite"),
        (lambda: CausalWeights([0.0, 2.0], span=(0.0, 1.0)), "times must be finite"),
        (
            lambda: CausalWeights([[0.0, 1.0], [1.0, 2.0]]),
            r"one number .* got shape \[2, 2\]",
        ),
        (lambda: CausalWeights([0.0, 1.0], chunks=1), "chunks must be at least 2, got 1"),
        (lambda: CausalWeights([0.0, 1.0], 1.0, 0.5), "last must be at least the tolerance 1.0"),
        (lambda: give(ResidualAttention(3), np.ones((2, 1), "float32")), r"shape \[3, k\]"),
        (lambda: give(ResidualAttention(3), np.ones((3,), "float32")), r"shape \[3, k\]"),
        (
            lambda: give(ResidualAttention(3), np.ones((2, 1), "float32"), [1, 1]),
            "rows must name each of its points once",
        ),
        (
            lambda: give(ResidualAttention(3), np.ones((1, 1), "float32"), [3]),
            r"rows must be whole numbers below 3, or a slice, got \[3\]",
        ),
    ],
)
def test_errors_name_the_argument_and_what_to_do(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_an_array_is_no_residual():
    with pytest.raises(TypeError, match=r"residual must be a paddle\.Tensor, got ndarray"):
        ResidualAttention(3)(np.ones((3, 1)))


def test_layers_are_in_a_checkpoint_once(tmp_path):
    """Those among the extras, and a network with buffers whose method the losses are."""

    class Net(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.linear = paddle.nn.Linear(1, 1)
            self.register_buffer("scale", paddle.ones([1]))

        def losses(self, net):
            return {"a": self.linear(self.scale.unsqueeze(0)).square().mean()}

    net = Net()
    adam = paddle.optimizer.Adam(parameters=net.parameters())
    trainer = Trainer(net, net.losses, adam)
    assert "losses" not in trainer._state.state()["parts"]
    training = problem("heat").sample(16, point_weights="rba")
    bare = FCNet(2, 1, 2, 4)
    adam = paddle.optimizer.Adam(parameters=bare.parameters())
    for extras, named in ({}, True), ({"training": training}, False):
        trainer = Trainer(bare, training.losses, adam, extras=extras)
        assert ("losses" in trainer._state.state()["parts"]) == named


def test_a_kind_of_ones_own():
    class Doubled(PointWeights):
        def update(self, sizes):
            return {"weights": 2 * self.weights}

    layer = Doubled(3)
    give(layer, np.ones((3, 1), "float32"))
    assert layer.weights.flatten().tolist() == [2, 2, 2]


RANKS = """
import sys
import numpy as np
from paddlescience_gradnorm.point_weights import *
import paddle

paddle.set_device("cpu")
rank, ranks = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
if ranks > 1:
    paddle.distributed.init_parallel_env()
paddle.set_default_dtype("float64")
values = np.random.default_rng(0).standard_normal((6, 12, 1))
values[3, 5] = np.nan
times = np.linspace(0, 1, 12)[rank::ranks]
n = len(times)
layers = {
    "rba": ResidualAttention(n, 0.9, 0.1),
    "self_adaptive": SelfAdaptiveWeights(n, 0.1),
    "causal": CausalWeights(times, 0.5, chunks=4, span=(0.0, 1.0)),
}
for of_pass in values:
    for layer in layers.values():
        layer(paddle.to_tensor(of_pass[rank::ranks]))
np.savez(f"{sys.argv[1]}/{ranks}_{rank}.npz", **{k: x.weights.numpy() for k, x in layers.items()})
"""


def test_two_processes_have_the_weights_of_one(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RANKS)
    alone = [sys.executable, str(script), str(tmp_path)]
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    launch += ["--backend", "gloo", "--log_dir", str(tmp_path / "log"), *alone[1:]]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    for command in (alone, launch):
        found = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert found.returncode == 0, found.stdout + found.stderr
    (expected,) = [np.load(tmp_path / "1_0.npz")]
    for rank in range(2):
        for kind, weights in np.load(tmp_path / f"2_{rank}.npz").items():
            np.testing.assert_allclose(weights, expected[kind][rank::2], rtol=1e-12, err_msg=kind)


def test_a_large_residual_late_does_not_cancel_what_is_before_it():
    layer = CausalWeights([0.0, 0.2, 0.6, 1.0], tolerance=0.3, chunks=2)
    for _ in range(3):
        layer(paddle.to_tensor([[1.0], [1.0], [1e4], [1e4]]))
        before = math.exp(-0.3)  # the mean square of the first chunk is 1
        np.testing.assert_allclose(
            layer.weights.square().flatten().numpy(), [1, 1, before, before], rtol=1e-6
        )
        assert layer.tolerance.item() == pytest.approx(0.3)  # the first chunk is not solved


def test_a_residual_that_is_too_large_for_the_weights_is_told_once_and_changes_nothing():
    layer = SelfAdaptiveWeights(10)
    huge = paddle.ones([10, 1])
    huge[7] = 1e12  # its fourth power is no number of float32
    before = {name: buffer.numpy().copy() for name, buffer in layer.named_buffers()}
    with pytest.warns(RuntimeWarning, match=r"up to 1e\+12, .* are not finite in float32") as told:
        layer(huge)
        layer(huge)
    assert len(told) == 1
    for name, buffer in layer.named_buffers():
        np.testing.assert_array_equal(buffer.numpy(), before[name])
    layer(paddle.ones([10, 1]))
    assert (layer.weights.numpy() > 1).all()


def test_a_whole_pass_forgets_micro_batches_that_were_given_up():
    layer, other = (ResidualAttention(4, gamma=0.5, eta=0.5) for _ in range(2))
    ones = paddle.ones([4, 1])
    layer(100 * ones[:2], rows=[0, 1])
    for each in (layer, other):
        each(ones)
        each(ones[:2], rows=[2, 3])
    np.testing.assert_array_equal(layer.weights.numpy(), other.weights.numpy())
    assert layer._seen.flatten().tolist() == [-1, -1, 1, 1]


def test_the_layers_that_are_called_are_known_in_their_order():
    one, other = SelfAdaptiveWeights(1), ResidualAttention(1)
    with called() as layers:
        for layer in (other, one, other):
            layer(paddle.ones([1, 1]))
    one(paddle.ones([1, 1]))
    assert [id(layer) for layer in layers] == [id(other), id(one)]
