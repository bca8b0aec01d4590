"""The total of GradNormAggregator: its backward pass, scaled or in parts, and errors in it."""

import contextlib
import gc
import warnings
import weakref

import numpy as np
import paddle
import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import ppsci
import ppsci_problem as problem
from ppsci_problem import gradnorm, pinn, values_of, weights_of

from paddlescience_gradnorm.balancing import Rule
from paddlescience_gradnorm.ppsci import GradNormAggregator


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


def test_gradients_that_are_cleared_within_a_scaled_step_are_refused(fc_net, make_losses):
    aggregator = GradNormAggregator(fc_net, 3, equations=[0])
    optimizer = paddle.optimizer.SGD(1e-3, parameters=fc_net.parameters())
    names = ("pde", "boundary", "data")
    for order in ("first", "last"):
        for step in range(3):
            if order == "first":
                optimizer.clear_grad()
            total = aggregator(dict(zip(names, make_losses(fc_net, seed=step)))) * 0.5
            total.backward()
            optimizer.step()
            if order == "last":
                optimizer.clear_grad()
        optimizer.clear_grad()
    assert aggregator.balancer.step_count.item() == 6
    total = aggregator(dict(zip(names, make_losses(fc_net)))) * 0.5
    total.backward()
    total = aggregator(dict(zip(names, make_losses(fc_net)))) * 0.5
    optimizer.clear_grad()
    with pytest.raises(RuntimeError, match="and are cleared now: call optimizer"):
        total.backward()


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
