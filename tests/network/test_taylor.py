import math

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, _operators
from paddlescience_gradnorm.network import _taylor
from paddlescience_gradnorm.network._taylor import (
    ACTIVATIONS,
    Combination,
    Encoders,
    Layers,
    chain_rule,
    halves,
    propagate,
    singles,
    summed,
)

pytestmark = pytest.mark.usefixtures("both_operators")

CASES = [
    [()],
    [(0,), ()],
    [(1, 1)],
    [(2, 0)],
    [(0, 0), (1, 1), (2, 2)],
    [(0, 1), (1, 0), (2,), (0, 0), ()],
    [(2,), (0, 2), (1,)],
]
HIGHER = {
    "Korteweg-de Vries": [(), (0,), (1,), (0, 0, 0)],
    "beam": [(0, 0, 0, 0), (0, 0)],
    "plate": [(0, 0, 0, 0), (0, 0, 1, 1), (1, 1, 1, 1)],
    "mixed": [(2, 1, 0), (0, 0, 1), (1, 0, 2, 0), (1,)],
}


SUMS = {
    "Laplace": Combination(((1, (0, 0)), (1, (1, 1)), (1, (2, 2)))),
    "wave": Combination(((1, (2, 2)), (-4, (0, 0)))),
    "plate": Combination(((1, (0, 0, 0, 0)), (2, (0, 0, 1, 1)), (1, (1, 1, 1, 1)))),
    "vibration": Combination(((1, (2, 2)), (1, (0, 0, 0, 0)))),
    "mixed": Combination(((1, (2, 1, 0)), (-3, (0, 0, 1)), (5, (1, 2)))),
}


def number(value, z):
    """As a tensor, because Paddle 2.6 rounds a number that it adds to float32."""
    return paddle.full([], value, z.dtype)


def polynomial(coefficients):
    def function(z):
        value = 0.0 * z
        for coefficient in reversed(coefficients):
            value = value * z + number(coefficient, z)
        return value

    return function


def sigmoid(z):
    return 0.5 + 0.5 * paddle.tanh(0.5 * z)


def series(function, terms):
    """Of an odd function: function(n) is the coefficient of z^(2 n + 1)."""
    in_square = polynomial([function(n) for n in range(terms)])
    return lambda z: z * in_square(z * z)


sine = series(lambda n: (-1) ** n / math.factorial(2 * n + 1), 12)
in_square = polynomial([(-1) ** n / math.factorial(2 * n) for n in range(13)])
tail = series(
    lambda n: (-0.5) ** n / (math.factorial(n) * (2 * n + 1) * math.sqrt(2 * math.pi)), 24
)
entropy = polynomial([0, *(1 / (2 * n) for n in range(1, 40))])


def cosine(z):
    return in_square(z * z)


def softplus(z):
    slope = paddle.tanh(0.5 * z)
    return number(math.log(2), z) + 0.5 * z + entropy(slope * slope)


# Made of products and tanh, which Paddle differentiates any number of times, and exact for z of
# about 1.
BY_HAND = {
    "tanh": paddle.tanh,
    "sin": sine,
    "sigmoid": sigmoid,
    "silu": lambda z: z * sigmoid(z),
    "gelu": lambda z: z * (0.5 + tail(z)),
    "softplus": softplus,
}


def layers_of(net, activation):
    return Layers(
        [linear.weight for linear in net.linears],
        [linear.bias for linear in net.linears],
        [activation] * (len(net.linears) - 1),
    )


def embedded(points, frequencies):
    columns = []
    for x, w in zip(paddle.split(points, points.shape[1], axis=1), frequencies):
        columns += [x] if w is None else [cosine(w * x), sine(w * x)]
    return paddle.concat(columns, axis=1)


def nested(net, activation, points, indices, frequencies=None):
    """The same by paddle.grad, one differentiation after another."""
    leaf = points.detach()
    leaf.stop_gradient = False
    hidden = embedded(leaf, frequencies or [None] * points.shape[1])
    for linear in net.linears[:-1]:
        hidden = BY_HAND[activation](linear(hidden))
    outputs = net.linears[-1](hidden)
    found = []
    for index in indices:
        columns = []
        for k in range(outputs.shape[1]):
            value = outputs[:, k : k + 1]
            for i in index:
                value = paddle.grad(value, leaf, create_graph=True)[0][:, i : i + 1]
            columns.append(value)
        found.append(paddle.concat(columns, axis=1))
    return found


