"""A plain network is served from its own parameters, and nothing else is taken for one."""

import numpy as np
import paddle
import pytest
import sympy
from paddle.nn import GELU, Dropout, Linear, Sequential, Sigmoid, Silu, Softplus, Swish, Tanh

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.network import FourierFeatures, PeriodicEmbedding, Scaling
from paddlescience_gradnorm.network._structure import find_layers, piecewise_linear_activation
from paddlescience_gradnorm.pde import Residual, derivative_path, residual

x, y = sympy.symbols("x y")
u = sympy.Function("u")
SECOND = Residual(
    u(x, y).diff(x, 2) + u(x, y).diff(x, y) * u(x, y) + u(x, y).diff(y, 2), (x, y), (u,)
)
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


def hooked_norm():
    made = with_norm()
    made[2].register_forward_post_hook(lambda layer, ins, out: 2 * out)
    return made


def patched_fc_net():
    made = FCNet(2, 1, 3, 8)
    made.nn_func = lambda ins: 2 * FCNet.nn_func(made, ins)
    return made


class MyFCNet(FCNet):
    pass


class OwnFCNet(FCNet):
    def __call__(self, ins):
        return 2 * super().__call__(ins)


class MyScaling(Scaling):
    def forward(self, ins):
        return 2 * super().forward(ins)


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
    "no bias": lambda: net(linear=lambda a, b: Linear(a, b, bias_attr=False)),
    "weight norm": with_norm,
    "linear layers in a row": lambda: Sequential(
        Linear(2, 3), Linear(3, 8), Tanh(), Linear(8, 4, bias_attr=False), Linear(4, 1)
    ),
    "FCNet": lambda: FCNet(2, 1, 3, 8),
    "FCNet with swish": lambda: FCNet(2, 1, 3, 8, "swish"),
    "subclass of FCNet": lambda: MyFCNet(2, 1, 3, 8),
    "FCNet in a Sequential": lambda: Sequential(FCNet(2, 3, 3, 8), Tanh(), Linear(3, 1)),
    "Sequential in a Sequential": lambda: Sequential(
        Linear(2, 8), Sequential(Tanh()), Linear(8, 1)
    ),
    "scaling": lambda: Sequential(
        Scaling([2.0, 3.0], [0.5, -1.0]), Scaling(0.5), net(), Scaling(3.0, [0.5]), Scaling([2.0])
    ),
    "scaling without bias": lambda: Sequential(
        Scaling(0.5, [0.5, 2.0]),
        Linear(2, 8, bias_attr=False),
        Scaling(0.5, 0.25),
        Tanh(),
        Scaling(3.0),
        Linear(8, 1),
    ),
    "Fourier features": lambda: Sequential(FourierFeatures(2, 5, 2.0), FCNet(10, 1, 3, 8)),
    "scaled Fourier features": lambda: Sequential(
        Scaling.of_box([0, 0], [1, 2]), FourierFeatures(2, 5, 2.0), FCNet(10, 1, 3, 8)
    ),
    "periodic": lambda: Sequential(PeriodicEmbedding([2.0, 1.5]), FCNet(4, 1, 3, 8)),
    "one periodic input": lambda: Sequential(PeriodicEmbedding([None, 1.5]), FCNet(3, 1, 3, 8)),
    "trainable periods": lambda: Sequential(
        PeriodicEmbedding([2.0, None], trainable=True),
        Scaling([1.0, 2.0, 0.5]),
        FourierFeatures(3, 5),
        FCNet(10, 1, 3, 8),
    ),
    "wrapped FCNet": lambda: GradNorm(FCNet(2, 1, 3, 8), 2),
    "wrapped": lambda: GradNorm(net(Silu), 2),
    "wrapped, published rule": lambda: GradNorm(net(Silu), 2, alpha=1.0, shared="all"),
}
OTHER = {
    "hook of the network": hooked(lambda made: made),
    "hook of a linear layer": hooked(lambda made: made[2]),
    "hook of an activation": hooked(lambda made: made[1]),
    "patched": patched,
    "weight norm and a hook": hooked_norm,
    "linear of its own": lambda: net(linear=MyLinear),
    "network of its own": lambda: MySequential(Linear(2, 8), Tanh(), Linear(8, 1)),
    "wrapper of its own": lambda: MyGradNorm(net(), 2),
    "hook of the wrapped": lambda: GradNorm(hooked(lambda made: made)(), 2),
    "dropout": lambda: net(Dropout, p=0.0),
    "wrapper of its own of an FCNet": lambda: MyGradNorm(FCNet(2, 1, 3, 8), 2),
    "FCNet of its own": lambda: OwnFCNet(2, 1, 3, 8),
    "patched FCNet": patched_fc_net,
    "scaling of its own": lambda: Sequential(MyScaling(2.0), net()),
    "periodic inputs that come late": lambda: Sequential(
        Scaling(2.0), PeriodicEmbedding([2.0, 1.5]), FCNet(4, 1, 3, 8)
    ),
    "two activations": lambda: Sequential(Linear(2, 8), Tanh(), Tanh(), Linear(8, 1)),
    "begins with an activation": lambda: Sequential(Tanh(), Linear(2, 8), Tanh(), Linear(8, 1)),
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


def gradients(network, values):
    network.clear_gradients()
    (values * values).sum().backward()
    parameters = [p for p in network.parameters() if not p.stop_gradient]
    return [np.zeros(p.shape) if p.grad is None else p.grad.numpy() for p in parameters]


@pytest.mark.usefixtures("both_operators")
@pytest.mark.parametrize("network", PLAIN)
def test_a_plain_network_is_served(network, monkeypatch):
    made = PLAIN[network]()
    made.to(dtype="float64")
    points = paddle.rand([9, 2], "float64")
    expected = by_differentiation(made, points)
    assert derivative_path(made).startswith("Taylor propagation up to order 4: linear layers with ")
    monkeypatch.setattr(paddle, "grad", None)
    np.testing.assert_allclose(FIRST(made, points).numpy(), expected, rtol=1e-12, atol=1e-13)


# Paddle differentiates the others no more than once or twice.
DIFFERENTIABLE = set(PLAIN) - {"GELU", "Softplus", "Swish", "FCNet with swish"}


@pytest.mark.usefixtures("both_operators")
@pytest.mark.parametrize("network", sorted(DIFFERENTIABLE))
def test_second_derivatives_and_gradients_in_its_parameters_are_those_of_nested_differentiation(
    network, monkeypatch
):
    made = PLAIN[network]()
    made.to(dtype="float64")
    points = paddle.rand([9, 2], "float64")
    ours = SECOND(made, points)
    found = [ours.numpy(), *gradients(made, ours)]
    monkeypatch.setattr(residual, "way_of", lambda network: "as a reference")
    nested = SECOND(made, points)
    for one, other in zip(found, [nested.numpy(), *gradients(made, nested)]):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * max(1, np.abs(other).max()))


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


