import copy
import warnings

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer
from paddlescience_gradnorm.balancing import GradNormRule, Measurement, PinnRule, Rule, _one_pass
from paddlescience_gradnorm.balancing._losses import NamedLosses
from paddlescience_gradnorm.training import RunState

NAMES = ["pde", "boundary", "data"]


@pytest.fixture
def balancer(fc_net):
    return LossBalancer(fc_net.get_last_shared_layer(), n_loss=3, alpha=1.0, weight_lr=0.01)


def train(net, balancer, make_losses, steps, optimizer=None):
    """Weights that acted in each step."""
    optimizer = optimizer or paddle.optimizer.SGD(1e-4, parameters=net.parameters())
    weights = []
    for step in range(steps):
        weights.append(balancer.get_weights())
        balancer.backward(make_losses(net, seed=step))
        optimizer.step()
        optimizer.clear_grad()
    return np.array(weights)


def test_backward_reproduces_the_reference(reference):
    balancer = LossBalancer(
        reference.net.fc2.weight, reference.n_loss, reference.alpha, weight_lr=reference.weight_lr
    )
    optimizer = paddle.optimizer.SGD(reference.net_lr, parameters=reference.net.parameters())
    weights = []
    for step in reference.steps:
        balancer.backward(reference.losses(reference.net, step))
        optimizer.step()
        optimizer.clear_grad()
        weights.append(balancer.get_weights())
    reference.assert_reproduced(weights)


def test_step_in_somebodys_loop_reproduces_the_reference(reference):
    balancer = LossBalancer(
        reference.net.fc2.weight, reference.n_loss, reference.alpha, weight_lr=reference.weight_lr
    )
    optimizer = paddle.optimizer.SGD(reference.net_lr, parameters=reference.net.parameters())
    weights, lgrads = [], []
    for step in reference.steps:
        losses = reference.losses(reference.net, step)
        sum(balancer.loss_weights[i] * loss for i, loss in enumerate(losses)).backward(
            retain_graph=True
        )
        lgrads.append(balancer.step(losses).item())
        optimizer.step()
        optimizer.clear_grad()
        weights.append(balancer.get_weights())
    reference.assert_reproduced(weights)
    expected = reference.arrays["davell_gradnorm_loss_mean"] * reference.n_loss
    np.testing.assert_allclose(lgrads, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_weights_hold_through_ten_thousand_random_updates():
    weight = paddle.create_parameter([4], "float32")
    balancer = LossBalancer(weight, n_loss=3, alpha=1.5, weight_lr=0.1, floor=0.01)
    scales = np.random.default_rng(0).lognormal(0, 3, (10_000, 3)).astype("float32")
    for scale in paddle.to_tensor(scales):
        # Losses above zero, with gradients of every size on the parameter.
        losses = scale * (1.0 + weight.square().sum())
        balancer.backward(losses)
        weight.clear_gradient()
        weights = balancer.get_weights()
        assert np.isfinite(weights).all()
        assert (weights >= 0.01 * (1 - 1e-6)).all()
        assert weights.sum() == pytest.approx(3, abs=1e-5)


def test_first_step_uses_the_given_weights_and_later_ones_sum_to_n_loss(fc_net, make_losses):
    balancer = LossBalancer(fc_net.linears[-1], 3, 1.0, weight_attr=[2.0, 4.0, 1.0])
    losses = make_losses(fc_net)
    total = balancer.backward(losses)
    expected = sum(w * loss.item() for w, loss in zip([2, 4, 1], losses))
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert balancer.get_weights().sum() == pytest.approx(3, abs=1e-5)


def test_total_and_lgrad_hold_no_graph(fc_net, balancer, make_losses):
    assert balancer.backward(make_losses(fc_net)).stop_gradient
    losses = make_losses(fc_net)
    assert balancer.step(losses).stop_gradient


def test_warmup_grows_the_rate_linearly(fc_net, make_losses):
    moves = []
    for warmup_steps in (0, 4):
        net = copy.deepcopy(fc_net)
        balancer = LossBalancer(
            net.linears[-1].weight, 3, 1.0, weight_lr=1e-5, warmup_steps=warmup_steps, floor=1e-6
        )
        optimizer = paddle.optimizer.SGD(1e-9, parameters=net.parameters())
        weights = train(net, balancer, lambda n, seed: make_losses(n), 6, optimizer)
        moves.append(np.diff(weights, axis=0)[:, 1])
    np.testing.assert_allclose(moves[1] / moves[0], [0.25, 0.5, 0.75, 1, 1], rtol=0.02)


def test_between_updates_the_weights_rest_and_backward_is_plain(fc_net, make_losses):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, update_every=3)
    weights = train(fc_net, balancer, make_losses, 8)
    changed = (np.diff(weights, axis=0) != 0).any(axis=1)
    assert changed.tolist() == [True, False, False, True, False, False, True]

    balancer.backward(make_losses(fc_net))  # step 8, no update
    one_pass = fc_net.linears[0].weight.grad.numpy()
    fc_net.clear_gradients()
    losses = make_losses(fc_net)
    sum(float(w) * loss for w, loss in zip(balancer.get_weights(), losses)).backward()
    np.testing.assert_allclose(one_pass, fc_net.linears[0].weight.grad.numpy(), rtol=1e-4)


def test_between_updates_step_returns_the_last_lgrad(fc_net, make_losses):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, update_every=2)
    first = balancer.step(make_losses(fc_net)).item()
    assert first > 0
    assert balancer.step(make_losses(fc_net, seed=1)).item() == first
    assert balancer.step(make_losses(fc_net, seed=2)).item() != first


def test_initial_losses_are_those_of_the_first_step_until_reset(fc_net, balancer, make_losses):
    first = [loss.item() for loss in make_losses(fc_net)]
    train(fc_net, balancer, make_losses, 3)
    np.testing.assert_allclose(balancer.initial_losses.numpy(), first, rtol=1e-6)
    balancer.reset_initial_losses()
    again = make_losses(fc_net, seed=5)
    balancer.backward(again)
    np.testing.assert_allclose(
        balancer.initial_losses.numpy(), [loss.item() for loss in again], rtol=1e-6
    )


def test_a_loaded_state_continues_as_if_never_saved(fc_net, make_losses):
    def build(net):
        return LossBalancer(
            net.linears[-1].weight, 3, 1.0, weight_lr=1e-3, warmup_steps=9, update_every=2
        )

    whole = copy.deepcopy(fc_net)
    expected = train(whole, build(whole), make_losses, 8)

    first = build(fc_net)
    train(fc_net, first, make_losses, 5)
    second = build(fc_net)
    second.set_state_dict(first.state_dict())
    later = train(fc_net, second, lambda net, seed: make_losses(net, seed=seed + 5), 3)
    np.testing.assert_array_equal(later, expected[5:])


@pytest.mark.parametrize("name", ["set_state_dict", "set_dict", "load_dict"])
def test_loading_into_a_balancer_that_has_run(fc_net, balancer, make_losses, name):
    train(fc_net, balancer, make_losses, 2)
    state = {key: value.clone() for key, value in balancer.state_dict().items()}
    train(fc_net, balancer, make_losses, 3)
    getattr(balancer, name)(state)
    balancer.backward(make_losses(fc_net))
    assert int(balancer.step_count) == 3


def test_a_state_dict_of_version_0_1_loads(fc_net):
    # In which L(0) has the dtype of the weights.
    old = {
        "loss_weights": paddle.to_tensor([0.5, 1.0, 1.5]),
        "initial_losses": paddle.to_tensor([0.1, 2.0, 0.0]),
        "step_count": paddle.to_tensor(7, "int64"),
    }
    balancer = LossBalancer(fc_net, 3)
    assert balancer.set_state_dict(old) == ([], [])
    net = GradNorm(fc_net, 3)
    named = {f"balancer.{name}": value for name, value in old.items()}
    assert net.set_state_dict({**net.state_dict(), **named}) == ([], [])
    for loaded in (balancer, net.balancer):
        assert loaded.get_weights().tolist() == [0.5, 1, 1.5] and loaded.step_count.item() == 7
        assert loaded.rule_state["initial_losses"].tolist() == [np.float32(0.1), 2, 0]


def test_dict_names_do_not_depend_on_order(fc_net, make_losses):
    runs = []
    for reverse in (False, True):
        net = copy.deepcopy(fc_net)
        balancer = LossBalancer(net.linears[-1].weight, 3, 1.0)
        for step in range(3):
            losses = dict(zip(NAMES, make_losses(net, seed=step)))
            if reverse and step:
                losses = dict(reversed(losses.items()))
            balancer.backward(losses)
        runs.append(balancer.get_weights())
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("method", ["backward", "step"])
def test_norms_and_rates_are_those_of_the_last_update(fc_net, make_losses, method):
    weight = fc_net.linears[-1].weight
    balancer = LossBalancer(weight, 3, 1.0, update_every=2)
    assert np.isnan(balancer.gradient_norms).all()
    assert np.isnan(balancer.training_rates).all()
    for step in range(4):
        losses = make_losses(fc_net, seed=step)
        values = np.array([loss.item() for loss in losses])
        if step == 0:
            first = values
        if step % 2 == 0:
            norms = [paddle.grad([x], [weight], retain_graph=True)[0].norm().item() for x in losses]
            rates = values / first / (values / first).mean()
        getattr(balancer, method)(losses)
        fc_net.clear_gradients()
        np.testing.assert_allclose(balancer.gradient_norms, norms, rtol=1e-5)
        np.testing.assert_allclose(balancer.training_rates, rates, rtol=1e-5)
    assert np.ptp(rates) > 0.01
    names = {"loss_weights", "initial_losses", "missed", "step_count"}
    assert set(balancer.state_dict()) == names


