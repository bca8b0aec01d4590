"""What a network is made of, if it is a chain of linear layers and activations.

A network is read by its exact type. What has a forward of its own, hooks or unknown options is
not read, because nobody would notice wrong derivatives.
"""

from __future__ import annotations

import inspect
import math
import sys
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any, Callable, NamedTuple, Union

import numpy as np
import paddle

from paddlescience_gradnorm._paddle import activation_options, has_hooks, normed_weight
from paddlescience_gradnorm.network._shared_layer import unwrapped_of_ranks
from paddlescience_gradnorm.network._taylor import ACTIVATIONS, Encoders, Layers, propagate
from paddlescience_gradnorm.network.embeddings import FourierFeatures, PeriodicEmbedding, Scaling
from paddlescience_gradnorm.network.grad_norm import GradNorm


class _Linear(NamedTuple):
    """z -> z @ weight + bias."""

    weight: paddle.Tensor  # [ins, outs]
    bias: paddle.Tensor | None  # [outs]


class _Scale(NamedTuple):
    """z -> z * factor + shift, each a number or a tensor of shape [] or [width]."""

    factor: Any = None
    shift: Any = None


class _Periodic(NamedTuple):
    """As in ``Layers``."""

    frequencies: list[paddle.Tensor | None]


_Step = Union[_Linear, _Scale, _Periodic, str]  # a string is the name of an activation


class _NotRead(Exception):
    """Why a network cannot be read."""


class _PiecewiseLinear(_NotRead):
    """It is piecewise linear in its inputs, by this activation."""

    def __init__(self, activation: str) -> None:
        super().__init__(_not_known(activation))
        self.activation = activation


_ACTIVATIONS: dict[Any, str] = {
    paddle.nn.Tanh: "tanh",
    paddle.nn.Sigmoid: "sigmoid",
    paddle.nn.Silu: "silu",
    paddle.nn.Swish: "silu",
    paddle.nn.GELU: "gelu",
    paddle.nn.Softplus: "softplus",
    paddle.nn.ReLU: "relu",
    paddle.nn.LeakyReLU: "leaky_relu",
}
_FUNCTIONS: dict[Any, str] = {
    paddle.tanh: "tanh",
    paddle.nn.functional.tanh: "tanh",
    paddle.sin: "sin",
    paddle.nn.functional.sigmoid: "sigmoid",
    paddle.nn.functional.silu: "silu",
    paddle.nn.functional.swish: "silu",
    paddle.nn.functional.gelu: "gelu",
    paddle.nn.functional.softplus: "softplus",
    paddle.nn.functional.relu: "relu",
    paddle.nn.functional.leaky_relu: "leaky_relu",
}
_FUNCTIONS_OF_DEEPXDE = ("tanh", "sin", "sigmoid", "silu", "gelu", "relu")
# Known only to be refused: Paddle gives 0 for their second derivatives. Of hardtanh and the like
# it gives none.
_PIECEWISE_LINEAR = ("relu", "leaky_relu")
_METHODS = ("forward", "nn_func", "forward_tensor")
_HARD_CONSTRAINT = ("paddlescience_gradnorm.network.hard_constraint", "HardConstraint")
# Networks of other packages whose own values have been compared with those of their layers.
_confirmed: weakref.WeakSet[Any] = weakref.WeakSet()


def find_layers(network: Any) -> Layers | str:
    """The layers of a network, wrapped in ``GradNorm`` or not; or why they cannot be read.

    Weights that a layer computes from its parameters are computed here in the same way. A scaling
    is multiplied into the linear layer beside it. For a network that takes dicts, the columns are
    in the order of its ``input_keys`` and ``output_keys``.
    """
    network = unwrapped(network)
    try:
        return _of_mlp(network) if takes_dicts(network) else _joined(_steps(network))
    except _NotRead as reason:
        return str(reason)


def piecewise_linear_activation(network: Any) -> str | None:
    """The activation of a network whose second derivatives in its inputs are 0 everywhere.

    None for other networks, and for those that cannot be read.
    """
    network = unwrapped(network)
    try:
        _of_mlp(network) if takes_dicts(network) else _joined(_steps(network))
    except _PiecewiseLinear as found:
        return found.activation
    except _NotRead:
        pass
    return None