def assert_is_nested(net, activation, points, indices, tolerance, frequencies=None):
    dtype = points.dtype
    layers = layers_of(net, activation)._replace(frequencies=frequencies)
    parameters = [*net.parameters(), *(w for w in frequencies or () if w is not None)]
    factors = [paddle.rand([len(points), net.num_outs], dtype=dtype) for _ in indices]
    results = []
    for derivatives in (
        propagate(layers, points, indices),
        nested(net, activation, points, indices, frequencies),
    ):
        for p in parameters:
            p.clear_gradient()
        sum((f * d * d).sum() for f, d in zip(factors, derivatives)).backward()
        gradients = [np.zeros(p.shape) if p.grad is None else p.grad.numpy() for p in parameters]
        results.append((*(d.numpy() for d in derivatives), *gradients))
    for ours, expected in zip(*results):
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("indices", CASES, ids=str)
@pytest.mark.parametrize("num_layers", [2, 3, 5])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("float64", 1e-13)])
def test_values_and_parameter_gradients_are_those_of_nested_differentiation(
    indices, num_layers, dtype, tolerance
):
    net = FCNet(3, 2, num_layers, 7)
    net.to(dtype=dtype)
    assert_is_nested(net, "tanh", paddle.rand([9, 3], dtype=dtype), indices, tolerance)


@pytest.mark.parametrize("activation", BY_HAND)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("float64", 1e-12)])
def test_so_they_are_for_every_activation(activation, dtype, tolerance):
    net = FCNet(3, 2, 4, 5)
    net.to(dtype=dtype)
    points = paddle.rand([9, 3], dtype=dtype) - 0.5
    assert_is_nested(net, activation, points, CASES[-2], tolerance)


@pytest.mark.parametrize("activation", BY_HAND)
@pytest.mark.parametrize("problem", HIGHER)
def test_so_they_are_up_to_the_fourth_order(activation, problem):
    net = FCNet(3, 2, 3, 4)
    net.to(dtype="float64")
    points = paddle.rand([5, 3], "float64") - 0.5
    assert_is_nested(net, activation, points, HIGHER[problem], 1e-12)


@pytest.mark.parametrize("are_learned", [False, True])
@pytest.mark.parametrize("which", [(0, 1, 2), (1,), (0, 2)])
@pytest.mark.parametrize("problem", HIGHER)
def test_so_they_are_with_periodic_inputs(problem, which, are_learned):
    frequencies = [
        paddle.to_tensor(1.5 + k, "float64", stop_gradient=not are_learned) if k in which else None
        for k in range(3)
    ]
    net = FCNet(3 + len(which), 2, 3, 4)
    net.to(dtype="float64")
    points = paddle.rand([150, 3], "float64") - 0.5  # several of the operator's blocks
    assert_is_nested(net, "tanh", points, HIGHER[problem], 1e-11, frequencies)


@pytest.mark.parametrize("num_layers", [2, 4])
def test_the_operator_serves_periodic_inputs(num_layers, monkeypatch):
    """If their frequencies are not learned; it gives no gradient in them."""
    if not _operators.loaded:
        pytest.skip("for the operator alone")
    monkeypatch.setattr(_taylor, "_layer_by_layer", None)
    net = FCNet(3, 2, num_layers, 5)
    frequencies = [paddle.to_tensor(2.0), None]
    assert_is_nested(net, "tanh", paddle.rand([70, 2]), [(0, 0), (1,), ()], 2e-5, frequencies)


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("problem", HIGHER)
def test_so_they_are_with_the_encoders_of_a_modified_mlp(problem, start):
    net, beside = FCNet(3, 2, 4, 4), [paddle.nn.Linear(3 if start == 0 else 4, 4) for _ in "uv"]
    for layer in (net, *beside):
        layer.to(dtype="float64")
    activations = ["tanh", "silu"]
    encoders = Encoders([x.weight for x in beside], [x.bias for x in beside], activations, start)
    layers = layers_of(net, "tanh")._replace(encoders=encoders)
    points = paddle.rand([5, 3], "float64") - 0.5

    def by_hand(hidden):
        for k, linear in enumerate(net.linears[:-1]):
            if k == start:
                of_u, of_v = (BY_HAND[f](x(hidden)) for f, x in zip(activations, beside))
            hidden = paddle.tanh(linear(hidden))
            if k >= start:
                hidden = hidden * of_u + (1 - hidden) * of_v
        return net.linears[-1](hidden)

    leaf = points.detach()
    leaf.stop_gradient = False
    outputs = paddle.split(by_hand(leaf), 2, axis=1)
    for index, ours in zip(HIGHER[problem], propagate(layers, points, HIGHER[problem])):
        for k, value in enumerate(outputs):
            for i in index:
                value = paddle.grad(value, leaf, create_graph=True)[0][:, i : i + 1]
            np.testing.assert_allclose(
                ours[:, k : k + 1].numpy(), value.numpy(), rtol=0, atol=1e-12
            )


def assert_is_sum(layers, parameters, points, parts):
    """What is carried as one is the sum of what is carried one by one, and so are gradients."""
    factors = [paddle.rand([len(points), 2], "float64") for _ in parts]
    single = singles(parts)
    results = []
    for found in (
        propagate(layers, points, parts),
        summed(parts, dict(zip(single, propagate(layers, points, single)))),
    ):
        for p in parameters:
            p.clear_gradient()
        sum((f * d * d).sum() for f, d in zip(factors, found)).backward()
        results.append([*(d.numpy() for d in found), *(p.grad.numpy() for p in parameters)])
    for ours, expected in zip(*results):
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-13 * scale)


