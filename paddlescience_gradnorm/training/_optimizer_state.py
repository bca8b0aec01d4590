"""An optimizer's state by the positions of its parameters.

Paddle's own state dict goes by the parameters' names, which Paddle counts up in a process. A
process that builds something else first gives the same parameters other names.
"""

from __future__ import annotations

import warnings
from typing import Any, Callable

import paddle

from paddlescience_gradnorm import _paddle
from paddlescience_gradnorm.training._checkpoint_file import CheckpointError
from paddlescience_gradnorm.training._like import (
    as_plain,
    check_like,
    copy_into,
    values_of,
    with_tensors,
)
from paddlescience_gradnorm.training._versions import Schema

_SLOTS = ("accumulators", "master_weights")
_OPTIMIZER = Schema(
    "an optimizer", ("kind", "groups", "rate", "schedule", *_SLOTS), ({"by_parameter": None},)
)


def parameters(optimizer: paddle.optimizer.Optimizer) -> list[paddle.Tensor]:
    """The parameters of all groups, in their order."""
    return [p for group in _paddle.parameter_groups(optimizer) for p in group]


def state(optimizer: paddle.optimizer.Optimizer) -> dict[str, Any]:
    """Moments and whatever else it keeps for each parameter, its rate and its schedule.

    Raises:
        TypeError: Its accumulators are fused (``use_multi_tensor``).

    Examples:
        >>> import paddle
        >>> net = paddle.nn.Linear(2, 1)
        >>> adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
        >>> net(paddle.ones([1, 2])).sum().backward()
        >>> adam.step()
        >>> kept = state(adam)
        >>> sorted(kept["accumulators"]), sorted(kept["accumulators"]["moment1"])
        (['beta1_pow_acc', 'beta2_pow_acc', 'moment1', 'moment2'], ['0', '1'])
    """
    if _paddle.has_fused_accumulators(optimizer):
        raise TypeError(
            f"checkpoints cannot hold {type(optimizer).__name__} with use_multi_tensor=True; "
            "leave that option out"
        )
    schedule = _paddle.schedule_of(optimizer)
    return _OPTIMIZER.written(
        kind=type(optimizer).__name__,
        groups=[len(group) for group in _paddle.parameter_groups(optimizer)],
        rate=float(optimizer.get_lr()) if schedule is None else None,
        schedule=None if schedule is None else as_plain(schedule.state_dict(), "schedule"),
        by_parameter=_by_parameter(optimizer),
        **{slot: _values(tensors) for slot, tensors in _tensors(optimizer).items()},
    )


def prepare(optimizer: paddle.optimizer.Optimizer, loaded: Any) -> Callable[[], None]:
    """What puts the optimizer into this state.

    Args:
        optimizer: Of the same kind, with parameters of the same shapes in the same order.
        loaded: From ``state``, perhaps from a file that nobody has checked.

    Returns:
        A function without arguments. Nothing has been changed before somebody calls it.

    Raises:
        CheckpointError: It is no state of such an optimizer.
    """
    own, loaded = state(optimizer), _OPTIMIZER.read(loaded)
    for name, what in (("kind", "of another kind"), ("groups", "with other parameter groups")):
        if loaded[name] != own[name]:
            raise CheckpointError(f"is an optimizer {what}: {loaded[name]}, here {own[name]}")
    kinds = ["a number" if x["schedule"] is None else "a schedule" for x in (own, loaded)]
    if kinds[0] != kinds[1]:
        raise CheckpointError(f"has {kinds[1]} for the learning rate, where {kinds[0]} belongs")
    if own["schedule"] is None:
        check_like(own["rate"], loaded["rate"], "rate")
    else:
        check_like(_any_number(own["schedule"]), loaded["schedule"], "schedule")

    by_parameter = _checked(
        own["by_parameter"], loaded["by_parameter"], own["kind"], sum(own["groups"])
    )

    # An optimizer shows which accumulators it has only once it has some, so a copy gets them.
    twin = _paddle.with_new_accumulators(optimizer, _stepped(optimizer, loaded))
    for slot, tensors in _tensors(twin).items():
        check_like(_values(tensors), loaded[slot], slot)
        for name, by_index in tensors.items():
            for index, tensor in by_index.items():
                copy_into(tensor, loaded[slot][name][index])

    def apply() -> None:
        _paddle.take_accumulators(optimizer, twin)
        if by_parameter is not None:
            optimizer.state.clear()
            own_parameters = parameters(optimizer)
            for index, kept in by_parameter.items():
                parameter = own_parameters[int(index)]
                optimizer.state[parameter] = with_tensors(kept, parameter.place)
        schedule = _paddle.schedule_of(optimizer)
        if schedule is None:
            optimizer.set_lr(loaded["rate"])
        else:
            with warnings.catch_warnings():  # Paddle takes a schedule in a warm-up for a mistake
                warnings.simplefilter("ignore")
                schedule.set_state_dict(loaded["schedule"])

    return apply


