import copy
import pickle
import subprocess
import sys

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, LossBalancer
from paddlescience_gradnorm._layers import (
    PicklableLayer,
    PreciseLayer,
    on_host,
    shield,
    shielded_parameter,
)


def test_optimizers_leave_a_shielded_parameter_to_its_gradient():
    parameter = shielded_parameter(np.array([1.0, 2.0]), paddle.float64)
    assert parameter.tolist() == [1, 2] and not parameter.stop_gradient
    optimizer = paddle.optimizer.SGD(
        1.0,
        parameters=[parameter],
        weight_decay=0.5,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(1e-9),
    )
    parameter.grad = paddle.to_tensor([0.25, 0.5], dtype="float64")
    optimizer.step()
    assert parameter.tolist() == [0.75, 1.5]


def test_decay_of_a_parameter_group_is_taken_away():
    parameter = shielded_parameter(np.ones(2), paddle.float32)
    paddle.optimizer.SGD(1.0, parameters=[{"params": [parameter], "weight_decay": 0.5}])
    shield(parameter)
    assert parameter.regularizer._coeff == 0.0


@pytest.mark.parametrize("dtype, kept", [("float64", False), ("bfloat16", True)])
def test_conversion_inside_a_network(dtype, kept):
    class Own(PreciseLayer):
        def __init__(self):
            super().__init__()
            self.weights = shielded_parameter(np.ones(2), paddle.float32)
            self.register_buffer("count", paddle.zeros([], "int64"))
            self.register_buffer("precise", on_host(np.array([1 / 3])))

    network = paddle.nn.Sequential(paddle.nn.Linear(2, 2), Own())
    network.to(dtype=dtype)
    assert network[0].weight.dtype == getattr(paddle, dtype)
    assert (network[1].weights.dtype == paddle.float32) == kept
    assert network[1].count.dtype == paddle.int64
    assert network[1].precise.tolist() == [1 / 3]


class Tied(PicklableLayer):
    """A network of two layers with one weight between them, and buffers."""

    def __init__(self):
        super().__init__()
        self.inner = FCNet(2, 2, 2, 4)
        self.shared = [self.inner.linears[0].weight]
        self.frozen = paddle.create_parameter(
            [2], "float32", attr=paddle.ParamAttr(learning_rate=0.5, need_clip=False)
        )
        self.frozen.stop_gradient = True
        self.register_buffer("offset", paddle.arange(2, dtype="int64"))
        self.register_buffer("coarse", paddle.to_tensor([1.5, -2.0], dtype="bfloat16"))

    def forward(self, ins):
        return self.inner(ins) + self.frozen + self.offset.astype("float32")


@pytest.fixture(params=["deepcopy", "pickle"])
def duplicate(request):
    if request.param == "deepcopy":
        return copy.deepcopy
    return lambda network: pickle.loads(pickle.dumps(network))


def test_duplicate_computes_the_same_and_owns_its_parameters(duplicate):
    network = Tied()
    twin = duplicate(network)
    x = paddle.rand([3, 2])
    np.testing.assert_array_equal(network(x).numpy(), twin(x).numpy())
    before = network(x).numpy()
    for parameter in twin.parameters():
        parameter.set_value(parameter + 1.0)
    np.testing.assert_array_equal(network(x).numpy(), before)


def test_duplicate_keeps_identities_attributes_and_dtypes(duplicate):
    network = Tied()
    twin = duplicate(network)
    assert twin.shared[0] is twin.inner.linears[0].weight
    assert type(twin.frozen) is type(network.frozen)
    assert twin.frozen.need_clip is False
    assert twin.frozen.optimize_attr == {"learning_rate": 0.5}
    assert twin.frozen.stop_gradient and not twin.inner.linears[0].weight.stop_gradient
    assert twin.offset.dtype == paddle.int64
    assert twin.coarse.dtype == paddle.bfloat16
    assert twin.coarse.astype("float32").tolist() == [1.5, -2.0]


def test_a_balancer_keeps_what_shields_its_weights(duplicate):
    balancer = duplicate(LossBalancer(FCNet(2, 1, 2, 4).linears[-1], 2, 1.0))
    assert balancer.loss_weights.need_clip is False
    assert type(balancer.loss_weights).__name__ == "EagerParamBase"


def test_duplicate_can_be_trained(duplicate):
    twin = duplicate(Tied())
    optimizer = paddle.optimizer.Adam(0.1, parameters=twin.parameters())
    x = paddle.rand([3, 2])
    before = twin(x).square().mean().item()
    for _ in range(20):
        twin(x).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    assert twin(x).square().mean().item() < before


def test_pickle_keeps_names_for_optimizer_states_and_deepcopy_does_not():
    network = FCNet(2, 1, 2, 4)
    names = [p.name for p in network.parameters()]
    assert [p.name for p in pickle.loads(pickle.dumps(network)).parameters()] == names
    assert not {p.name for p in copy.deepcopy(network).parameters()} & set(names)


def test_pickle_crosses_processes(tmp_path):
    network = FCNet(2, 1, 2, 4)
    (tmp_path / "net.pickle").write_bytes(pickle.dumps(network))
    code = (
        "import pickle, sys, paddlescience_gradnorm, paddle;"
        "net = pickle.load(open(sys.argv[1], 'rb'));"
        "print(net(paddle.ones([1, 2])).item())"
    )
    printed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "net.pickle")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert float(printed.split()[-1]) == pytest.approx(net_at_one(network), rel=1e-6)


def net_at_one(network):
    return network(paddle.ones([1, 2])).item()