# What the caller's optimizer does to the weights, and must not do.


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "Adam", "RMSProp", "Lamb"])
def test_any_optimizer_can_step_the_weights(fc_net, make_losses, optimizer):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, weight_lr=None)
    parameters = [*fc_net.parameters(), balancer.loss_weights]
    parameter = balancer.loss_weights
    kind = getattr(paddle.optimizer, optimizer)
    stepping = kind(learning_rate=1e-4, parameters=parameters)
    weights = train(fc_net, balancer, make_losses, 5, stepping)
    assert balancer.loss_weights is parameter
    assert (np.abs(np.diff(weights, axis=0)).max(axis=1) > 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 3, atol=1e-5)


def test_reading_the_weights_changes_nothing(fc_net, make_losses):
    runs = []
    for read in (False, True):
        net = copy.deepcopy(fc_net)
        balancer = LossBalancer(net.linears[-1].weight, 3, 1.0, weight_lr=None)
        optimizer = paddle.optimizer.Adam(
            1e-3, parameters=[*net.parameters(), balancer.loss_weights]
        )
        for step in range(4):
            balancer.backward(make_losses(net, seed=step))
            if read:
                balancer.get_weights(), balancer.state_dict(), balancer.loss_weights
            optimizer.step()
            optimizer.clear_grad()
            if read:
                balancer.get_weights(), balancer.state_dict(), balancer.loss_weights
        runs.append(balancer.get_weights())
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize(
    "build",
    [
        lambda p, decay: paddle.optimizer.SGD(1e-3, p, weight_decay=decay),
        lambda p, decay: paddle.optimizer.Momentum(1e-3, parameters=p, weight_decay=decay),
        lambda p, decay: paddle.optimizer.Adam(1e-3, parameters=p, weight_decay=decay),
    ],
    ids=["SGD", "Momentum", "Adam"],
)
@pytest.mark.parametrize("groups", [False, True], ids=["list", "groups"])
def test_weight_decay_leaves_the_weights_alone(build, groups):
    runs = []
    for decay in (None, 100.0):
        # Gradients that no decay of the network can reach: the weights' alone differ.
        weight = paddle.create_parameter([4], "float32", attr=frozen(1.0))
        balancer = LossBalancer(weight, 2, 0.0, weight_lr=None)
        parameters = [balancer.loss_weights]
        optimizer = build([{"params": parameters}] if groups else parameters, decay)
        for _ in range(5):
            balancer.backward([weight.sum(), 0.1 * weight.sum()])
            optimizer.step()
            optimizer.clear_grad()
        runs.append(balancer.get_weights())
    assert runs[0][0] != 1.0
    np.testing.assert_array_equal(*runs)


def test_decoupled_decay_scales_the_rate_of_the_weights_and_no_more():
    # AdamW shrinks every weight by the same factor, which renormalising undoes; what
    # is left is the step, larger by 1 / (1 - rate * decay).
    runs = []
    for rate, decay in ((1e-2, 10.0), (1e-2 / 0.9, 0.0)):
        weight = paddle.create_parameter([4], "float64", attr=frozen(1.0))
        balancer = LossBalancer(weight, 2, 0.0, weight_lr=None)
        optimizer = paddle.optimizer.AdamW(
            rate, parameters=[balancer.loss_weights], weight_decay=decay
        )
        for _ in range(5):
            balancer.backward([weight.sum(), 0.1 * weight.sum()])
            optimizer.step()
            optimizer.clear_grad()
        runs.append(balancer.get_weights())
    assert runs[0][0] < 0.95
    np.testing.assert_allclose(*runs, rtol=1e-6)


@pytest.mark.parametrize("clip", ["ClipGradByGlobalNorm", "ClipGradByNorm", "ClipGradByValue"])
def test_gradient_clipping_leaves_the_weights_alone(clip):
    runs = []
    for grad_clip in (None, getattr(paddle.nn, clip)(1e-4)):
        weight = paddle.create_parameter([4], "float32", attr=frozen(1.0))
        balancer = LossBalancer(weight, 2, 0.0, weight_lr=None)
        optimizer = paddle.optimizer.SGD(1e-2, [weight, balancer.loss_weights], grad_clip=grad_clip)
        balancer.backward([weight.sum(), 0.1 * weight.sum()])
        optimizer.step()
        runs.append(balancer.get_weights())
    assert runs[0][0] != 1.0
    np.testing.assert_array_equal(*runs)


def frozen(value):
    return paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(value), learning_rate=0.0)


def test_an_optimizer_that_holds_weights_stepped_here_leaves_them(fc_net, make_losses):
    runs = []
    for held in (False, True):
        net = copy.deepcopy(fc_net)
        balancer = LossBalancer(net.linears[-1].weight, 3, 1.0, weight_lr=1e-3)
        parameters = net.parameters() + ([balancer.loss_weights] if held else [])
        optimizer = paddle.optimizer.SGD(1e-4, parameters=parameters)
        runs.append(train(net, balancer, make_losses, 4, optimizer))
    np.testing.assert_array_equal(*runs)


def test_several_backward_passes_for_one_step_keep_the_gradient_of_the_update(fc_net, make_losses):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, weight_lr=None, update_every=2)
    optimizer = paddle.optimizer.SGD(1e-4, parameters=[balancer.loss_weights])
    moved = []
    for step in range(6):
        balancer.backward(make_losses(fc_net, seed=step))
        if step % 2:
            before = balancer.get_weights()
            optimizer.step()
            optimizer.clear_grad()
            moved.append((balancer.get_weights() != before).any())
            assert balancer.get_weights().sum() == pytest.approx(3, abs=1e-5)
    assert moved == [True] * 3


def test_between_updates_the_optimizers_momentum_does_not_move_the_weights(fc_net, make_losses):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, weight_lr=None, update_every=3)
    optimizer = paddle.optimizer.Adam(1e-2, parameters=[balancer.loss_weights])
    weights = train(fc_net, balancer, make_losses, 8, optimizer)
    changed = (np.diff(weights, axis=0) != 0).any(axis=1)
    assert changed.tolist() == [True, False, False, True, False, False, True]


def test_weights_that_nobody_steps_are_pointed_out(fc_net, make_losses, recorded_warnings):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, weight_lr=None)
    train(fc_net, balancer, make_losses, 150)
    (message,) = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    assert "no optimizer seems to step them" in message


def test_given_weights_act_once_even_if_the_optimizer_does_not_move_them(fc_net, make_losses):
    balancer = LossBalancer(
        fc_net.linears[-1].weight, 3, 1.0, weight_lr=None, weight_attr=[2.0, 4.0, 1.0]
    )
    totals = []
    for _ in range(2):
        losses = make_losses(fc_net)
        values = [loss.item() for loss in losses]
        totals.append(balancer.backward(losses).item())
    assert totals[0] == pytest.approx(np.dot([2, 4, 1], values), rel=1e-6)
    assert totals[1] == pytest.approx(np.dot([2, 4, 1], values) * 3 / 7, rel=1e-6)


def test_memory_of_a_used_loss_is_given_back(fc_net, balancer, make_losses):
    losses = make_losses(fc_net)
    balancer.backward(losses)
    assert all(loss.stop_gradient for loss in losses)  # no graph hangs on them any more
    with pytest.raises(ValueError, match="or backward\\(losses\\) has used them before"):
        balancer.backward(losses)


# An accelerator, where each copy to the host waits for all that is still computed.


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(paddle.base.core.Place, "is_cpu_place", lambda self: False)


@pytest.mark.parametrize("rule", ["pinn", "published"])
def test_an_update_makes_one_copy_to_the_host_and_other_steps_none(
    as_on_an_accelerator, monkeypatch, fc_net, make_losses, rule
):
    alpha = 1.0 if rule == "published" else None
    balancer = LossBalancer(fc_net, 3, alpha, rule=rule, update_every=2, equations=[0])
    on_host = {id(buffer) for buffer in balancer.buffers()}  # whatever the device
    train(fc_net, balancer, make_losses, 2)
    reads = []

    def recording(method):
        return lambda tensor, *args: (
            id(tensor) in on_host or reads.append(list(tensor.shape)) or method(tensor, *args)
            if id(tensor) not in on_host
            else method(tensor, *args)
        )

    for name in ("item", "numpy", "tolist", "__float__", "__int__", "__bool__", "__array__"):
        monkeypatch.setattr(paddle.Tensor, name, recording(getattr(paddle.Tensor, name)))
    balancer.backward(make_losses(fc_net))
    # The losses, the weights and the Gram matrix; before it, whether the losses of the last
    # step, which have long been computed, were finite.
    assert reads == [[3], [3 + 3 + 9]]
    reads.clear()
    balancer.backward(make_losses(fc_net))
    assert reads == []


def test_freezing_stops_the_updates_and_no_more(fc_net, make_losses):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, weight_lr=None)
    optimizer = paddle.optimizer.Adam(
        1e-3, parameters=[*fc_net.parameters(), balancer.loss_weights]
    )
    train(fc_net, balancer, make_losses, 3, optimizer)
    balancer.freeze()
    before, network = balancer.get_weights(), fc_net.linears[0].weight.numpy()
    train(fc_net, balancer, make_losses, 3, optimizer)
    np.testing.assert_array_equal(balancer.get_weights(), before)
    assert (fc_net.linears[0].weight.numpy() != network).any()
    balancer.unfreeze()
    train(fc_net, balancer, make_losses, 1, optimizer)
    assert (balancer.get_weights() != before).any()


