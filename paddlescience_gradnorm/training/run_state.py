"""RunState: all that decides how a run goes on, saved and put back to the last bit."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Callable

import numpy as np
import paddle

from paddlescience_gradnorm import _operators
from paddlescience_gradnorm._layers import PicklableLayer
from paddlescience_gradnorm.training import (
    _checkpoint_file,
    _optimizer_state,
    _random_state,
    _rank_files,
)
from paddlescience_gradnorm.training._checkpoint_file import CheckpointError, PathLike, Values
from paddlescience_gradnorm.training._like import (
    alike,
    as_given,
    as_plain,
    check_like,
    copy_into,
    joined,
    same,
    tensor_of,
    values_of,
)
from paddlescience_gradnorm.training._versions import Schema, filled
from paddlescience_gradnorm.training.history import QUANTITIES, History, are_steps

Apply = Callable[[], None]

_RUN = Schema("a run", ("parts", "random", "position"), ({"operators": None},))
_LAYER = Schema("a layer", ("parameters", "buffers", "gradients", "extra"))
_TENSOR = Schema("a tensor", ("value", "gradients"))
_HISTORY = Schema("a history", ("names", *QUANTITIES), ({"steps": None},))
_OBJECT = Schema("an object", ("state",))
_LIST = Schema("a list", ("items",))


class RunState:
    """What a run consists of, by name, for loops without a ``Trainer``.

    The global random generators of Paddle, Python and numpy belong to it without being named,
    and so do parameters that an optimizer steps and no layer holds, and whether the operators in
    C++ compute derivatives. A run that is resumed goes on with them, or without them, as before.

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
        items = [item for part in parts.values() for item in _flat(part)]
        self._layers = [item for item in items if isinstance(item, paddle.nn.Layer)]
        held = {id(p) for part in parts.values() for p in _held(part)}
        loose = {
            id(p): p
            for optimizer in items
            if isinstance(optimizer, paddle.optimizer.Optimizer)
            for p in _optimizer_state.parameters(optimizer)
            if id(p) not in held
        }
        self._parts["parameters outside of layers"] = _part("", list(loose.values()))

    def save(self, path: PathLike, **position: Any) -> None:
        """Write everything to a file. There is always either the old file or the new one.

        Args:
            path: The file; its folder must exist.
            **position: Where the run is, such as its epoch: plain types, dicts and lists.

        Raises:
            OSError: The file cannot be written. What was in it is still there.
            TypeError: A tensor or a number is of a type that a checkpoint cannot hold.
        """
        _checkpoint_file.write(path, self.state(position))

    def load(self, path: PathLike) -> dict[str, Any]:
        """Put everything back as it was at ``save``, in this process or another.

        A file of ``Checkpoints`` that several processes have written may be loaded by another
        number of them. Everything is then taken from rank 0's file. Random generators among the
        parts must be the same in all files. The global ones, where they are not, stay as the
        program has seeded them, with a warning.

        Args:
            path: The file; of several processes', the file of any of them.

        Returns:
            The position that was saved with it.

        Raises:
            CheckpointError: The file is damaged, does not fit these parts, or was written by a
                newer version of this package or by 0.1.0. Nothing has been changed then.
            OSError: The file cannot be opened.
        """
        return self.take_of(path, _rank_files.read(path))

    def take_of(self, path: PathLike, states: Sequence[Any]) -> dict[str, Any]:
        """As ``take``, with the states of all processes of a run if their number was another."""
        try:
            state, differing = self.moved(states)
        except CheckpointError as error:
            raise CheckpointError(f"{path} {error}; nothing has been loaded") from None
        position = self.take(path, state)
        if differing:
            warnings.warn(
                f"the {len(states)} processes that wrote {path} had different random numbers of "
                f"{' and '.join(differing)}, so these stay as this program has seeded them. Points "
                "drawn from them are not those of a run that was not stopped",
                RuntimeWarning,
                stacklevel=3,
            )
        return position

    def moved(self, states: Sequence[Any]) -> tuple[Any, list[str]]:
        """The state with which another number of processes goes on.

        Args:
            states: Of all processes by rank, perhaps from files that nobody has checked.

        Returns:
            The state, and the names of the global generators that differ in the processes and stay
            as they are now.

        Raises:
            CheckpointError: A generator among the parts is not the same in all processes.
        """
        first, *others = states
        if not others or not all(_has_parts(state) for state in states):
            return first, []
        parts = dict(first["parts"])
        for name, part in self._parts.items():
            if hasattr(part, "moved") and all(name in state["parts"] for state in states):
                parts[name] = part.moved(name, [state["parts"][name] for state in states])
        now, random, differing = _random_state.global_state(), dict(first["random"]), []
        for name, kind in (("paddle", "Paddle"), ("python", "Python"), ("numpy", "numpy")):
            if not same([state["random"].get(name) for state in states]):
                random[name] = now[name]
                differing.append(kind)
        return {**first, "parts": parts, "random": random}, differing

    def take(self, path: PathLike, state: Any) -> dict[str, Any]:
        """As ``load``, with a state that has been read from the file before."""
        try:
            if _is_by_0_1_0(state):
                raise CheckpointError(
                    "was written by paddlescience_gradnorm 0.1.0, whose balancers remember other "
                    "things than those of this version. Finish the run with 0.1.0, or begin a "
                    "new one with its parameters: RunState(net=net).load_parameters(path)"
                )
            apply = self.prepare(state)
        except CheckpointError as error:
            raise CheckpointError(f"{path} {error}; nothing has been loaded") from None
        apply()
        return state["position"]

    def load_parameters(self, path: PathLike) -> None:
        """Take the layers' parameters alone from a checkpoint, to begin a new run with them.

        This also reads the files of version 0.1.0, with which a run cannot go on. Layers here go
        by the names that they had there; ``Trainer`` calls its network ``net``. Buffers, such as
        a normalisation's running means, are taken where name, shape and type are the same.
        Everything else stays as it is.

        Args:
            path: The file.

        Raises:
            CheckpointError: The file is damaged, or its parameters have other names, shapes or
                types. Nothing has been changed then.
            OSError: The file cannot be opened.

        Examples:
            >>> import os, tempfile
            >>> import paddle
            >>> net, other = paddle.nn.Linear(2, 1), paddle.nn.Linear(2, 1)
            >>> path = os.path.join(tempfile.mkdtemp(), "run.ckpt")
            >>> RunState(net=net, points=random.Random(0)).save(path)
            >>> RunState(net=other).load_parameters(path)
            >>> bool((net.weight == other.weight).all())
            True
        """
        state = _checkpoint_file.read(path)
        try:
            parts = state.get("parts") if _is_by_0_1_0(state) else _RUN.read(state)["parts"]
            applies = [
                _prepared(name, part.prepare_parameters, parts)
                for name, part in self._parts.items()
                if hasattr(part, "prepare_parameters")
            ]
        except CheckpointError as error:
            raise CheckpointError(f"{path} {error}; nothing has been loaded") from None
        for apply in applies:
            apply()

    def state(self, position: dict[str, Any] | None = None) -> dict[str, Any]:
        """The state of all parts and of the global random generators, with the run's position."""
        return _RUN.written(
            parts={name: part.state() for name, part in self._parts.items()},
            random=_random_state.global_state(),
            position=position or {},
            operators=_operators.loaded,
        )

    def prepare(self, state: Any) -> Apply:
        """Check a state against the parts; the function returned puts it into place."""
        run = _RUN.read(state)
        parts = run["parts"]
        if not isinstance(run["position"], dict):
            raise CheckpointError("has a position that is no dict")
        if not isinstance(parts, dict) or set(parts) != set(self._parts):
            names = sorted(parts) if isinstance(parts, dict) else parts
            raise CheckpointError(f"holds {names}, but the run has {sorted(self._parts)}")
        with_operators = run["operators"]  # None by a version that did not record it
        if not (with_operators is None or isinstance(with_operators, bool)):
            raise CheckpointError("has operators that are neither true nor false")
        with _as_before_an_error(self._layers):
            applies = [_prepared(name, part.prepare, parts) for name, part in self._parts.items()]
            # Last, because the other parts may draw.
            applies.append(_random_state.prepare_global(run["random"]))
        if with_operators is not None:
            applies.insert(0, functools.partial(_operators.go_on, with_operators))

        def apply() -> None:
            for part in applies:
                part()

        return apply