def unwrapped(network: Any) -> Any:
    """The network in a ``GradNorm`` that changes nothing about it."""
    if (
        isinstance(network, GradNorm)
        and not has_hooks(network)
        and all(
            inspect.getattr_static(type(network), name) is inspect.getattr_static(GradNorm, name)
            for name in ("forward", "nn_func", "__call__")
        )
    ):
        return network.net
    return network


def constraint_of(network: Any) -> Any:
    """The ``HardConstraint`` that a network is, wrapped in ``GradNorm`` or not; else None."""
    network = unwrapped(network)
    if not _is(network, *_HARD_CONSTRAINT):
        return None
    try:
        _check_unchanged(network)
    except _NotRead:
        return None
    return network


def takes_dicts(network: Any) -> bool:
    """Whether it is a network of PaddleScience, wrapped or not: dicts in, dicts out."""
    arch = _imported("ppsci.arch.base", "Arch")
    return arch is not None and isinstance(_innermost(network), arch)


def _innermost(network: Any) -> Any:
    network = unwrapped_of_ranks(network)
    while isinstance(network, GradNorm):
        network = unwrapped_of_ranks(network.net)
    return network


def _imported(module: str, name: str) -> Any:
    """A class or function of a package that the program has imported, else None."""
    return getattr(sys.modules.get(module), name, None)


def _is(thing: Any, module: str, name: str) -> bool:
    kind = _imported(module, name)
    return kind is not None and type(thing) is kind


def _name(thing: Any) -> str:
    return getattr(thing, "__name__", type(thing).__name__)


def _check_unchanged(layer: Any, its_hooks_are_known: bool = False) -> None:
    if has_hooks(layer) and not its_hooks_are_known:
        raise _NotRead(f"{_name(layer)} has hooks")
    for name in _METHODS:
        own = getattr(type(layer), name, None)
        # paddle.jit.to_static leaves the class's own method behind as an attribute.
        if name in vars(layer) and (own is None or vars(layer)[name] != own.__get__(layer)):
            raise _NotRead(f"{_name(layer)} has a forward of its own")


def _steps(network: Any) -> list[_Step]:
    """Of a network, or a part of one, that takes and gives a tensor."""
    from paddlescience_gradnorm.network.fc_net import FCNet  # which imports this module

    if type(network) is paddle.nn.Sequential:
        _check_unchanged(network)
        # By number, because children() leaves out a layer that comes a second time.
        parts = [network[k] for k in range(len(network))]
        return [step for part in parts for step in _of_part(part)]
    if isinstance(network, FCNet):
        return _of_fc_net(network, FCNet)
    if _is(network, "deepxde.nn.paddle.fnn", "FNN"):
        return _of_fnn(network)
    if _is(network, *_HARD_CONSTRAINT):
        _check_unchanged(network)
        raise _NotRead("a HardConstraint is a part of the network and not all of it")
    raise _NotRead(f"{_name(network)} is none of the networks and layers that can be read")


def _of_part(part: Any) -> list[_Step]:
    """Of a part of a ``Sequential``."""
    if type(part) is paddle.nn.Linear:
        return [_linear(part)]
    if type(part) in (Scaling, PeriodicEmbedding, FourierFeatures):
        _check_unchanged(part)
        if type(part) is Scaling:
            return [_Scale(part.factor, part.shift)]
        if type(part) is PeriodicEmbedding:
            return [_Periodic(part.frequencies())]
        return _fourier(part.kernel)
    return _activation(part) or _steps(part)


def _of_fc_net(network: Any, plain: Any) -> list[_Step]:
    _check_unchanged(network)
    if any(
        getattr(type(network), name) is not getattr(plain, name)
        for name in ("forward", "nn_func", "__call__")
    ):
        raise _NotRead(f"{_name(network)} has a forward of its own")
    activation = {"swish": "silu"}.get(network.activation, network.activation)
    if activation not in (*ACTIVATIONS, *_PIECEWISE_LINEAR):
        raise _NotRead(_not_known(activation))
    *hidden, last = network.linears
    return [step for x in hidden for step in (_linear(x), activation)] + [_linear(last)]


def _of_fnn(network: Any) -> list[_Step]:
    """Of DeepXDE's network."""
    _check_unchanged(network)
    if network._input_transform is not None or network._output_transform is not None:
        raise _NotRead("FNN has a feature transform or an output transform")
    if network.dropout_rate > 0:
        raise _NotRead("FNN has dropout")
    *hidden, last = network.linears
    given = network.activation
    steps: list[_Step] = []
    for linear, activation in zip(
        hidden, given if isinstance(given, list) else [given] * len(hidden)
    ):
        steps += [_linear(linear), *_known_activation(activation)]
    steps.append(_linear(last))
    if network not in _confirmed:
        _confirm(network, _joined(steps), network)
    return steps


