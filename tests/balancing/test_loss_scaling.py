"""With paddle.amp.GradScaler, which on a CPU has to be told that it is on a GPU."""

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer

pytestmark = pytest.mark.filterwarnings("ignore:.*makes no effect")

WAYS = {
    "published": {"alpha": 1.0, "weight_lr": 1e-3},
    "pinn": {"update_every": 1},
    "caller": {"alpha": 1.0, "weight_lr": None},
}
every_way = pytest.mark.parametrize("way", WAYS)


def losses_of(net, step, part=slice(None), factor=1.0):
    points = np.random.default_rng(step).random((3, 12, 2)).astype("float32")
    outputs = [net(paddle.to_tensor(p[part])) for p in points]
    return [
        factor * (outputs[0] - 1).square().mean(),
        4 * (outputs[1] + 1).square().mean(),
        outputs[2].square().mean() / 4,
    ]


def train(way, make_scaler=None, parts=1, overflow_at=(), steps=5, net=None, **options):
    """The balanced network, and its loss weights and parameters after each step."""
    paddle.seed(0)
    net = GradNorm(net or FCNet(2, 1, 3, 8), n_loss=3, equations=(), **WAYS[way])
    optimizer = paddle.optimizer.SGD(1e-3, parameters=net.parameters())
    scaler = None if make_scaler is None else make_scaler(**options)
    weights, parameters = [], []
    for step in range(steps):
        for i in range(parts):
            if step in overflow_at:
                scaler._scale.fill_(3e38)
            losses = losses_of(net, step, slice(i, None, parts))
            net.backward(losses, update=i == parts - 1, scale=1 / parts, scaler=scaler)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
            if step in overflow_at:
                scaler._scale.fill_(2.0**16)
        optimizer.clear_grad()
        weights.append(net.get_weights())
        parameters.append(np.concatenate([p.numpy().ravel() for p in net.net.parameters()]))
    return net, np.array(weights), np.array(parameters)


@every_way
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_run_is_that_without_loss_scaling(way, dynamic, parts, make_scaler):
    plain, expected, expected_parameters = train(way)
    options = {"use_dynamic_loss_scaling": dynamic, "incr_every_n_steps": 2}
    net, weights, parameters = train(way, make_scaler, parts, **options)
    assert np.abs(np.diff(expected, axis=0)).max() > 1e-4
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(parameters, expected_parameters, rtol=1e-4, atol=1e-6)
    norms = net.balancer.gradient_norms
    np.testing.assert_allclose(norms, plain.balancer.gradient_norms, rtol=1e-4)


@every_way
@pytest.mark.parametrize("overflow_at", [(0,), (0, 1), (2,), (4,)])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_that_overflows_updates_nothing(
    way, overflow_at, parts, make_scaler, recorded_warnings
):
    net, weights, parameters = train(way, make_scaler, parts, overflow_at)
    state = net.state_dict()
    assert state["balancer.step_count"].item() == 5 - len(overflow_at)
    before = np.vstack([np.ones(3), weights])
    for step in range(5):
        stayed = (before[step + 1] == before[step]).all()
        assert stayed == (step in overflow_at)
        if step:
            stayed = (parameters[step] == parameters[step - 1]).all()
            assert stayed == (step in overflow_at)
    # The scaler says it.
    assert not [w for w in recorded_warnings if w.category is RuntimeWarning]


class OverflowsInside(paddle.nn.Layer):
    """Its last layer is precise; what comes before has gradients in half precision."""

    def __init__(self):
        super().__init__()
        self.first = paddle.nn.Linear(2, 8)
        self.last = paddle.nn.Linear(8, 1)

    def forward(self, points):
        hidden = self.first(points)
        return self.last(hidden.astype("float16").astype("float32").tanh())

    def get_last_shared_layer(self):
        return self.last.weight


@every_way
def test_an_overflow_away_from_the_shared_layer_takes_the_update_back(way, make_scaler):
    paddle.seed(0)
    last = OverflowsInside.get_last_shared_layer
    net = GradNorm(OverflowsInside(), n_loss=3, equations=(), shared=last, **WAYS[way])
    optimizer = paddle.optimizer.SGD(1e-3, parameters=net.parameters())
    scaler = make_scaler(init_loss_scaling=1024.0)
    history = []
    for step, factor in enumerate([1.0, 1e7, 1.0]):
        net.backward(losses_of(net, step, factor=factor), scaler=scaler)
        shared = net.balancer.shared[0].grad
        assert paddle.isfinite(shared).all()
        scaler.step(optimizer)
        scaler.update()
        optimizer.clear_grad()
        history.append((net.get_weights(), net.initial_losses.numpy(), net.balancer.gradient_norms))
    for after_the_first, after_the_overflow in zip(*history[:2]):
        np.testing.assert_array_equal(after_the_overflow, after_the_first)
    assert (history[2][0] != history[1][0]).any()
    assert net.balancer.step_count.item() == 2


