"""Applies a rule to the losses that can be balanced, and leaves the others out. No Paddle."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import GradientRule, Rule, RuleState

# A loss below this counts as 0, because a denormal number has too few digits for a reference.
_SMALLEST_LOSS = float(np.finfo(np.float32).tiny)
# A weight above this counts as infinite, because float32 cannot hold it.
_LARGEST_WEIGHT = float(np.finfo(np.float32).max)


class Update(NamedTuple):
    """The result of one update, for T losses.

    Attributes:
        values: The new weights, a direction's coefficients, or the weights' gradient for the
            caller's optimizer, shape [T]. A loss that has not been balanced keeps its weight or
            coefficient, or its entry in the gradient is 0.
        state: The rule's new state.
        balanced: Which losses have been balanced, boolean, shape [T].
        faults: For each loss why it cannot be balanced, T strings; empty if it can.
    """

    values: np.ndarray
    state: RuleState
    balanced: np.ndarray
    faults: list[str]


def updated(
    rule: Rule,
    weights: np.ndarray,
    state: RuleState,
    measurement: Measurement,
    largest_norm: float | None = None,
    is_scaled: bool = False,
    only: Sequence[bool] | None = None,
) -> Update:
    """Apply a rule to the losses that can be balanced.

    Args:
        rule: The rule.
        weights: The current weights, or a direction's last coefficients, shape [T].
        state: What the rule remembers.
        measurement: The measurement of this step, which may hold NaN and infinity.
        largest_norm: None to get weights. To get a gradient for the caller's optimizer, the
            largest norm that the optimizer can square.
        is_scaled: Whether the gradients are scaled. If one is not finite then, it has overflowed,
            and nothing is balanced, because the scaler will skip the step.
        only: For each of the T losses, whether to balance it. The others have had this update
            before, and only take part in the measurement. A rule that keeps the sum of the
            weights, or combines gradients, balances all losses nevertheless.

    Raises:
        ValueError: The rule returns weights of the wrong shape.
    """
    stays = weights if largest_norm is None else np.zeros_like(weights)
    together = rule.keeps_sum or rule.acts_now
    if rule.acts_now:  # the gradients are those of the losses themselves
        weights = np.ones_like(weights)
    faults = faults_of(rule, weights, measurement, largest_norm)
    good = [not fault for fault in faults]
    nothing = Update(stays, state, np.zeros(len(good), bool), faults)
    if sum(good) < rule.fewest_losses or (is_scaled and _overflows(measurement)):
        return nothing
    if only is not None and not any(map(min, only, good)):
        return nothing
    which, whole = np.array(good), all(good)
    some, share = (weights, state, measurement), 1.0
    if not whole:
        some = only_of(which, *some)
        if rule.keeps_sum:  # the rule makes the sum their number, so scale to that and back
            share = len(some[0]) / some[0].sum()
            floor = measurement.floor * share
            if floor > 1 - 1e-9:  # all of them are on the floor
                return nothing
            some = (some[0] * share, some[1], dataclasses.replace(some[2], floor=floor))
    if largest_norm is None:
        new, new_state = rule.weigh(*some)
        limit = _LARGEST_WEIGHT
    else:
        assert isinstance(rule, GradientRule)  # as checked_rate ensures
        _, new, new_state = rule.gradient(*some)
        limit = math.inf
    if np.shape(new) != some[0].shape:
        raise ValueError(f"{rule} must give {len(some[0])} weights, got {new!r}")
    # Python numbers, because each numpy operation takes 5 us after a network's pass.
    values = np.asarray(new, np.float64).tolist()
    if largest_norm is None:
        floor = -math.inf if rule.acts_now else measurement.floor
        values = [max(value / share, floor) for value in values]  # NaN stays NaN
    if not all(abs(value) < limit for value in values):
        return nothing
    if new_state is not some[1]:
        _check_state(rule, new_state, some[1])
    if only is not None and not together:
        which = which & only
        chosen = np.array(only)[good]
        values = np.array(values)[chosen]
        new_state = {k: x[chosen] if np.ndim(x) else x for k, x in new_state.items()}
    elif whole:
        return Update(np.array(values), new_state, which, faults)
    all_new = stays.copy()
    all_new[which] = values
    all_states = {name: _spread(which, new_state[name], old) for name, old in state.items()}
    return Update(all_new, all_states, which, faults)


def faults_of(
    rule: Rule, weights: np.ndarray, measurement: Measurement, largest_norm: float | None = None
) -> list[str]:
    """Why each loss cannot be balanced; empty if it can. Arguments are as for ``updated``."""
    least = smallest_loss(rule)
    most = math.inf if largest_norm is None else largest_norm
    # Python numbers, for the same reason as in ``updated``.
    losses, norms = measurement.losses.tolist(), measurement.norms.tolist()
    if not rule.needs or measurement.gram is None:
        # A loss that is absent from the step is 0, and a mean of squares that is 0 has no gradient.
        norms = [float(loss != 0) for loss in losses]
    return [
        ""
        if least <= loss < math.inf and loss > -math.inf and 0 < norm < most and weight > 0
        else _fault(rule, loss, norm, weight, largest_norm)
        for loss, norm, weight in zip(losses, norms, weights.tolist())
    ]


def smallest_loss(rule: Rule) -> float:
    """The smallest loss that the rule can balance."""
    return _SMALLEST_LOSS if rule.needs_positive_losses else -math.inf


def _fault(rule: Rule, loss: float, norm: float, weight: float, largest_norm: float | None) -> str:
    if not math.isfinite(loss):
        return f"is {loss}"
    if not weight > 0:
        return f"has the weight {weight:g}, and only weights above 0 are balanced"
    if rule.needs_positive_losses and loss < _SMALLEST_LOSS:
        if loss < 0:
            return "is negative and has no training rate"
        return f"is {loss:.3g} and has no training rate"
    if not math.isfinite(norm):
        return f"has a gradient of norm {norm}"
    if norm == 0:
        return "has no gradient on the shared parameters" if rule.needs else "is 0"
    return f"has a gradient of norm above {largest_norm:.0e}, too large for an optimizer to square"


def _overflows(measurement: Measurement) -> bool:
    """Whether the gradient of a finite loss is not finite; False if none has been measured."""
    if measurement.gram is None:
        return False
    finite = np.isfinite(measurement.losses)
    return bool((finite & ~np.isfinite(measurement.norms)).any())


def _check_state(rule: Rule, new: RuleState, old: RuleState) -> None:
    """Raise a ``ValueError`` if a rule returns other names or shapes than it has been given."""
    shapes, expected = ({name: np.shape(x) for name, x in s.items()} for s in (new, old))
    if shapes != expected:
        raise ValueError(f"{rule} must return a state of shapes {expected}, got {shapes}")


def only_of(
    which: np.ndarray, weights: np.ndarray, state: RuleState, measurement: Measurement
) -> tuple[np.ndarray, RuleState, Measurement]:
    """A rule's arguments for some losses only; ``which`` is boolean, shape [T]."""
    of_state = {name: array[which] if array.ndim else array for name, array in state.items()}
    return weights[which], of_state, measurement.of(which)


def _spread(which: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The array of all losses, with new values for the losses in ``which``."""
    if not old.ndim:
        return new
    spread = old.copy()
    spread[which] = new
    return spread
