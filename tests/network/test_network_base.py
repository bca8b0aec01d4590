import paddle
import pytest

from paddlescience_gradnorm import NetworkBase


def test_calling_a_network_is_nn_func():
    class Double(NetworkBase):
        def nn_func(self, ins):
            return 2 * ins

    ins = paddle.to_tensor([[1.0, 2.0]])
    assert Double()(ins).tolist() == Double().nn_func(ins).tolist() == [[2.0, 4.0]]


def test_a_network_without_nn_func_says_so():
    class Empty(NetworkBase):
        pass

    with pytest.raises(NotImplementedError, match="Empty does not define nn_func"):
        Empty()(paddle.ones([1, 2]))
