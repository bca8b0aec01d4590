"""The state of a trainer for checkpoints: where it is, and what its callbacks have counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
from paddle.callbacks import Callback, EarlyStopping, ReduceLROnPlateau

from paddlescience_gradnorm.balancing._losses import LossOrder
from paddlescience_gradnorm.training._checkpoint_file import CheckpointError
from paddlescience_gradnorm.training._like import as_given, as_plain, check_like
from paddlescience_gradnorm.training._versions import Schema

if TYPE_CHECKING:
    from paddlescience_gradnorm.training.trainer import Trainer

# What Paddle's callbacks count. Other callbacks tell it by state_dict and set_state_dict.
_COUNTED: dict[type[Callback], tuple[str, ...]] = {
    EarlyStopping: ("wait_epoch", "best_value", "stopped_epoch"),
    ReduceLROnPlateau: ("cooldown_counter", "wait", "best", "epoch"),
}
_INTEGERS = ("wait_epoch", "stopped_epoch", "cooldown_counter", "wait", "epoch")
_FIELDS = "step epoch batch first_epoch stopped schedule_by names named epoch_random callbacks"
_TRAINER = Schema("a trainer", tuple(_FIELDS.split()))


class TrainerState:
    """The state of a trainer that none of its other parts holds."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def state(self) -> dict[str, Any]:
        trainer = self._trainer
        order = trainer._order
        return _TRAINER.written(
            step=trainer.step,
            epoch=trainer.epoch,
            batch=trainer._batch,
            first_epoch=trainer._first_epoch,
            stopped=trainer._stopped,
            schedule_by=trainer.schedule_by,
            names=order.names,
            named=order.named,
            epoch_random=trainer._epoch_random if trainer._batch else None,
            callbacks={n: _counted(callback) for n, callback in counting(trainer.callbacks)},
        )

    def moved(self, name: str, states: list[Any]) -> Any:
        """The state with which another number of processes goes on; see ``RunState.moved``."""
        drawn = [x.get("epoch_random") if isinstance(x, dict) else None for x in states]
        if None in drawn:
            return states[0]
        state, _ = self._trainer._sources.moved(drawn)
        return {**states[0], "epoch_random": state}

    def prepare(self, state: Any) -> Callable[[], None]:
        trainer, own, state = self._trainer, _TRAINER.read(self.state()), _TRAINER.read(state)
        # These are of another form from one moment to the next, and are checked below.
        varying = ("names", "epoch_random")
        check_like(
            {key: own[key] for key in own if key not in varying},
            {key: state[key] for key in state if key not in varying},
            "",
        )
        names, numbers = state["names"], [state[x] for x in ("step", "epoch", "batch")]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CheckpointError("has names of losses that are no list of strings")
        if len(set(names)) != len(names) or (state["named"] and not names):
            raise CheckpointError("has names of losses that are none")
        if min(numbers) < 0 or not 0 <= state["first_epoch"] <= state["epoch"]:
            raise CheckpointError(f"has an impossible step, epoch and batch: {numbers}")
        if state["schedule_by"] != own["schedule_by"]:
            raise CheckpointError(f"has schedule_by {state['schedule_by']!r}")
        if state["epoch_random"] is not None:
            trainer._sources.prepare(state["epoch_random"])

        def apply() -> None:
            trainer.step, trainer.epoch, trainer._batch = numbers
            trainer._first_epoch, trainer._stopped = state["first_epoch"], state["stopped"]
            trainer._epoch_random = state["epoch_random"]
            absent = getattr(trainer.balancer, "absent", "error")
            trainer._order = LossOrder(len(names), absent=absent)
            if state["named"]:
                trainer._order.resume(names)
            trainer._resumed = state["callbacks"]

        return apply


def counting(callbacks: Sequence[Callback]) -> Iterator[tuple[str, Callback]]:
    """The callbacks that count something, by name. The others may differ after resuming."""
    kinds: list[str] = []
    for callback in callbacks:
        if _has_state(callback) or isinstance(callback, tuple(_COUNTED)):
            kinds.append(type(callback).__name__)
            yield f"{kinds[-1]}[{kinds.count(kinds[-1]) - 1}]", callback


def _has_state(callback: Callback) -> bool:
    return hasattr(callback, "state_dict") and hasattr(callback, "set_state_dict")


def _counted(callback: Callback) -> Any:
    """What a callback has counted so far."""
    if _has_state(callback):
        return as_plain(callback.state_dict(), "state_dict() of a callback")
    names = next(names for kind, names in _COUNTED.items() if isinstance(callback, kind))
    # Some of these are not there before the run. The best value may be numpy's, or an integer.
    values = {name: getattr(callback, name, float("nan")) for name in names}
    return {n: v if n in _INTEGERS else float(np.asarray(v)) for n, v in values.items()}


def count_on(callback: Callback, counted: dict[str, Any]) -> None:
    """Let a callback go on from what it had counted."""
    if _has_state(callback):
        callback.set_state_dict(as_given(callback.state_dict(), counted))
    else:
        vars(callback).update(counted)
