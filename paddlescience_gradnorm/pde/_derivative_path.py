"""Which way a network's derivatives go, and what a plain network is made of."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import paddle

from paddlescience_gradnorm._paddle import activation_options, has_hooks
from paddlescience_gradnorm.network import FCNet, GradNorm
from paddlescience_gradnorm.network._taylor import HIGHEST_ORDER, Layers

_ACTIVATIONS = {
    paddle.nn.Tanh: "tanh",
    paddle.nn.Sigmoid: "sigmoid",
    paddle.nn.Silu: "silu",
    paddle.nn.Swish: "silu",
    paddle.nn.GELU: "gelu",
    paddle.nn.Softplus: "softplus",
}


def derivative_path(network: Any) -> str:
    """Which way a ``Residual`` gets this network's derivatives in the inputs, and why.

    Args:
        network: What a ``Residual`` is called with.

    Returns:
        A line that begins with ``Taylor propagation``, ``nested paddle.grad`` or ``its own``.

    Examples:
        >>> import paddle
        >>> layers = [paddle.nn.Linear(2, 8), paddle.nn.Silu(), paddle.nn.Linear(8, 1)]
        >>> derivative_path(paddle.nn.Sequential(*layers))
        'Taylor propagation up to order 4: linear layers with silu'
        >>> derivative_path(paddle.nn.Sequential(*layers, paddle.nn.ReLU()))
        'nested paddle.grad: a Sequential does not alternate between Linear and activation'
    """
    if isinstance(network, paddle.nn.Layer) and has_hooks(network):
        return f"nested paddle.grad: {_name(network)} has hooks"
    inner = _unwrapped(network)
    if isinstance(inner, FCNet) and type(inner).partial_derivatives is FCNet.partial_derivatives:
        if inner._is_plain():
            return f"Taylor propagation up to order {HIGHEST_ORDER}: FCNet with {inner.activation}"
        return (
            f"nested paddle.grad: this FCNet with {inner.activation} has another activation than "
            "are served, another forward, hooks or replaced layers"
        )
    if hasattr(network, "partial_derivatives"):
        return "its own method partial_derivatives"
    layers = find_layers(network)
    if isinstance(layers, str):
        return f"nested paddle.grad: {layers}"
    names = ", ".join(dict.fromkeys(layers.activations))
    return f"Taylor propagation up to order {HIGHEST_ORDER}: linear layers with {names}"


def find_layers(network: Any) -> Layers | str:
    """The layers of a plain ``Sequential``, wrapped in ``GradNorm`` or not, or why it is none."""
    network = _unwrapped(network)
    if type(network) is not paddle.nn.Sequential:
        return f"{_name(network)} is neither an FCNet nor a Sequential"
    # By number, because children() leaves out a layer that comes a second time.
    layers = [network[k] for k in range(len(network))]
    linears, activations = layers[::2], layers[1::2]
    for layer in [network, *layers]:
        if has_hooks(layer):
            return f"{_name(layer)} has hooks"
        if "forward" in vars(layer):
            return f"{_name(layer)} has a forward of its own"
    if (
        len(linears) != len(activations) + 1
        or len(linears) < 2
        or any(type(linear) is not paddle.nn.Linear for linear in linears)
        or any(type(activation) not in _ACTIVATIONS for activation in activations)
    ):
        return "a Sequential does not alternate between Linear and activation"
    for activation in activations:
        kind: Any = type(activation)
        if activation_options(activation) != _defaults(kind):
            return f"{_name(activation)} has other options than the default"
    if any(linear.bias is None for linear in linears):
        return "a Linear has no bias"
    weights = [linear.weight for linear in linears]
    # The operator in C++ would read beyond the end of a weight.
    if any(a.shape[1] != b.shape[0] for a, b in zip(weights, weights[1:])):
        return "the sizes of its layers do not match"
    names = [_ACTIVATIONS[type(activation)] for activation in activations]
    return Layers(weights, [linear.bias for linear in linears], names)


def _unwrapped(network: Any) -> Any:
    """The network in a ``GradNorm``, which changes nothing about it."""
    if isinstance(network, GradNorm) and all(
        inspect.getattr_static(type(network), name) is inspect.getattr_static(GradNorm, name)
        for name in ("forward", "nn_func", "__call__")
        if hasattr(GradNorm, name)
    ):
        return network.net
    return network


@cache
def _defaults(kind: Any) -> dict[str, Any]:
    return activation_options(kind())


def _name(network: Any) -> str:
    return getattr(network, "__name__", type(network).__name__)
