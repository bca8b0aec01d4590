"""RunState: all that decides how a run goes on, saved and put back to the last bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np
import paddle

from paddlescience_gradnorm.pickling import PicklableLayer
from paddlescience_gradnorm.training import checkpoint_file, optimizer_state, random_state
from paddlescience_gradnorm.training.checkpoint_file import CheckpointError, PathLike, Values
from paddlescience_gradnorm.training.history import QUANTITIES, History
from paddlescience_gradnorm.training.like import (
    as_given,
    as_plain,
    check_like,
    copy_into,
    tensor_of,
    values_of,
)

Apply = Callable[[], None]


class RunState:
    """What a run consists of, by name, for loops without a ``Trainer``.

    The global random generators of Paddle, Python and numpy belong to it without being named,
    and so do parameters that an optimizer steps and no layer holds.

    Args:
        **parts: Layers (all parameters with their gradients, all buffers), bare parameters,
            optimizers with their schedules, a ``History``, numpy's ``Generator`` or
            ``RandomState``, a ``random.Random``, anything with ``state_dict`` and
            ``set_state_dict`` of tensors, arrays and plain types; or lists of these.

    Raises:
        TypeError: A part is of no such kind.

    Examples:
        >>> import os, tempfile
        >>> import paddle
        >>> net = paddle.nn.Linear(2, 1)
        >>> adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
        >>> state = RunState(net=net, optimizer=adam)
        >>> path = os.path.join(tempfile.mkdtemp(), "run.ckpt")
        >>> state.save(path, epoch=3)
        >>> state.load(path)
        {'epoch': 3}
    """

    def __init__(self, **parts: Any) -> None:
        self._parts = {name: _part(name, part) for name, part in parts.items()}
        held = {id(p) for part in parts.values() for p in _held(part)}
        loose = {
            id(p): p
            for part in parts.values()
            for optimizer in _flat(part)
            if isinstance(optimizer, paddle.optimizer.Optimizer)
            for p in optimizer_state.parameters(optimizer)
            if id(p) not in held
        }
        self._parts["parameters outside of layers"] = _part("", list(loose.values()))

    def save(self, path: PathLike, **position: Any) -> None:
        """Write everything to a file: see ``checkpoint_file.write``.

        Args:
            path: The file; its folder must exist.
            **position: Where the run is, such as its epoch: plain types, dicts and lists.

        Raises:
            OSError: It cannot be written. What was in the file is still there.
            TypeError: A tensor or a number is of a type that a checkpoint cannot hold.
        """
        checkpoint_file.write(path, {**self.state(), "position": position})

    def load(self, path: PathLike) -> dict[str, Any]:
        """Put everything back as it was at ``save``, in this process or another.

        Args:
            path: The file.

        Returns:
            The position that was saved with it.

        Raises:
            CheckpointError: The file is damaged, or does not fit these parts. Nothing has
                been changed then.
            OSError: The file cannot be opened.
        """
        return self.take(path, checkpoint_file.read(path))

    def take(self, path: PathLike, state: Any) -> dict[str, Any]:
        """As ``load``, with what ``checkpoint_file.read`` has read from the file."""
        try:
            if not isinstance(state, dict) or set(state) != {"parts", "random", "position"}:
                raise CheckpointError("has no parts, random state and position")
            if not isinstance(state["position"], dict):
                raise CheckpointError("has a position that is no dict")
            apply = self.prepare(state)
        except CheckpointError as error:
            raise CheckpointError(f"{path} {error}; nothing has been loaded") from None
        apply()
        return state["position"]

    def state(self) -> dict[str, Any]:
        """The state of all parts, and of the global random generators."""
        return {
            "parts": {name: part.state() for name, part in self._parts.items()},
            "random": random_state.global_state(),
        }

    def prepare(self, state: dict[str, Any]) -> Apply:
        """Check a state against the parts; the function returned puts it into place."""
        parts = state["parts"]
        if not isinstance(parts, dict) or set(parts) != set(self._parts):
            names = sorted(parts) if isinstance(parts, dict) else parts
            raise CheckpointError(f"holds {names}, but the run has {sorted(self._parts)}")
        applies = []
        for name, part in self._parts.items():
            try:
                applies.append(part.prepare(parts[name]))
            except CheckpointError as error:
                raise CheckpointError(f"does not fit {name}: it {error}") from None
        applies.append(random_state.prepare_global(state["random"]))  # last: the others may draw

        def apply() -> None:
            for part in applies:
                part()

        return apply


class _Layer:
    def __init__(self, layer: paddle.nn.Layer) -> None:
        self._layer = layer

    def state(self) -> dict[str, Any]:
        # First: a balancer may find that an overflow has undone its last step.
        noted = {name: layer.noted() for name, layer in self._noting()}
        parameters = dict(_tensors(self._layer, "_parameters"))
        return {
            "parameters": {name: values_of(p, name) for name, p in parameters.items()},
            "buffers": {n: values_of(b, n) for n, b in _tensors(self._layer, "_buffers")},
            "gradients": _gradients(parameters),
            "noted": noted,
        }

    def prepare(self, state: Any) -> Apply:
        own = self.state()
        _check_with_gradients(own, state, own["parameters"])
        parameters = dict(_tensors(self._layer, "_parameters"))

        def apply() -> None:
            for name, parameter in parameters.items():
                copy_into(parameter, state["parameters"][name])
            _set_gradients(parameters, state["gradients"])
            for prefix, layer in _layers(self._layer):
                for name, buffer in layer._buffers.items():
                    if buffer is None:
                        continue
                    values = state["buffers"][prefix + name]
                    if name in layer._non_persistable_buffer_names_set:
                        # Of a step's own tensors, which may share memory with others.
                        layer._buffers[name] = tensor_of(values, buffer.place)
                    else:
                        copy_into(buffer, values)
            for name, layer in self._noting():
                layer.note(state["noted"][name])

        return apply

    def _noting(self) -> Iterator[tuple[str, PicklableLayer]]:
        for name, layer in _layers(self._layer):
            if isinstance(layer, PicklableLayer):
                yield name, layer


class _Tensor:
    def __init__(self, tensor: paddle.Tensor) -> None:
        self._tensor = tensor

    def state(self) -> dict[str, Any]:
        values = values_of(self._tensor, self._tensor.name)
        return {"value": values, "gradients": _gradients({"": self._tensor})}

    def prepare(self, state: Any) -> Apply:
        own = self.state()
        _check_with_gradients(own, state, {"": own["value"]})

        def apply() -> None:
            copy_into(self._tensor, state["value"])
            _set_gradients({"": self._tensor}, state["gradients"])

        return apply


class _Optimizer:
    def __init__(self, optimizer: paddle.optimizer.Optimizer) -> None:
        self._optimizer = optimizer

    def state(self) -> dict[str, Any]:
        return optimizer_state.state(self._optimizer)

    def prepare(self, state: Any) -> Apply:
        return optimizer_state.prepare(self._optimizer, state)


class _History:
    def __init__(self, history: History) -> None:
        self._history = history

    def state(self) -> dict[str, Any]:
        numbers = self._history.to_numpy()
        rows = {q: Values("float64", numbers[q]) for q in QUANTITIES}
        return {"names": list(self._history.names), **rows}

    def prepare(self, state: Any) -> Apply:
        if not isinstance(state, dict) or set(state) != {"names", *QUANTITIES}:
            raise CheckpointError(f"has no names and {', '.join(QUANTITIES)}")
        names, rows = state["names"], [state[quantity] for quantity in QUANTITIES]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CheckpointError("has names that are no list of strings")
        for row in rows:
            if not isinstance(row, Values) or row.dtype != "float64":
                raise CheckpointError("has rows that are no float64")
            if row.array.ndim != 2 or row.array.shape != (len(rows[0].array), len(names)):
                raise CheckpointError(f"has rows of shape {row.array.shape} for {len(names)} names")
        return lambda: self._history.replace(names, {q: state[q].array for q in QUANTITIES})


class _Generator:
    """A generator of random numbers of numpy's or Python's."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._is_python = isinstance(generator, random.Random)

    def state(self) -> dict[str, Any]:
        if self._is_python:
            return random_state.python_state(self._generator)
        return random_state.numpy_state(self._generator)

    def prepare(self, state: Any) -> Apply:
        if self._is_python:
            return random_state.prepare_python(self._generator, state)
        return random_state.prepare_numpy(self._generator, state)


