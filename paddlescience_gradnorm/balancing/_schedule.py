"""When the weights are updated, how far the run is, and which losses an update has missed."""

from __future__ import annotations

import math
from collections.abc import Iterable, MutableSequence, Sequence

import paddle

from paddlescience_gradnorm import _arguments, _paddle
from paddlescience_gradnorm.balancing import _ranks
from paddlescience_gradnorm.balancing._faults import FaultReporter
from paddlescience_gradnorm.balancing._update import Update, smallest_loss
from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule

# Why the last update has not balanced a loss, as ``missed`` holds it; 0 if it has. The loss was
# empty: then a later step makes up for the update. Or too few losses were left: then that step
# balances it too.
EMPTY, ALONE = 1, 2


class Schedule:
    """Decides which steps update the weights, and keeps account of the losses that were left out.

    An update is due in every k-th step. If it found a loss empty, such as that of a batch without
    points, the next step that has the loss makes up for the update.

    Args:
        rule: The rule, which may be unable to balance losses at or below zero.
        faults: What to tell of a step that can have no update.

    Attributes:
        frozen: Whether there are no updates at all.
        total_steps: Number of steps of the run, from the first to the last that are planned; None
            if it is not known.
        knows_steps: Whether the caller makes sure that each step calls once, even with L-BFGS.
        makes_up: Whether the step is updated only for losses that an update found empty.
        left_out: The losses that the last update could not balance: name -> the first step of
            which that is true, and the fault.
    """

    def __init__(self, rule: Rule, faults: FaultReporter) -> None:
        self.total_steps: int | None = None
        self._is_given = False  # by the user
        self.frozen = self.knows_steps = self.makes_up = False
        self.left_out: dict[str, tuple[int, str]] = {}
        self._rule, self._faults = rule, faults
        self._decided = -1  # number of the step to which ``_due`` and ``makes_up`` apply
        self._due = True
        self._seen_too_late = False  # whether only a later micro-batch of it had a missed loss

    def is_due(
        self,
        step: int,
        update_every: int,
        losses: Sequence[paddle.Tensor],
        missed: Sequence[int],
    ) -> bool:
        """Whether this step updates the weights: it is due, or it makes up for a missed update.

        All micro-batches of a step are measured, or none. So the first of them decides.

        Args:
            step: Number of the step, from 0. A repeated number means another micro-batch.
            update_every: Number of steps from one update to the next.
            losses: The losses of this step or micro-batch, T scalar tensors.
            missed: For each loss what ``record`` has written: 0, ``EMPTY`` or ``ALONE``.

        Warns:
            RuntimeWarning: L-BFGS is evaluating its closure, so there can be no update.
        """
        if step == self._decided:
            if not (self._due or self.frozen):
                self._seen_too_late = self._seen_too_late or self._has_missed(losses, missed)
            return self._due and not self.frozen
        seen_too_late, self._seen_too_late = self._seen_too_late, False
        self._decided, self._due, self.makes_up = step, False, False
        if self.frozen:
            return False
        # A direction would make another function of every first evaluation in a step.
        if not (self.knows_steps and not self._rule.acts_now) and _paddle.is_in_a_closure():
            self._faults.report(
                step,
                "backward(losses)",
                "was called in the closure of L-BFGS",
                consequence="its function must not change within a step, so the weights rest. "
                "Train with Adam first, and call freeze() before L-BFGS, which leaves the weights "
                "as they are and this warning out",
            )
            return False
        self._due = step % update_every == 0
        if not self._due:
            # If only a later micro-batch of the last step had the loss, this step makes up for it.
            self._due = self.makes_up = self._has_missed(losses, missed) or seen_too_late
        return self._due

    def give(self, total_steps: int | None) -> None:
        """Set the number of steps by the user; None for none."""
        if total_steps is not None:
            _arguments.integer("total_steps", total_steps, at_least=1)
        self.total_steps, self._is_given = total_steps, total_steps is not None

    def plan(self, total_steps: int | None) -> None:
        """Take over how many steps the run will have had at its end, unless the user said so.

        What drives a run calls this at its begin. None means that it does not know.
        """
        if not self._is_given:
            self.total_steps = total_steps

    def progress(self, step: int) -> float:
        """Share of the run that is over before this step, from 0 to 1; NaN if not known."""
        return math.nan if self.total_steps is None else min(1.0, step / self.total_steps)

    def only(self, missed: Sequence[int]) -> list[bool] | None:
        """For each loss whether this update may balance it; None if it may balance all."""
        return [was != 0 for was in missed] if self.makes_up else None

    def record(
        self,
        update: Update,
        measurement: Measurement,
        names: Iterable[str],
        missed: MutableSequence[int],
    ) -> None:
        """Note which losses an update has left out.

        Args:
            update: The update.
            measurement: What it was made from.
            names: Names of the losses; only the first of them, if others are not known yet.
            missed: The numbers before the update, which are overwritten.
        """
        if any(update.faults) or any(missed):
            missed[:] = missed_after(update, measurement, list(missed), self.makes_up)
        self.left_out = {
            name: self.left_out.get(name) or (measurement.step, fault)
            for name, fault in zip(names, update.faults)
            if fault and (name in self.left_out or not self.makes_up)
        }

    def forget_step(self) -> None:
        """Forget the step that was begun, because it will not be finished."""
        self._decided = -1

    def resume(self, frozen: bool) -> None:
        """Go on as in a new process, from a checkpoint that says whether it was frozen."""
        self.frozen, self.left_out, self._seen_too_late = frozen, {}, False
        self.forget_step()

    def _has_missed(self, losses: Sequence[paddle.Tensor], missed: Sequence[int]) -> bool:
        """Whether there is a loss now, in any process, that the last update found empty."""
        if EMPTY not in missed:
            return False
        least = smallest_loss(self._rule)
        return _ranks.any_has(
            any(
                was == EMPTY
                and not loss.stop_gradient
                and (value := loss.item()) != 0
                and least <= value < math.inf
                and value > -math.inf
                for was, loss in zip(missed, losses)
            )
        )


def missed_after(
    update: Update, measurement: Measurement, missed: Sequence[int], makes_up: bool
) -> list[int]:
    """For each loss whether this update is to be made up for: 0, ``EMPTY`` or ``ALONE``.

    Args:
        update: The update.
        measurement: What it was made from.
        missed: The same numbers before it, T of them.
        makes_up: Whether it was itself made to make up for another. Then losses that had been
            balanced before have missed nothing.
    """
    found = []
    for was, balanced, fault, loss in zip(
        missed, update.balanced.tolist(), update.faults, measurement.losses.tolist()
    ):
        if balanced or (makes_up and not was):
            found.append(0)
        elif not fault:
            found.append(ALONE)
        else:
            found.append(EMPTY if loss == 0 or not math.isfinite(loss) else 0)
    return found