def _has_parts(state: Any) -> bool:
    """Whether a file's state has the form in which parts can be looked for."""
    names = ("parts", "random")
    return isinstance(state, dict) and all(isinstance(state.get(name), dict) for name in names)


def _is_by_0_1_0(state: Any) -> bool:
    """Whether version 0.1.0 has written this state: it gave its parts no versions."""
    return isinstance(state, dict) and set(state) == {"parts", "random", "position"}


def _prepared(name: str, prepare: Callable[[Any], Apply], parts: Any) -> Apply:
    """What puts the part of this name into its state; errors name the part."""
    if not isinstance(parts, dict) or name not in parts:
        names = sorted(parts) if isinstance(parts, dict) else parts
        raise CheckpointError(f"holds {names}, and no {name}")
    try:
        return prepare(parts[name])
    except CheckpointError as error:
        raise CheckpointError(f"does not fit {name}: it {error}") from None


class _Layer:
    def __init__(self, layer: paddle.nn.Layer) -> None:
        self._layer = layer

    def state(self) -> dict[str, Any]:
        # The extra state comes first, because a balancer may find that an overflow has undone
        # its last step.
        extra = {
            name: as_plain(layer.extra_state(), f"the extra state of {name or 'the layer'}")
            for name, layer in _with_extra_state(self._layer)
        }
        parameters, buffers = _parameters(self._layer), _buffers(self._layer)
        return _LAYER.written(
            parameters={name: values_of(p, name) for name, p in parameters.items()},
            buffers={name: values_of(b, name) for name, b in buffers.items()},
            gradients=_gradients(parameters),
            extra=extra,
        )

    def prepare(self, state: Any) -> Apply:
        fields = _LAYER.read(state)
        for name, layer in _with_extra_state(self._layer):
            if isinstance(fields["extra"], dict) and name in fields["extra"]:
                try:
                    layer.expect_extra_state(fields["extra"][name])
                except ValueError as error:
                    raise CheckpointError(f"has an extra state of {name!r}: {error}") from None
        own = _LAYER.read(self.state())
        is_older = state["version"] < _LAYER.version
        fields["extra"] = filled(own["extra"], fields["extra"], "extra", is_older)
        _check_with_gradients(own, fields, own["parameters"])
        parameters = _parameters(self._layer)
        # Not in apply, where a balancer would take the loaded weights for an optimizer's step.
        extra = [
            (layer, as_given(layer.extra_state(), fields["extra"][name]))
            for name, layer in _with_extra_state(self._layer)
        ]

        def apply() -> None:
            for name, parameter in parameters.items():
                copy_into(parameter, fields["parameters"][name])
            for name, buffer in _buffers(self._layer).items():
                copy_into(buffer, fields["buffers"][name])
            _set_gradients(parameters, fields["gradients"])
            for layer, given in extra:
                layer.set_extra_state(given)

        return apply

    def prepare_parameters(self, state: Any) -> Apply:
        parameters, loaded = _parameters(self._layer), _field("parameters", state)
        buffers = _field("buffers", state)
        if "version" not in state:  # by 0.1.0, which gave paddle.DataParallel a name
            of_wrapper = {name.replace("_layers.", ""): name for name in loaded}
            if set(of_wrapper) == set(parameters):
                loaded = {name: loaded[old] for name, old in of_wrapper.items()}
                buffers = {name.replace("_layers.", ""): x for name, x in buffers.items()}
        check_like({n: values_of(p, n) for n, p in parameters.items()}, loaded, "parameters")
        taken = {
            name: buffer
            for name, buffer in _buffers(self._layer).items()
            if alike(values_of(buffer, name), buffers.get(name))
        }

        def apply() -> None:
            for name, tensor in parameters.items():
                copy_into(tensor, loaded[name])
            for name, tensor in taken.items():
                copy_into(tensor, buffers[name])

        return apply


