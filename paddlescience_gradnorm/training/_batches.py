"""What ``Trainer.fit`` is given to train on: the batches of an epoch, and how many epochs."""

from __future__ import annotations

import numbers
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Union

import numpy as np
import paddle
from paddle.io import Dataset, IterableDataset

from paddlescience_gradnorm import _arguments, _inputs

# An integer is a number of epochs without data.
Data = Union[Iterable[Any], int, None]


def batches_and_epochs(data: Data, epochs: int | None) -> tuple[Iterable[Any] | None, int]:
    """The batches of an epoch, None for none, and the number of epochs, 1 by default.

    Raises:
        TypeError: ``data`` cannot be the batches, or there are two numbers of epochs.
        ValueError: The number of epochs is below 1.

    Examples:
        >>> batches_and_epochs(1000, None), batches_and_epochs([1, 2], 3)
        ((None, 1000), ([1, 2], 3))
    """
    if isinstance(data, numbers.Integral) and not isinstance(data, bool):
        if epochs is not None:
            raise TypeError(
                f"data is the number {data}, beside epochs={epochs!r}; for {data} epochs without "
                f"data write fit(epochs={data})"
            )
        data, epochs = None, int(data)
    batches: Any = data
    epochs = 1 if epochs is None else _arguments.integer("epochs", epochs, at_least=1)
    reason = None if batches is None else _why_not(batches, epochs)
    if reason is not None:
        raise TypeError(
            f"data must be the batches of an epoch, got {type(batches).__name__} {reason}"
        )
    return batches, epochs


def _why_not(data: Any, epochs: int) -> str | None:
    """Why these are not the batches of so many epochs, and what to write; None if they may be."""
    if isinstance(data, (paddle.Tensor, np.ndarray)):
        return (
            f"of shape {list(data.shape)}, whose rows would be the batches; for one batch write "
            "fit([data]), for several use a paddle.io.DataLoader"
        )
    if isinstance(data, Mapping):
        return (
            f"with the keys {list(data)}; write fit([data]) for one batch, which the losses get as "
            "a dict"
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return "of single samples; write fit(paddle.io.DataLoader(data, batch_size=...))"
    if isinstance(data, str) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        return f"{data!r}; for a number of epochs without data write fit(epochs=...)"
    if epochs > 1 and _runs_once(data):
        return (
            f"for {epochs} epochs, which can be run through once; use a list of batches or a "
            "paddle.io.DataLoader"
        )
    return None


def _runs_once(data: Any) -> bool:
    """Whether this is a generator or another iterator of Python's own, such as zip or map.

    One that a user has written as a class may begin anew whenever it is asked for.
    """
    is_a_class = isinstance(getattr(type(data), "__iter__", None), types.FunctionType)
    return isinstance(data, Iterator) and not is_a_class


def length(data: Any) -> int | None:
    """The number of batches, if it is known beforehand."""
    try:
        return len(data)
    except (TypeError, ValueError, RuntimeError):  # of an IterableDataset and its DataLoader
        return None


def as_arguments(batch: Any, net: paddle.nn.Layer) -> list[Any]:
    """The arguments that a batch has for the losses: its parts, or itself if it has none.

    Numpy arrays of floats become tensors of the network's dtype, because the network need not
    take arrays.
    """
    parts = batch if isinstance(batch, (list, tuple)) else [batch]
    return [_with_tensors(part, net) for part in parts]


def _with_tensors(part: Any, net: paddle.nn.Layer) -> Any:
    if isinstance(part, dict):
        return {name: _with_tensors(value, net) for name, value in part.items()}
    if isinstance(part, np.ndarray) and part.dtype.kind == "f":
        return _inputs.to_tensor("data", part, _inputs.form_of(net))
    return part
