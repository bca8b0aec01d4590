import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm, _inputs

ARRAY = np.array([[0.1, 0.2], [0.3, 1e-9]])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8", "int64", "uint8"])
@pytest.mark.parametrize("own", ["float32", "float64"])
def test_an_array_becomes_a_tensor_of_the_networks_dtype(dtype, own):
    array = (10 * ARRAY).astype(dtype)
    tensor = _inputs.as_input("ins", array, FCNet(2, 1, 2, 4).to(dtype=own))
    assert tensor.dtype == getattr(paddle, own) and tensor.stop_gradient
    np.testing.assert_array_equal(tensor.numpy(), array.astype(own))


def test_an_array_that_is_no_plain_block_of_memory_keeps_its_numbers():
    for array in (ARRAY.T, ARRAY[::-1, 1:], np.broadcast_to(ARRAY[0], (3, 2))):
        tensor = _inputs.as_input("ins", array, None)
        np.testing.assert_array_equal(tensor.numpy(), array.astype("float32"))


def test_the_tensor_is_a_copy():
    array = ARRAY.astype("float32")
    tensor = _inputs.as_input("ins", array, None)
    array[:] = 7
    np.testing.assert_array_equal(tensor.numpy(), ARRAY.astype("float32"))


@pytest.mark.parametrize("own", ["float16", "bfloat16"])
def test_half_precision_networks_get_half_precision(own):
    linear = paddle.nn.Linear(2, 1).to(dtype=own)
    assert _inputs.as_input("ins", ARRAY, linear).dtype == getattr(paddle, own)


def test_a_network_without_parameters_gets_the_default_dtype(float64):
    for network in (lambda points: points, paddle.nn.Tanh()):
        assert _inputs.form_of(network) is None
        assert _inputs.as_input("ins", ARRAY, network).dtype == paddle.float64


def test_the_form_is_that_of_the_wrapped_network():
    for options in ({}, {"alpha": 1.0}):
        net = GradNorm(FCNet(2, 1, 2, 4).to(dtype="float64"), 2, **options)
        assert _inputs.form_of(net).dtype == paddle.float64


def test_a_tensor_stays_as_it_is():
    tensor = paddle.to_tensor(ARRAY)
    assert _inputs.as_input("ins", tensor, FCNet(2, 1, 2, 4)) is tensor


@pytest.mark.parametrize(
    "values, match",
    [
        ([[0.0, 1.0]], r"ins must be a tensor or a numpy array, got list \[\[0\.0, 1\.0\]\]; .*np"),
        ([paddle.ones([2])], r"got list \[Tensor.*paddle\.concat"),
        (3.0, "got float 3.0"),
        (None, "got NoneType None"),
        (ARRAY > 0, "ins must hold real numbers, got an array of bool"),
        (1j * ARRAY, "ins must hold real numbers, got an array of complex128"),
        (np.array([["a", "b"]]), "ins must hold real numbers, got an array of <U1"),
        (np.array([[None, 1]]), "ins must hold real numbers, got an array of object"),
    ],
)
def test_what_is_no_points_is_named(values, match):
    with pytest.raises(TypeError, match=match.replace("np", "numpy.array")):
        _inputs.as_input("ins", values, FCNet(2, 1, 2, 4))


@pytest.mark.parametrize(
    "dtype, own, fit",
    [
        ("float32", "float32", True),
        ("float32", "float16", True),  # mixed precision casts
        ("bfloat16", "float32", True),
        ("float64", "float32", False),
        ("float32", "float64", False),
        ("float16", "float64", False),
        ("int64", "float32", False),
    ],
)
def test_which_dtypes_fit(dtype, own, fit):
    assert _inputs.fits(getattr(paddle, dtype), getattr(paddle, own)) is fit