class _Tensor:
    def __init__(self, tensor: paddle.Tensor) -> None:
        self._tensor = tensor

    def state(self) -> dict[str, Any]:
        values = values_of(self._tensor, self._tensor.name)
        return _TENSOR.written(value=values, gradients=_gradients({"": self._tensor}))

    def prepare(self, state: Any) -> Apply:
        own, fields = _TENSOR.read(self.state()), _TENSOR.read(state)
        _check_with_gradients(own, fields, {"": own["value"]})

        def apply() -> None:
            copy_into(self._tensor, fields["value"])
            _set_gradients({"": self._tensor}, fields["gradients"])

        return apply

    def prepare_parameters(self, state: Any) -> Apply:
        value = _field("value", state, Values)
        check_like(values_of(self._tensor, self._tensor.name), value, "")
        return lambda: copy_into(self._tensor, value)


class _Optimizer:
    def __init__(self, optimizer: paddle.optimizer.Optimizer) -> None:
        self._optimizer = optimizer

    def state(self) -> dict[str, Any]:
        return _optimizer_state.state(self._optimizer)

    def prepare(self, state: Any) -> Apply:
        return _optimizer_state.prepare(self._optimizer, state)


class _History:
    def __init__(self, history: History) -> None:
        self._history = history

    def state(self) -> dict[str, Any]:
        numbers = self._history.to_numpy()
        rows = {q: Values("float64", numbers[q]) for q in QUANTITIES}
        steps = Values("int64", numbers["steps"])
        return _HISTORY.written(names=list(self._history.names), steps=steps, **rows)

    def prepare(self, state: Any) -> Apply:
        fields = _HISTORY.read(state)
        names, rows = fields["names"], [fields[quantity] for quantity in QUANTITIES]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CheckpointError("has names that are no list of strings")
        for row in rows:
            if not isinstance(row, Values) or row.dtype != "float64":
                raise CheckpointError("has rows that are no float64")
            if row.array.ndim != 2 or row.array.shape != (len(rows[0].array), len(names)):
                raise CheckpointError(f"has rows of shape {row.array.shape} for {len(names)} names")
        steps = fields["steps"]
        if steps is None:  # by a version that kept every step
            steps = Values("int64", np.arange(len(rows[0].array)))
        if not isinstance(steps, Values) or steps.dtype != "int64":
            raise CheckpointError("has steps that are no int64")
        if not are_steps(steps.array, len(rows[0].array)):
            raise CheckpointError("has steps that are not those of its rows")
        values = {"steps": steps.array, **{q: fields[q].array for q in QUANTITIES}}
        return lambda: self._history.replace(names, values)