def _of_mlp(network: Any) -> Layers:
    """Of PaddleScience's MLP and ModifiedMLP."""
    name, is_modified = _name(network), _is(network, "ppsci.arch.mlp", "ModifiedMLP")
    if not is_modified and not _is(network, "ppsci.arch.mlp", "MLP"):
        raise _NotRead(
            f"of PaddleScience's networks only MLP and ModifiedMLP can be read, not {name}"
        )
    _check_unchanged(network)
    if network._input_transform is not None or network._output_transform is not None:
        raise _NotRead(f"{name} has an input transform or an output transform")
    steps: list[_Step] = []
    if network.periods:
        _check_unchanged(network.period_emb)
        frequencies = network.period_emb.freqs_dict
        if not set(frequencies) <= set(network.input_keys):
            raise _NotRead(f"{name} has a period for something else than its inputs")
        steps.append(_Periodic([frequencies.get(key) for key in network.input_keys]))
    if network.fourier:
        _check_unchanged(network.fourier_emb)
        steps += _fourier(network.fourier_emb.kernel)
    for k, (linear, activation) in enumerate(zip(network.linears, network.acts)):
        # Version 1.4 adds the layer to itself.
        skip = [_Scale(2.0)] if network.skip_connection and k % 2 == 0 and k > 0 else []
        if is_modified:
            steps += [_linear(linear), _unscaled(activation), *skip]
        else:
            steps += [_linear(linear), *skip, *_known_activation(activation)]
    steps.append(_linear(network.last_fc))
    layers = _joined(steps)
    if (layers.num_ins, layers.num_outs) != (len(network.input_keys), len(network.output_keys)):
        raise _NotRead(f"{name} has inputs or outputs of several columns")
    if is_modified:
        layers = layers._replace(encoders=_encoders(network, layers))

    if network not in _confirmed:
        _confirm(network, layers, by_name(network, network.input_keys, network.output_keys))
    return layers


def _encoders(network: Any, layers: Layers) -> Encoders:
    """Of a ModifiedMLP; they stand beside the first of its layers after any Fourier features."""
    for part in (network.embed_u, network.embed_v):
        if type(part) is not paddle.nn.Sequential or len(part) != 2:
            raise _NotRead("an encoder of ModifiedMLP is not a linear layer and an activation")
        _check_unchanged(part)
    linears = [_linear(part[0]) for part in (network.embed_u, network.embed_v)]
    activations = [_unscaled(part[1]) for part in (network.embed_u, network.embed_v)]
    start = len(layers.activations) - len(network.linears)
    beside, *others = layers.weights[start:]
    forms = {(*w.shape, b is None, w.dtype) for w, b in linears}
    if forms != {(*beside.shape, False, beside.dtype)} or len({w.shape[0] for w in others}) != 1:
        raise _NotRead("the encoders of ModifiedMLP have other sizes or dtypes than its layers")
    return Encoders([w for w, _ in linears], [b for _, b in linears], activations, start)


def by_name(
    network: Any, inputs: Sequence[str], outputs: Sequence[str]
) -> Callable[[paddle.Tensor], paddle.Tensor]:
    """A network that takes and gives dicts, as a function of points whose columns have names.

    Raises:
        ValueError: The network takes an input, or lacks an output, of another name.
    """
    inner = _innermost(network)
    if inner._input_transform is None and not set(inner.input_keys) <= set(inputs):
        raise ValueError(
            f"the network takes {list(inner.input_keys)} by name, and the inputs are "
            f"{list(inputs)}: give the symbols the names in its input_keys"
        )

    def function(points: paddle.Tensor) -> paddle.Tensor:
        columns = paddle.split(points, len(inputs), axis=1)
        found = network(dict(zip(inputs, columns)))
        if not set(outputs) <= set(found):
            raise ValueError(
                f"the network gives {list(found)} by name, and the outputs are {list(outputs)}: "
                "give the functions the names in its output_keys"
            )
        return paddle.concat([found[name] for name in outputs], axis=1)

    return function


