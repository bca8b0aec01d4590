import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.balancing.losses import LossOrder


def values(scalars):
    assert all(scalar.ndim == 0 for scalar in scalars)
    return [scalar.item() for scalar in scalars]


@pytest.mark.parametrize(
    "losses",
    [
        [paddle.to_tensor(1.0), paddle.to_tensor([2.0])],
        (paddle.to_tensor([[1.0]]), paddle.to_tensor(2.0)),
        paddle.to_tensor([1.0, 2.0]),
        {"pde": paddle.to_tensor(1.0), "bc": paddle.to_tensor(2.0)},
    ],
    ids=["list", "tuple", "tensor", "dict"],
)
def test_every_form_gives_scalars(losses):
    assert values(LossOrder(2).scalars(losses)) == [1.0, 2.0]


def test_a_dict_keeps_the_order_of_its_first_step():
    order = LossOrder(2)
    one, two = paddle.to_tensor(1.0), paddle.to_tensor(2.0)
    order.scalars({"pde": one, "bc": two})
    assert values(order.scalars({"bc": two, "pde": one})) == [1.0, 2.0]
    assert order.names == ["pde", "bc"]


def test_another_name_on_a_later_step():
    order = LossOrder(2)
    one = paddle.to_tensor(1.0)
    order.scalars({"pde": one, "bc": one})
    with pytest.raises(ValueError, match=r"\['pde', 'ic'\].*were \['pde', 'bc'\]"):
        order.scalars({"pde": one, "ic": one})


def test_losses_with_a_mistake_do_not_decide_the_names():
    order = LossOrder(2)
    one = paddle.to_tensor(1.0)
    with pytest.raises(TypeError):
        order.scalars({"pde": one, "typo": None})
    assert values(order.scalars({"pde": one, "bc": one})) == [1.0, 1.0]


@pytest.mark.parametrize(
    "losses",
    [
        [paddle.ones([])] * 3,
        paddle.ones([3]),
        {name: paddle.ones([]) for name in "abc"},
    ],
    ids=["list", "tensor", "dict"],
)
def test_another_number_of_losses(losses):
    with pytest.raises(ValueError, match="losses has 3 entries, but n_loss is 2"):
        LossOrder(2).scalars(losses)


@pytest.mark.parametrize(
    "losses, error, match",
    [
        (paddle.ones([2, 1]), ValueError, r"1-D with 2 entries, got shape \[2, 1\]"),
        ([paddle.ones([3]), paddle.ones([])], ValueError, r"losses\[0\].*shape \[3\]"),
        ([paddle.ones([]), 1.0], TypeError, r"losses\[1\].*got float"),
        ([paddle.ones([]), np.float32(1)], TypeError, r"losses\[1\].*got float32"),
        ({"a": paddle.ones([]), "b": "x"}, TypeError, "'b'.*got str"),
        ([paddle.ones([]), paddle.ones([], "int32")], TypeError, r"losses\[1\].*int32"),
        (3.0, TypeError, "got float"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_bad_losses_are_named(losses, error, match):
    with pytest.raises(error, match=match):
        LossOrder(2).scalars(losses)
