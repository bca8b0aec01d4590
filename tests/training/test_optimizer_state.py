import copy
from collections import defaultdict

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.training import CheckpointError, _checkpoint_file, _optimizer_state
from paddlescience_gradnorm.training._checkpoint_file import Values

OPTIMIZERS = {
    "SGD": {},
    "Momentum": {},
    "Adagrad": {},
    "Adadelta": {},
    "RMSProp": {"centered": True, "momentum": 0.9},
    "Adam": {},
    "AdamW": {},
    "Adamax": {},
    "Lamb": {},
    "NAdam": {},
    "RAdam": {},
    "Rprop": {},
    "ASGD": {"batch_num": 3},
    "ByParameter": {},
}


class ByParameter(paddle.optimizer.Optimizer):
    """Keeps its momentum as PaddleScience's SOAP does, where ``state_dict()`` does not show it."""

    def __init__(self, learning_rate, parameters):
        super().__init__(learning_rate, parameters)
        self.state = defaultdict(dict)

    @paddle.no_grad()
    def step(self):
        for p in self._parameter_list:
            if p.grad is not None:
                kept = self.state[p]
                kept["step"] = kept.get("step", 0) + 1
                kept["pair"] = [kept.get("pair", [paddle.zeros_like(p)])[0] * 0.9 + p.grad, []]
                p.set_value(p - self.get_lr() / kept["step"] * kept["pair"][0])


def network(dtype="float32"):
    """Its last layer gets no gradient."""
    net = paddle.nn.Sequential(paddle.nn.Linear(2, 4), paddle.nn.Linear(4, 1))
    net.append(paddle.nn.Linear(1, 1)) if hasattr(net, "append") else net.add_sublayer(
        "2", paddle.nn.Linear(1, 1)
    )
    return net.to(dtype=dtype)


def make(name, net, rate=1e-2, **options):
    kind = ByParameter if name == "ByParameter" else getattr(paddle.optimizer, name, None)
    if kind is None:
        pytest.skip(f"this Paddle has no {name}")
    return kind(learning_rate=rate, parameters=net.parameters(), **{**OPTIMIZERS[name], **options})


def step(net, optimizer, number=0):
    x = paddle.to_tensor([[1.0, number], [0.5, -2.0]]).astype(net[0].weight.dtype)
    net[1](net[0](x).tanh()).square().mean().backward()
    optimizer.step()
    optimizer.clear_grad()


def bits(net):
    return [parameter.numpy().tobytes() for parameter in net.parameters()]


def resumed(tmp_path, net, optimizer):
    """Both put into the state of these, by a file; their parameters have other names."""
    _checkpoint_file.write(tmp_path / "a", _optimizer_state.state(optimizer))
    twin = network(net[0].weight.dtype)
    twin.set_state_dict(net.state_dict())
    return twin, _checkpoint_file.read(tmp_path / "a")


@pytest.mark.parametrize("steps_before", [0, 4], ids=["fresh", "has stepped"])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_goes_on_to_the_last_bit(tmp_path, name, steps_before):
    net = network()
    optimizer = make(name, net)
    for number in range(5):
        step(net, optimizer, number)
    twin, state = resumed(tmp_path, net, optimizer)
    other = make(name, twin, rate=0.5)
    for number in range(steps_before):
        step(twin, other, number)
    twin.set_state_dict(net.state_dict())
    _optimizer_state.prepare(other, state)()
    for number in range(5):
        step(net, optimizer, number)
        step(twin, other, number)
        assert bits(twin) == bits(net)
    assert other.get_lr() == 1e-2


@pytest.mark.parametrize(
    "by_parameter, match",
    [
        (None, "has nothing of what ByParameter keeps by parameter: it was written by a version"),
        ({"0": {"step": 1}}, "'pair' missing"),
        ({"0": {"step": 0.5, "pair": [0, []]}}, "step of type float"),
        ({"5": 3}, "no names in the state of parameter 5"),
        ({"9": {}}, "has the state of a parameter that is not there"),
    ],
)
def test_a_state_by_parameter_of_another_form_is_an_error(by_parameter, match):
    net = network()
    optimizer = make("ByParameter", net)
    step(net, optimizer)
    state = _optimizer_state.state(optimizer)
    with pytest.raises(CheckpointError, match=match):
        _optimizer_state.prepare(optimizer, {**state, "by_parameter": by_parameter})
    older = {name: value for name, value in state.items() if name != "by_parameter"}
    with pytest.raises(CheckpointError, match="written by a version"):
        _optimizer_state.prepare(optimizer, {**older, "version": 1})


