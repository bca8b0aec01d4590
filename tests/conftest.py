"""What several test files share: networks, losses on them, and a fixed seed."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, operators
from paddlescience_gradnorm.machine import find_machine

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def _fresh_paddle():
    """Every test starts from the same seed and leaves float32 the default."""
    paddle.seed(0)
    yield
    paddle.set_default_dtype("float32")


@pytest.fixture
def float64():
    paddle.set_default_dtype("float64")


@pytest.fixture(scope="session")
def built_operators(tmp_path_factory):
    """The operators in C++, built for this session; a test that wants them to act sets so."""
    missing = operators._missing(find_machine())
    if missing:
        pytest.skip(missing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path_factory.mktemp("extensions")))
        operators.build()
        assert operators.load()
        operators._loaded = False
        yield


@pytest.fixture(params=["paddle", "cpp"])
def both_operators(request, monkeypatch):
    """Runs a test twice: with Paddle's operators alone, and with those in C++."""
    if request.param == "cpp":
        request.getfixturevalue("built_operators")
        monkeypatch.setattr(operators, "_loaded", True)


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


@pytest.fixture
def recorded_warnings():
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        yield record