@pytest.mark.parametrize("more", [[], [(), (0,)], [(0, 1), (2,)]], ids=str)
@pytest.mark.parametrize("activation", ["tanh", "silu"])
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_carried_as_one(name, activation, more):
    net = FCNet(3, 2, 4, 5)
    net.to(dtype="float64")
    points = paddle.rand([70, 3], "float64") - 0.5  # two of the operator's blocks
    layers = layers_of(net, activation)
    # Without the last bias, in which a sum has no gradient.
    assert_is_sum(layers, net.parameters()[:-1], points, [SUMS[name], *more])


@pytest.mark.parametrize("is_learned", [False, True])
@pytest.mark.parametrize("name", SUMS)
def test_so_it_is_with_periodic_inputs(name, is_learned):
    w = paddle.to_tensor(1.5, "float64", stop_gradient=not is_learned)
    net = FCNet(4, 2, 3, 5)
    net.to(dtype="float64")
    layers = layers_of(net, "tanh")._replace(frequencies=[w, None, None])
    parameters = [*net.parameters()[:-1], *([w] if is_learned else [])]
    assert_is_sum(layers, parameters, paddle.rand([9, 3], "float64"), [SUMS[name], (0,)])


@pytest.mark.parametrize("name", SUMS)
def test_so_it_is_with_the_encoders_of_a_modified_mlp(name):
    net, beside = FCNet(3, 2, 4, 4), [paddle.nn.Linear(4, 4) for _ in "uv"]
    for layer in (net, *beside):
        layer.to(dtype="float64")
    encoders = Encoders([b.weight for b in beside], [b.bias for b in beside], ["tanh", "silu"], 1)
    layers = layers_of(net, "tanh")._replace(encoders=encoders)
    parameters = [p for layer in (net, *beside) for p in layer.parameters()]
    parameters = [p for p in parameters if p is not net.linears[-1].bias]
    assert_is_sum(layers, parameters, paddle.rand([9, 3], "float64"), [SUMS[name], (1,)])


def test_each_layer_may_have_an_activation_of_its_own():
    net = FCNet(2, 1, 7, 4)
    net.to(dtype="float64")
    layers = layers_of(net, "tanh")._replace(activations=list(BY_HAND))
    points = paddle.rand([5, 2], "float64") - 0.5
    leaf = points.detach()
    leaf.stop_gradient = False
    hidden = leaf
    for linear, function in zip(net.linears, BY_HAND.values()):
        hidden = function(linear(hidden))
    (first,) = paddle.grad(net.linears[-1](hidden), leaf)
    ours = paddle.concat(propagate(layers, points, [(0,), (1,)]), axis=1)
    np.testing.assert_allclose(ours.numpy(), first.numpy(), rtol=0, atol=1e-14)


def test_every_activation_is_tested():
    assert list(BY_HAND) == list(ACTIVATIONS)


def test_the_chain_rule_has_the_numbers_of_bell():
    # Of all ways to divide n things into groups: 1, 1, 2, 5, 15.
    rule = chain_rule(((0, 0, 0, 0),))
    assert [sum(term.coefficient for term in terms) for terms in rule.terms] == [1, 1, 2, 5, 15]
    assert len(chain_rule(((0, 0, 0, 0), (0, 0, 1, 1), (1, 1, 1, 1))).parts) == 13


def test_a_sum_needs_no_place_for_its_summands():
    assert chain_rule((SUMS["Laplace"],)).parts == ((), (0,), (1,), (2,), SUMS["Laplace"])
    assert len(chain_rule((SUMS["plate"],)).parts) == 11


def test_the_product_rule_has_the_numbers_of_pascal():
    assert list(halves((0, 0, 0, 0)).values()) == [1, 4, 6, 4, 1]
    assert halves((0, 1)) == {((), (0, 1)): 1, ((0,), (1,)): 1, ((1,), (0,)): 1, ((0, 1), ()): 1}


def test_graph_can_be_kept_for_a_second_backward():
    net = FCNet(2, 1, 4, 7)
    (second,) = propagate(layers_of(net, "tanh"), paddle.rand([9, 2]), [(0, 0)])
    loss = second.square().mean()
    loss.backward(retain_graph=True)
    once = net.linears[1].weight.grad.numpy()
    loss.backward()
    np.testing.assert_allclose(net.linears[1].weight.grad.numpy(), 2 * once, rtol=1e-5)


@pytest.mark.parametrize("problem", HIGHER)
def test_nothing_waits_for_the_garbage_collector(problem, waiting_tensors):
    layers, points = layers_of(FCNet(3, 2, 3, 8), "tanh"), paddle.rand([10, 3])

    def step():
        found = propagate(layers, points, HIGHER[problem])
        sum(part.square().mean() for part in found).backward()

    assert waiting_tensors(step) == 0


def test_works_without_gradients():
    with paddle.no_grad():
        layers = layers_of(FCNet(2, 1, 4, 7), "tanh")
        (second,) = propagate(layers, paddle.rand([9, 2]), [(0, 1)])
    assert second.stop_gradient