class _Generator:
    """A generator of random numbers of numpy's or Python's."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._is_python = isinstance(generator, random.Random)

    def state(self) -> dict[str, Any]:
        if self._is_python:
            return _random_state.python_state(self._generator)
        return _random_state.numpy_state(self._generator)

    def prepare(self, state: Any) -> Apply:
        if self._is_python:
            return _random_state.prepare_python(self._generator, state)
        return _random_state.prepare_numpy(self._generator, state)

    def moved(self, name: str, states: list[Any]) -> Any:
        if not same(states):
            raise CheckpointError(
                f"was written by {len(states)} processes, whose states of {name} differ, so each "
                "has drawn points of its own. Go on with as many processes. For another number, "
                "draw all points in every process from the same state, and take the share of each "
                "by paddlescience_gradnorm.ranks.share"
            )
        return states[0]


class _WithStateDict:
    """Anything else, such as a sampler: by its state_dict and set_state_dict."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def state(self) -> dict[str, Any]:
        return _OBJECT.written(state=as_plain(self._part.state_dict(), "state_dict()"))

    def prepare(self, state: Any) -> Apply:
        own, loaded = _OBJECT.read(self.state())["state"], _OBJECT.read(state)["state"]
        check_like(own, loaded, "")
        return lambda: self._part.set_state_dict(as_given(self._part.state_dict(), loaded))


