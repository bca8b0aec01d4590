import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.pde import sample_boundary, sample_face, sample_interior


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


BOX = [0, 0], [1, 2]
SAMPLERS = {
    "interior": lambda: sample_interior(8, *BOX, seed=0),
    "boundary": lambda: sample_boundary(8, *BOX, seed=0),
    "face": lambda: sample_face(8, *BOX, {1: 0.0}, seed=0),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_of_the_samplers_go_straight_in(sampler, dtype):
    net, points = FCNet(2, 1, 3, 5).to(dtype=dtype), SAMPLERS[sampler]()
    assert points.dtype == np.float64
    tensor = paddle.to_tensor(points, dtype=dtype)
    expected = net(tensor)
    assert expected.dtype == getattr(paddle, dtype)
    wrapped, published = GradNorm(net, 2), GradNorm(net, 2, alpha=1.0)
    for function in (net, net.nn_func, wrapped, wrapped.nn_func, published, published.nn_func):
        np.testing.assert_array_equal(function(points).numpy(), expected.numpy())
    first = [net.partial_derivatives(p, [(0,)])[0].numpy() for p in (points, tensor)]
    np.testing.assert_array_equal(*first)


def test_a_derived_network_gets_a_tensor():
    class Hard(FCNet):
        def nn_func(self, ins):
            return ins[:, :1] * super().nn_func(ins)

    net, points = Hard(2, 1, 3, 5), SAMPLERS["interior"]()
    outputs = net(points)
    assert outputs.dtype == paddle.float32
    np.testing.assert_array_equal(outputs.numpy(), net(paddle.to_tensor(points, "float32")).numpy())


@pytest.mark.parametrize(
    "given, own, cast",
    [
        ("float64", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("int64", *["float32"] * 2),
    ],
)
def test_a_tensor_of_another_dtype_is_named(given, own, cast):
    net, tensor = FCNet(2, 1, 3, 5).to(dtype=own), paddle.ones([4, 2], dtype=given)
    match = f"ins is a tensor of {given}, but .* parameters of {own}; .* ins.astype.'{cast}'"
    for function in (net, net.nn_func, lambda ins: net.partial_derivatives(ins, [(0,)])):
        with pytest.raises(TypeError, match=match):
            function(tensor)
    assert list(net(tensor.astype(own)).shape) == [4, 1]


@pytest.mark.parametrize(
    "shape, match",
    [
        ([4], r"ins must have shape \[N, 2\], got \[4\]; use ins.reshape\(\[-1, 2\]\)"),
        ([4, 3], r"ins must have shape \[N, 2\], got \[4, 3\]$"),
        ([], r"got \[\]"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(shape, match):
    for ins in (np.ones(shape), paddle.ones(shape)):
        with pytest.raises(ValueError, match=match):
            FCNet(2, 1, 3, 5)(ins)


def test_points_may_lie_in_more_dimensions_than_one():
    net, grid = FCNet(2, 1, 3, 5), np.random.default_rng(0).random((3, 4, 2))
    flat = net(grid.reshape(-1, 2)).numpy()
    np.testing.assert_allclose(net(grid).numpy().reshape(-1, 1), flat, rtol=1e-6)
    np.testing.assert_allclose(net(grid[0, 0]).numpy(), flat[0], rtol=1e-6)


def test_a_first_layer_that_was_replaced_takes_what_it_takes():
    net = FCNet(2, 1, 3, 5)
    net.linears[0] = paddle.nn.Sequential(paddle.nn.Linear(4, 5), paddle.nn.LayerNorm(5))
    assert list(net(np.ones([3, 4])).shape) == [3, 1]


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
    assert FCNet(2, 1, 3, 5).partial_derivatives(ins, [(0,) * 5]) is None
    assert FCNet(2, 1, 3, 5, "elu").partial_derivatives(ins, first) is None
    assert Hard(2, 1, 3, 5).partial_derivatives(ins, first) is None
    replaced = FCNet(2, 1, 3, 5)
    replaced.linears[1] = paddle.nn.Sequential(paddle.nn.Linear(5, 5), paddle.nn.LayerNorm(5))
    assert replaced.partial_derivatives(ins, first) is None
    patched = FCNet(2, 1, 3, 5)
    patched.forward = lambda ins: 2 * ins
    assert patched.partial_derivatives(ins, first) is None
