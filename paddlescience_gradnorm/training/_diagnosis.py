"""Explains the numbers of a whole run in words. It needs numpy, not Paddle.

The thresholds are from runs of the fifteen problems of the suite and of runs that were spoiled on
purpose; docs/reading_the_curves.md has the figures.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from paddlescience_gradnorm.balancing._diagnosis import is_dead, listed

LAST = 10  # steps in which all losses of a lost run are NaN or infinite
# In fewer steps even a run that will succeed may not have begun to improve. Allen-Cahn takes 250.
_FEWEST_STEPS = 300
# The weighted sum divided by its lowest value, in both of the last tenths. Healthy runs: at most
# 1.6, even at rates that are twenty times too high.
_ASTRAY = 4.0
# A loss has stood still if it has moved by less than this, as a logarithm, from the first tenth.
# From the very first steps to the first tenth it may move more, because a network learns an offset
# in a few steps. Healthy losses move by at least 0.34.
_UNMOVED = 0.25
_OF_FIRST = np.log(3.0)
# Share of the weighted sum that a loss has in every tenth. Healthy runs: at most 0.96.
_ALONE = 0.999
# Gradients oppose each other everywhere if their cosine is below this. Two losses that contradict
# each other have at most -0.9994. Healthy losses at rest have at least -0.994, which is from losses
# that contradict each other only at a corner.
_OPPOSITE = -0.998
# A loss is at rest if its last tenth is above this share of its fourth. It may still shift a
# little, because its balance with another loss does.
_AT_REST = 0.7
# A loss that has fallen to this share of its start is met, and what is left may be noise.
_MET = 1e-3


def diagnose(
    names: Sequence[str],
    losses: np.ndarray,
    weights: np.ndarray,
    cosines: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> list[str]:
    """Findings, each a sentence or two that name the loss and say what to do; none if all is well.

    Args:
        names: Names of the losses.
        losses: Unweighted, shape [rows, T].
        weights: The weights that acted in each step, shape [rows, T]. Without a balancer they are
            all equal, or NaN.
        cosines: Cosines of the angles between the gradients in the last update, shape [T, T]. None
            if they have not been measured.
        steps: Numbers of the rows' steps, shape [rows]; by default 0, 1, 2 and so on.
    """
    over = broken(names, losses, weights, steps)
    if over or len(losses) < _FEWEST_STEPS:
        return over
    weights = np.where(np.isfinite(weights), weights, 1.0)
    with np.errstate(all="ignore"):
        tenths = _tenths(losses)
        shares = _tenths(losses * weights / (losses * weights).sum(axis=1, keepdims=True))
        start = np.median(losses[: len(losses) // 100], axis=0)
        found = _alone(names, tenths, shares)
        found += _unmoved(names, tenths, start, shares, bool((weights != weights[0]).any()))
        if cosines is not None and not is_dead(cosines):
            found += _in_conflict(names, tenths, start, cosines)
    return found


def broken(
    names: Sequence[str],
    losses: np.ndarray,
    weights: np.ndarray,
    steps: np.ndarray | None = None,
) -> list[str]:
    """The finding that a run is lost or has gone astray, which makes all others pointless.

    Arguments are as for ``diagnose``. The list is empty if the run is neither.
    """
    steps = np.arange(len(losses)) if steps is None else steps
    lost = _lost(names, losses, steps)
    if lost or len(losses) < _FEWEST_STEPS:
        return lost
    acting = np.median(weights[-len(weights) // 10 :], axis=0)
    with np.errstate(all="ignore"):
        tenths = _tenths(losses)
        return _astray(names, tenths, np.where(np.isfinite(acting), acting, 1.0), steps)


def _lost(names: Sequence[str], losses: np.ndarray, steps: np.ndarray) -> list[str]:
    """The finding that all losses have been NaN or infinite in the last ten steps, and which began.

    All of them, because a single loss is NaN in a step from which it is absent.
    """
    bad = ~np.isfinite(losses)
    if not (bad.size and bad[-LAST:].all()):
        return []
    # The first row from which on a loss has been bad.
    since = [int(np.flatnonzero(~column).max(initial=-1)) + 1 for column in bad.T]
    first = min(since)
    guilty = [name for name, row in zip(names, since) if row == first]
    has = "has" if len(guilty) == 1 else "have"
    after = ", and the others soon after" if max(since) > first else ""
    step = f"step {steps[first]}"
    if first and steps[first] > steps[first - 1] + 1:  # the steps between have no row
        step += f", or since one after step {steps[first - 1]}"
    cause = f"look for a division by 0, a root or a logarithm in {listed(guilty)}"
    cause += ", or a batch without points"
    subject = listed(guilty)
    if 1 < len(guilty) == len(names):
        subject = "All losses"
        cause = "look for NaN in the points and the network's parameters"
        if first:  # if no loss was bad before, one of their gradients was
            cause = "look for a root or a logarithm of 0, where a loss is finite and its slope not"
    if first:
        cause = f"go back to before that step and lower the learning rate, or {cause}"
    return [
        f"{subject} {has} been {losses[first, since.index(first)]} since {step}"
        f"{after}. The network does not recover from that: {cause}."
    ]


def _tenths(numbers: np.ndarray) -> np.ndarray:
    """Medians over the tenths of a run, shape [10, T]; NaN where all of a tenth are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.array([np.nanmedian(part, axis=0) for part in np.array_split(numbers, 10)])


