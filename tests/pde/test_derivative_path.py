"""A plain network is served from its own parameters, and nothing else is taken for one."""

import numpy as np
import paddle
import pytest
import sympy
from paddle.nn import GELU, Dropout, Linear, Sequential, Sigmoid, Silu, Softplus, Swish, Tanh

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.pde import Residual, derivative_path
from paddlescience_gradnorm.pde._derivative_path import find_layers

x, y = sympy.symbols("x y")
u = sympy.Function("u")
FIRST = Residual(u(x, y).diff(x) * u(x, y) + u(x, y).diff(y), (x, y), (u,))


def net(activation=Tanh, linear=Linear, **options):
    return Sequential(Linear(2, 8), activation(**options), linear(8, 8), Tanh(), Linear(8, 1))


def hooked(layer_of):
    def build():
        made = net()
        layer_of(made).register_forward_post_hook(lambda layer, ins, out: 2 * out)
        return made

    return build


def patched():
    made = net()
    made[1].forward = lambda z: z * z
    return made


def with_norm():
    made = net()
    paddle.nn.utils.weight_norm(made[2])
    return made


class MyLinear(Linear):
    def forward(self, ins):
        return 2 * super().forward(ins)


class MySequential(Sequential):
    def forward(self, ins):
        return 2 * super().forward(ins)


class MyGradNorm(GradNorm):
    def forward(self, ins):
        return 2 * self.net(ins)


PLAIN = {
    **{kind.__name__: (lambda kind=kind: net(kind)) for kind in (Tanh, Sigmoid, Silu, Swish, GELU)},
    "Softplus": lambda: net(Softplus),
    "the same activation twice": lambda: (
        lambda f: Sequential(Linear(2, 8), f, Linear(8, 8), f, Linear(8, 1))
    )(Tanh()),
    "named": lambda: Sequential(("a", Linear(2, 8)), ("b", Tanh()), ("c", Linear(8, 1))),
    "wrapped": lambda: GradNorm(net(Silu), 2),
    "wrapped, published rule": lambda: GradNorm(net(Silu), 2, alpha=1.0, shared="all"),
}
OTHER = {
    "hook of the network": hooked(lambda made: made),
    "hook of a linear layer": hooked(lambda made: made[2]),
    "hook of an activation": hooked(lambda made: made[1]),
    "patched": patched,
    "weight norm": with_norm,
    "linear of its own": lambda: net(linear=MyLinear),
    "network of its own": lambda: MySequential(Linear(2, 8), Tanh(), Linear(8, 1)),
    "wrapper of its own": lambda: MyGradNorm(net(), 2),
    "hook of the wrapped": lambda: GradNorm(hooked(lambda made: made)(), 2),
    "dropout": lambda: net(Dropout, p=0.0),
    "no bias": lambda: net(linear=lambda a, b: Linear(a, b, bias_attr=False)),
    "beta": lambda: net(Softplus, beta=2.0),
    "ends with an activation": lambda: Sequential(Linear(2, 8), Tanh(), Linear(8, 1), Tanh()),
    "two linear layers": lambda: Sequential(Linear(2, 8), Linear(8, 8), Linear(8, 1)),
    "one linear layer": lambda: Sequential(Linear(2, 1)),
}


def by_differentiation(network, points):
    """Once only, because Paddle differentiates some activations no more than that."""
    leaf = points.detach()
    leaf.stop_gradient = False
    value = network(leaf)
    (first,) = paddle.grad(value, leaf)
    return (first[:, :1] * value + first[:, 1:]).numpy()


@pytest.mark.usefixtures("both_operators")
@pytest.mark.parametrize("network", PLAIN)
def test_a_plain_network_is_served(network, monkeypatch):
    made = PLAIN[network]()
    made.to(dtype="float64")
    points = paddle.rand([9, 2], "float64")
    expected = by_differentiation(made, points)
    assert derivative_path(made).startswith("Taylor propagation up to order 4: linear layers")
    monkeypatch.setattr(paddle, "grad", None)
    np.testing.assert_allclose(FIRST(made, points).numpy(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("network", OTHER)
def test_nothing_else_is_taken_for_one(network):
    made = OTHER[network]()
    made.to(dtype="float64")
    points = paddle.rand([9, 2], "float64")
    assert derivative_path(made).startswith("nested paddle.grad: ")
    expected = by_differentiation(made, points)
    np.testing.assert_allclose(FIRST(made, points).numpy(), expected, rtol=1e-14)


def test_the_sizes_of_layers_are_checked_before_the_operator_reads_them():
    wrong = Sequential(Linear(2, 8), Tanh(), Linear(9, 1))
    assert find_layers(wrong) == "the sizes of its layers do not match"
    with pytest.raises(ValueError):
        FIRST(Sequential(Linear(3, 8), Tanh(), Linear(8, 1)), paddle.rand([4, 2]))


def test_the_other_paths_are_named():
    approximate = derivative_path(net(GELU, approximate=True))
    assert approximate == "nested paddle.grad: GELU has other options than the default"
    assert "FCNet with tanh" in derivative_path(FCNet(2, 1, 3, 8))
    assert "FCNet with elu" in derivative_path(FCNet(2, 1, 3, 8, "elu"))
    assert derivative_path(lambda ins: ins) == (
        "nested paddle.grad: <lambda> is neither an FCNet nor a Sequential"
    )
