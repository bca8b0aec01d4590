"""States in plain types, and whether one has the form of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from paddlescience_gradnorm.training._checkpoint_file import CheckpointError, Values

_LARGEST = 2**63  # nobody counts beyond


def values_of(tensor: paddle.Tensor, name: str) -> Values:
    """A tensor's values on the host.

    Raises:
        TypeError: The tensor is not dense.
    """
    if not tensor.is_dense():
        raise TypeError(f"{name} must be a dense tensor for a checkpoint, got {tensor!r}")
    return Values(str(tensor.dtype).rpartition(".")[2], tensor.numpy())


def tensor_of(values: Values, place: Any) -> paddle.Tensor:
    """A new tensor with these values."""
    return paddle.to_tensor(values.array, dtype=values.dtype, place=place)


def copy_into(tensor: paddle.Tensor, values: Values) -> None:
    """Give the tensor these values, in place; shape and type agree."""
    if values.array.size:
        with paddle.no_grad():
            tensor.copy_(tensor_of(values, tensor.place), False)


def as_plain(state: Any, where: str) -> Any:
    """A state of tensors, arrays, numbers, strings, dicts and lists, in a checkpoint's types.

    Raises:
        TypeError: The state holds something else.

    Examples:
        >>> as_plain({"rate": np.float64(0.5), "range": (1, 2)}, "state")
        {'rate': 0.5, 'range': [1, 2]}
    """
    if isinstance(state, dict):
        return {key: as_plain(value, f"{where}[{key!r}]") for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [as_plain(value, f"{where}[{i}]") for i, value in enumerate(state)]
    if isinstance(state, paddle.Tensor):
        return values_of(state, where)
    if isinstance(state, np.generic):
        return state.item()
    if isinstance(state, np.ndarray):
        return Values(str(state.dtype), state)
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    raise TypeError(f"{where} must be of a plain type for a checkpoint, got {state!r}")


def with_tensors(state: Any, place: Any) -> Any:
    """What ``as_plain`` has made of a state, with tensors again."""
    if isinstance(state, dict):
        return {key: with_tensors(value, place) for key, value in state.items()}
    if isinstance(state, list):
        return [with_tensors(value, place) for value in state]
    return tensor_of(state, place) if isinstance(state, Values) else state


def as_given(own: Any, state: Any) -> Any:
    """A state from a checkpoint in the types of the object's own state, which it is like."""
    if isinstance(own, dict):
        return {key: as_given(own[key], state[key]) for key in own}
    if isinstance(own, (list, tuple)):
        return type(own)(as_given(a, b) for a, b in zip(own, state))
    if isinstance(own, paddle.Tensor):
        return tensor_of(state, own.place)
    return state.array if isinstance(state, Values) else state


def check_like(own: Any, other: Any, where: str) -> None:
    """Check that a state has the same names, types, lengths and shapes as one's own.

    Where one's own state has a float, the other may have an integer. Where it has ``None``, the
    other may have any number.

    Raises:
        CheckpointError: It has not; the error names the first difference.
    """
    at = f" {where}" if where else ""
    if isinstance(own, dict):
        if not isinstance(other, dict):
            raise CheckpointError(f"has no names at{at}")
        missing, unknown = sorted(set(own) - set(other)), sorted(set(other) - set(own))
        if missing or unknown:
            raise CheckpointError(
                f"has other names{at and ' at' + at}: {_some(missing)} missing, "
                f"{_some(unknown)} not known here"
            )
        for key, value in own.items():
            check_like(value, other[key], joined(where, str(key)))
    elif isinstance(own, list):
        if not isinstance(other, list) or len(other) != len(own):
            raise CheckpointError(f"has another number of{at}, where {len(own)} belong")
        for i, value in enumerate(own):
            check_like(value, other[i], f"{where}[{i}]")
    elif isinstance(own, Values):
        if not isinstance(other, Values):
            raise CheckpointError(f"has no values of{at}")
        if not alike(own, other):
            raise CheckpointError(
                f"has{at} of shape {list(other.array.shape)} and type {other.dtype}, where "
                f"{list(own.array.shape)} and {own.dtype} belong"
            )
    else:
        kinds = {float: (int, float), type(None): (int, float, type(None))}
        if type(other) not in kinds.get(type(own), (type(own),)):
            raise CheckpointError(
                f"has{at} of type {type(other).__name__}, where {type(own).__name__} belongs"
            )
        if type(other) is int and not -_LARGEST <= other < _LARGEST:
            raise CheckpointError(f"has{at} of {str(other)[:20]}..., which is no count")


def alike(own: Values, other: Any) -> bool:
    """Whether these are values of the same type and shape."""
    return (
        isinstance(other, Values)
        and other.dtype == own.dtype
        and other.array.shape == own.array.shape
    )


def same(states: Sequence[Any]) -> bool:
    """Whether these are all equal, to the last bit.

    Examples:
        >>> one = {"words": Values("uint32", np.ones(2, "uint32")), "gauss": None}
        >>> same([one, {**one}]), same([one, {**one, "gauss": 0.5}])
        (True, False)
    """
    first = states[0]
    if isinstance(first, dict):
        return all(isinstance(x, dict) and x.keys() == first.keys() for x in states) and all(
            same([x[key] for x in states]) for key in first
        )
    if isinstance(first, list):
        return all(isinstance(x, list) and len(x) == len(first) for x in states) and all(
            map(same, zip(*states))
        )
    if isinstance(first, Values):
        return all(alike(first, x) and x.array.tobytes() == first.array.tobytes() for x in states)
    return all(type(x) is type(first) and x == first for x in states)


def joined(where: str, key: str) -> str:
    """A place within another; the name of a layer in itself is empty."""
    return ".".join(part for part in (where, key) if part)


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "") or "none"