def test_a_checkpoint_after_an_overflow_knows_nothing_of_the_step(make_scaler):
    net, _, _ = train("pinn", make_scaler, steps=2)
    expected = net.balancer.extra_state()
    net.backward(losses_of(net, 2), scaler=(scaler := make_scaler(init_loss_scaling=3e38)))
    optimizer = paddle.optimizer.SGD(1e-3, parameters=net.parameters())
    scaler.step(optimizer)
    np.testing.assert_equal(net.balancer.extra_state(), expected)


@every_way
@pytest.mark.parametrize("what", ["load", "load around", "reset"])
def test_what_is_done_after_an_overflow_is_not_undone(way, what, make_scaler):
    net, _, _ = train(way, make_scaler, steps=2)
    outer = paddle.nn.LayerList([net])
    state = {name: value.clone() for name, value in outer.state_dict().items()}
    expected = net.get_weights(), net.balancer.rule_state["initial_losses"]
    for step in range(3):
        net.backward(losses_of(net, step))
        net.net.clear_gradients()
    scaler = make_scaler(init_loss_scaling=3e38)
    net.backward(losses_of(net, 5), scaler=scaler)
    scaler.step(paddle.optimizer.SGD(1e-3, parameters=net.parameters()))
    scaler.update()
    if what == "reset":
        net.reset_initial_losses()
        expected = net.get_weights(), np.zeros(3)
    elif what == "load":
        net.set_state_dict({name[len("0.") :]: value for name, value in state.items()})
    else:
        outer.set_state_dict(state)
    np.testing.assert_array_equal(net.get_weights(), expected[0])
    np.testing.assert_array_equal(net.balancer.rule_state["initial_losses"], expected[1])
    if what != "reset":
        assert net.balancer.step_count.item() == 2


def test_an_infinite_gradient_stops_the_others_only_under_loss_scaling(fc_net, make_losses):
    moved = {}
    for scale in (0.5, 1.0, 2.0):
        balancer = LossBalancer(fc_net.linears[-1].weight, 3, 1.0)
        losses = make_losses(fc_net)
        slope = fc_net.linears[-1].weight.sum().scale(0.0).sqrt()  # 0 with the slope 0 * inf
        losses[2] = losses[2] + slope
        with pytest.warns(RuntimeWarning, match=r"'losses\[2\]' has a gradient of norm"):
            balancer.backward(losses, scale=scale)
        fc_net.clear_gradients()
        moved[scale] = (balancer.get_weights() != 1).tolist()
    assert moved[0.5] == moved[1.0] == [True, True, False]
    assert moved[2.0] == [False] * 3


@pytest.mark.parametrize("enable", [True, False])
def test_a_scaler_that_does_not_act_changes_nothing(fc_net, make_losses, enable):
    runs = []
    for scaler in (None, paddle.amp.GradScaler(enable=enable)):
        assert scaler is None or not scaler.is_enable()  # on a CPU
        balancer = LossBalancer(fc_net.linears[-1].weight, 3, equations=[0])
        for step in range(3):
            balancer.backward(make_losses(fc_net, seed=step), scaler=scaler)
            fc_net.clear_gradients()
        runs.append(balancer.get_weights())
    np.testing.assert_array_equal(*runs)


def test_a_scaler_that_is_none_is_named(fc_net, make_losses):
    balancer = LossBalancer(fc_net.linears[-1].weight, 3, equations=[0])
    with pytest.raises(TypeError, match=r"scaler must be a paddle.amp.GradScaler.* got 1024"):
        balancer.backward(make_losses(fc_net), scaler=1024)


@pytest.mark.parametrize("way", ["published", "pinn"])
def test_bfloat16(way):
    runs = []
    for cast in (False, True):
        paddle.seed(0)
        net = GradNorm(FCNet(2, 1, 3, 8), n_loss=3, equations=(), **WAYS[way])
        for step in range(20):
            # On a CPU Paddle's auto_cast makes no effect, and so the cast is written out.
            with paddle.amp.auto_cast(dtype="bfloat16"):
                losses = losses_of(net, step)
            net.backward([loss.astype("bfloat16") if cast else loss for loss in losses])
            net.net.clear_gradients()
        assert net.get_weights().dtype == np.float32
        runs.append(net.get_weights())
    assert np.abs(runs[0] - 1).max() > 0.01
    np.testing.assert_allclose(runs[1], runs[0], rtol=0.02)
    assert (runs[1] != runs[0]).any()