def test_an_accelerator_gets_the_weights_of_the_host(monkeypatch, fc_net, make_losses):
    runs = []
    for accelerator in (False, True):
        net = copy.deepcopy(fc_net)
        balancer = LossBalancer(net, 3, update_every=1, equations=[0])
        with monkeypatch.context() as patch:
            if accelerator:
                patch.setattr(paddle.base.core.Place, "is_cpu_place", lambda self: False)
            train(net, balancer, make_losses, 5)
        runs.append(balancer.get_weights())
    np.testing.assert_allclose(*runs, rtol=1e-6)
    assert np.abs(runs[0] - 1).max() > 0.01


# Bad numbers.


def test_a_bad_loss_between_updates_is_reported(fc_net, make_losses, recorded_warnings):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, update_every=5)
    for step in range(4):
        losses = make_losses(fc_net)
        if step == 2:
            losses[1] = losses[1] * float("nan")
        balancer.backward(losses)
    (message,) = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    assert "step 2" in message and "'losses[1]' is nan" in message


def test_each_loss_has_the_first_value_above_zero_for_a_reference(fc_net, balancer, make_losses):
    late = make_losses(fc_net, seed=1)
    early = make_losses(fc_net)
    expected = [early[0].item(), early[1].item(), late[2].item()]
    early[2] = early[2] * 0.0
    balancer.backward(early)
    balancer.backward(late)
    np.testing.assert_allclose(balancer.initial_losses.numpy(), expected, rtol=1e-6)


def test_weights_set_by_hand_after_a_bad_step_are_kept_by_renormalize(fc_net, make_losses):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, weight_lr=None)
    losses = make_losses(fc_net)
    losses[0] = losses[0] * float("nan")
    with pytest.warns(RuntimeWarning):
        balancer.backward(losses)
    balancer.loss_weights.set_value(paddle.to_tensor([1.0, 2.0, 9.0]))
    balancer.renormalize()
    np.testing.assert_allclose(balancer.get_weights(), [0.25, 0.5, 2.25], rtol=1e-6)


@pytest.mark.parametrize("update_every", [1, 2])
def test_a_constant_loss_is_left_out_and_the_others_go_on(
    fc_net, make_losses, update_every, recorded_warnings
):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, update_every=update_every)
    for step in range(4):
        before = balancer.get_weights()
        losses = [*make_losses(fc_net, seed=step)[:2], paddle.full([], 5.0)]
        expected = np.dot(before, [loss.item() for loss in losses])
        assert balancer.backward(losses).item() == pytest.approx(expected, rel=1e-6)
        assert (fc_net.linears[0].weight.grad != 0).any()
        fc_net.clear_gradients()
        moves = [step % update_every == 0] * 2 + [False]
        assert ((balancer.get_weights() != before) == moves).all()
    (message,) = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    assert "step 0: loss 'losses[2]' has no gradient on the shared parameters" in message


@pytest.mark.parametrize("update_every", [1, 2])
def test_a_used_graph_is_explained(fc_net, make_losses, update_every):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, update_every=update_every)
    balancer.backward(make_losses(fc_net))
    losses = make_losses(fc_net)
    sum(losses).backward()
    with pytest.raises(RuntimeError, match=r"loss 'losses\[2\]' is gone, because an earlier"):
        balancer.backward(losses)