def test_the_sizes_of_layers_that_become_one_are_checked_too():
    for wrong in (
        Sequential(Linear(2, 8), Linear(9, 8), Tanh(), Linear(8, 1)),
        Sequential(Scaling([1.0, 2.0, 3.0]), Linear(2, 8), Tanh(), Linear(8, 1)),
        Sequential(Linear(2, 8), Tanh(), Linear(8, 1), Scaling([1.0, 2.0])),
        Sequential(PeriodicEmbedding([2.0, None]), FCNet(2, 1, 3, 8)),
        Sequential(Scaling([2.0]), Scaling([1.0, 2.0]), FCNet(2, 1, 3, 8)),
        Sequential(Scaling([1.0, 2.0]), Scaling([1.0, 2.0, 3.0]), FCNet(2, 1, 3, 8)),
    ):
        assert find_layers(wrong) == "the sizes of its layers do not match"


def test_relu_is_piecewise_linear_but_not_of_cosines_and_sines():
    relu = FCNet(4, 1, 3, 8, "relu")
    assert piecewise_linear_activation(relu) == "relu"
    for curved in FourierFeatures(2, 2), PeriodicEmbedding([1.0, 2.0]):
        assert piecewise_linear_activation(Sequential(curved, relu)) is None


def test_parameters_of_several_dtypes_are_left_to_paddle():
    mixed = net()
    mixed[2].to(dtype="float64")
    assert derivative_path(mixed) == "nested paddle.grad: its parameters are of several dtypes"


def test_the_other_paths_are_named():
    approximate = derivative_path(net(GELU, approximate=True))
    assert approximate == "nested paddle.grad: GELU has other options than the default"
    assert "layers with tanh" in derivative_path(FCNet(2, 1, 3, 8))
    assert "the activation elu is none of tanh, sin" in derivative_path(FCNet(2, 1, 3, 8, "elu"))
    assert "the activation relu is none of tanh, sin" in derivative_path(FCNet(2, 1, 3, 8, "relu"))
    periodic = derivative_path(PLAIN["one periodic input"]())
    assert "linear layers with tanh after periodic inputs, " in periodic
    assert derivative_path(lambda ins: ins) == (
        "nested paddle.grad: <lambda> is none of the networks and layers that can be read"
    )


def test_it_says_whether_the_operator_in_cpp_is_used(cpp):
    plain, learned = FCNet(2, 1, 3, 8), PLAIN["one periodic input"]()
    cpp(True)
    assert derivative_path(plain).endswith("linear layers with tanh, in C++")
    assert derivative_path(learned).endswith("with tanh after periodic inputs, in C++")
    plain.to(dtype="float16")
    assert derivative_path(plain).endswith("serves float32 and float64 on a CPU, in dynamic mode")
    cpp(False)
    assert derivative_path(FCNet(2, 1, 3, 8)).endswith(
        "by Paddle's operators, because the operator in C++ is not loaded: see tune_cpu"
    )


def test_a_network_that_has_run_in_a_static_graph_is_served_as_before():
    net = paddle.nn.Sequential(paddle.nn.Linear(2, 5), paddle.nn.Tanh(), paddle.nn.Linear(5, 1))
    served = derivative_path(net)
    assert served.startswith("Taylor")
    paddle.jit.to_static(lambda ins: net(ins))(paddle.ones([3, 2]))
    assert "forward" in vars(net[0])  # which Paddle has left there
    assert derivative_path(net) == served
    net[1].forward = lambda ins: 2 * ins
    assert derivative_path(net) == "nested paddle.grad: Tanh has a forward of its own"
