"""PaddleScience's MLP in a Residual: by names, and by Taylor propagation where that is exact."""

import gc
import weakref

import numpy as np
import paddle
import pytest
import sympy

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import ppsci

from paddlescience_gradnorm import GradNorm
from paddlescience_gradnorm.network import _structure
from paddlescience_gradnorm.pde import Residual, derivative_path, residual

x, y, z = sympy.symbols("x y z")
u, v, w = sympy.Function("u"), sympy.Function("v"), sympy.Function("w")
U, V = u(x, y), v(x, y)
FIRST = Residual([U.diff(x) + V * U.diff(y), V.diff(y) - x * U], (x, y), (u, v))
SECOND = Residual([U.diff(x, 2) + V * U.diff(x, y), V.diff(y, 2) + V], (x, y), (u, v))
FOURTH = Residual([U.diff(x, 4) + V, V.diff(x, 2, y, 2) + V.diff(y, 3)], (x, y), (u, v))

FAST = {
    **{name: {"activation": name} for name in ("tanh", "sigmoid", "silu", "sin", "cos", "siren")},
    "swish": {"activation": "swish"},
    "sizes of layers": {"num_layers": None, "hidden_size": (4, 7, 5)},
    "skip connection": {"num_layers": 6, "skip_connection": True},
    "weight norm": {"weight_norm": True},
    "random weights": {"random_weight": {"mean": 0.5, "std": 0.1}},
    "period": {"periods": {"x": (2.0, False)}},
    "period of the second": {"periods": {"y": (2.0, False)}},
    "trainable periods": {"periods": {"y": (2.0, True), "x": (1.5, False)}},
    "Fourier": {"fourier": {"dim": 8, "scale": 1.0}},
    "other order of names": {"input_keys": ("y", "x"), "output_keys": ("w", "v", "u")},
    "all of it": {
        "input_keys": ("y", "x"),
        "periods": {"x": (2.0, True)},
        "fourier": {"dim": 8, "scale": 1.0},
        "weight_norm": True,
        "skip_connection": True,
        "activation": "swish",
    },
}


MODIFIED = {
    **{name: {"activation": name} for name in ("tanh", "sigmoid", "silu", "sin")},
    "one layer": {"num_layers": 1},
    "skip connection": {"num_layers": 6, "skip_connection": True},
    "weight norm": {"weight_norm": True},
    "random weights": {"random_weight": {"mean": 0.5, "std": 0.1}},
    "period": {"periods": {"y": (2.0, False)}},
    "Fourier": {"fourier": {"dim": 8, "scale": 1.0}},
    "all of it": {
        "input_keys": ("y", "x"),
        "periods": {"x": (2.0, True)},
        "fourier": {"dim": 8, "scale": 1.0},
        "random_weight": {"mean": 0.5, "std": 0.1},
        "num_layers": 5,
        "skip_connection": True,
        "activation": "silu",
    },
}


def mlp(of=ppsci.arch.MLP, **options):
    options = {"num_layers": 4, "hidden_size": 6, **options}
    names = {"input_keys": ("x", "y"), "output_keys": ("u", "v")}
    return of(**{**names, **options})


def modified(**options):
    return mlp(ppsci.arch.ModifiedMLP, **options)


@pytest.fixture(autouse=True)
def float64():
    paddle.set_default_dtype("float64")
    paddle.seed(0)
    yield
    paddle.set_default_dtype("float32")


@pytest.fixture
def points():
    return paddle.rand([7, 2]) - 0.5


def results(system, net, points):
    """Residuals, and the gradients of a loss in all parameters."""
    net.clear_gradients()
    found = system(net, points)
    sum((f * f).sum() for f in found).backward()
    trained = [p for p in net.parameters() if not p.stop_gradient]
    gradients = [np.zeros(p.shape) if p.grad is None else p.grad.numpy() for p in trained]
    return [*(f.numpy() for f in found), *gradients]


