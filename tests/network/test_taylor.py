import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet
from paddlescience_gradnorm.network._taylor import propagate

pytestmark = pytest.mark.usefixtures("both_operators")

CASES = [
    [()],
    [(0,), ()],
    [(1, 1)],
    [(2, 0)],
    [(0, 0), (1, 1), (2, 2)],
    [(0, 1), (1, 0), (2,), (0, 0), ()],
    [(2,), (0, 2), (1,)],
]


def nested(net, points, indices):
    """The same by paddle.grad, one differentiation after another."""
    leaf = points.detach()
    leaf.stop_gradient = False
    outputs = net(leaf)
    found = []
    for index in indices:
        columns = []
        for k in range(outputs.shape[1]):
            value = outputs[:, k : k + 1]
            for i in index:
                value = paddle.grad(value, leaf, create_graph=True)[0][:, i : i + 1]
            columns.append(value)
        found.append(paddle.concat(columns, axis=1))
    return found


@pytest.mark.parametrize("indices", CASES, ids=str)
@pytest.mark.parametrize("num_layers", [2, 3, 5])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("float64", 1e-13)])
def test_values_and_parameter_gradients_are_those_of_nested_differentiation(
    indices, num_layers, dtype, tolerance
):
    net = FCNet(3, 2, num_layers, 7)
    net.to(dtype=dtype)
    points = paddle.rand([9, 3], dtype=dtype)
    factors = [paddle.rand([9, 2], dtype=dtype) for _ in indices]
    results = []
    for derivatives in (
        propagate(net.linears, points, indices),
        nested(net, points, indices),
    ):
        net.clear_gradients()
        sum((f * d * d).sum() for f, d in zip(factors, derivatives)).backward()
        gradients = [
            np.zeros(p.shape) if p.grad is None else p.grad.numpy() for p in net.parameters()
        ]
        results.append((*(d.numpy() for d in derivatives), *gradients))
    for ours, expected in zip(*results):
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * scale)


def test_graph_can_be_kept_for_a_second_backward():
    net = FCNet(2, 1, 4, 7)
    (second,) = propagate(net.linears, paddle.rand([9, 2]), [(0, 0)])
    loss = second.square().mean()
    loss.backward(retain_graph=True)
    once = net.linears[1].weight.grad.numpy()
    loss.backward()
    np.testing.assert_allclose(net.linears[1].weight.grad.numpy(), 2 * once, rtol=1e-5)


def test_works_without_gradients():
    with paddle.no_grad():
        (second,) = propagate(FCNet(2, 1, 4, 7).linears, paddle.rand([9, 2]), [(0, 1)])
    assert second.stop_gradient
