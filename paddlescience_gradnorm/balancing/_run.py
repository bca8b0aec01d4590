"""What a balancer knows of its run besides its tensors, and how a checkpoint holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle

from paddlescience_gradnorm.balancing._accumulation import Accumulation
from paddlescience_gradnorm.balancing._caller_stepped import CallerStepped
from paddlescience_gradnorm.balancing._losses import LossOrder
from paddlescience_gradnorm.balancing.measurement import Measurement


@dataclass
class Run:
    """What changes from step to step, besides parameters and buffers.

    It is no part of the layer itself, because setting an attribute of a layer takes 5 us.
    """

    order: LossOrder
    caller: CallerStepped | None  # None: the balancer steps the weights itself
    last: Measurement  # of the last update
    in_two_passes: bool | None = None  # None until a step has shown the losses' graphs
    imbalance: float = math.nan  # of the last update by step()
    # The weights of the last step, if it has changed them since; not by a direction, whose new
    # coefficients have acted at once.
    acted: np.ndarray | None = None
    names: list[str] | None = None  # those for which ``equations`` has been found
    equations: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    idle: int = 0  # number of updates, up to the last, that have balanced no loss
    said: str = ""  # to the log, of what the rule does to them
    accumulation: Accumulation = field(default_factory=Accumulation)
    # Number and losses of a step between updates, until they have been checked.
    unchecked: tuple[int, paddle.Tensor] | None = None

    @classmethod
    def before_a_step(cls, order: LossOrder, caller: CallerStepped | None = None) -> Run:
        """A run that has measured nothing yet."""
        n_loss = order.n_loss
        unknown = Measurement(np.full(n_loss, np.nan), np.full([n_loss, n_loss], np.nan), step=-1)
        return cls(order, caller, unknown)

    def extra_state(self) -> dict[str, Any]:
        """The state for a checkpoint; see ``PicklableLayer``."""
        last, n_loss = self.last, len(self.last.losses)
        return {
            "passes": {None: 0, False: 1, True: 2}[self.in_two_passes],
            "names": list(self.order.names),
            "named": self.order.named,
            "imbalance": self.imbalance,
            "last": {
                "step": last.step,
                "rate": last.rate,
                "progress": last.progress,
                "losses": last.losses,
                "gram": np.full([n_loss, n_loss], np.nan) if last.gram is None else last.gram,
                "equations": last.equations.tolist(),
            },
            "caller": {} if self.caller is None else self.caller.extra_state(),
        }

    def resumed(self, state: dict[str, Any], measured: bool, interval: int, floor: float) -> Run:
        """The run as it was when ``extra_state`` returned this state.

        Args:
            state: The state.
            measured: Whether the rule asks for gradients.
            interval: Number of steps from one update to the next.
            floor: The smallest weight allowed.
        """
        self.order.resume(state["names"] if state["named"] else None)
        if self.caller is not None:
            self.caller.set_extra_state(state["caller"])
        last = {**state["last"], "equations": np.array(state["last"]["equations"], bool)}
        if not measured:
            last["gram"] = None
        return Run(
            self.order,
            self.caller,
            Measurement(**last, names=tuple(self.order.names), interval=interval, floor=floor),
            in_two_passes={1: False, 2: True}.get(state["passes"]),
            imbalance=state["imbalance"],
        )

    def discard_step(self) -> None:
        """Forget a step that will not be finished, and how to undo the last one."""
        self.accumulation, self.unchecked = Accumulation(), None
        if self.caller is not None:
            self.caller.awaited = -1
