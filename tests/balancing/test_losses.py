import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.balancing._losses import LossOrder, NamedLosses


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


def test_names_are_numbers_until_a_dict_gives_them():
    order = LossOrder(2)
    assert order.names == ["losses[0]", "losses[1]"] and not order.named
    order.scalars([paddle.ones([]), paddle.ones([])])
    assert order.names == ["losses[0]", "losses[1]"] and not order.named
    order.scalars({"pde": paddle.ones([]), "bc": paddle.ones([])})
    assert order.names == ["pde", "bc"] and order.named


def test_names_are_strings_whatever_the_keys_are():
    order = LossOrder(2)
    order.scalars({1: paddle.ones([]), 2: paddle.ones([])})
    assert order.names == ["1", "2"]
    with pytest.raises(ValueError, match="names that are the same as text"):
        order.scalars({1: paddle.ones([]), "1": paddle.ones([])})
    with pytest.raises(ValueError, match="names that are the same as text"):
        order.scalars({1: paddle.ones([]), 2: paddle.ones([]), "1": paddle.ones([])})


def test_losses_without_names_keep_those_that_a_dict_has_given():
    order, one, two = LossOrder(2), paddle.to_tensor(1.0), paddle.to_tensor(2.0)
    order.scalars({"pde": one, "bc": two})
    assert values(order.scalars([two, one])) == [2.0, 1.0]
    assert order.names == ["pde", "bc"]
    with pytest.raises(TypeError, match="loss 'bc' must be"):
        order.scalars([one, None])


def test_a_later_process_goes_on_with_the_names():
    one, two = paddle.to_tensor(1.0), paddle.to_tensor(2.0)
    order = LossOrder(2)
    order.resume(["pde", "bc"])
    assert order.names == ["pde", "bc"] and order.named
    assert values(order.scalars({"bc": two, "pde": one})) == [1.0, 2.0]
    order.resume(None)
    assert order.names == ["losses[0]", "losses[1]"] and not order.named
    assert values(order.scalars({"bc": two, "pde": one})) == [2.0, 1.0]


def test_another_name_on_a_later_step():
    order = LossOrder(2)
    one = paddle.to_tensor(1.0)
    order.scalars({"pde": one, "bc": one})
    with pytest.raises(ValueError, match=r"\['pde', 'ic'\].*were \['pde', 'bc'\]"):
        order.scalars({"pde": one, "ic": one})


def test_a_scalar_tensor_is_handed_on_as_it_is():
    losses = [paddle.to_tensor(1.0), paddle.to_tensor([[2.0]])]
    scalars = LossOrder(2).scalars(losses)
    assert scalars[0] is losses[0] and scalars[1].shape == [] and losses[1].shape == [1, 1]
    assert isinstance(losses, list) and len(losses) == 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_losses_of_any_precision_are_taken(dtype):
    scalars = LossOrder(2).scalars([paddle.ones([], dtype), paddle.ones([1], dtype)])
    assert [scalar.dtype for scalar in scalars] == [getattr(paddle, dtype)] * 2


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
    with pytest.raises(ValueError, match="losses has 3 entries, but there are two heads"):
        LossOrder(2, "there are two heads").scalars(losses)


@pytest.mark.parametrize(
    "losses, error, match",
    [
        (paddle.ones([2, 1]), ValueError, r"1-D with 2 entries, got shape \[2, 1\]"),
        (paddle.ones([]), ValueError, r"must be the single losses, got one tensor of shape \[\]"),
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


def test_absent_losses_are_constant_zeros_where_that_is_allowed():
    order, one, two = LossOrder(3, absent="skip"), paddle.to_tensor(1.0), paddle.to_tensor(2.0)
    assert values(order.scalars({"pde": one})) == [1, 0, 0]
    assert order.names == ["pde", "losses[1]", "losses[2]"] and not order.complete
    scalars = order.scalars({"bc": two})
    assert values(scalars) == [0, 2, 0] and order.known == ["pde", "bc"]
    assert [order.is_absent(scalar) for scalar in scalars] == [True, False, True]
    assert values(order.scalars({"ic": one, "pde": two})) == [2, 0, 1] and order.complete
    with pytest.raises(ValueError, match="these are 4 losses, but n_loss is 3"):
        order.scalars({"flux": one})
    with pytest.raises(ValueError, match="losses has 2 entries, but n_loss is 3"):
        order.scalars([one, two])
    with pytest.raises(ValueError, match="losses has the names"):
        order.scalars({})


def test_a_later_process_knows_which_names_are_still_open():
    order = LossOrder(3, absent="skip")
    order.resume(["pde", "losses[1]", "losses[2]"])
    assert order.known == ["pde"] and not order.complete
    assert values(order.scalars({"bc": paddle.ones([])})) == [0, 1, 0]


def test_losses_may_know_which_of_them_are_equations():
    order = LossOrder(2)
    order.scalars(NamedLosses({"a": paddle.ones([]), "b": paddle.ones([])}, ["b"]))
    assert order.equations == ("b",)
    order = LossOrder(2)
    order.scalars(NamedLosses({"a": paddle.ones([]), "b": paddle.ones([])}, []))
    assert order.equations == ()  # known to be none, so nobody need be asked


def test_what_the_last_losses_have_taught_can_be_forgotten():
    order, one = LossOrder(3, absent="skip"), paddle.to_tensor(1.0)
    order.scalars(NamedLosses({"pde": one, "bc": one}, ["pde"]))
    order.scalars(NamedLosses({"ode": one}, ["ode"]))
    assert order.known == ["pde", "bc", "ode"] and order.equations == ("pde", "ode")
    order.forget_last()
    assert order.known == ["pde", "bc"] and order.names[2] == "losses[2]"
    assert order.equations == ("pde",) and not order.complete
    order.resume(["a", "b", "c"])
    order.scalars([one] * 3)
    order.forget_last()  # a list has taught nothing
    assert order.names == ["a", "b", "c"]