@pytest.mark.parametrize("lr", [None, 0.01], ids=["caller's Adam", "own step"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_bad_loss_is_left_out_and_reported_once(fc_net, make_losses, recorded_warnings, lr, bad):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, weight_lr=lr)
    # Adam keeps moving on its momentum when the gradient is zero.
    optimizer = paddle.optimizer.Adam(1e-2, parameters=[balancer.loss_weights])
    train(fc_net, balancer, make_losses, 3, optimizer)
    for _ in range(2):
        before = balancer.get_weights()
        fc_net.clear_gradients()
        losses = make_losses(fc_net)
        losses[1] = losses[1] * 0.0 + bad
        balancer.backward(dict(zip(NAMES, losses)))
        optimizer.step()
        optimizer.clear_grad()
        after = balancer.get_weights()
        assert after[1] == before[1] and (after[[0, 2]] != before[[0, 2]]).all()
        assert after.sum() == pytest.approx(3, abs=1e-5)
    messages = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    assert len(messages) == 1
    assert "step 3" in messages[0] and "'boundary'" in messages[0]


def test_a_loss_that_begins_with_zero_is_balanced_from_its_first_value_on(
    fc_net, balancer, make_losses, recorded_warnings
):
    for _ in range(3):
        losses = make_losses(fc_net)
        losses[2] = losses[2] * 0.0
        balancer.backward(losses)
    first, second, third = balancer.get_weights()
    assert first != 1 != second and third == 1
    messages = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    assert len(messages) == 1
    # Not in step 0, where a condition at the origin is met by a network that begins with 0 there.
    assert "step 1" in messages[0] and "'losses[2]' is 0" in messages[0]

    balancer.backward(make_losses(fc_net))
    assert balancer.get_weights()[2] != 1


def test_a_gradient_of_nan_is_reported(balancer, fc_net, make_losses, recorded_warnings):
    losses = make_losses(fc_net)
    losses[0] = losses[0] + fc_net.linears[-1].weight.sum().scale(0.0).sqrt()  # slope 0 * inf
    balancer.backward(losses)
    weights = balancer.get_weights()
    assert weights[0] == 1 and (weights[1:] != 1).all()
    (message,) = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    assert "'losses[0]' has a gradient of norm nan" in message


def test_resetting_the_reference_reports_again(fc_net, balancer, make_losses, recorded_warnings):
    for _ in range(2):
        losses = make_losses(fc_net)
        losses[0] = losses[0] * float("nan")
        balancer.backward(losses)
        balancer.reset_initial_losses()
    assert sum(w.category is RuntimeWarning for w in recorded_warnings) == 2


def test_a_rule_that_never_has_enough_losses_says_so(fc_net, make_losses, recorded_warnings):
    options = {"absent": "skip", "update_every": 1, "equations": ["pde"]}
    for rule, expected in (("relobralo", 1), ("pinn", 0)):
        recorded_warnings.clear()
        balancer = LossBalancer(fc_net, 2, rule=rule, **options)
        for step in range(60):
            losses = dict(zip(NAMES, make_losses(fc_net, seed=step)))
            name = ("pde", "boundary")[step % 2]
            balancer.backward({name: losses[name]})
        told = [str(w.message) for w in recorded_warnings if "too few losses" in str(w.message)]
        assert len(told) == expected
        assert all("it needs 2 in one step, so the weights rest. Give" in text for text in told)


def test_an_equation_that_never_comes_is_a_finding(fc_net, make_losses):
    balancer = LossBalancer(fc_net, 3, equations=["pde"], absent="skip", update_every=1)
    losses = make_losses(fc_net)
    balancer.backward({"residuum": losses[0], "boundary": losses[1]})
    (finding,) = [text for text in balancer.diagnose() if "Check the spelling" in text]
    assert finding.startswith("equations names 'pde', but the losses so far are 'residuum', 'bou")
    complete = LossBalancer(fc_net, 3, equations=["pde"], absent="skip", update_every=1)
    complete.backward(dict(zip(NAMES, make_losses(fc_net))))
    assert not any("Check the spelling" in text for text in complete.diagnose())


@pytest.mark.parametrize(
    "scale, error", [(0, ValueError), (np.nan, ValueError), ("a", TypeError), (None, TypeError)]
)
def test_a_scale_that_is_none_is_named(fc_net, make_losses, scale, error):
    balancer = LossBalancer(fc_net, 3, equations=["pde"])
    with pytest.raises(error, match=f"^scale must be .*, got {scale!r}"):
        balancer.backward(dict(zip(NAMES, make_losses(fc_net))), scale=scale)


# What says which rule runs.


def test_one_line_is_logged_on_the_first_update(fc_net, make_losses, caplog):
    balancer = LossBalancer(fc_net, 3, equations=["pde"], update_every=2)
    with caplog.at_level("INFO", "paddlescience_gradnorm"):
        for step in range(4):
            balancer.backward(dict(zip(NAMES, make_losses(fc_net, seed=step))))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("loss weights by PinnRule(), updated every 2 steps: ")
    assert line.endswith(
        "equations 'pde' keep weights near 1; conditions 'boundary', 'data' get a lead of 20 from "
        "the start, weights up to 1000 (pass total_steps=, the number of steps, for a lead at the "
        "right time)"
    )


def test_the_length_of_the_run_is_given_to_the_rule_and_said(fc_net, make_losses, caplog):
    balancer = LossBalancer(fc_net, 3, equations=["pde"], update_every=2, total_steps=5)
    seen = [balancer.last_measurement.progress]
    with caplog.at_level("INFO", "paddlescience_gradnorm"):
        for step in range(7):
            balancer.backward(dict(zip(NAMES, make_losses(fc_net, seed=step))))
            seen.append(balancer.last_measurement.progress)
    np.testing.assert_array_equal(seen, [np.nan, 0, 0, 0.4, 0.4, 0.8, 0.8, 1])
    (line,) = caplog.messages
    of_data = "'data': a lead of 20 from the start, taken back if it is noise that is left"
    assert f"a lead of 20 that grows between steps 0 and 2 ({of_data}), weights" in line
    assert LossBalancer(fc_net, 3).total_steps is None


def test_a_run_that_gets_longer_says_again_when_the_lead_comes(fc_net, make_losses, caplog):
    balancer = LossBalancer(fc_net, 3, equations=["pde"], update_every=2)
    with caplog.at_level("INFO", "paddlescience_gradnorm"):
        for left in (10, 9, 49, 48):  # the second and the last change nothing
            balancer._expect_steps(left)
            balancer.backward(dict(zip(NAMES, make_losses(fc_net))))
    first, second = caplog.messages
    assert "between steps 0 and 5 " in first and second.startswith("the run has 51 steps now: loss")
    assert "between steps 0 and 26 " in second


@pytest.mark.parametrize(
    "total_steps, error, match",
    [(0, ValueError, "total_steps must be .* 1, got 0"), (1.5, TypeError, "total_steps .* 1.5")],
)
def test_a_number_of_steps_that_is_none_is_named(fc_net, total_steps, error, match):
    with pytest.raises(error, match=match):
        LossBalancer(fc_net, total_steps=total_steps)


def test_the_line_has_the_options_that_somebody_has_chosen(fc_net, make_losses, caplog):
    with caplog.at_level("INFO", "paddlescience_gradnorm"):
        LossBalancer(fc_net, 3, rule=PinnRule(lead=5.0, met=0.1), equations=[0]).backward(
            make_losses(fc_net)
        )
    assert caplog.messages[0].startswith("loss weights by PinnRule(lead=5.0, met=0.1), updated")


def test_the_line_promises_no_lead_where_there_is_none(fc_net, make_losses, caplog):
    with caplog.at_level("INFO", "paddlescience_gradnorm"):
        LossBalancer(fc_net).backward(dict(zip(["left", "right", "top"], make_losses(fc_net))))
    assert caplog.messages[0].endswith("every 10 steps: conditions 'left', 'right', 'top'")


def test_repr_shows_rule_and_options(fc_net):
    balancer = LossBalancer(fc_net, 3, equations=[1], weight_lr=0.5)
    assert repr(balancer) == (
        f"LossBalancer(rule={PinnRule()}, n_loss=3, equations=[1], weight_lr=0.5, "
        "update_every=10, floor=0.001)"
    )


def test_repr_shows_the_weights_by_name_after_the_first_step(fc_net, make_losses):
    balancer = LossBalancer(fc_net, weight_attr=[1.0, 20.0, 0.125], update_every=100)
    assert "weights" not in repr(balancer)
    balancer.backward(dict(zip(["pde", "bc", "data"], make_losses(fc_net))))
    shown = [f"{name} {w:.3g}" for name, w in zip(["pde", "bc", "data"], balancer.get_weights())]
    assert repr(balancer).endswith(f", floor=0.001, weights: {', '.join(shown)})")


def test_weights_of_a_rule_without_a_sum_are_taken_as_given(fc_net):
    balancer = LossBalancer(fc_net, 3, weight_attr=[100.0, 0.01, 1.0])
    np.testing.assert_allclose(balancer.get_weights(), [100, 0.01, 1], rtol=1e-6)
    balancer.renormalize()
    np.testing.assert_allclose(balancer.get_weights(), [100, 0.01, 1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"has a weight of 0\.0001, below the floor"):
        LossBalancer(fc_net, 3, weight_attr=[1.0, 1e-4, 1.0])


def test_a_bound_that_the_floor_cuts_is_said(fc_net):
    with pytest.warns(UserWarning, match=r"bound is 1e\+06, but no weight falls below the floor"):
        LossBalancer(fc_net, 3, rule=PinnRule(bound=1e6))


@pytest.mark.parametrize(
    "option, message",
    [
        ("residuals", "LossBalancer has no option 'residuals', which is called 'equations' now"),
        ("lr", "LossBalancer has no option 'lr', which is called 'weight_lr' now"),
        ("update_evry", "did you mean 'update_every'"),
    ],
)
def test_an_option_that_there_is_not_names_the_one_that_there_is(fc_net, option, message):
    for build in (LossBalancer, GradNorm):
        with pytest.raises(TypeError, match=message):
            build(fc_net, 3, **{option: 1})


# Bad arguments.


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"n_loss": 1}, ValueError, "n_loss must be at least 2, got 1"),
        ({"n_loss": 2.5}, TypeError, "n_loss must be an integer, got 2.5"),
        ({"n_loss": True}, TypeError, "n_loss must be an integer, got True"),
        ({"alpha": -1.0}, ValueError, "alpha .* got -1.0"),
        ({"alpha": float("nan")}, ValueError, "alpha .* got nan"),
        ({"weight_lr": 0.0}, ValueError, "weight_lr .* got 0.0"),
        ({"weight_lr": float("inf")}, ValueError, "weight_lr .* got inf"),
        ({"weight_lr": "fast"}, TypeError, "weight_lr must be a number, got 'fast'"),
        (
            {"weight_lr": None, "warmup_steps": 3},
            ValueError,
            "warmup_steps is 3, but weight_lr is None",
        ),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be at least 0, got -1"),
        ({"update_every": 0}, ValueError, "update_every must be at least 1, got 0"),
        ({"floor": 0.0}, ValueError, "floor .* got 0.0"),
        ({"floor": 1.0}, ValueError, "floor .* got 1.0"),
        ({"weight_attr": [1.0, 1.0]}, ValueError, r"weight_attr .* 3 entries, got \[1.0, 1.0\]"),
        ({"weight_attr": [1.0, 0.0, 1.0]}, ValueError, "weight_attr must be positive"),
        ({"weight_attr": [1.0, float("nan"), 1.0]}, ValueError, "weight_attr must be positive"),
        ({"weight_attr": [1.0, 1e-6, 1.0]}, ValueError, "below the floor of 0.001"),
        (
            {"weight_attr": "abc"},
            TypeError,
            "weight_attr must be a sequence of numbers, one for each",
        ),
        ({"shared": []}, ValueError, r"shared holds no trainable parameter, got \[\]"),
        ({"shared": paddle.nn.Tanh()}, ValueError, "shared holds no trainable parameter"),
        ({"shared": paddle.ones([2])}, ValueError, "shared holds no trainable parameter"),
        ({"shared": ["weight"]}, TypeError, "shared must be .* got str 'weight'"),
    ],
)
def test_bad_arguments_are_named(fc_net, arguments, error, match):
    defaults = {"shared": fc_net.linears[-1].weight, "n_loss": 3, "alpha": 1.0}
    with pytest.raises(error, match=match):
        LossBalancer(**{**defaults, **arguments})


def test_shared_may_be_parameters_and_layers_and_counts_each_once(fc_net):
    last = fc_net.linears[-1]
    balancer = LossBalancer([last, last.weight, fc_net.linears[0].bias], 2, 1.0)
    assert [id(p) for p in balancer.shared] == [
        id(last.weight),
        id(last.bias),
        id(fc_net.linears[0].bias),
    ]


@pytest.mark.parametrize("dtype, expected", [("float64", "float64"), ("bfloat16", "float32")])
def test_weights_are_as_precise_as_the_shared_parameters_and_never_half(dtype, expected):
    weight = paddle.create_parameter([3], "float32").astype(dtype)
    weight.stop_gradient = False
    balancer = LossBalancer(weight, 2, 1.0)
    assert balancer.get_weights().dtype == expected


@pytest.fixture
def accumulating(float64):
    """Weights and L(0) of a run whose every step is spread over some micro-batches."""

    def run(micro_batches, scale=1.0, take_back=False, shared="last", **options):
        paddle.seed(0)
        net = FCNet(num_ins=2, num_outs=1, num_layers=3, hidden_size=8)
        which = net if shared == "all" else net.linears[-1].weight
        balancer = LossBalancer(which, n_loss=2, alpha=1.0, **options)
        parameters = net.parameters() + (
            [balancer.loss_weights] if balancer.weight_lr is None else []
        )
        optimizer = paddle.optimizer.Momentum(1e-4 / scale, parameters=parameters)
        rng = np.random.default_rng(0)
        weights = []
        for _ in range(5):
            points = paddle.to_tensor(rng.random((2, 12, 2)))
            for i in range(micro_batches):
                inside, edge = points[:, i::micro_batches]
                losses = [(net(inside) - 1).square().mean(), 9 * (net(edge) + 1).square().mean()]
                last = i == micro_batches - 1
                if take_back and i > 0:
                    balancer.take_back()
                balancer.backward(losses, update=last or take_back, scale=scale / micro_batches)
            optimizer.step()
            optimizer.clear_grad()
            weights.append(balancer.get_weights())
        return np.array(weights), balancer

    return run