def assert_are_nested(system, net, points, monkeypatch):
    ours = results(system, net, points)
    with monkeypatch.context() as patch:
        patch.setattr(residual, "way_of", lambda network: "as a reference")
        reference = results(system, net, points)
    for one, other in zip(ours, reference):
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * scale)


def by_itself(net, points):
    """FIRST, with nothing of this package."""
    columns = paddle.split(points, 2, axis=1)
    for column in columns:
        column.stop_gradient = False
    outs = net(dict(zip(("x", "y"), columns)))
    a, b = outs["u"], outs["v"]
    (a_x, a_y), (b_y,) = paddle.grad(a, columns, retain_graph=True), paddle.grad(b, columns[1:])
    return [(a_x + b * a_y).numpy(), (b_y - columns[0] * a).numpy()]


@pytest.mark.usefixtures("both_operators")
@pytest.mark.parametrize("options", FAST)
def test_the_mlp_is_served_from_its_own_parameters(options, points, monkeypatch):
    net = mlp(**FAST[options])
    assert derivative_path(net).startswith("Taylor propagation up to order 4: linear layers with")
    for ours, reference in zip(FIRST(net, points), by_itself(net, points)):
        np.testing.assert_allclose(ours.numpy(), reference, rtol=1e-10, atol=1e-13)
    assert_are_nested(SECOND, net, points, monkeypatch)


@pytest.mark.usefixtures("both_operators")
@pytest.mark.parametrize("options", ["tanh", "skip connection", "random weights", "weight norm"])
def test_fourth_derivatives_too(options, points, monkeypatch):
    assert_are_nested(FOURTH, mlp(**FAST[options]), points, monkeypatch)


@pytest.mark.usefixtures("both_operators")
@pytest.mark.parametrize("options", MODIFIED)
def test_so_is_the_modified_mlp(options, points, monkeypatch):
    net = modified(**MODIFIED[options])
    path = derivative_path(net)
    why = "by Paddle's operators, because the operator in C++ serves no modified MLP"
    assert path.startswith("Taylor") and path.endswith(f", in a modified MLP, {why}")
    for ours, reference in zip(FIRST(net, points), by_itself(net, points)):
        np.testing.assert_allclose(ours.numpy(), reference, rtol=1e-10, atol=1e-13)
    assert_are_nested(SECOND, net, points, monkeypatch)


@pytest.mark.parametrize("options", ["tanh", "one layer", "skip connection", "random weights"])
def test_it_has_fourth_derivatives_too(options, points, monkeypatch):
    assert_are_nested(FOURTH, modified(**MODIFIED[options]), points, monkeypatch)


@pytest.mark.usefixtures("both_operators")
def test_gelu_is_served_where_paddle_cannot_differentiate_it(points):
    net = mlp(activation="gelu")
    assert "linear layers with gelu, " in derivative_path(net)
    for ours, reference in zip(FIRST(net, points), by_itself(net, points)):
        np.testing.assert_allclose(ours.numpy(), reference, rtol=1e-10, atol=1e-13)
    assert all(np.isfinite(found.numpy()).all() for found in SECOND(net, points))


@pytest.mark.usefixtures("both_operators")
def test_a_beta_that_has_been_learned_is_used(points, monkeypatch):
    net = mlp(activation="swish")
    for activation in net.acts:
        activation.beta.set_value(paddle.to_tensor(1.7))
    assert_are_nested(SECOND, net, points, monkeypatch)
    net.acts[1].beta.set_value(paddle.to_tensor(0.0))
    assert derivative_path(net).startswith("nested paddle.grad: a Swish has a beta of 0")
    for ours, reference in zip(FIRST(net, points), by_itself(net, points)):
        np.testing.assert_allclose(ours.numpy(), reference, rtol=1e-12)


class MyMLP(ppsci.arch.MLP):
    def forward_tensor(self, ins):
        return 2 * super().forward_tensor(ins)