def _tensors(optimizer: Any) -> dict[str, dict[str, dict[str, paddle.Tensor]]]:
    """Accumulators by name, and the copies in float32 of parameters in half precision."""
    indices = {p.name: str(i) for i, p in enumerate(parameters(optimizer))}
    masters = _paddle.master_weights(optimizer)
    copies = {indices[name]: master for name, master in masters.items()}
    indices.update({master.name: indices[name] for name, master in masters.items()})
    accumulators = {
        name: {indices[parameter]: tensor for parameter, tensor in by_parameter.items()}
        for name, by_parameter in _paddle.accumulators(optimizer).items()
    }
    return {"accumulators": accumulators, "master_weights": {"": copies} if copies else {}}


def _by_parameter(optimizer: Any) -> dict[str, Any] | None:
    """What it keeps in a dict ``state`` by parameters, as PaddleScience's SOAP; None without one.

    Paddle's own optimizers have accumulators. The ``state_dict()`` of others does not show this.
    """
    kept = getattr(optimizer, "state", None)
    places = {id(p): str(i) for i, p in enumerate(parameters(optimizer))}
    if not isinstance(kept, dict) or not all(id(p) in places for p in kept):
        return None
    return {places[id(p)]: as_plain(of, f"state of {p.name}") for p, of in kept.items()}


def _checked(own: Any, loaded: Any, kind: str, number: int) -> dict[str, Any] | None:
    """What a file has for ``_by_parameter``, if it may be that of this optimizer.

    Raises:
        CheckpointError: It may not.
    """
    if own is None and loaded is None:
        return None
    if own is None or not isinstance(loaded, dict):
        raise CheckpointError(
            f"has nothing of what {kind} keeps by parameter: it was written by a version that did "
            "not save that, so the training cannot go on from here as if it had not stopped"
        )
    if not set(loaded) <= {str(i) for i in range(number)}:
        raise CheckpointError("has the state of a parameter that is not there")
    for place, of in loaded.items():
        if place in own:
            check_like(own[place], of, f"state of parameter {place}")
        elif not isinstance(of, dict):
            raise CheckpointError(f"has no names in the state of parameter {place}")
    return loaded


def _values(tensors: dict[str, dict[str, paddle.Tensor]]) -> dict[str, Any]:
    return {
        name: {index: values_of(tensor, name) for index, tensor in by_index.items()}
        for name, by_index in tensors.items()
    }


def _stepped(optimizer: paddle.optimizer.Optimizer, loaded: dict[str, Any]) -> list[paddle.Tensor]:
    """The parameters for which something has been kept."""
    own = parameters(optimizer)
    places = {str(i) for i in range(len(own))}
    found: dict[int, paddle.Tensor] = {}
    for slot in _SLOTS:
        if not isinstance(loaded[slot], dict):
            raise CheckpointError(f"has no {slot}")
        for by_index in loaded[slot].values():
            if not isinstance(by_index, dict) or not set(by_index) <= places:
                raise CheckpointError(f"has {slot} of a parameter that is not there")
            found.update({int(index): own[int(index)] for index in by_index})
    return [found[i] for i in sorted(found)]


def _any_number(schedule: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state with floats, for which integers are taken too, in place of all but counts.

    Nested schedules likewise.
    """
    return {
        key: _any_number(value)
        if isinstance(value, dict)
        else float(value)
        if type(value) is int and not key.endswith("epoch")
        else value
        for key, value in schedule.items()
    }
