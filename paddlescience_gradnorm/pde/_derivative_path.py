"""Which way a network's derivatives go."""

from __future__ import annotations

import inspect
from typing import Any, Callable

import paddle

from paddlescience_gradnorm import _operators
from paddlescience_gradnorm._paddle import has_hooks
from paddlescience_gradnorm.network import FCNet
from paddlescience_gradnorm.network._structure import constraint_of, find_layers, unwrapped
from paddlescience_gradnorm.network._taylor import HIGHEST_ORDER, Layers


def derivative_path(network: Any) -> str:
    """Which way a ``Residual`` gets this network's derivatives in the inputs, and why.

    Args:
        network: What a ``Residual`` is called with.

    Returns:
        A line that begins with ``Taylor propagation``, ``nested paddle.grad`` or ``its own``. Of
        Taylor propagation it ends with who does it: the operator in C++, or Paddle's operators.

    Examples:
        >>> import paddle
        >>> layers = [paddle.nn.Linear(2, 8), paddle.nn.Silu(), paddle.nn.Linear(8, 1)]
        >>> print(derivative_path(paddle.nn.Sequential(*layers)))  # doctest: +ELLIPSIS
        Taylor propagation up to order 4: linear layers with silu, ...
        >>> print(derivative_path(paddle.nn.Sequential(*layers, paddle.nn.ELU())))
        nested paddle.grad: ELU is none of the networks and layers that can be read
    """
    constraint = constraint_of(network)
    if constraint is not None:
        return f"{derivative_path(constraint.network)}, in a hard constraint"
    found = way_of(network)
    if isinstance(found, str):
        return f"nested paddle.grad: {found}"
    if not isinstance(found, Layers):
        return "its own method partial_derivatives"
    names = ", ".join(dict.fromkeys(found.activations))
    periodic = " after periodic inputs" if found.frequencies is not None else ""
    modified = ", in a modified MLP" if found.encoders is not None else ""
    return (
        f"Taylor propagation up to order {HIGHEST_ORDER}: linear layers with {names}{periodic}"
        f"{modified}, {_operators_for(found)}"
    )


def _operators_for(layers: Layers) -> str:
    if layers.encoders is not None:
        why = "the operator in C++ serves no modified MLP"
    elif any(w is not None and not w.stop_gradient for w in layers.frequencies or ()):
        why = "the operator in C++ serves no periods that are learned"
    elif not _operators.loaded:
        why = "the operator in C++ is not loaded: see tune_cpu"
    elif not _operators.apply_to(*layers.weights, *layers.biases):
        why = "the operator in C++ serves float32 and float64 on a CPU, in dynamic mode"
    else:
        return "in C++"
    return f"by Paddle's operators, because {why}"


def way_of(network: Any) -> Layers | str | Callable[..., Any]:
    """A network's layers, its own method ``partial_derivatives``, or why it has neither."""
    if isinstance(network, paddle.nn.Layer) and has_hooks(network):
        return f"{type(network).__name__} has hooks"
    inner = unwrapped(network)
    # Static, because a GradNorm with a forward of its own finds the method of the network in it.
    own = inspect.getattr_static(inner, "partial_derivatives", None)
    if own is None or own is FCNet.partial_derivatives:
        return find_layers(network)
    method: Callable[..., Any] = inner.partial_derivatives
    return method
