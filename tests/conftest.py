"""What several test files share: networks, losses on them, and a fixed seed."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
import warnings
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, _operators
from paddlescience_gradnorm._machine import find_machine

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"


def pytest_collection_modifyitems(items):
    """Slow tests come first, so that no process is left with one when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="session")
def _no_operators_of_the_user(tmp_path_factory):
    """Nothing that has been built on this machine before is used, and nothing built unasked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_operators.CHOICE, "off")
        # One folder for all processes of pytest-xdist, of which one compiles and the others wait.
        folder = tmp_path_factory.getbasetemp()
        folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
        patch.setenv("PADDLE_EXTENSION_DIR", str(folder / "extensions"))
        yield


@pytest.fixture(autouse=True)
def _fresh_paddle():
    """Every test starts from the same seed, without the operator in C++, and leaves float32."""
    paddle.seed(0)
    _operators.loaded = False
    yield
    paddle.set_default_dtype("float32")


@pytest.fixture
def mount():
    """Mounts a file system in memory with these options on a folder, until the test is over."""
    mounted = []

    def on(folder, options):
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if (
            shutil.which("mount") is None
            or subprocess.run(command, stderr=subprocess.DEVNULL).returncode
        ):
            pytest.skip("needs the right to mount a tmpfs, as root has it")
        mounted.append(folder)

    def off():
        subprocess.run(["umount", str(mounted.pop())], check=True)

    def fill(folder):
        """Take all that is left of the disk."""
        with (folder / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    on.off, on.fill = off, fill
    yield on
    while mounted:
        off()


@pytest.fixture
def elsewhere():
    """Calls a function in another process: what it returns as text; of an error that."""

    def called(act):
        reads, writes = os.pipe()
        process = os.fork()
        if not process:
            try:
                told = str(act())
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
            os.write(writes, told.encode())
            os._exit(0)
        os.close(writes)
        with os.fdopen(reads) as pipe:
            told = pipe.read()
        os.waitpid(process, 0)
        return told

    return called


def _has_a_tensor(waiting):
    """Also in dicts and tuples that the collector does not know, as all they hold are tensors."""
    held = gc.get_referents(waiting)
    while held:
        each = held.pop()
        if isinstance(each, paddle.Tensor):
            return True
        if isinstance(each, (dict, tuple)) and not gc.is_tracked(each):
            held += gc.get_referents(each)
    return False


@pytest.fixture
def waiting_tensors():
    """Calls a function: how many objects with tensors it leaves to the garbage collector.

    Graphs among them would fill the memory, because the collector counts objects, not bytes.
    """

    def left_by(act):
        act()  # what is made once may be thrown away once
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.disable()
        try:
            act()
            gc.collect()
            return sum(map(_has_a_tensor, gc.garbage))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    return left_by


@pytest.fixture
def float64():
    paddle.set_default_dtype("float64")


@pytest.fixture(scope="session")
def built_operators(_no_operators_of_the_user):
    """The operator in C++, built for this session; ``cpp`` makes it act."""
    missing = _operators._missing(find_machine())
    if missing:
        pytest.skip(missing)
    _operators.build()
    assert _operators.load()


@pytest.fixture
def cpp(built_operators, monkeypatch):
    """Makes the operator in C++ act, or not."""

    def act(whether):
        monkeypatch.setattr(_operators, "loaded", whether)

    return act


@pytest.fixture(params=["paddle", "cpp"])
def both_operators(request):
    """Runs a test of derivatives twice: by Paddle's operators alone, and by the one in C++."""
    if request.param == "cpp":
        request.getfixturevalue("cpp")(True)


@pytest.fixture
def fc_net():
    return FCNet(num_ins=2, num_outs=1, num_layers=3, hidden_size=16)


@pytest.fixture
def make_losses():
    """Three losses of very different size on a network with two inputs.

    ``share`` decides whether they share a forward graph or only the parameters.
    """

    def losses(net, share=False, seed=0):
        points = np.random.default_rng(seed).random((3, 8, 2))
        points = paddle.to_tensor(points, dtype=net.parameters()[0].dtype)
        outputs = [net(points[0])] * 3 if share else [net(p) for p in points]
        return [
            (outputs[0] - 1.0).square().mean(),
            1e3 * (outputs[1] + 0.5).square().mean(),
            1e-3 * outputs[2].square().mean(),
        ]

    return losses


@pytest.fixture
def make_scaler(monkeypatch):
    """Makes a GradScaler, which on a CPU has to be told that it is on a GPU."""

    def make(**options):
        with monkeypatch.context() as patch:
            patch.setattr(paddle.base.core.Place, "is_gpu_place", lambda self: True)
            # It is left as it is by overflows, for lowering it fails with numpy 2.4 in Paddle 3.3.
            defaults = {"init_loss_scaling": 2.0**16, "decr_every_n_nan_or_inf": 1000}
            scaler = paddle.amp.GradScaler(**{**defaults, **options})
        with paddle.amp.auto_cast(dtype="float16"):  # else it finds that it is not needed
            pass
        assert scaler.is_enable()
        return scaler

    return make


