import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import NetworkBase


def test_calling_a_network_is_nn_func():
    class Double(NetworkBase):
        def nn_func(self, ins):
            return 2 * ins

    ins = paddle.to_tensor([[1.0, 2.0]])
    assert Double()(ins).tolist() == Double().nn_func(ins).tolist() == [[2.0, 4.0]]


def test_an_array_reaches_nn_func_as_a_tensor_of_the_networks_dtype():
    class Hard(NetworkBase):
        def __init__(self):
            super().__init__()
            self.linear = paddle.nn.Linear(2, 1)

        def nn_func(self, ins):
            return ins[:, :1] * self.linear(ins)

    net, points = Hard(), np.random.default_rng(0).random((4, 2))
    outputs = net(points)
    assert outputs.dtype == paddle.float32
    expected = net(paddle.to_tensor(points, "float32"))
    np.testing.assert_array_equal(outputs.numpy(), expected.numpy())


def test_a_network_without_nn_func_says_so():
    class Empty(NetworkBase):
        pass

    with pytest.raises(NotImplementedError, match="Empty does not define nn_func"):
        Empty()(paddle.ones([1, 2]))
