import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.shielded import ShieldedLayer, add_gradient, shielded_parameter


def test_optimizers_leave_a_shielded_parameter_to_its_gradient():
    parameter = shielded_parameter(np.array([1.0, 2.0]), paddle.float64)
    assert parameter.tolist() == [1, 2] and not parameter.stop_gradient
    optimizer = paddle.optimizer.SGD(
        1.0,
        parameters=[parameter],
        weight_decay=0.5,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(1e-9),
    )
    add_gradient(parameter, paddle.to_tensor([0.25, 0.5], dtype="float64"))
    optimizer.step()
    assert parameter.tolist() == [0.75, 1.5]


def test_gradients_add_up():
    parameter = shielded_parameter(np.zeros(2), paddle.float32)
    for _ in range(3):
        add_gradient(parameter, paddle.to_tensor([1.0, 2.0]))
    assert parameter.grad.tolist() == [3, 6]


@pytest.mark.parametrize("dtype, kept", [("float64", False), ("bfloat16", True)])
def test_conversion_inside_a_network(dtype, kept):
    class Own(ShieldedLayer):
        def __init__(self):
            super().__init__()
            self.weights = shielded_parameter(np.ones(2), paddle.float32)
            self.register_buffer("count", paddle.zeros([], "int64"))

    network = paddle.nn.Sequential(paddle.nn.Linear(2, 2), Own())
    network.to(dtype=dtype)
    assert network[0].weight.dtype == getattr(paddle, dtype)
    assert (network[1].weights.dtype == paddle.float32) == kept
    assert network[1].count.dtype == paddle.int64