class _WithStateDict:
    """Anything else, such as a sampler: by its state_dict and set_state_dict."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def state(self) -> Any:
        return as_plain(self._part.state_dict(), "state_dict()")

    def prepare(self, state: Any) -> Apply:
        check_like(self.state(), state, "")
        return lambda: self._part.set_state_dict(as_given(self._part.state_dict(), state))


class _List:
    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts

    def state(self) -> list[Any]:
        return [part.state() for part in self._parts]

    def prepare(self, state: Any) -> Apply:
        if not isinstance(state, list) or len(state) != len(self._parts):
            raise CheckpointError(f"has not {len(self._parts)} of them")
        applies = [part.prepare(own) for part, own in zip(self._parts, state)]

        def apply() -> None:
            for part in applies:
                part()

        return apply


def _part(name: str, part: Any) -> Any:
    if hasattr(part, "state") and hasattr(part, "prepare"):
        return part
    if isinstance(part, (list, tuple)):
        return _List([_part(f"{name}[{i}]", item) for i, item in enumerate(part)])
    generators = (np.random.Generator, np.random.RandomState, random.Random)
    kinds_of_parts: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
        (paddle.nn.Layer, _Layer),
        (paddle.Tensor, _Tensor),
        (paddle.optimizer.Optimizer, _Optimizer),
        (History, _History),
        (generators, _Generator),
    )
    for kinds, kind in kinds_of_parts:
        if isinstance(part, kinds):
            return kind(part)
    if hasattr(part, "state_dict") and hasattr(part, "set_state_dict"):
        return _WithStateDict(part)
    raise TypeError(
        f"{name} must be a layer, a parameter, an optimizer, a History, a random generator or "
        f"have state_dict and set_state_dict, got {type(part).__name__} {part!r}"
    )


def _flat(part: Any) -> Iterator[Any]:
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from _flat(item)
    else:
        yield part


def _held(part: Any) -> Iterator[paddle.Tensor]:
    """The tensors that are saved with this part."""
    for item in _flat(part):
        if isinstance(item, paddle.nn.Layer):
            yield from (parameter for _, parameter in _tensors(item, "_parameters"))
        elif isinstance(item, paddle.Tensor):
            yield item


def _layers(layer: paddle.nn.Layer, prefix: str = "") -> Iterator[tuple[str, paddle.nn.Layer]]:
    """The layer and all below it, each once, with the prefix of its tensors' names."""
    seen: set[int] = set()

    def below(layer: paddle.nn.Layer, prefix: str) -> Iterator[tuple[str, paddle.nn.Layer]]:
        if layer is None or id(layer) in seen:
            return
        seen.add(id(layer))
        yield prefix, layer
        for name, child in layer._sub_layers.items():
            yield from below(child, f"{prefix}{name}.")

    yield from below(layer, prefix)


