"""Loss weights that the caller's optimizer steps, as in the design document.

The rule's gradient is written into the weights' ``.grad``. The caller's optimizer steps them like
any parameter. Before the next step they are settled: weights that must not move are put back, and
the others are renormalised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import paddle

from paddlescience_gradnorm._layers import shield
from paddlescience_gradnorm.balancing._faults import warn_the_caller
from paddlescience_gradnorm.balancing._one_pass import overwrite
from paddlescience_gradnorm.balancing.rule import renormalized

# If the weights have not moved after this many updates, no optimizer steps them.
_UPDATES_TO_MOVE = 100


class CallerStepped:
    """The state of loss weights that the caller's optimizer steps.

    Args:
        floor: The smallest weight allowed.
        weights: The parameter, with its values before the first step.
    """

    def __init__(self, floor: float, weights: paddle.Tensor) -> None:
        self.floor = floor
        self.start = weights.numpy().astype(np.float64)
        # The weights used last, and which of them may move.
        self.acted = self.start
        self.movable = np.ones(len(self.start), bool)
        # Number of the step that follows the awaited optimizer step; -1 if none is awaited.
        self.awaited = -1
        self.updates = 0
        self.largest_norm = math.sqrt(paddle.finfo(weights.dtype).max) / 2

    def offer(
        self,
        weights: paddle.Tensor,
        gradient: np.ndarray,
        acted: np.ndarray,
        movable: np.ndarray,
        step: int,
        scaling: paddle.Tensor | None,
    ) -> None:
        """Write the gradient for the caller's optimizer.

        Args:
            weights: The parameter.
            gradient: The gradient of Lgrad, shape [T]; 0 where a weight must not move.
            acted: The weights of this step, shape [T].
            movable: Which weights may move, boolean, shape [T].
            step: Number of the next step.
            scaling: Loss scaling of the optimizer's other gradients, shape [1], if any.
        """
        set_grad(weights)
        single = weights.dtype == paddle.float32
        weights.grad.set_value(gradient.astype(np.float32 if single else np.float64))
        if scaling is not None:  # because the scaler divides by it
            weights.grad.set_value(weights.grad * scaling)
        shield(weights)
        self.acted, self.movable, self.awaited = acted, movable, step
        self.updates += 1
        if self.updates == _UPDATES_TO_MOVE and np.allclose(acted, self.start, 1e-7, 0):
            warn_the_caller(
                f"after {_UPDATES_TO_MOVE} updates the loss weights are what they were at the "
                "start: no optimizer seems to step them. Build the optimizer with "
                "loss_weights among its parameters, or pass weight_lr, and they are stepped here"
            )

    def rest(self, weights: paddle.Tensor, step: int, frozen: bool) -> None:
        """Keep the weights still in a step without an update.

        A zero gradient has been used and is removed, because an optimizer with momentum would
        still move the weights. A nonzero gradient stays unless the weights are frozen, because
        the optimizer uses it after the last of several backward passes.
        """
        gradient = weights.grad
        if gradient is not None and (frozen or not (gradient != 0).any().item()):
            weights.clear_gradient(False)
        if self.awaited == step:
            self.awaited = step + 1

    def settled(self, weights: paddle.Tensor, step: int) -> np.ndarray | None:
        """The settled weights after the caller's optimizer step, shape [T].

        None if they stay as they are. This changes nothing.

        Args:
            weights: The parameter.
            step: Number of steps made. If ``offer`` gave another number, a state has been
                loaded since, and no optimizer step is awaited.
        """
        if step != self.awaited:
            return None
        now = weights.numpy().astype(np.float64)
        if not self.movable.any() or not np.isfinite(now).all():
            return None if np.array_equal(now, self.acted) else self.acted
        total = self.acted.sum()
        # Weights given for the first step act in that step only, even if no optimizer moves them.
        is_off = self.updates == 1 and abs(total - len(now)) > 1e-3
        if np.array_equal(now, self.acted) and not is_off:
            return None
        if self.movable.all():
            return renormalized(now, self.floor)
        # The movable weights keep their sum.
        scale = self.movable.sum() / self.acted[self.movable].sum()
        if self.floor * scale > 1 - 1e-9:  # all of them are on the floor
            return None if np.array_equal(now, self.acted) else self.acted
        moved = renormalized(now[self.movable] * scale, self.floor * scale) / scale
        settled = self.acted.copy()
        settled[self.movable] = np.maximum(moved, self.floor)
        return settled

    def settle(self, weights: paddle.Tensor, step: int) -> bool:
        """Write ``settled`` into the weights; return whether the optimizer left them finite."""
        settled = self.settled(weights, step)
        if settled is None:
            return True
        finite = math.isfinite(weights.sum().item())
        overwrite(weights, settled)
        self.acted = weights.numpy().astype(np.float64)  # rounded to the parameter's dtype
        return finite

    def extra_state(self) -> dict[str, Any]:
        """The state for a checkpoint; see ``PicklableLayer``."""
        return {
            "acted": self.acted,
            "movable": self.movable,
            "awaited": self.awaited,
            "updates": self.updates,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what ``extra_state`` returned."""
        self.acted, self.movable = state["acted"], state["movable"]
        self.awaited, self.updates = state["awaited"], state["updates"]


def set_grad(weights: paddle.Tensor) -> None:
    """Give the weights a zero gradient if they have none, so that ``grad.set_value`` works."""
    if weights.grad is None:
        weights.grad = paddle.zeros_like(weights)