def _confirm(
    network: Any, layers: Layers, function: Callable[[paddle.Tensor], paddle.Tensor]
) -> None:
    """Compare a network's own values with those of its layers, once.

    Another release of its package may make something else of the same parts.
    """
    if not paddle.in_dynamic_mode():
        raise _NotRead(f"{_name(network)} in a static graph")
    with paddle.no_grad():
        numbers = np.sin(np.arange(5.0 * layers.num_ins)).reshape([5, -1])
        points = paddle.to_tensor(numbers, layers.weights[0].dtype, layers.weights[0].place)
        (ours,), own = propagate(layers, points, [()]), function(points)
        ours, own = (x.astype("float64").numpy() for x in (ours, own))
    if not np.abs(ours - own).max() <= 1e-3 * max(1.0, np.abs(own).max()):
        raise _NotRead(f"{_name(network)} gives other values than its layers and activations")
    _confirmed.add(network)


def _linear(layer: Any) -> _Linear:
    if type(layer) is paddle.nn.Linear:
        weight = normed_weight(layer)
        _check_unchanged(layer, its_hooks_are_known=weight is not None)
        return _Linear(layer.weight if weight is None else weight, layer.bias)
    if _is(layer, "ppsci.arch.mlp", "WeightNormLinear"):
        _check_unchanged(layer)
        norm = layer.weight_v.norm(p=2, axis=0, keepdim=True)
        return _Linear(layer.weight_g * layer.weight_v / norm, layer.bias)
    if _is(layer, "ppsci.arch.mlp", "RandomWeightFactorization"):
        _check_unchanged(layer)
        return _Linear(layer.weight_g * layer.weight_v, layer.bias)
    raise _NotRead(f"{_name(layer)} is not a linear layer that can be read")


def _fourier(kernel: paddle.Tensor) -> list[_Step]:
    """Columns cos(z @ kernel), then sin(z @ kernel): a cosine is a sine a quarter ahead."""
    quarter = paddle.full([kernel.shape[1]], math.pi / 2, kernel.dtype)
    bias = paddle.concat([quarter, paddle.zeros_like(quarter)])
    return [_Linear(paddle.concat([kernel, kernel], axis=1), bias), "sin"]


def _known_activation(activation: Any) -> list[_Step]:
    steps = _activation(activation)
    if not steps:
        raise _NotRead(f"the activation {_name(activation)} is none that can be read")
    return steps


def _unscaled(activation: Any) -> str:
    """Of an activation after which a product comes, so that no layer takes up a scale."""
    *scales, last = _known_activation(activation)
    if scales or not isinstance(last, str):
        raise _NotRead(f"ModifiedMLP has {_name(activation)}, an activation with a scale")
    if last in _PIECEWISE_LINEAR:  # not so their products
        raise _NotRead(_not_known(last))
    return last


def _not_known(activation: Any) -> str:
    return f"the activation {activation} is none of {', '.join(ACTIVATIONS)}"


def _activation(activation: Any) -> list[_Step]:
    """Of a layer or a function; empty if it is not known."""
    if not isinstance(activation, paddle.nn.Layer):
        for name in _FUNCTIONS_OF_DEEPXDE:
            if activation is _imported("deepxde.backend", name):
                return [name]
        return [_FUNCTIONS[activation]] if activation in _FUNCTIONS else []
    kind: Any = type(activation)
    if kind in _ACTIVATIONS:
        _check_unchanged(activation)
        name = _ACTIVATIONS[kind]
        if name in ACTIVATIONS and activation_options(activation) != _defaults(kind):
            raise _NotRead(f"{_name(activation)} has other options than the default")
        return [name]
    if kind.__module__ != "ppsci.arch.activation" or not _is(
        activation, kind.__module__, _name(kind)
    ):
        return []
    _check_unchanged(activation)
    if _name(kind) == "Sin":
        return ["sin"]
    if _name(kind) == "Cos":
        return [_Scale(shift=math.pi / 2), "sin"]
    if _name(kind) == "Siren":
        return [_Scale(float(activation.w0)), "sin"]
    if _name(kind) == "Swish":  # z sigmoid(beta z) = silu(beta z) / beta
        if not paddle.in_dynamic_mode() or activation.beta.numpy() == 0:
            raise _NotRead("a Swish has a beta of 0, or one that cannot be looked at")
        return [_Scale(activation.beta), "silu", _Scale(1 / activation.beta)]
    return []


@cache
def _defaults(kind: Any) -> dict[str, Any]:
    return activation_options(kind())