def test_an_optimizer_that_has_not_stepped_forgets_what_it_had(tmp_path):
    net = network()
    fresh = make("Adam", net)
    twin, state = resumed(tmp_path, net, fresh)
    other = make("Adam", twin)
    step(twin, other)
    twin.set_state_dict(net.state_dict())
    _optimizer_state.prepare(other, state)()
    step(net, fresh, 1)
    step(twin, other, 1)
    assert bits(twin) == bits(net)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_master_weights(tmp_path, dtype):
    # There are no such steps on a CPU, but the tensors are.
    net = network(dtype)
    optimizer = make("AdamW", net, multi_precision=True)
    optimizer.helper = paddle.base.layer_helper.LayerHelper("AdamW")
    block = paddle.base.framework.default_main_program().global_block()
    optimizer._create_accumulators(block, net.parameters()[:3])
    for master in optimizer._master_weights.values():
        master.set_value(paddle.rand(master.shape))
    for tensor in optimizer._accumulators["moment1"].values():
        tensor.set_value(paddle.rand(tensor.shape))
    twin, state = resumed(tmp_path, net, optimizer)
    other = make("AdamW", twin, multi_precision=True)
    _optimizer_state.prepare(other, state)()
    for mine, theirs in zip(net.parameters()[:3], twin.parameters()):
        master, copied = optimizer._master_weights[mine.name], other._master_weights[theirs.name]
        assert copied.dtype == paddle.float32
        np.testing.assert_array_equal(copied.numpy(), master.numpy())
        np.testing.assert_array_equal(
            other._accumulators["moment1"][copied.name].numpy(),
            optimizer._accumulators["moment1"][master.name].numpy(),
        )
    assert len(other._master_weights) == 3


lr = paddle.optimizer.lr
SCHEDULES = {
    "cosine": lambda: lr.CosineAnnealingDecay(1e-2, 9),
    "warm-up": lambda: lr.LinearWarmup(lr.ExponentialDecay(1e-2, 0.9), 3, 0.0, 1e-2),
    "steps": lambda: lr.MultiStepDecay(1, [2, 6]),
    "pieces": lambda: lr.PiecewiseDecay([2, 6], [1, 0.1, 0.01]),
    "noam": lambda: lr.NoamDecay(16, 4),
    "lambda": lambda: lr.LambdaDecay(0.5, lambda epoch: 0.95**epoch),
    "cycle": lambda: lr.CyclicLR(1e-3, 1e-2, 3),
    "one cycle": lambda: lr.OneCycleLR(1e-2, 12),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_go_on(tmp_path, name):
    net = network()
    optimizer = make("Adam", net, rate=SCHEDULES[name]())
    for _ in range(5):
        optimizer._learning_rate.step()
    twin, state = resumed(tmp_path, net, optimizer)
    other = make("Adam", twin, rate=SCHEDULES[name]())
    _optimizer_state.prepare(other, state)()
    for _ in range(5):
        assert other.get_lr() == optimizer.get_lr()
        optimizer._learning_rate.step()
        other._learning_rate.step()


def test_fused_accumulators_are_refused():
    net = network()
    with pytest.raises(TypeError, match="use_multi_tensor=True; leave that option out"):
        _optimizer_state.state(make("Adam", net, use_multi_tensor=True))


@pytest.fixture
def state_of_adam():
    net = network()
    optimizer = make("Adam", net)
    step(net, optimizer)
    return _optimizer_state.state(optimizer)


@pytest.mark.parametrize(
    "path, value, match",
    [
        (["kind"], "SGD", "of another kind: SGD, here Adam"),
        (["groups"], [4], "other parameter groups"),
        (["rate"], None, "rate of type NoneType"),
        (["rate"], "1", "rate of type str"),
        (["schedule"], {"last_epoch": 1, "last_lr": 0.1}, "has a schedule for the learning rate"),
        (["accumulators"], 3, "has no accumulators"),
        (["accumulators", "moment1"], [], "of a parameter that is not there"),
        (["accumulators", "moment1", "6"], 3, "of a parameter that is not there"),
        (["accumulators", "moment1", "01"], 3, "of a parameter that is not there"),
        (["accumulators", "moment3"], {}, "'moment3' not known here"),
        (["accumulators", "moment1", "5"], Values("float32", np.zeros(1, "float32")), "'5'"),
        (["accumulators", "moment1", "0"], 3, "has no values"),
        (["accumulators", "moment1", "0"], Values("float32", np.zeros(8, "float32")), "shape"),
        (["accumulators", "moment1", "0"], Values("float64", np.zeros((2, 4))), "type float64"),
        (["master_weights"], {"": {"0": 1}}, "'' not known here"),
    ],
)
def test_another_state_is_an_error_and_changes_nothing(state_of_adam, path, value, match):
    net = network()
    optimizer = make("Adam", net)
    step(net, optimizer)
    before = optimizer._accumulators["moment1"][net[0].weight.name].numpy()
    changed = copy.deepcopy(state_of_adam)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(CheckpointError, match=match):
        _optimizer_state.prepare(optimizer, changed)
    after = optimizer._accumulators["moment1"][net[0].weight.name].numpy()
    np.testing.assert_array_equal(after, before)


def test_another_optimizer_or_network_is_named(state_of_adam):
    net = network()
    with pytest.raises(CheckpointError, match="of another kind: Adam, here AdamW"):
        _optimizer_state.prepare(make("AdamW", net), state_of_adam)
    with pytest.raises(CheckpointError, match=r"other parameter groups: \[6\], here \[4\]"):
        _optimizer_state.prepare(make("Adam", net[:2]), state_of_adam)
    with pytest.raises(CheckpointError, match=r"a number .* where a schedule belongs"):
        _optimizer_state.prepare(make("Adam", net, rate=SCHEDULES["cosine"]()), state_of_adam)
    with pytest.raises(CheckpointError, match="has no state of an optimizer"):
        _optimizer_state.prepare(make("Adam", net), None)