def _tensors(layer: paddle.nn.Layer, kind: str) -> Iterator[tuple[str, paddle.Tensor]]:
    # Not by attributes: reading the loss weights would settle them.
    for prefix, found in _layers(layer):
        for name, tensor in getattr(found, kind).items():
            if tensor is not None:
                yield prefix + name, tensor


def _gradients(parameters: dict[str, paddle.Tensor]) -> dict[str, Any]:
    """The gradients that there are: one of zeros makes an optimizer step, none does not."""
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        gradient = parameter.grad
        if gradient is not None:
            values = values_of(gradient, f"the gradient of {name}")
            # The bits, for -0.0 is none.
            found[name] = values if values.array.tobytes().strip(b"\0") else "zeros"
    return found


def _check_with_gradients(own: Any, state: Any, parameters: dict[str, Values]) -> None:
    """As ``check_like``, with a gradient for any of the parameters, or none."""
    gradients = state.get("gradients") if isinstance(state, dict) else None
    if not isinstance(gradients, dict):
        raise CheckpointError("has no gradients")
    check_like({**own, "gradients": gradients}, state, "")
    for name, gradient in gradients.items():
        if name not in parameters:
            raise CheckpointError(f"has a gradient of {name!r}, which is no parameter here")
        if gradient != "zeros":
            check_like(parameters[name], gradient, f"the gradient of {name}")


def _set_gradients(parameters: dict[str, paddle.Tensor], gradients: dict[str, Any]) -> None:
    for name, parameter in parameters.items():
        if parameter.stop_gradient and parameter.grad is None and name not in gradients:
            continue
        parameter.clear_gradient(False)
        gradient = gradients.get(name)
        if gradient == "zeros":
            parameter.grad = paddle.zeros_like(parameter)
        elif gradient is not None:
            parameter.grad = tensor_of(gradient, parameter.place)