@pytest.mark.parametrize(
    "options",
    [
        {"weight_lr": 1e-3},
        {"weight_lr": None},
        {"weight_lr": 1e-3, "shared": "all"},
        {"weight_lr": 1e-3, "update_every": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("take_back", [False, True], ids=["update=False", "take_back"])
def test_micro_batches_give_the_weights_of_the_whole_batch(accumulating, options, take_back):
    expected, whole = accumulating(1, **options)
    assert np.abs(np.diff(expected, axis=0)).max() > 1e-4
    weights, balancer = accumulating(3, take_back=take_back, **options)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(balancer.initial_losses, whole.initial_losses, rtol=1e-12)
    np.testing.assert_allclose(balancer.cosines, whole.cosines, rtol=1e-12)
    assert balancer.step_count.item() == 5


def test_scale_multiplies_the_gradients_and_leaves_the_balancing_alone(accumulating):
    expected, whole = accumulating(1, weight_lr=1e-3)
    weights, balancer = accumulating(1, scale=1024.0, weight_lr=1e-3)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(balancer.gradient_norms, whole.gradient_norms, rtol=1e-12)


def test_a_step_is_taken_back_once_and_only_with_a_scale(fc_net, balancer, make_losses):
    balancer.backward(make_losses(fc_net))
    with pytest.raises(RuntimeError, match="no step to take back"):
        balancer.take_back()
    before = balancer.get_weights()
    balancer.backward(make_losses(fc_net, seed=1), scale=0.5)
    assert (balancer.get_weights() != before).any()
    balancer.take_back()
    assert (balancer.get_weights() == before).all()
    with pytest.raises(RuntimeError, match="no step to take back"):
        balancer.take_back()


def test_a_step_in_somebodys_loop_leaves_nothing_to_take_back(fc_net, balancer, make_losses):
    balancer.backward(make_losses(fc_net), scale=0.5)
    losses = make_losses(fc_net, seed=1)
    sum(losses).backward(retain_graph=True)
    balancer.step(losses)
    before, step = balancer.get_weights(), balancer.step_count.item()
    with pytest.raises(RuntimeError, match="no step to take back"):
        balancer.take_back()
    assert (balancer.get_weights() == before).all() and balancer.step_count.item() == step == 2


def test_a_step_between_micro_batches_is_refused(fc_net, balancer, make_losses):
    balancer.backward(make_losses(fc_net), update=False, scale=0.5)
    with pytest.raises(RuntimeError, match="between the micro-batches"):
        balancer.step(make_losses(fc_net))


def test_micro_batches_of_a_step_that_is_left_can_be_discarded(fc_net, balancer, make_losses):
    state = {name: value.clone() for name, value in balancer.state_dict().items()}
    for forget in (balancer.discard_micro_batches, lambda: balancer.set_state_dict(state)):
        balancer.backward([100 * loss for loss in make_losses(fc_net)], update=False)
        forget()
        fc_net.clear_gradients()
        losses = make_losses(fc_net, seed=1)
        values = [loss.item() for loss in losses]
        balancer.backward(losses)
        np.testing.assert_allclose(balancer.last_measurement.losses, values, rtol=1e-6)


def test_a_loaded_state_is_not_undone(fc_net, balancer, make_losses):
    state = {name: value.clone() for name, value in balancer.state_dict().items()}
    for seed in range(3):
        balancer.backward(make_losses(fc_net, seed=seed), scale=0.5)
    balancer.set_state_dict(state)
    with pytest.raises(RuntimeError, match="no step to take back"):
        balancer.take_back()
    assert balancer.step_count.item() == 0 and (balancer.get_weights() == 1).all()


@pytest.mark.parametrize("form", ["tensor", "shape [1]"])
@pytest.mark.parametrize("way", ["last", "all"])
def test_every_form_of_losses_works_without_gradients_switched_on(fc_net, make_losses, form, way):
    weights = []
    for given in ("list", form):
        net = copy.deepcopy(fc_net)
        shared = net if way == "all" else net.get_last_shared_layer()
        balancer = LossBalancer(shared, 3, 1.0, weight_lr=1e-3)
        losses = make_losses(net)
        if given == "tensor":
            losses = paddle.stack(losses)
        elif given == "shape [1]":
            losses = [loss.reshape([1]) for loss in losses]
        with paddle.no_grad():
            balancer.backward(losses)
        weights.append(balancer.get_weights())
    np.testing.assert_allclose(*weights, rtol=1e-5)


def test_a_loss_without_a_graph_is_left_out_from_the_first_step(fc_net, balancer, make_losses):
    losses = dict(zip(NAMES, make_losses(fc_net)))
    losses["boundary"] = losses["boundary"].detach()
    with pytest.warns(RuntimeWarning, match="step 0: loss 'boundary' has no gradient on the"):
        balancer.backward(losses)
    assert ((balancer.get_weights() != 1) == [True, False, True]).all()


def test_of_a_graph_made_before_the_loop_the_guilty_loss_is_named(fc_net):
    x = paddle.rand([8, 2])
    x.stop_gradient = False
    source = x.sin().sum(axis=1, keepdim=True)  # it has a graph, because x needs gradients
    balancer = LossBalancer(fc_net, equations=["pde"])

    def losses():
        return {"pde": (fc_net(x) + source).square().mean(), "bc": fc_net(x.detach()).abs().mean()}

    balancer.backward(losses())
    with pytest.raises(RuntimeError, match=r"graph of loss 'pde' is gone.*once, before the loop"):
        balancer.backward(losses())


def test_a_conversion_keeps_counts_and_references(fc_net, make_losses):
    balancer = LossBalancer(fc_net, 3, equations=[0])
    balancer.backward(make_losses(fc_net))
    before = balancer.rule_state["initial_losses"]
    for convert in (balancer.to, balancer.astype):
        convert(dtype="float32")
        assert balancer.step_count.dtype == paddle.int64 and balancer.step_count.item() == 1
        assert (balancer.rule_state["initial_losses"] == before).all()


def test_reading_attributes_changes_nothing(fc_net, make_losses):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, weight_lr=None)
    sgd = paddle.optimizer.SGD(1e-3, parameters=[balancer.loss_weights])
    balancer.backward(make_losses(fc_net))
    sgd.step()
    stepped = balancer.loss_weights.numpy()
    assert stepped.sum() != pytest.approx(3, abs=1e-5)
    for name in dir(balancer):
        if not name.startswith("_"):
            getattr(balancer, name, None)
    assert (balancer.loss_weights.numpy() == stepped).all()
    np.testing.assert_allclose(balancer.get_weights().sum(), 3, rtol=1e-6)


@pytest.mark.parametrize("update_every", [1, 2])
def test_losses_are_detached_on_every_kind_of_step(fc_net, make_losses, update_every):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0, update_every=update_every)
    for step, options in enumerate([{}, {}, {"update": False}, {"scale": 0.5}]):
        losses = make_losses(fc_net, seed=step)
        balancer.backward(losses, **options)
        assert all(loss.stop_gradient for loss in losses)


def test_an_overflow_of_scaled_gradients_leaves_the_weights(fc_net, balancer, make_losses):
    with pytest.warns(RuntimeWarning, match="'losses\\[1\\]' has a gradient of norm (inf|nan)"):
        balancer.backward(make_losses(fc_net), scale=1e38)
    assert (balancer.get_weights() == 1).all()


def test_gradient_norms_are_those_of_the_unweighted_losses(fc_net, make_losses):
    weight = fc_net.linears[-1].weight
    balancer = LossBalancer(weight, 3, 1.0, weight_attr=[0.5, 2.0, 0.25])
    assert np.isnan(balancer.gradient_norms).all()
    balancer.backward(make_losses(fc_net))
    expected = [
        np.linalg.norm(paddle.grad(loss, weight)[0].numpy()) for loss in make_losses(fc_net)
    ]
    np.testing.assert_allclose(balancer.gradient_norms, expected, rtol=1e-5)


def test_cosines_are_of_the_gradients_of_the_last_update(fc_net, make_losses):
    shared = [fc_net.linears[1].weight, fc_net.linears[-1].weight]
    balancer = LossBalancer(shared, 3, 1.0, weight_attr=[0.5, 2.0, 0.25], update_every=2)
    assert balancer.cosines.shape == (3, 3) and np.isnan(balancer.cosines).all()
    rows = []
    for loss in make_losses(fc_net):
        gradients = paddle.grad(loss, shared)
        rows.append(np.concatenate([g.numpy().ravel() for g in gradients]))
    directions = np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
    for seed in (0, 1):  # the second is no update
        balancer.backward(make_losses(fc_net, seed=seed))
        np.testing.assert_allclose(balancer.cosines, directions @ directions.T, atol=1e-5)
    nothing = 0 * make_losses(fc_net)[2]
    with pytest.warns(RuntimeWarning, match="'losses\\[2\\]' is 0"):
        balancer.backward([*make_losses(fc_net)[:2], nothing])
    np.testing.assert_allclose(np.diagonal(balancer.cosines), [1, 1, 0], rtol=1e-6)


def test_the_pinn_rule_goes_at_one_pace_however_seldom_it_is_updated(fc_net, make_losses):
    weights = {}
    for every in (1, 10, 50):
        balancer = LossBalancer(fc_net, 3, weight_lr=1e-4, update_every=every, equations=[0])
        for _ in range(every * (50 // every)):
            balancer.backward(make_losses(fc_net))
            fc_net.clear_gradients()
        weights[every] = np.log(balancer.get_weights())
    assert np.abs(weights[1]).max() > 4e-3
    np.testing.assert_allclose(weights[10], weights[1], rtol=0.02)
    np.testing.assert_allclose(weights[50], weights[1], rtol=0.02)


def test_between_its_updates_the_pinn_rule_is_a_plain_backward(fc_net, make_losses):
    balancer = LossBalancer(fc_net, 3, equations=[0])
    assert balancer.update_every == 10 and LossBalancer(fc_net, 3, 1.0).update_every == 1
    moved = []
    for step in range(12):
        before = balancer.get_weights()
        balancer.backward(make_losses(fc_net, seed=step))
        fc_net.clear_gradients()
        moved.append((balancer.get_weights() != before).any())
    assert moved == [step % 10 == 0 for step in range(12)]


def test_without_alpha_the_rule_is_made_for_pinns_and_with_it_the_papers(fc_net):
    weight = fc_net.get_last_shared_layer()
    assert LossBalancer(weight, 3).rule == PinnRule()
    assert LossBalancer(weight, 3, alpha=0.5).rule == GradNormRule(0.5)
    assert LossBalancer(weight, 3, alpha=0.5, rule="pinn").alpha == 0.5


@pytest.mark.parametrize("method", ["backward", "step"])
def test_the_pinn_rule_steps_by_what_was_measured(fc_net, make_losses, method):
    weight, names = fc_net.get_last_shared_layer(), ["data", "pde", "boundary"]
    rule = PinnRule(memory=0.5)
    balancer = LossBalancer(weight, 3, weight_lr=0.02, rule=rule, equations=["pde"], update_every=1)
    references = np.zeros(3)
    for step in range(5):
        before, state = balancer.get_weights().astype("float64"), balancer.rule_state
        losses = dict(zip(names, make_losses(fc_net, seed=step)))
        values = np.array([loss.item() for loss in losses.values()])
        gradients = [
            paddle.grad([loss], [weight], retain_graph=True)[0].numpy().ravel().astype("float64")
            for loss in losses.values()
        ]
        if method == "step":
            (balancer.loss_weights * paddle.stack(list(losses.values()))).sum().backward(
                retain_graph=True
            )
        getattr(balancer, method)(losses)
        references = values if step == 0 else (references + values) / 2
        np.testing.assert_allclose(balancer.initial_losses.numpy(), references, rtol=1e-12)
        measured = Measurement(
            values,
            np.array([[a @ b for b in gradients] for a in gradients]),
            equations=np.array([False, True, False]),
            rate=0.02,
        )
        expected, _ = rule.weigh(before, state, measured)
        np.testing.assert_allclose(balancer.get_weights(), expected, rtol=1e-6)
    assert not np.allclose(balancer.get_weights(), 1, atol=1e-2)


def test_a_loaded_state_continues_the_pinn_rule_as_if_never_saved(fc_net, make_losses):
    weight = fc_net.get_last_shared_layer()
    balancer = LossBalancer(weight, 3, equations=[0])
    train(fc_net, balancer, make_losses, 5)
    state = copy.deepcopy(balancer.state_dict())
    fresh = LossBalancer(weight, 3, equations=[0])
    fresh.set_state_dict(state)
    for each in (balancer, fresh):
        each.backward(make_losses(fc_net, seed=9))
    assert (balancer.get_weights() == fresh.get_weights()).all()
    assert (balancer.initial_losses == fresh.initial_losses).all()


def test_a_loss_named_twice_among_the_equations_counts_once(fc_net, make_losses):
    weights = []
    for equations in (["pde", "boundary"], ["pde", 0, "boundary", 1]):
        balancer = LossBalancer(fc_net, 3, equations=equations, update_every=1)
        for step in range(3):
            balancer.backward(dict(zip(NAMES, make_losses(fc_net, seed=step))))
            fc_net.clear_gradients()
        weights.append(balancer.get_weights())
    assert (weights[0] == weights[1]).all()


def test_equations_that_cannot_be_are_named(fc_net, make_losses):
    weight = fc_net.get_last_shared_layer()
    with pytest.raises(ValueError, match="equations has 3, but n_loss is 3"):
        LossBalancer(weight, 3, equations=[3])
    with pytest.raises(TypeError, match=r"equations must be a list .* got 'pde'"):
        LossBalancer(weight, 3, equations="pde")
    balancer = LossBalancer(weight, 3, equations=["pdf"])
    losses = dict(zip(NAMES, make_losses(fc_net)))
    with pytest.raises(
        ValueError, match=r"names 'pdf', but there is no such loss.*did you mean 'pde'"
    ):
        balancer.backward(losses)


def test_no_optimizer_can_step_the_pinn_rule(fc_net):
    with pytest.raises(ValueError, match=r"weight_lr is None, but PinnRule.* pass a rate"):
        LossBalancer(fc_net.get_last_shared_layer(), 3, weight_lr=None)


@pytest.mark.parametrize("method", ["backward", "step"])
@pytest.mark.parametrize("share", [False, True], ids=["disjoint", "shared graph"])
def test_a_diagnosis_finds_gradients_that_are_parallel(fc_net, make_losses, method, share):
    weight = fc_net.get_last_shared_layer()
    balancer = LossBalancer(weight, 3, equations=["pde"])
    with pytest.raises(RuntimeError, match="nothing to diagnose yet"):
        balancer.diagnose()
    pde, *_ = make_losses(fc_net, share)
    losses = {"pde": pde, "twice": 2 * pde, "against": 3.0 - pde}
    if method == "step":
        sum(losses.values()).backward(retain_graph=True)
    getattr(balancer, method)(losses)
    (finding,) = balancer.diagnose()
    assert finding.startswith("The gradients of all losses are parallel.")
    again = copy.deepcopy(balancer)
    assert again.get_weights().tolist() == balancer.get_weights().tolist()


def test_a_diagnosis_finds_a_weight_at_its_floor(fc_net, make_losses):
    weight = fc_net.get_last_shared_layer()
    balancer = LossBalancer(weight, 3, alpha=0.0, weight_lr=1e-4, floor=0.5)
    for _ in range(20):
        balancer.backward(dict(zip(NAMES, make_losses(fc_net))))
    (finding,) = balancer.diagnose()
    assert finding.startswith("The weight of 'boundary' is at its floor of 0.5")


# Which losses are equations.


def test_names_that_leave_no_doubt_tell_the_equations(fc_net, make_losses):
    weights = {}
    for order in (["pde", "boundary", "data"], ["data", "boundary", "pde"]):
        balancer = LossBalancer(fc_net, update_every=1)
        losses = dict(zip(NAMES, make_losses(fc_net)))
        balancer.backward({name: losses[name] for name in order})
        weights[order[0]] = dict(zip(order, balancer.get_weights()))
        fc_net.clear_gradients()
    assert weights["pde"] == weights["data"]
    assert weights["pde"]["pde"] == 1 < weights["pde"]["boundary"]


def test_names_in_doubt_are_an_error_before_any_backward(fc_net, make_losses):
    balancer = LossBalancer(fc_net, 3)
    losses = dict(zip(["laplace", "u", "edge"], make_losses(fc_net)))
    with pytest.raises(ValueError) as error:
        balancer.backward(losses)
    assert "the names do not tell which 'u' is" in str(error.value)
    assert "Pass equations=['laplace'], with those of ['u'] added" in str(error.value)
    with pytest.raises(ValueError, match="losses in a list have no names"):
        LossBalancer(fc_net, 3).backward(list(losses.values()))
    with pytest.raises(ValueError, match=r"no such loss.* did you mean 'laplace'"):
        LossBalancer(fc_net, 3, equations=["laplac"]).backward(losses)
    assert all(p.grad is None for p in fc_net.parameters())
    assert not any(loss.stop_gradient for loss in losses.values())
    # A rule that makes no difference never asks.
    LossBalancer(fc_net, 3, alpha=1.0).backward(losses)


def test_losses_that_know_their_equations_need_not_be_asked(fc_net, make_losses):
    losses = NamedLosses(dict(zip("abc", make_losses(fc_net))), equations=["b"])
    balancer = LossBalancer(fc_net)
    balancer.backward(losses)
    assert balancer.last_measurement.equations.tolist() == [False, True, False]


# Losses that are empty, absent, or join later.


def loss(net, size=1.0):
    return (size * net(paddle.ones([4, 2]))).square().mean()


# Paddle 2.6 has no sum over nothing.
EMPTY_BATCH = [] if paddle.__version__.startswith("2.") else ["empty batch"]


@pytest.mark.parametrize("absent", ["zero", *EMPTY_BATCH, "nan", "left out"])
@pytest.mark.parametrize("every, lacks", [(10, 10), (10, 2), (5, 5), (1, 3)])
def test_an_update_that_finds_a_loss_empty_is_made_up_for(
    fc_net, every, lacks, absent, recorded_warnings
):
    empty = {
        "zero": lambda: 0 * loss(fc_net),
        "empty batch": lambda: (fc_net(paddle.ones([4, 2])) - 3)[:0].sum(),
        "nan": lambda: loss(fc_net) * float("nan"),
    }

    def weights(is_empty):
        balancer = LossBalancer(fc_net, 2, update_every=every, absent="skip", weight_lr=1e-3)
        for step in range(6 * every):
            losses = {"pde": loss(fc_net, 10.0), "data": loss(fc_net)}
            if is_empty(step) and absent == "left out":
                del losses["data"]
            elif is_empty(step):
                losses["data"] = empty[absent]()
            balancer.backward(losses)
            fc_net.clear_gradients()
        return balancer.get_weights()

    always, lacking = weights(lambda step: False), weights(lambda step: step % lacks == 0)
    if every > 1:
        np.testing.assert_array_equal(lacking, always)
    assert lacking[1] > 1
    assert not any(w.category is RuntimeWarning for w in recorded_warnings) or absent != "left out"


def test_making_up_for_an_update_moves_the_missed_weight_only(fc_net):
    balancer = LossBalancer(fc_net, 3, update_every=4)
    moved = []
    for step in range(8):
        before = balancer.get_weights()
        data = loss(fc_net, 3.0) if step % 4 > 1 else 0 * loss(fc_net)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            balancer.backward({"pde": loss(fc_net, 9.0), "bc": loss(fc_net), "data": data})
        fc_net.clear_gradients()
        moved.append((balancer.get_weights() != before).tolist())
    assert [m[1] for m in moved] == [True, False, False, False] * 2
    assert [m[2] for m in moved] == [False, False, True, False] * 2
    assert balancer.missed.tolist() == [0, 0, 0]


def test_a_loss_that_stays_empty_costs_no_measurement_between_updates(fc_net, monkeypatch):
    calls = []
    measured = _one_pass.measured
    monkeypatch.setattr(_one_pass, "measured", lambda *a: calls.append(1) or measured(*a))
    balancer = LossBalancer(fc_net, 2, update_every=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(10):
            balancer.backward({"pde": loss(fc_net), "bc": 0 * loss(fc_net)})
            fc_net.clear_gradients()
    assert len(calls) == 2 and balancer.missed.tolist() == [0, 1]


def test_what_is_missed_is_part_of_the_state(fc_net):
    def balancer():
        return LossBalancer(fc_net, 2, update_every=5, absent="skip")

    first = balancer()
    first.backward({"pde": loss(fc_net), "bc": loss(fc_net)})
    for _ in range(5):
        first.backward({"pde": loss(fc_net)})
    second = balancer()
    second.set_state_dict(copy.deepcopy(first.state_dict()))
    assert second.missed.tolist() == [0, 1]
    for each in (first, second):
        each.backward({"pde": loss(fc_net), "bc": loss(fc_net)})
    assert first.get_weights().tolist() == second.get_weights().tolist()
    assert first.missed.tolist() == second.missed.tolist() == [0, 0]


def test_equation_and_condition_may_come_in_turns(fc_net):
    balancer = LossBalancer(fc_net, 2, absent="skip")
    for step in range(400):
        losses = {"pde": loss(fc_net, 10.0)} if step % 2 else {"bc": loss(fc_net)}
        balancer.backward(losses)
        fc_net.clear_gradients()
    together = LossBalancer(fc_net, 2)
    for _ in range(400):
        together.backward({"pde": loss(fc_net, 10.0), "bc": loss(fc_net)})
        fc_net.clear_gradients()
    # The first update knows no equation yet.
    np.testing.assert_allclose(
        np.log(balancer.get_weights())[0], np.log(together.get_weights())[1], rtol=0.05
    )
    assert balancer.get_weights()[1] == 1


def test_a_loss_may_join_later_if_that_is_allowed(fc_net, caplog):
    balancer = LossBalancer(fc_net, 3, absent="skip", update_every=1)
    with caplog.at_level("INFO", "paddlescience_gradnorm"):
        balancer.backward({"pde": loss(fc_net), "bc": loss(fc_net, 2.0)})
        assert balancer.get_weights()[2] == 1
        balancer.backward({"data": loss(fc_net, 3.0), "pde": loss(fc_net), "bc": loss(fc_net)})
    assert balancer.get_weights()[2] > 1
    assert "'bc' get" in caplog.messages[0] and "'bc', 'data' get" in caplog.messages[1]
    with pytest.raises(ValueError, match=r"these are 4 losses \(did you mean 'data' by 'dta'\?\)"):
        balancer.backward({"dta": loss(fc_net), "pde": loss(fc_net)})
    with pytest.raises(ValueError, match='may be absent from a step, pass absent="skip"'):
        strict = LossBalancer(fc_net, 2)
        strict.backward({"pde": loss(fc_net), "bc": loss(fc_net)})
        strict.backward({"pde": loss(fc_net)})
    with pytest.raises(ValueError, match="absent must be 'error' or 'skip', got 'maybe'"):
        LossBalancer(fc_net, 2, absent="maybe")


def test_equations_may_name_a_loss_that_joins_later(fc_net):
    balancer = LossBalancer(fc_net, 3, absent="skip", equations=["pde", "flow"])
    balancer.backward({"pde": loss(fc_net), "bc": loss(fc_net)})
    balancer.backward({"pde": loss(fc_net), "bc": loss(fc_net), "flow": loss(fc_net)})
    balancer = LossBalancer(fc_net, 3, absent="skip", equations=["pde", "flow"])
    balancer.backward({"pde": loss(fc_net), "bc": loss(fc_net)})
    with pytest.raises(ValueError, match="equations names 'flow'"):
        balancer.backward({"pde": loss(fc_net), "bc": loss(fc_net), "flux": loss(fc_net)})


def test_all_micro_batches_of_a_step_make_up_for_an_update_or_none(fc_net):
    balancer = LossBalancer(fc_net, 2, absent="skip", update_every=10)
    balancer.backward({"pde": loss(fc_net), "bc": loss(fc_net)})
    balancer.missed.set_value(paddle.to_tensor([0, 1]))
    before = balancer.get_weights()
    # The first micro-batch lacks the loss, so this step is not measured at all.
    balancer.backward({"pde": loss(fc_net)}, update=False, scale=0.5)
    balancer.backward({"pde": loss(fc_net), "bc": loss(fc_net)}, scale=0.5)
    assert balancer.get_weights().tolist() == before.tolist()
    # The first one has it, so both are.
    balancer.backward({"pde": loss(fc_net), "bc": loss(fc_net)}, update=False, scale=0.5)
    balancer.backward({"pde": loss(fc_net)}, scale=0.5)
    assert balancer.get_weights()[1] > before[1] and balancer.missed.tolist() == [0, 0]
    assert balancer.last_measurement.step == 2


@pytest.mark.parametrize("part", [0, 1])
def test_a_loss_that_one_micro_batch_lacks_counts_as_zero_there(fc_net, part):
    balancer = LossBalancer(fc_net, 2, absent="skip", update_every=1)
    for i in range(2):
        losses = {"pde": loss(fc_net, 10.0), "bc": loss(fc_net)}
        if i == part:
            del losses["bc"]
        balancer.backward(losses, update=i == 1, scale=0.5)
    whole = LossBalancer(fc_net, 2, update_every=1)
    whole.backward({"pde": loss(fc_net, 10.0), "bc": 0.5 * loss(fc_net)})
    if part:  # a dict decides the order
        np.testing.assert_allclose(balancer.gradient_norms, whole.gradient_norms, rtol=1e-6)
        np.testing.assert_allclose(balancer.get_weights(), whole.get_weights(), rtol=1e-6)


# The number of losses.


def test_the_first_step_tells_the_number_of_losses(fc_net):
    balancer = LossBalancer(fc_net)
    assert balancer.n_loss is None and not hasattr(balancer, "loss_weights")
    with pytest.raises(AttributeError, match=r"no loss_weights yet, .* has not been called"):
        balancer.get_weights()
    balancer.freeze()
    balancer.backward({"pde": loss(fc_net), "bc": loss(fc_net), "ic": loss(fc_net)})
    assert balancer.n_loss == 3 and balancer.get_weights().tolist() == [1, 1, 1]  # frozen
    balancer.unfreeze()
    known = LossBalancer(fc_net, 3)
    for _ in range(20):
        for each in (balancer, known):
            each.backward({"pde": loss(fc_net), "bc": loss(fc_net), "ic": loss(fc_net, 5.0)})
    assert (balancer.get_weights() > 0).all()
    loaded = LossBalancer(fc_net)
    loaded.set_state_dict(known.state_dict())
    assert loaded.get_weights().tolist() == known.get_weights().tolist()
    with pytest.raises(ValueError, match="n_loss is 3 already, got 2"):
        loaded.set_n_loss(2)
    with pytest.raises(ValueError, match=r"losses has 1 entry, .* are the conditions missing"):
        LossBalancer(fc_net).backward({"pde": loss(fc_net)})
    with pytest.raises(TypeError, match=r"losses must be a list or tuple .* got NoneType"):
        LossBalancer(fc_net).backward(None)
    with pytest.raises(ValueError, match="n_loss is missing: with weight_lr=None"):
        LossBalancer(fc_net, alpha=1.0, weight_lr=None)
    assert LossBalancer(fc_net, weight_attr=[1, 2, 3]).n_loss == 3


def test_a_loss_of_weight_zero_is_left_out_and_the_others_go_on(fc_net):
    balancer = LossBalancer(fc_net, 3, update_every=1)
    balancer.loss_weights.set_value(paddle.to_tensor([1.0, 0.0, 1.0]))
    losses = {"pde": loss(fc_net), "bc": loss(fc_net), "ic": loss(fc_net, 0.5)}
    with pytest.warns(RuntimeWarning, match="loss 'bc' has the weight 0, and only weights above"):
        balancer.backward(losses)
    weights = balancer.get_weights()
    assert weights[1] == 0 and weights[2] > 1


def test_a_parameter_that_is_unfrozen_later_is_measured(fc_net):
    first = fc_net.linears[0].weight
    first.stop_gradient = True
    balancer = LossBalancer(fc_net, 2, update_every=1)
    norms = []
    for frozen in (True, False, True):
        first.stop_gradient = frozen
        balancer.backward({"pde": loss(fc_net, 10.0), "bc": loss(fc_net)})
        fc_net.clear_gradients()
        norms.append(balancer.gradient_norms[1])
    np.testing.assert_allclose(norms[0], norms[2], rtol=1e-6)
    assert norms[1] > 1.01 * norms[0]


# L-BFGS.


@pytest.mark.parametrize("rule", [{}, {"alpha": 1.0, "weight_lr": None}])
def test_in_the_closure_of_lbfgs_the_weights_rest_which_is_said(fc_net, rule, recorded_warnings):
    net = GradNorm(fc_net, n_loss=2, **rule)
    adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
    net.backward({"pde": loss(fc_net, 10.0), "bc": loss(fc_net)})
    adam.step()
    adam.clear_grad()
    before, parameter = net.get_weights(), fc_net.linears[0].weight.numpy()
    assert (before != 1).any()
    parameters = [p for p in net.parameters() if p is not net.loss_weights]
    lbfgs = paddle.optimizer.LBFGS(
        max_iter=15, line_search_fn="strong_wolfe", parameters=parameters
    )

    def closure():
        lbfgs.clear_grad()
        return net.backward({"pde": loss(net, 10.0), "bc": loss(net)})

    for _ in range(2):
        lbfgs.step(closure)
    assert net.get_weights().tolist() == before.tolist()
    assert (fc_net.linears[0].weight.numpy() != parameter).any()
    (message,) = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    assert "was called in the closure of L-BFGS; its function must not change" in message


def test_frozen_weights_go_through_lbfgs_without_a_word(fc_net, recorded_warnings):
    net = GradNorm(fc_net)
    net.freeze()
    lbfgs = paddle.optimizer.LBFGS(max_iter=3, parameters=fc_net.parameters())

    def closure():
        lbfgs.clear_grad()
        return net.backward({"pde": loss(net, 10.0), "bc": loss(net)})

    lbfgs.step(closure)
    assert net.get_weights().tolist() == [1, 1]
    assert not [w for w in recorded_warnings if w.category is RuntimeWarning]


# What an error, or a loss that cannot be balanced, must not leave behind.


def test_losses_with_a_mistake_leave_nothing_behind(fc_net):
    balancer = LossBalancer(fc_net)
    with pytest.raises(TypeError, match="loss 'total' must be a scalar tensor, got float"):
        balancer.backward({"pde": loss(fc_net), "bc": loss(fc_net), "total": 3.0})
    assert balancer.n_loss is None
    for _ in range(2):
        with pytest.raises(ValueError, match="do not tell which 'foo' and 'bar' are"):
            balancer.backward({"foo": loss(fc_net), "bar": loss(fc_net)})
    balancer.backward({"pde": loss(fc_net), "bc": loss(fc_net)})
    assert balancer.n_loss == 2


@pytest.mark.parametrize("method", ["backward", "step"])
def test_a_loss_on_other_parameters_makes_no_step_an_update(fc_net, method, recorded_warnings):
    k = paddle.create_parameter([1], "float32")
    balancer = LossBalancer(fc_net, 3, alpha=1.0, weight_lr=1e-3, update_every=10)
    updates = 0
    for _ in range(30):
        before = balancer.get_weights()
        getattr(balancer, method)([loss(fc_net), loss(fc_net, 9.0), k.square().sum() + 1])
        fc_net.clear_gradients()
        updates += (balancer.get_weights() != before).any()
    assert updates == 3 and balancer.missed.tolist() == [0, 0, 0]


@pytest.mark.parametrize("faulty", ["weight 0", "other parameters"])
def test_what_cannot_be_made_up_for_waits_for_the_schedule(fc_net, faulty, recorded_warnings):
    k = paddle.create_parameter([1], "float32")
    balancer = LossBalancer(fc_net, 3, alpha=1.0, weight_lr=1e-3, update_every=10)
    if faulty == "weight 0":
        balancer.loss_weights.set_value(paddle.to_tensor([1.0, 1.0, 0.0]))
    updates = 0
    for step in range(30):
        before = balancer.get_weights()
        third = loss(fc_net) if faulty == "weight 0" else k.square().sum() + 1
        balancer.backward([loss(fc_net), loss(fc_net, 9.0), 0 * third if step % 10 == 0 else third])
        fc_net.clear_gradients()
        updates += (balancer.get_weights() != before).any()
    assert updates == 3 and balancer.missed.tolist() == [0, 0, 0]


def test_the_partner_of_an_empty_loss_gets_its_update_too(fc_net, recorded_warnings):
    class InverseNorms(Rule):
        def weigh(self, weights, state, measurement):
            return measurement.norms.mean() / measurement.norms, state

    balancer = LossBalancer(fc_net, 2, rule=InverseNorms(), update_every=10)
    for step in range(12):
        second = 0 * loss(fc_net) if step % 10 == 0 else loss(fc_net)
        balancer.backward([loss(fc_net, 3.0), second])
        fc_net.clear_gradients()
        if step == 10:
            assert balancer.missed.tolist() == [2, 1]
    norms = balancer.gradient_norms
    np.testing.assert_allclose(balancer.get_weights(), norms.mean() / norms, rtol=1e-5)
    assert balancer.missed.tolist() == [0, 0]


def test_what_only_a_later_micro_batch_has_is_made_up_for_in_the_next_step(fc_net):
    balancer = LossBalancer(fc_net, 3, absent="skip")
    for step in range(12):
        both = {"pde": loss(fc_net, 10.0), "bc": loss(fc_net)}
        balancer.backward(both, update=False, scale=0.5)
        both = {"pde": loss(fc_net, 10.0), "bc": loss(fc_net)}
        if step % 10:
            both["data"] = loss(fc_net)
        balancer.backward(both, scale=0.5)
        fc_net.clear_gradients()
    assert balancer.get_weights()[2] > 1


def test_what_losses_know_of_equations_outlives_a_resume_and_a_late_joiner(fc_net, tmp_path):
    def told(*names, equations):
        return NamedLosses({name: loss(fc_net, 3.0) for name in names}, equations)

    first = LossBalancer(fc_net, 3, absent="skip")
    first.backward(told("a", "b", equations=["a"]))
    RunState(balancer=first).save(tmp_path / "run")
    second = LossBalancer(fc_net, 3, absent="skip")
    RunState(balancer=second).load(tmp_path / "run")
    for each in (first, second):
        each.backward(told("b", "c", equations=["c"]))
    assert first._run.equations.tolist() == [True, False, True]
    # A resumed run is told anew.
    second.backward(told("a", "b", equations=["a"]))
    assert second._run.equations.tolist() == [True, False, True]


def test_after_a_state_dict_without_names_the_first_step_must_tell_the_order(fc_net):
    def some(*names):
        return {name: loss(fc_net) for name in names}

    first = LossBalancer(fc_net, 3, absent="skip", update_every=1)
    first.backward(some("pde", "bc", "data"))
    second = LossBalancer(fc_net, 3, absent="skip", update_every=1)
    second.set_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="the first step after that must name all of them"):
        second.backward(some("pde", "data"))
    second.backward(some("pde", "bc", "data"))
    second.backward(some("pde", "data"))


def test_what_is_not_there_yet_is_said_through_gradnorm_too(fc_net):
    net = GradNorm(fc_net)
    net.reset_initial_losses()
    for name in ("loss_weights", "initial_losses"):
        with pytest.raises(RuntimeError, match=f"there are no {name} yet, because n_loss was not"):
            getattr(net, name)
    with pytest.raises(TypeError, match=r"weight_attr must be a sequence .* got 2\.0"):
        GradNorm(fc_net, weight_attr=2.0)
    late = LossBalancer(fc_net, absent="skip")
    late.backward({"pde": loss(fc_net), "bc": loss(fc_net)})
    with pytest.raises(
        ValueError, match=r"n_loss is 2 \(the first step had so many: pass n_loss=\)"
    ):
        late.backward({"pde": loss(fc_net), "bc": loss(fc_net), "ic": loss(fc_net)})
    assert LossBalancer(fc_net, 2, equations=np.array([0])).equations == (0,)
    with pytest.raises(ValueError, match=r"equations names 'pdee'.* did you mean 'pde'"):
        LossBalancer(fc_net, 3, absent="skip", equations=["pdee"]).backward(
            {"pde": loss(fc_net), "bc": loss(fc_net)}
        )


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_python_function_in_a_shared_graph_takes_two_passes(fc_net, everywhere):
    class Twice(paddle.autograd.PyLayer):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    last = fc_net.linears[-1]
    shared = fc_net if everywhere else last.weight
    balancer = LossBalancer(shared, 2, alpha=1.0, update_every=2)
    for _ in range(3):
        hidden = paddle.tanh(Twice.apply(fc_net.linears[0](paddle.rand([8, 2]))))
        u = last(fc_net.linears[1](hidden))
        balancer.backward([u[:4].square().mean(), u[4:].square().mean()])
    assert balancer._run.in_two_passes


def test_the_name_of_a_users_file_is_not_taken_for_lbfgs(fc_net, recorded_warnings):
    code = compile("def step(f):\n    f()\n", "adam_then_lbfgs.py", "exec")
    users = {"__name__": "adam_then_lbfgs"}
    exec(code, users)
    balancer = LossBalancer(fc_net, update_every=1)
    users["step"](lambda: balancer.backward({"pde": loss(fc_net), "bc": loss(fc_net)}))
    assert balancer.get_weights()[1] > 1
    assert not [w for w in recorded_warnings if w.category is RuntimeWarning]


def test_the_state_of_another_rule_is_told(recorded_warnings):
    net = paddle.nn.Linear(1, 1)
    state = GradNorm(net, 2, rule="relobralo").state_dict()
    GradNorm(net, 2, rule="relobralo").set_state_dict(state)
    assert not recorded_warnings
    GradNorm(net, 2, rule="config").set_state_dict(state)
    (said,) = [str(w.message) for w in recorded_warnings]
    assert "'balancer.initial_losses', 'balancer.previous_losses', which ConFIG() does not" in said
