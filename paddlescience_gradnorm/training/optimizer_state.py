"""An optimizer's state by the positions of its parameters.

Paddle's own state dict goes by the parameters' names, which are counted up in a process: a
process that builds something else first gives the same parameters other names.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from typing import Any, Callable

import paddle
from paddle.base.framework import default_main_program
from paddle.base.layer_helper import LayerHelper

from paddlescience_gradnorm.training.checkpoint_file import CheckpointError
from paddlescience_gradnorm.training.like import as_plain, check_like, copy_into, values_of

_SLOTS = ("accumulators", "master_weights")
# What an optimizer keeps in Paddle's own names.
_KEPT = ("_accumulators", "_accumulators_holder", "_master_weights", "_opti_name_list", "helper")
_CREATED = "_already_create_accumul"  # ...ater or ...ator, by the version of Paddle


def parameters(optimizer: paddle.optimizer.Optimizer) -> list[paddle.Tensor]:
    """The parameters of all groups, in their order."""
    return [parameter for group in _groups(optimizer) for parameter in group]


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
    if getattr(optimizer, "_use_multi_tensor", False):
        raise TypeError(
            f"checkpoints cannot hold {type(optimizer).__name__} with use_multi_tensor=True; "
            "leave that option out"
        )
    rate = optimizer._learning_rate
    scheduled = isinstance(rate, paddle.optimizer.lr.LRScheduler)
    return {
        "kind": type(optimizer).__name__,
        "groups": [len(group) for group in _groups(optimizer)],
        "rate": None if scheduled else float(rate),
        "schedule": as_plain(rate.state_dict(), "schedule") if scheduled else None,
        **{kind: _values(tensors) for kind, tensors in _tensors(optimizer).items()},
    }


def prepare(optimizer: paddle.optimizer.Optimizer, loaded: Any) -> Callable[[], None]:
    """What puts the optimizer into this state.

    Args:
        optimizer: Of the same kind, with parameters of the same shapes in the same order.
        loaded: From ``state``, perhaps from a file that nobody has checked.

    Returns:
        A function without arguments; nothing has been changed before it is called.

    Raises:
        CheckpointError: It is no state of such an optimizer.
    """
    own = state(optimizer)
    if not isinstance(loaded, dict) or set(loaded) != set(own):
        raise CheckpointError("has no state of an optimizer")
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

    # What the accumulators are is known only once there are some; so a twin gets them.
    twin = _twin(optimizer, _stepped(optimizer, loaded))
    for kind, tensors in _tensors(twin).items():
        check_like(_values(tensors), loaded[kind], kind)
        for name, by_index in tensors.items():
            for index, tensor in by_index.items():
                copy_into(tensor, loaded[kind][name][index])

    def apply() -> None:
        for name in vars(twin):
            if name in _KEPT or name.startswith(_CREATED):
                setattr(optimizer, name, getattr(twin, name))
        if own["schedule"] is None:
            optimizer.set_lr(loaded["rate"])
        else:
            with warnings.catch_warnings():  # Paddle takes a schedule in a warm-up for a mistake
                warnings.simplefilter("ignore")
                optimizer._learning_rate.set_state_dict(loaded["schedule"])

    return apply


def _groups(optimizer: paddle.optimizer.Optimizer) -> list[list[paddle.Tensor]]:
    groups = optimizer._param_groups  # or parameters, where there are no groups
    if groups and isinstance(groups[0], dict):
        return [list(group["params"]) for group in groups]
    return [list(groups)]


def _tensors(optimizer: Any) -> dict[str, dict[str, dict[str, paddle.Tensor]]]:
    """Accumulators by name, and the copies in float32 of parameters in half precision."""
    indices = {p.name: str(i) for i, p in enumerate(parameters(optimizer))}
    masters = optimizer._master_weights
    copies = {indices[name]: master for name, master in masters.items()}
    indices.update({master.name: indices[name] for name, master in masters.items()})
    accumulators = {
        name: {indices[parameter]: tensor for parameter, tensor in by_parameter.items()}
        for name, by_parameter in optimizer._accumulators.items()
        if by_parameter
    }
    return {"accumulators": accumulators, "master_weights": {"": copies} if copies else {}}


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
    for kind in _SLOTS:
        if not isinstance(loaded[kind], dict):
            raise CheckpointError(f"has no {kind}")
        for by_index in loaded[kind].values():
            if not isinstance(by_index, dict) or not set(by_index) <= places:
                raise CheckpointError(f"has {kind} of a parameter that is not there")
            found.update({int(index): own[int(index)] for index in by_index})
    return [found[i] for i in sorted(found)]


def _twin(optimizer: paddle.optimizer.Optimizer, stepped: list[paddle.Tensor]) -> Any:
    """A copy of the optimizer that has accumulators for just these parameters."""
    twin = copy.copy(optimizer)
    twin._accumulators = defaultdict(dict)
    twin._accumulators_holder, twin._master_weights, twin._opti_name_list = {}, {}, []
    for name in vars(optimizer):
        if name.startswith(_CREATED):
            setattr(twin, name, set())
    twin.helper = twin.helper or LayerHelper(type(optimizer).__name__)
    with warnings.catch_warnings():  # of half precision, which the first step warns of
        warnings.simplefilter("ignore")
        twin._create_accumulators(default_main_program().global_block(), stepped)
    return twin


def _any_number(schedule: dict[str, Any]) -> dict[str, Any]:
    """The schedule's state with floats, for which integers are taken too, but for counts."""
    return {
        key: _any_number(value)
        if isinstance(value, dict)
        else float(value)
        if type(value) is int and not key.endswith("epoch")
        else value
        for key, value in schedule.items()
    }