def _joined(steps: Sequence[_Step]) -> Layers:
    """The steps as layers, if they are linear, activation, ..., linear."""
    names = {step for step in steps if isinstance(step, str)}
    refused = sorted(names - set(ACTIVATIONS))
    if refused:
        if refused == sorted(names) and not any(isinstance(step, _Periodic) for step in steps):
            raise _PiecewiseLinear(refused[0])
        raise _NotRead(_not_known(refused[0]))
    tensors = [x for step in steps if not isinstance(step, str) for x in _tensors(step)]
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) != 1:
        raise _NotRead("its parameters are of several dtypes" if dtypes else "it has no parameters")
    (dtype,) = dtypes
    linears: list[_Linear] = []
    activations: list[str] = []
    frequencies = None
    last: _Linear | _Scale | None = None
    for k, step in enumerate(steps):
        if isinstance(step, _Periodic):
            if k > 0:
                raise _NotRead("its periodic inputs are not its first layer")
            frequencies = step.frequencies
        elif isinstance(step, str):
            if not isinstance(last, _Linear):
                raise _NotRead("an activation does not come after a linear layer")
            linears.append(last)
            activations.append(step)
            last = None
        else:
            if isinstance(step, _Scale):
                step = _Scale(
                    *(paddle.full([], x, dtype) if isinstance(x, float) else x for x in step)
                )
            last = step if last is None else _one(last, step)
    if not isinstance(last, _Linear):
        raise _NotRead("it does not end with a linear layer")
    if not activations:
        raise _NotRead("it has no activation")
    linears.append(last)
    weights = [linear.weight for linear in linears]
    n_first = weights[0].shape[0]
    if frequencies is not None:
        n_first = len(frequencies) + sum(w is not None for w in frequencies)
    # The operator in C++ would read beyond the end of a weight.
    if [n_first, *(w.shape[1] for w in weights[:-1])] != [w.shape[0] for w in weights]:
        raise _NotRead("the sizes of its layers do not match")
    biases = [
        paddle.zeros(weight.shape[1:], dtype) if bias is None else bias for weight, bias in linears
    ]
    return Layers(weights, biases, activations, frequencies)


def _tensors(step: _Linear | _Scale | _Periodic) -> list[paddle.Tensor]:
    parts = step.frequencies if isinstance(step, _Periodic) else step
    return [x for x in parts if isinstance(x, paddle.Tensor)]


def _one(first: _Linear | _Scale, then: _Linear | _Scale) -> _Linear | _Scale:
    """Two steps in a row as one."""
    if isinstance(then, _Scale):
        both = (*first, *then) if isinstance(first, _Scale) else ()
        if len({x.shape[0] for x in both if x is not None and x.ndim}) > 1:
            raise _NotRead("the sizes of its layers do not match")
        shift = _sum(_product(first[1], then.factor), then.shift)
        if isinstance(first, _Scale):
            return _Scale(_product(first.factor, then.factor), shift)
        _check_width(then, first.weight.shape[1])
        if shift is not None and shift.ndim == 0:
            shift = shift.expand(first.weight.shape[1:])
        return _Linear(_product(first.weight, then.factor), shift)
    _check_width(first, then.weight.shape[0])
    if isinstance(first, _Linear):
        weight = paddle.matmul(first.weight, then.weight)
        bias = None if first.bias is None else paddle.matmul(first.bias, then.weight)
        return _Linear(weight, _sum(bias, then.bias))
    weight = _product(_as_column(first.factor), then.weight)
    bias = None if first.shift is None else (_as_column(first.shift) * then.weight).sum(axis=0)
    return _Linear(weight, _sum(bias, then.bias))


def _check_width(step: _Linear | _Scale, width: int) -> None:
    """Whether what it gives can have so many columns."""
    if isinstance(step, _Linear):
        fits = step.weight.shape[1] == width
    else:
        fits = all(x is None or x.shape in ([], [width]) for x in step)
    if not fits:
        raise _NotRead("the sizes of its layers do not match")


def _as_column(x: paddle.Tensor | None) -> paddle.Tensor | None:
    return x.unsqueeze(-1) if x is not None and x.ndim else x


def _product(x: paddle.Tensor | None, factor: paddle.Tensor | None) -> paddle.Tensor | None:
    return x if factor is None or x is None else x * factor


def _sum(x: paddle.Tensor | None, y: paddle.Tensor | None) -> paddle.Tensor | None:
    return x if y is None else y if x is None else x + y