class MyModifiedMLP(ppsci.arch.ModifiedMLP):
    def forward_tensor(self, ins):
        return 2 * super().forward_tensor(ins)


class MyGradNorm(GradNorm):
    def forward(self, ins):
        return {name: 2 * value for name, value in self.net(ins).items()}


def with_output_transform():
    net = mlp()
    net.register_output_transform(lambda ins, outs: {"u": ins["x"] * outs["u"], "v": outs["v"]})
    return net


def with_input_transform():
    net = mlp(input_keys=("a", "b"))
    net.register_input_transform(lambda ins: {"a": ins["x"] ** 2, "b": ins["y"] * ins["x"]})
    return net


def with_longer_encoder():
    net = modified()
    net.embed_u = paddle.nn.Sequential(*net.embed_u, paddle.nn.Tanh())
    return net


def with_narrow_encoder():
    """Of one column, which Paddle multiplies with all of a layer's."""
    net = modified()
    for name in ("embed_u", "embed_v"):
        setattr(net, name, paddle.nn.Sequential(paddle.nn.Linear(2, 1), paddle.nn.Tanh()))
    return net


def hooked(part, of=ppsci.arch.MLP, activation="swish"):
    def build():
        net = mlp(of, periods={"x": (2.0, False)}, activation=activation)
        part(net).register_forward_post_hook(lambda layer, ins, outs: outs)
        return net

    return build


def patched():
    net = mlp()
    net.forward_tensor = lambda ins: 2 * ppsci.arch.MLP.forward_tensor(net, ins)
    return net


NESTED = {
    "stan": (lambda: mlp(activation="stan"), "the activation Stan is none that can be read"),
    "elu": (lambda: mlp(activation="elu"), "the activation ELU is none that can be read"),
    "subclass": (
        lambda: MyMLP(("x", "y"), ("u", "v"), 3, 6),
        "of PaddleScience's networks only MLP and ModifiedMLP can be read, not MyMLP",
    ),
    "subclass of the modified MLP": (
        lambda: MyModifiedMLP(("x", "y"), ("u", "v"), 3, 6),
        "of PaddleScience's networks only MLP and ModifiedMLP can be read, not MyModifiedMLP",
    ),
    "modified MLP with swish": (
        lambda: modified(activation="swish"),
        "ModifiedMLP has Swish, an activation with a scale",
    ),
    "modified MLP with siren": (
        lambda: modified(activation="siren"),
        "ModifiedMLP has Siren, an activation with a scale",
    ),
    "hook of an encoder": (
        hooked(lambda net: net.embed_v, of=ppsci.arch.ModifiedMLP, activation="tanh"),
        "Sequential has hooks",
    ),
    "hook in an encoder": (
        hooked(lambda net: net.embed_u[0], of=ppsci.arch.ModifiedMLP, activation="tanh"),
        "Linear has hooks",
    ),
    "longer encoder": (
        with_longer_encoder,
        "an encoder of ModifiedMLP is not a linear layer and an activation",
    ),
    "narrow encoder": (
        with_narrow_encoder,
        "the encoders of ModifiedMLP have other sizes or dtypes than its layers",
    ),
    "output transform": (
        with_output_transform,
        "MLP has an input transform or an output transform",
    ),
    "input transform": (with_input_transform, "MLP has an input transform or an output transform"),
    "hook": (hooked(lambda net: net), "MLP has hooks"),
    "hook of a layer": (hooked(lambda net: net.linears[1]), "Linear has hooks"),
    "hook of the last": (hooked(lambda net: net.last_fc), "Linear has hooks"),
    "hook of an activation": (hooked(lambda net: net.acts[1]), "Swish has hooks"),
    "hook of the embedding": (hooked(lambda net: net.period_emb), "PeriodEmbedding has hooks"),
    "patched": (patched, "MLP has a forward of its own"),
    "wrapper of its own": (
        lambda: MyGradNorm(mlp(), 2),
        "of PaddleScience's networks only MLP and ModifiedMLP can be read, not MyGradNorm",
    ),
    "several columns": (
        lambda: mlp(output_dim=4),
        "MLP has inputs or outputs of several columns",
    ),
}


