import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest
import scipy.special

from paddlescience_gradnorm import FCNet, _operators
from paddlescience_gradnorm._machine import find_machine
from paddlescience_gradnorm._operators import _compile
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


def test_a_compiler_that_is_missing_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"cannot be built: there is no C\+\+ compiler"):
        _operators.build()
    stands = _operators.begin_building(find_machine())
    assert stands == ("not here", "there is no C++ compiler; install g++")
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_is_quoted_and_not_begun_again_unasked(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path))
    monkeypatch.setattr(_operators, "_compiler_flags", lambda: ["-no-such-flag"])
    with pytest.raises(RuntimeError, match="no-such-flag"):
        _operators.build()
    folder = _operators.built_library().parent
    assert sorted(path.name for path in folder.iterdir()) == ["failure.txt", "lock"]
    assert "no-such-flag" in (folder / "failure.txt").read_text()
    stands = _operators.begin_building(find_machine())
    assert stands.outcome == "failed" and "error" in stands.reason and "\n" not in stands.reason
    assert str(folder / "failure.txt") in stands.reason
    assert not _compile.holder(folder)  # nobody tries again


def test_elsewhere_than_on_linux_they_are_not_built(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path))
    mac = find_machine()._replace(system="Darwin")
    with pytest.raises(RuntimeError, match="Linux only, this is Darwin"):
        _operators.build(mac)
    assert _operators.begin_building(mac).outcome == "not here"
    assert list(tmp_path.iterdir()) == []


# In place of the compiler: it notes that it has begun, and goes on when it may.
COMPILER = """
import pathlib, sys, time
place = pathlib.Path({place!r})
with (place / "begun").open("a") as file:
    file.write("begun\\n")
while not (place / "go").exists():
    time.sleep(0.01)
made = pathlib.Path(sys.argv[1], "gradnorm_operators", "gradnorm_operators.so")
made.parent.mkdir()
made.write_text("made")
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """One that takes as long as the test wants."""
    monkeypatch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path / "extensions"))
    monkeypatch.setattr(_operators, "_code", lambda: COMPILER.format(place=str(tmp_path)))
    yield tmp_path
    (tmp_path / "go").touch()
    wait_until(lambda: _operators.building().outcome != "building")


def wait_until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_many_that_begin_at_once_build_once(compiler):
    machine = find_machine()
    with ThreadPoolExecutor(8) as pool:  # each opens the lock for itself, as a process does
        stands = list(pool.map(lambda _: _operators.begin_building(machine), range(8)))
    assert [outcome for outcome, _ in stands] == ["building"] * 8
    assert [reason for _, reason in stands].count("in the background") == 1
    wait_until((compiler / "begun").exists)
    (compiler / "go").touch()
    library = _operators.built_library(machine)
    wait_until(lambda: library.exists() and not _compile.holder(library.parent))
    assert _operators.build() == library  # which is there
    assert library.read_text() == "made"
    assert (compiler / "begun").read_text() == "begun\n"
    assert _operators.begin_building(machine) == ("built", "")
    assert sorted(path.name for path in library.parent.iterdir()) == [library.name, "lock"]


def test_it_outlives_the_process_that_began_it_and_gives_the_lock_back_when_killed(
    compiler, elsewhere
):
    machine = find_machine()
    assert "background" in elsewhere(lambda: _operators.begin_building(machine))
    wait_until((compiler / "begun").exists)
    outcome, by = _operators.building()
    number = int(by.split()[2])
    assert outcome == "building" and number != os.getpid()
    assert os.getsid(number) != os.getsid(0) and os.getpriority(os.PRIO_PROCESS, number) == 19
    (folder,) = _operators.built_library().parent.glob("building-*")
    os.killpg(os.getpgid(number), signal.SIGKILL)
    wait_until(lambda: _operators.building().outcome == "not built")
    (compiler / "go").touch()
    assert _operators.begin_building(machine).outcome == "building"
    wait_until(lambda: _operators.building().outcome == "built")
    assert not folder.exists()


def test_who_waits_for_the_library_compiles_it_instead_of_the_background(compiler, elsewhere):
    elsewhere(lambda: _operators.begin_building(find_machine()))
    wait_until((compiler / "begun").exists)
    number = int(_operators.building().reason.split()[2])
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(_operators.build)
        try:
            wait_until(lambda: (compiler / "begun").read_text() == "begun\n" * 2)
            wait_until(lambda: not os.path.exists(f"/proc/{number}/exe"))
            assert _operators.building().reason.split()[2] == str(os.getpid())
        finally:
            (compiler / "go").touch()
        library = made.result()
    assert sorted(path.name for path in library.parent.iterdir()) == [library.name, "lock"]


def test_but_it_waits_for_another_that_waits(compiler, elsewhere, caplog):
    with ThreadPoolExecutor(2) as pool, caplog.at_level("INFO"):
        first = pool.submit(_operators.build)
        wait_until((compiler / "begun").exists)
        second = pool.submit(_operators.build)
        try:
            wait_until(lambda: "waiting for process" in caplog.text)
        finally:
            (compiler / "go").touch()
        assert first.result() == second.result()
    assert (compiler / "begun").read_text() == "begun\n"


@pytest.mark.parametrize(
    "options, says", [("ro", "Read-only file system"), ("size=64k", "No space left on device")]
)
def test_a_folder_that_takes_nothing_is_named(tmp_path, monkeypatch, mount, options, says):
    mount(tmp_path / "disk", options)
    if options != "ro":
        mount.fill(tmp_path / "disk")
    monkeypatch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path / "disk"))
    stands = _operators.begin_building(find_machine())
    assert stands.outcome == "failed" and says in stands.reason
    with pytest.raises(RuntimeError, match=f"cannot be built: .*{says}"):
        _operators.build()
    assert not _operators.load()


def test_a_library_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path))
    monkeypatch.setattr(_operators, "_is_registered", False)
    library = _operators.built_library()
    library.parent.mkdir()
    library.write_bytes(b"no library")
    with pytest.raises(RuntimeError, match=f"{library} cannot be loaded; delete it"):
        _operators.load()


def test_a_run_goes_on_by_the_operators_with_which_it_began(cpp, monkeypatch, recorded_warnings):
    monkeypatch.delenv(_operators.CHOICE)
    for began in (False, True):
        for now in (False, True):
            cpp(now)
            _operators.go_on(began)
            assert _operators.loaded == began
    assert not recorded_warnings


@pytest.mark.parametrize("began", [False, True])
def test_if_it_cannot_or_shall_not_it_says_so(cpp, monkeypatch, tmp_path, began):
    cpp(not began)
    monkeypatch.setenv(_operators.CHOICE, "off" if began else "on")
    ways = "with the .* without them" if began else "without the .* with them"
    with pytest.warns(RuntimeWarning, match=f"began {ways}, as GRADNORM_OPERATORS="):
        _operators.go_on(began)
    assert _operators.loaded != began
    if began:
        monkeypatch.delenv(_operators.CHOICE)
        monkeypatch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path))
        with pytest.warns(RuntimeWarning, match="without them, which are not built here"):
            _operators.go_on(began)


def test_a_choice_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv(_operators.CHOICE, "yes")
    with pytest.raises(ValueError, match="GRADNORM_OPERATORS must be 'on' or 'off', got 'yes'"):
        _operators.choice()


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
