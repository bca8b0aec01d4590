"""The parts of one optimizer step: micro-batches, loss scaling, and undoing the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from paddlescience_gradnorm import _paddle
from paddlescience_gradnorm.balancing import _ranks
from paddlescience_gradnorm.balancing._one_pass import Rows
from paddlescience_gradnorm.balancing.measurement import Measurement


@dataclass(frozen=True)
class BalancerState:
    """The full state of a balancer between steps. Restoring an earlier one undoes a step.

    Attributes:
        tensors: The loss weights, the number of steps made, what the rule remembers, and all else
            that the balancer holds in tensors, by name.
        last: The measurement of the last update.
    """

    tensors: Mapping[str, np.ndarray]
    last: Measurement

    @property
    def step(self) -> int:
        """Number of steps made."""
        return int(self.tensors["step_count"])


class Accumulation:
    """Sums over the micro-batches of a step, and the state to restore.

    Losses and gradients are averaged over micro-batches before norms are taken. So k
    micro-batches of n points give the same weights as one batch of k n points.
    """

    def __init__(self) -> None:
        self._parts = 0
        self._sums: tuple[Rows, ...] = ()
        # The last step: the state before it, the sums that it used, the scaler that may find
        # an overflow in it, and what that scaler had found before.
        self._before: BalancerState | None = None
        self._of_step: tuple[int, tuple[Rows, ...]] = (0, ())
        self._scaler: paddle.amp.GradScaler | None = None
        self._found_before: paddle.Tensor | None = None
        # Factor of the gradients in the parts of this step, and what ``backward`` was given for it.
        self._multiplier: float | paddle.Tensor = 1.0
        self._scale = 1.0
        # By a direction: the shared parameters' gradients before the last step, and after it.
        self.around: tuple[Rows, Rows] | None = None

    @property
    def is_within_a_step(self) -> bool:
        """Whether a step has begun and still awaits micro-batches."""
        return self._parts > 0

    def expect(self, scale: float) -> None:
        """Raise a ``ValueError`` if the parts of this step are combined and have other scales."""
        if self._parts and scale != self._scale:
            raise ValueError(
                f"scale is {scale:g}, but it was {self._scale:g} for the micro-batches before: a "
                "rule that combines gradients takes the same scale for all micro-batches of a step"
            )
        self._scale = scale

    def add(
        self, losses: paddle.Tensor, rows: Rows | None, multiplier: float | paddle.Tensor = 1.0
    ) -> None:
        """Add a micro-batch.

        Args:
            losses: The unweighted losses, shape [T].
            rows: Gradients of the weighted losses, shape [T, values of W].
            multiplier: Factor that the gradients already contain, shape [] or [1].
        """
        if isinstance(rows, np.ndarray) and isinstance(multiplier, paddle.Tensor):
            multiplier = multiplier.item()
        if not self._parts:
            self._multiplier = multiplier
        if rows is not None and (isinstance(multiplier, paddle.Tensor) or multiplier != 1):
            rows = rows / multiplier
        new = (losses,) if rows is None else (losses, rows)
        self._sums = tuple(a + b for a, b in zip(self._sums, new)) if self._parts else new
        self._parts += 1

    @property
    def factor(self) -> Any:
        """What a mean over the step's micro-batches is multiplied by to be in ``.grad``."""
        return self._parts * self._multiplier

    def means(self) -> tuple[paddle.Tensor, Rows | None]:
        """Losses and gradients, averaged over the step's micro-batches and all processes."""
        means: list[Any] = [x if self._parts == 1 else x / self._parts for x in self._sums]
        losses, *rows = means
        if _ranks.number() > 1:
            columns = [losses.unsqueeze(1), *(paddle.to_tensor(x) for x in rows)]
            joined = _ranks.mean(paddle.concat(columns, axis=1))
            losses, rows = joined[:, 0].contiguous(), [joined[:, 1:]] if rows else []
        return losses, rows[0] if rows else None

    def end_step(
        self, before: BalancerState | None, scaler: paddle.amp.GradScaler | None = None
    ) -> None:
        """Close the step.

        Args:
            before: The state to restore if the step is undone; None if it cannot be undone.
            scaler: The scaler that may find an overflow in this step, if any.
        """
        self._before, self._scaler = before, scaler
        self._of_step = (0, ()) if before is None else (self._parts, self._sums)
        self._found_before = None if scaler is None else _paddle.found_overflow(scaler)
        self._parts, self._sums, self.around = 0, (), None

    def take_back(self) -> BalancerState:
        """Return the state before the last step, and reopen its micro-batches."""
        if self._before is None:
            raise RuntimeError(
                "there is no step to take back: the last step had no scale, was made by step(), "
                "or has been taken back already"
            )
        before, self._before, self._scaler = self._before, None, None
        self._parts, self._sums = self._of_step
        return before

    def take_back_overflow(self) -> BalancerState | None:
        """Return the state before the last step if the scaler found an overflow in it."""
        if self._scaler is None:
            return None
        found = _paddle.found_overflow(self._scaler)
        if found is self._found_before:  # the scaler has not looked at this step yet
            return None
        self._scaler = self._found_before = None
        if not found.item():
            return None
        before, self._before = self._before, None
        return before


def loss_scaling(scaler: paddle.amp.GradScaler | None, dtype: paddle.dtype) -> paddle.Tensor | None:
    """The factor that the scaler multiplies losses by, shape [1]; None if it is disabled.

    Raises:
        TypeError: ``scaler`` is not a ``paddle.amp.GradScaler``.
    """
    if scaler is None:
        return None
    if not isinstance(scaler, paddle.amp.GradScaler):
        raise TypeError(f"scaler must be a paddle.amp.GradScaler or None, got {scaler!r}")
    scaling = scaler.scale(paddle.ones([1], "float32"))  # this call may disable it
    return scaling.astype(dtype) if scaler.is_enable() else None
