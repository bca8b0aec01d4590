import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.training import CheckpointError
from paddlescience_gradnorm.training._checkpoint_file import Values
from paddlescience_gradnorm.training._like import (
    as_plain,
    check_like,
    copy_into,
    tensor_of,
    values_of,
)


@pytest.mark.parametrize(
    "dtype", "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64".split()
)
@pytest.mark.parametrize("shape", [[], [3], [2, 2], [0, 2]])
def test_a_tensor_survives(dtype, shape):
    tensor = (paddle.rand(shape) * 3).astype(dtype)
    values = values_of(tensor, "x")
    assert values.dtype == dtype
    other = tensor_of(values, tensor.place)
    assert other.dtype == tensor.dtype and other.shape == tensor.shape == shape
    assert other.numpy().tobytes() == tensor.numpy().tobytes()
    target = paddle.zeros(shape).astype(dtype)
    copy_into(target, values)
    assert target.numpy().tobytes() == tensor.numpy().tobytes()


def test_a_parameter_is_changed_in_place():
    parameter = paddle.create_parameter([2], "float32")
    copy_into(parameter, Values("float32", np.array([1, 2], "float32")))
    assert parameter.tolist() == [1, 2] and not parameter.stop_gradient


def test_a_sparse_tensor_is_named():
    sparse = paddle.sparse.sparse_coo_tensor([[0]], [1.0], [3])
    with pytest.raises(TypeError, match="table must be a dense tensor"):
        values_of(sparse, "table")


def test_plain_types():
    plain = as_plain({"a": (np.int32(3), np.ones(2)), "b": paddle.ones([1])}, "it")
    assert plain["a"][0] == 3 and type(plain["a"][0]) is int
    assert plain["a"][1].dtype == "float64" and plain["b"].dtype == "float32"
    with pytest.raises(TypeError, match=r"it\['f'\]"):
        as_plain({"f": print}, "it")


VALUES = Values("float32", np.zeros((2, 1), "float32"))


@pytest.mark.parametrize(
    "own, other",
    [
        (VALUES, Values("float32", np.ones((2, 1), "float32"))),
        ({"a": 1, "b": [True, "x", 0.5]}, {"b": [False, "y", 2], "a": 3}),
        (None, 3),
        (None, 3.0),
        (None, None),
    ],
)
def test_what_is_alike(own, other):
    check_like(own, other, "it")


@pytest.mark.parametrize(
    "own, other, match",
    [
        (VALUES, Values("float32", np.zeros((1, 2), "float32")), r"shape \[1, 2\] .* \[2, 1\]"),
        (VALUES, Values("float64", np.zeros((2, 1))), "type float64, where .* float32 belong"),
        (VALUES, [[0], [0]], "has no values of it"),
        ({"a": 1}, {"b": 1}, "'a' missing, 'b' not known here"),
        ({"a": {"b": 1}}, {"a": {"b": "1"}}, "it.a.b of type str, where int belongs"),
        ({"a": 1}, [1], "no names at it"),
        ([1], [1, 2], "where 1 belong"),
        (1, 1.0, "type float, where int"),
        (1, True, "type bool, where int"),
        (True, 1, "type int, where bool"),
        (0.5, None, "type NoneType, where float"),
        (None, "x", "type str, where NoneType"),
        (1, 10**30, "which is no count"),
    ],
)
def test_what_is_not(own, other, match):
    with pytest.raises(CheckpointError, match=match):
        check_like(own, other, "it")
