"""Network and loss weights in safetensors, for other programs, and without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlescience_gradnorm.balancing import LossBalancer
from paddlescience_gradnorm.network._shared_layer import unwrapped_of_ranks
from paddlescience_gradnorm.network.grad_norm import GradNorm
from paddlescience_gradnorm.training._checkpoint_file import PathLike, Values, replace
from paddlescience_gradnorm.training._like import check_like, copy_into, values_of

_VERSION = "1"
_MADE_BY = "paddlescience_gradnorm"  # in the file's metadata, with the version
_LOSSES = "losses"  # in the metadata: their names, a list in JSON
_WEIGHTS = "gradnorm.loss_weights"


def export_safetensors(
    path: PathLike, net: paddle.nn.Layer, balancer: LossBalancer | None = None
) -> None:
    """Write a network's state dict and the loss weights to a safetensors file.

    Tensors have the names of the bare network's state dict. The loss weights, shape [T], are
    ``gradnorm.loss_weights``, and the metadata have the losses' names. This is to hand a network
    over; a run cannot go on from it, as it can from a checkpoint.

    Args:
        path: The file.
        net: The network. Of a ``GradNorm`` the network inside it is written.
        balancer: Where the loss weights are; by default that of a ``GradNorm``. Without one the
            file has none.

    Raises:
        TypeError: A tensor is of a type that numpy lacks, such as bfloat16, or that safetensors
            lacks, such as complex128.
        ValueError: The network has a tensor called ``gradnorm.loss_weights``.
        OSError: The file cannot be written. What was in it is still there.
        ImportError: The package safetensors, which the extra ``[safetensors]`` brings, is not
            installed.

    Examples:
        >>> import os, tempfile
        >>> from paddlescience_gradnorm import FCNet
        >>> net, other = (GradNorm(FCNet(2, 1, 2, 8), n_loss=2, alpha=1.0) for _ in range(2))
        >>> x = paddle.rand([4, 2])
        >>> total = net.backward({"pde": net(x).square().mean(), "bc": (net(x) - 1).abs().mean()})
        >>> path = os.path.join(tempfile.mkdtemp(), "net.safetensors")
        >>> export_safetensors(path, net)
        >>> list(import_safetensors(path, other))
        ['pde', 'bc']
        >>> bool((net(x) == other(x)).all())
        True
    """
    save = _package().save
    bare, balancer = _apart(net, balancer)
    arrays = {name: _array(name, tensor) for name, tensor in bare.state_dict().items()}
    metadata = {_MADE_BY: _VERSION}
    if balancer is not None and balancer.n_loss is not None:
        if _WEIGHTS in arrays:
            raise ValueError(
                f"net has a tensor called {_WEIGHTS!r}, which is the name of the loss weights in "
                "the file: rename its layer"
            )
        arrays[_WEIGHTS] = balancer.get_weights()
        metadata[_LOSSES] = json.dumps(balancer._run.order.names)
    try:
        content = save(arrays, metadata)
    except Exception as error:  # the package has an own one for each kind of fault
        types = sorted({str(array.dtype) for array in arrays.values()})
        raise TypeError(f"safetensors cannot hold arrays of {', '.join(types)}: {error}") from error
    replace(Path(path), [content])


def import_safetensors(
    path: PathLike, net: paddle.nn.Layer, balancer: LossBalancer | None = None
) -> dict[str, float]:
    """Take what ``export_safetensors`` has written, or any file of the network's tensors.

    Reading runs no code. All is checked before anything is changed. Optimizers, L(0) and counts of
    steps start anew.

    Args:
        path: The file.
        net: A network with tensors of the same names, shapes and types. Of a ``GradNorm`` the
            network inside it.
        balancer: What gets the loss weights; by default that of a ``GradNorm``. It keeps its own
            if the file has none.

    Returns:
        Loss name -> weight in the file, empty if it has none.

    Raises:
        ValueError: The file is damaged, does not fit, or was written by a newer version.
        OSError: The file cannot be read.
        ImportError: As for ``export_safetensors``.
    """
    load = _package().load
    bare, balancer = _apart(net, balancer)
    content = Path(path).read_bytes()
    try:
        arrays = dict(load(content))
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except Exception as error:  # the package has an own one for each kind of fault
        raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error
    if metadata.get(_MADE_BY, _VERSION) != _VERSION:
        raise ValueError(
            f"{path} was written by a newer paddlescience_gradnorm, in version "
            f"{metadata[_MADE_BY][:20]!r}; this package knows version {_VERSION}: update it"
        )
    weights = arrays.pop(_WEIGHTS, None)
    names = _names(path, metadata, weights)
    loaded = {name: Values(str(array.dtype), array) for name, array in arrays.items()}
    tensors = bare.state_dict()
    try:
        check_like({name: values_of(t, name) for name, t in tensors.items()}, loaded, "the network")
        if weights is not None and balancer is not None:
            weights = _in_order(weights, names, balancer)
    except ValueError as error:
        raise ValueError(f"{path} {error}; nothing has been loaded") from None
    for name, tensor in tensors.items():
        copy_into(tensor, loaded[name])
    if weights is None:
        return {}
    found = dict(zip(names, weights.tolist()))
    if balancer is not None:
        if balancer.n_loss is None:
            balancer.set_n_loss(len(names))
        balancer.set_state_dict({**balancer.state_dict(), "loss_weights": weights})
        if not balancer._run.order.named:
            balancer._run.order.resume(names)
    return found


def _apart(
    net: paddle.nn.Layer, balancer: LossBalancer | None
) -> tuple[paddle.nn.Layer, LossBalancer | None]:
    """The bare network, and what has the loss weights."""
    net = unwrapped_of_ranks(net)
    if not isinstance(net, GradNorm):
        return net, balancer
    return net.net, net.balancer if balancer is None else balancer


def _in_order(weights: np.ndarray, names: list[str], balancer: LossBalancer) -> np.ndarray:
    """The weights in the order of the balancer's losses."""
    known = balancer._run.order.names
    if balancer.n_loss is None:
        return weights
    if len(known) != len(names) or (balancer._run.order.named and set(known) != set(names)):
        raise ValueError(
            f"has weights of the losses {', '.join(map(repr, names))}, but here they are "
            f"{', '.join(map(repr, known))}"
        )
    ordered = names if not balancer._run.order.named else known
    dtype = balancer.loss_weights.numpy().dtype
    return weights[[names.index(name) for name in ordered]].astype(dtype)


def _array(name: str, tensor: paddle.Tensor) -> np.ndarray:
    values = values_of(tensor, name)
    if values.dtype != str(values.array.dtype):
        raise TypeError(
            f"{name} is of the type {values.dtype}, which numpy lacks: cast the network to "
            "float32 before, net.astype('float32')"
        )
    return np.ascontiguousarray(values.array)


def _names(path: PathLike, metadata: Any, weights: np.ndarray | None) -> list[str]:
    """The losses' names in the file, checked."""
    if weights is None:
        return []
    try:
        names = json.loads(metadata[_LOSSES])
    except (KeyError, ValueError, RecursionError):
        names = None
    if not (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and weights.shape == (len(set(names)),) == (len(names),)
        and weights.dtype in (np.float32, np.float64)
        and np.isfinite(weights).all()
    ):
        raise ValueError(f"{path} has loss weights without a name for each, or that are no numbers")
    return names


def _package() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("safetensors files need the package: pip install safetensors") from error
    return safetensors.numpy