class _List:
    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts

    def state(self) -> dict[str, Any]:
        return _LIST.written(items=[part.state() for part in self._parts])

    def prepare(self, state: Any) -> Apply:
        return self._each([part.prepare for part in self._parts], _LIST.read(state)["items"])

    def prepare_parameters(self, state: Any) -> Apply:
        if not self._parts:  # as where no optimizer says what is outside of layers
            return _nothing
        items = state if isinstance(state, list) else _LIST.read(state)["items"]  # by 0.1.0
        others: Callable[[Any], Apply] = lambda _: _nothing  # noqa: E731
        return self._each([getattr(p, "prepare_parameters", others) for p in self._parts], items)

    def moved(self, name: str, states: list[Any]) -> Any:
        lists = [state.get("items") if isinstance(state, dict) else None for state in states]
        if not all(isinstance(x, list) and len(x) == len(self._parts) for x in lists):
            return states[0]  # prepare says what is wrong with it
        items = [
            part.moved(f"{name}[{i}]", list(of_part)) if hasattr(part, "moved") else of_part[0]
            for i, (part, of_part) in enumerate(zip(self._parts, zip(*lists)))
        ]
        return {**states[0], "items": items}

    def _each(self, prepares: list[Callable[[Any], Apply]], items: Any) -> Apply:
        if not isinstance(items, list) or len(items) != len(prepares):
            raise CheckpointError(f"has not {len(prepares)} of them")
        applies = [prepare(item) for prepare, item in zip(prepares, items)]

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
            yield from _parameters(item).values()
        elif isinstance(item, paddle.Tensor):
            yield item


def _sublayers(
    layer: paddle.nn.Layer, name: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, paddle.nn.Layer]]:
    """The layer and all below it, each once, by name.

    What a ``paddle.DataParallel`` wraps goes by the wrapper's name, because a single process has
    no wrapper.
    """
    seen = set() if seen is None else seen
    if isinstance(layer, paddle.DataParallel):
        (layer,) = layer.children()
    if id(layer) not in seen:
        seen.add(id(layer))
        yield name, layer
        for child, sublayer in layer.named_children():
            yield from _sublayers(sublayer, joined(name, child), seen)


def _parameters(layer: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    """All parameters by name, those too that a ``GradNorm`` keeps from the optimizers."""
    return {
        joined(prefix, name): parameter
        for prefix, found in _sublayers(layer)
        for name, parameter in paddle.nn.Layer.named_parameters(found, include_sublayers=False)
    }


def _buffers(layer: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    """All buffers by name, those too that a state dict leaves out."""
    return {
        joined(prefix, name): buffer
        for prefix, found in _sublayers(layer)
        for name, buffer in found.named_buffers(include_sublayers=False)
    }


def _with_extra_state(layer: paddle.nn.Layer) -> list[tuple[str, PicklableLayer]]:
    """The layers that remember something beside parameters and buffers, by name."""
    found = _sublayers(layer)
    return [(name, each) for name, each in found if isinstance(each, PicklableLayer)]


@contextlib.contextmanager
def _as_before_an_error(layers: Sequence[paddle.nn.Layer]) -> Iterator[None]:
    """At an error, take back what layers have made in ``expect_extra_state``."""
    before = [
        (d := each.__dict__, {n: copy.copy(x) if isinstance(x, dict) else x for n, x in d.items()})
        for layer in layers
        for _, each in _with_extra_state(layer)
    ]
    try:
        yield
    except BaseException:
        for attributes, old in before:
            attributes.clear()
            attributes.update(old)
        raise


def _field(name: str, state: Any, kind: type = dict) -> Any:
    """A field of any version's state."""
    field = state.get(name) if isinstance(state, dict) else None
    if not isinstance(field, kind):
        raise CheckpointError(f"has no {name}")
    return field


def _nothing() -> None:
    """Put nothing into place."""


def _gradients(parameters: dict[str, paddle.Tensor]) -> dict[str, Any]:
    """The gradients that there are. With one of zeros an optimizer steps, without one not."""
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        gradient = parameter.grad
        if gradient is not None:
            values = values_of(gradient, f"the gradient of {name}")
            # By the bits, because -0.0 must come back as it is.
            found[name] = values if values.array.tobytes().strip(b"\0") else "zeros"
    return found


def _check_with_gradients(own: Any, state: Any, parameters: dict[str, Values]) -> None:
    """As ``check_like``, with a gradient for any of the parameters, or none."""
    gradients = state["gradients"]
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