class _MultiHead(paddle.nn.Layer):
    """The network of the reference results: a shared trunk and a linear head for each task."""

    def __init__(self, reference):
        super().__init__()
        self.fc1 = _linear(reference, "fc1")
        self.fc2 = _linear(reference, "fc2")
        tasks = int(reference["T"])
        self.heads = paddle.nn.LayerList([_linear(reference, f"head{t}") for t in range(tasks)])

    def forward(self, x):
        relu = paddle.nn.functional.relu
        hidden = relu(self.fc2(relu(self.fc1(x))))
        return [head(hidden) for head in self.heads]

    def get_last_shared_layer(self):
        return self.fc2.weight


def _linear(reference, name):
    weight, bias = reference[f"{name}_w"], reference[f"{name}_b"]
    linear = paddle.nn.Linear(*weight.shape)
    linear.weight.set_value(weight)
    linear.bias.set_value(bias)
    return linear


class Reference:
    """A run of dav-ell/gradnorm: its arrays, its network, and its losses at every step.

    Its weights take steps on the mean over tasks of |G_i - c_i|, ours on the sum.
    """

    def __init__(self, name):
        self.arrays = np.load(DATA / name)
        self.n_loss = int(self.arrays["T"])
        self.alpha = float(self.arrays["alpha"])
        self.weight_lr = float(self.arrays["davell_weight_lr"]) / self.n_loss
        self.net_lr = float(self.arrays["davell_net_lr"])
        self.net = _MultiHead(self.arrays)
        self.steps = range(len(self.arrays["X"]))

    def losses(self, net, step):
        x, y = (paddle.to_tensor(self.arrays[k][step]) for k in ("X", "Y"))
        return [(out - target).square().mean() for out, target in zip(net(x), y)]

    def assert_reproduced(self, weights):
        np.testing.assert_allclose(weights, self.arrays["davell_weights"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            self.net.fc2.weight.numpy(), self.arrays["davell_fc2_w_final"], rtol=0, atol=1e-12
        )


@pytest.fixture(params=["gradnorm_T2.npz", "gradnorm_T4.npz"])
def reference(request, float64):
    return Reference(request.param)


class RotoGradReference:
    """Two backward calls of the released rotograd package: arrays, layers and losses.

    The backbone is tanh(linear 5 -> 6), each head a linear layer 6 -> 3. ``as_layer`` makes
    the heads from those.
    """

    def __init__(self, name, as_layer):
        self.arrays = np.load(DATA / name)
        self.class_name = str(self.arrays["cls"])
        self.coop = bool(self.arrays["coop"])
        self.options = {"version": "0.1.2" if str(self.arrays["version"]) == "0.1.2" else "0.1.6"}
        if np.isfinite(self.arrays["alpha"]):
            self.options["alpha"] = float(self.arrays["alpha"])
        self.backbone = paddle.nn.Sequential(_linear(self.arrays, "backbone"), paddle.nn.Tanh())
        tasks = range(int(self.arrays["T"]))
        self.linears = [_linear(self.arrays, f"head{t}") for t in tasks]
        self.heads = [as_layer(linear) for linear in self.linears]

    def inputs(self, step):
        return paddle.to_tensor(self.arrays["X"][step])

    def losses(self, predictions, step):
        targets = paddle.to_tensor(self.arrays["Y"][step])
        return [(p - y).square().mean() for p, y in zip(predictions, targets)]


class Opaque(paddle.nn.Layer):
    """A head of which nobody can know that it begins with a linear layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, latent):
        return self.layer(latent)


@pytest.fixture(params=["known", "opaque"])
def as_layer(request):
    """Both ways for a head: its first layer takes in the rotation, or the input is rotated."""
    return Opaque if request.param == "opaque" else lambda layer: layer


@pytest.fixture(params=sorted(path.name for path in DATA.glob("rotograd_*.npz")))
def rotograd_reference(request, float64, as_layer):
    return RotoGradReference(request.param, as_layer)


@pytest.fixture
def recorded_warnings():
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        yield record


class Terminal:
    """A pseudo-terminal of so many columns for the standard error of another process."""

    def __init__(self, columns):
        self._end, self._process_end = pty.openpty()
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self._process_end, termios.TIOCSWINSZ, size)

    def begin(self, *command, **options):
        """Python with these arguments, which does not know that it is tested."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        environment["PYTHONPATH"] = str(ROOT)
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            stdout=subprocess.PIPE,
            stderr=self._process_end,
            text=True,
            **{"env": environment, **options},
        )
        os.close(self._process_end)
        return process

    def read(self, until=None):
        """What appears in it, up to a text, or to the end of the process."""
        seen = b""
        while until is None or until.encode() not in seen:
            try:
                more = os.read(self._end, 65536)
            except OSError:  # the other end is closed
                more = b""
            if not more:
                assert until is None, seen.decode()
                os.close(self._end)
                break
            seen += more
        return seen.decode()


@pytest.fixture
def terminal():
    return Terminal
