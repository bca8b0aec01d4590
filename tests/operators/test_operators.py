import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
import scipy.special

from paddlescience_gradnorm import FCNet, _operators
from paddlescience_gradnorm._machine import find_machine
from paddlescience_gradnorm.network._taylor import ACTIVATIONS, Layers, propagate

pytestmark = pytest.mark.usefixtures("built_operators")
LAPLACIAN = [(0, 0), (1, 1)]


@pytest.fixture
def loaded(cpp):
    cpp(True)


@pytest.fixture
def threads():
    yield paddle.base.core.set_num_threads
    paddle.base.core.set_num_threads(1)


def derivatives(net, points, indices, activation="tanh"):
    linears = list(net.linears)
    weights, biases = [x.weight for x in linears], [x.bias for x in linears]
    return propagate(Layers(weights, biases, [activation] * (len(linears) - 1)), points, indices)


def gradients(net, points):
    """Of a loss with second derivatives, with respect to every parameter but the last bias."""
    net.clear_gradients()
    sum(d.square().sum() for d in derivatives(net, points, LAPLACIAN)).backward()
    return [p.grad.numpy().copy() for p in net.parameters()[:-1]]


def test_are_built_once_and_found_again():
    library = _operators.built_library()
    made = library.stat().st_mtime_ns
    assert _operators.build() == library
    assert library.stat().st_mtime_ns == made
    assert [path.name for path in library.parents[1].iterdir()] == [library.parent.name]


@pytest.mark.parametrize("change", ["model", "flags"])
def test_another_processor_has_a_library_of_its_own(change):
    here = find_machine()
    other = here._replace(**{change: {"model": "other", "flags": frozenset()}[change]})
    assert _operators.built_library(other) != _operators.built_library(here)


def test_a_process_has_them_if_they_have_been_built(tmp_path):
    code = "from paddlescience_gradnorm import _operators; print(_operators.load())"
    for folder, loads in ((_operators.built_library().parents[1], "True"), (tmp_path, "False")):
        process = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env={"PADDLE_EXTENSION_DIR": str(folder), "HOME": str(tmp_path)},
        )
        assert process.stdout.split() == [loads], process.stderr


def test_a_compiler_that_is_missing_or_fails_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler"):
        _operators.build()
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(_operators, "_compiler_flags", lambda: ["-no-such-flag"])
    with pytest.raises(RuntimeError, match="no-such-flag"):
        _operators.build()
    assert list(tmp_path.iterdir()) == []


def test_elsewhere_than_on_linux_they_are_not_built(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="Linux only, this is Darwin"):
        _operators.build(find_machine()._replace(system="Darwin"))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def gelu(x):
    return x * 0.5 * scipy.special.erfc(-x.astype("float64") / np.sqrt(2.0))


# Exact to so many times rounding, relative to |x| or to 1.
FUNCTIONS = {
    "tanh": (np.tanh, 3),
    "sin": (np.sin, 3),
    "sigmoid": (sigmoid, 3),
    "silu": (lambda x: x * sigmoid(x), 3),
    "gelu": (gelu, 4),
    "softplus": (softplus, 3),
}


def values(activation, x):
    one, zero = paddle.ones([1, 1], x.dtype), paddle.zeros([1], x.dtype)
    points = paddle.to_tensor(x.reshape(-1, 1))
    arguments = (points, [one], [zero], [activation], [-1], [])
    return _operators.taylor_jet(*arguments).numpy().ravel()


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_are_exact_to_rounding(loaded, activation, dtype):
    function, times = FUNCTIONS[activation]
    eps = np.finfo(dtype).eps
    sizes = np.concatenate([np.geomspace(1e-30, 1e6, 20_001), np.linspace(0, 100, 20_001)])
    x = np.concatenate([sizes, -sizes]).astype(dtype)
    # The argument of exp is rounded too: relative to x, not to the small value of the function.
    with np.errstate(over="ignore"):
        expected = function(x.astype(np.longdouble))
    error = np.abs(values(activation, x) - expected)
    assert (error <= times * eps * np.maximum(1, np.abs(expected))).all()
    assert np.isnan(values(activation, np.full(3, np.nan, dtype))).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tanh_is_exact_to_rounding_from_the_smallest_number_up(loaded, dtype):
    info = np.finfo(dtype)
    sizes = np.geomspace(info.tiny, 1e30, 20_001)
    x = np.concatenate([sizes, np.linspace(0, 25, 20_001)]).astype(dtype)
    x = np.concatenate([x, -x, [np.inf, -np.inf, info.max]])
    expected = np.tanh(x.astype(np.longdouble))
    np.testing.assert_allclose(values("tanh", x), expected, rtol=3 * info.eps, atol=0)


def test_the_activations_are_those_of_paddles_operators():
    assert list(_operators.ACTIVATIONS) == list(ACTIVATIONS)


@pytest.mark.parametrize("n_points", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_any_number_of_points_and_threads_gives_the_same(cpp, threads, n_points, n_threads):
    net = FCNet(2, 3, 4, 11)
    net.to(dtype="float64")
    points = paddle.rand([n_points, 2], "float64")
    expected = gradients(net, points)
    cpp(True)
    threads(n_threads)
    ours, again = gradients(net, points), gradients(net, points)
    for x, y, z in zip(ours, expected, again):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13 * np.abs(y).max())
        assert (x == z).all()


def test_a_frozen_parameter_gets_no_gradient(loaded):
    net = FCNet(2, 1, 4, 7)
    net.linears[1].weight.stop_gradient = True
    (second,) = derivatives(net, paddle.rand([9, 2]), [(0, 0)])
    second.sum().backward()
    assert net.linears[1].weight.grad is None
    assert net.linears[2].weight.grad is not None


def test_a_second_differentiation_is_refused_by_name(loaded):
    net = FCNet(2, 1, 4, 7)
    (second,) = derivatives(net, paddle.rand([9, 2]), [(0, 0)])
    inner = net.linears[1].weight
    (gradient,) = paddle.grad(second.sum(), inner, create_graph=True)
    with pytest.raises(OSError, match="can be differentiated once in the parameters"):
        paddle.grad(gradient.square().sum(), inner)


def test_what_they_are_not_made_for_is_left_to_paddle(loaded):
    x = paddle.rand([3])
    assert _operators.apply_to(x, x)
    assert not _operators.apply_to(x, x.astype("float64"))
    assert not _operators.apply_to(x.astype("float16"))


def test_loading_again_does_not_register_the_operator_twice(built_operators):
    for _ in range(2):  # Paddle would abort the process
        _operators.loaded = False
        assert _operators.load() and _operators.loaded