@pytest.mark.parametrize("network", NESTED)
def test_all_else_is_differentiated_and_says_why(network, points):
    build, why = NESTED[network]
    net = build()
    assert derivative_path(net) == f"nested paddle.grad: {why}"
    if network == "several columns":
        with pytest.raises(ValueError, match=r"must return shape \[7, 2\], got \[7, 4\]"):
            FIRST(net, points)
        return
    for ours, reference in zip(FIRST(net, points), by_itself(net, points)):
        np.testing.assert_allclose(ours.numpy(), reference, rtol=1e-12, atol=1e-15)


@pytest.mark.usefixtures("both_operators")
def test_in_gradnorm_and_in_data_parallel_it_goes_by_names_too(points):
    net = mlp(input_keys=("y", "x"))
    expected = by_itself(net, points)
    wrapped, parallel = GradNorm(net, n_loss=2), paddle.DataParallel(net)
    assert derivative_path(wrapped).startswith("Taylor")
    assert derivative_path(parallel).startswith("nested")
    for one in (net, wrapped, parallel):
        for ours, reference in zip(FIRST(one, points), expected):
            np.testing.assert_allclose(ours.numpy(), reference, rtol=1e-10, atol=1e-13)


def test_values_alone_go_by_names_too(points):
    net = mlp(output_keys=("v", "w", "u"))
    (found,) = Residual([U - 2 * V], (x, y), (u, v))(net, points)
    outs = net(dict(zip(("x", "y"), paddle.split(points, 2, axis=1))))
    np.testing.assert_allclose(found.numpy(), (outs["u"] - 2 * outs["v"]).numpy())


def test_an_input_that_the_network_does_not_take_has_derivative_zero(points):
    net = mlp(input_keys=("y",), output_keys=("u",))
    found = Residual(U.diff(x), (x, y), (u,))(net, points)
    assert found.numpy().tolist() == [[0.0]] * 7


def test_other_names_are_an_error(points):
    with pytest.raises(ValueError, match=r"takes \['x', 'y'\] by name.*\['x', 'z'\].*input_keys"):
        Residual(u(x, z).diff(z), (x, z), (u,))(mlp(), points)
    with pytest.raises(ValueError, match=r"gives \['u', 'v'\] by name.*\['w'\].*output_keys"):
        Residual(w(x, y).diff(x), (x, y), (w,))(mlp(), points)


def test_a_release_that_makes_something_else_of_the_layers_is_differentiated(points, monkeypatch):
    """Such as one whose skip connection adds the layer before, instead of the layer itself."""

    def forward_tensor(self, ins):
        skip = None
        for k, (linear, activation) in enumerate(zip(self.linears, self.acts)):
            ins = linear(ins)
            if k % 2 == 0:
                ins, skip = ins if skip is None else ins + skip, ins
            ins = activation(ins)
        return self.last_fc(ins)

    monkeypatch.setattr(ppsci.arch.MLP, "forward_tensor", forward_tensor)
    net = mlp(skip_connection=True)
    assert derivative_path(net).endswith("MLP gives other values than its layers and activations")
    for ours, reference in zip(FIRST(net, points), by_itself(net, points)):
        np.testing.assert_allclose(ours.numpy(), reference, rtol=1e-12)


def test_the_comparison_is_made_once_and_keeps_no_network(points, monkeypatch):
    net = mlp()
    FIRST(net, points)
    monkeypatch.setattr(_structure, "_confirm", None)
    FIRST(net, points)
    kept = weakref.ref(net)
    assert net in _structure._confirmed
    del net
    gc.collect()
    assert kept() is None