def _astray(
    names: Sequence[str], tenths: np.ndarray, weights: np.ndarray, steps: np.ndarray
) -> list[str]:
    sums = tenths @ weights
    lowest = int(np.argmin(sums))
    if not (sums.min() > 0 and sums[-2:].min() > _ASTRAY * sums[lowest]):
        return []
    worst = int(np.argmax((tenths[-1] - tenths[lowest]) * weights))
    return [
        f"The weighted sum of the losses is {sums[-1] / sums[lowest]:.3g} times what it was about "
        f"step {(steps[-1] + 1) * (lowest + 1) // 10}, mostly by {names[worst]!r} "
        f"({tenths[lowest, worst]:.3g} then, {tenths[-1, worst]:.3g} now): training has gone "
        "astray. Lower the learning rate, or let it fall during the run."
    ]


def _alone(names: Sequence[str], tenths: np.ndarray, shares: np.ndarray) -> list[str]:
    least = shares.min(axis=0)
    i = int(np.argmax(least))
    rest = float(np.median(1 - shares[:, i]))  # 0 if there is one loss, or if all others are 0
    if not (tenths.min() >= 0 and least[i] > _ALONE and rest > 0):
        return []
    return [
        f"{names[i]!r} has made up all of the weighted sum from first to last, about "
        f"{1 / rest:.0e} times the rest: the other losses have not been trained. Write the problem "
        "without dimensions, or divide this loss by a number of that size."
    ]


def _unmoved(
    names: Sequence[str],
    tenths: np.ndarray,
    start: np.ndarray,
    shares: np.ndarray,
    is_balanced: bool,
) -> list[str]:
    moved = np.abs(np.log(tenths / tenths[0])).max(axis=0)
    first = np.abs(np.log(tenths[0] / start))
    still = (start > 0) & (moved < _UNMOVED) & (first < _OF_FIRST)
    if not still.any():
        return []
    if still.mean() > 0.5:
        which = "All" if still.all() else "Most"
        return [
            f"{which} losses have stood still from the start. Check that the optimizer holds the "
            "network's parameters, raise its learning rate, or look for dead or saturated units."
        ]
    if not is_balanced:
        remedy = "Balance the losses, or raise its weight by hand."
    elif shares[-1, still].max() > 0.5:
        remedy = (
            "It has most of the weighted sum already, so try a larger network, a higher learning "
            "rate or more steps before more weight."
        )
    else:
        remedy = "Scale it up, or raise the rule's alpha."
    several = listed([name for name, is_still in zip(names, still) if is_still])
    return [f"The loss of {several} has stood still from the start. {remedy}"]


def _in_conflict(
    names: Sequence[str], tenths: np.ndarray, start: np.ndarray, cosines: np.ndarray
) -> list[str]:
    """The finding for the worst three pairs that cannot both be met, so that they rest.

    Gradients that are roughly opposite mean nothing, because they cancel where training rests.
    """
    rest = (tenths[-1] > _AT_REST * tenths[3]) & (tenths[-1] > _MET * start)
    pairs = [
        (float(cosines[i, j]), i, j)
        for j in range(len(names))
        for i in range(j)
        if rest[i] and rest[j] and cosines[i, j] < _OPPOSITE
    ]
    if not pairs:
        return []
    each = [f"{names[i]!r} and {names[j]!r}" for _, i, j in sorted(pairs)[:3]]
    return [
        f"The losses of {', of '.join(each)} have come to rest against each other: what one gains "
        "the other loses. Check the values, the signs and the units of both. If they are right, "
        "give both more weight, or take a larger network."
    ]
