import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet


def test_layer_sizes():
    net = FCNet(num_ins=3, num_outs=2, num_layers=4, hidden_size=7)
    shapes = [list(linear.weight.shape) for linear in net.linears]
    assert shapes == [[3, 7], [7, 7], [7, 7], [7, 2]]
    assert (net.num_ins, net.num_outs, net.num_layers, net.hidden_size) == (3, 2, 4, 7)


@pytest.mark.parametrize(
    "activation, function", [("tanh", np.tanh), ("relu", lambda x: x * (x > 0))]
)
def test_output_is_the_composition_of_its_layers(activation, function):
    net = FCNet(2, 1, 3, 5, activation)
    x = np.random.default_rng(0).standard_normal((4, 2)).astype("float32")
    expected = x
    for i, linear in enumerate(net.linears):
        expected = expected @ linear.weight.numpy() + linear.bias.numpy()
        expected = function(expected) if i < 2 else expected
    np.testing.assert_allclose(net(paddle.to_tensor(x)).numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(net(paddle.to_tensor(x)), net.nn_func(paddle.to_tensor(x)))


def test_shared_layer_is_the_last_weight_under_both_names():
    net = FCNet(2, 1, 3, 5)
    assert net.get_last_shared_layer() is net.linears[-1].weight
    assert net.get_shared_layer() is net.get_last_shared_layer()


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"num_ins": 0}, ValueError, "num_ins must be at least 1, got 0"),
        ({"num_outs": 1.5}, TypeError, "num_outs must be an integer, got 1.5"),
        ({"num_layers": 1}, ValueError, "num_layers must be at least 2, got 1"),
        ({"hidden_size": True}, TypeError, "hidden_size must be an integer, got True"),
        ({"activation": "tanhh"}, ValueError, "activation 'tanhh' is not in paddle.nn.functional"),
        ({"activation": paddle.tanh}, TypeError, "activation must be a string"),
    ],
)
def test_bad_arguments_are_named(arguments, error, match):
    defaults = {"num_ins": 2, "num_outs": 1, "num_layers": 3, "hidden_size": 4}
    with pytest.raises(error, match=match):
        FCNet(**{**defaults, **arguments})


def test_derivatives_are_left_to_others_where_the_network_is_not_the_plain_one():
    class Hard(FCNet):
        def nn_func(self, ins):
            return ins[:, :1] * super().nn_func(ins)

    ins, first = paddle.rand([4, 2]), [(0,)]
    assert FCNet(2, 1, 3, 5).partial_derivatives(ins, first) is not None
    assert FCNet(2, 1, 3, 5).partial_derivatives(ins, [(0, 0, 0)]) is None
    assert FCNet(2, 1, 3, 5, "silu").partial_derivatives(ins, first) is None
    assert Hard(2, 1, 3, 5).partial_derivatives(ins, first) is None
    replaced = FCNet(2, 1, 3, 5)
    replaced.linears[1] = paddle.nn.Sequential(paddle.nn.Linear(5, 5), paddle.nn.LayerNorm(5))
    assert replaced.partial_derivatives(ins, first) is None
    patched = FCNet(2, 1, 3, 5)
    patched.forward = lambda ins: 2 * ins
    assert patched.partial_derivatives(ins, first) is None
