"""The conditions' lead over the equations in the PINN rule: when it comes, and who gets it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paddlescience_gradnorm.balancing import _equations
from paddlescience_gradnorm.balancing._diagnosis import listed
from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import RuleState

# In which part of the run the lead grows, with one equation and with several.
_WITH_ONE, _WITH_SEVERAL = (0.0, 0.5), (0.3, 0.8)
# A loss that does not fall by this factor from one tenth of the run to the next is at rest.
_AT_REST = 1.2
# Nor may it rest near the largest value that it has had, because a network that has learned nothing
# yet has losses at rest too. A plateau on the way is higher than most noise.
_LEARNED, _LEARNED_DATA = 0.3, 0.03
# Conditions at rest that are more than this share of all conditions' losses are in conflict with
# others, and then none gets a lead.
_IN_CONFLICT = 0.1
# Data at rest are noisy. In later tenths other losses rest as well.
_TENTHS = (2, 3, 4, 5)
# In how much of the run noisy data then lose the lead.
_TAKEN_BACK = 0.3


@functools.lru_cache(maxsize=1000)
def _says_condition(name: str) -> bool:
    return _equations.is_equation(name) is False


_says_data = functools.lru_cache(maxsize=1000)(_equations.is_measured)


@dataclass(frozen=True)
class Lead:
    """By which factor the targets of conditions exceed those of equations, and when.

    Of a rule's state it reads ``largest_losses``, the largest that each loss has been, shape [T],
    and ``log_losses``, which ``start`` and ``summed`` make.

    Args:
        factor: ``lead`` of ``PinnRule``.
        late: ``late`` of ``PinnRule``.
    """

    factor: float
    late: bool | None

    def described(
        self, equations: Sequence[str], conditions: Sequence[str], total_steps: int | None
    ) -> tuple[str, str]:
        """What these conditions get, such as "a lead of 20 from the start", and advice."""
        lead = f"a lead of {self.factor:g}"
        of_data = of_others = f"{lead} from the start"
        first, last = growth = self._grows(equations)
        advice = ""
        if self.late is not False and total_steps is None:
            of_others = of_data if growth == _WITH_ONE else "no lead"
            advice = " (pass total_steps=, the number of steps, for a lead at the right time)"
        elif self.late is not False and total_steps is not None:
            steps = f"{first * total_steps:.0f} and {last * total_steps:.0f}"
            of_others = f"{lead} that grows between steps {steps}"
            of_data += ", taken back if it is noise that is left"
        data = [name for name in conditions if _says_data(name)]
        if len(data) == len(conditions):
            return of_data, advice
        if data and of_data != of_others:
            return f"{of_others} ({listed(data)}: {of_data})", advice
        return of_others, advice

    def growth(self, measurement: Measurement) -> tuple[float, float] | None:
        """In which part of the run the lead grows, from 0 to 1; None if it is constant."""
        if self.late is False or math.isnan(measurement.progress):
            return None
        return self._grows(measurement.all_equations or ())

    def logs(self, state: RuleState, measurement: Measurement) -> list[float]:
        """What each loss's log target would gain as a condition, T numbers."""
        growth, log_lead = self.growth(measurement), math.log(self.factor)
        names = measurement.names or ("",) * len(measurement.losses)
        is_data = [_says_data(name) for name in names]
        if growth is None:
            # A lead that must come late does not come if nobody knows when that is.
            grows = self._grows(measurement.all_equations or ())
            waits = self.late is not False and grows != _WITH_ONE
            return [log_lead * (is_measured or not waits) for is_measured in is_data]
        grown = log_lead * _share_of(growth, measurement.progress)
        means, largest = _means(state["log_losses"]), state["largest_losses"]
        noisy_since = _noisy_since(means, largest).tolist()
        may_gain = ~measurement.equations & ~np.array(is_data)
        if growth != _WITH_ONE:
            may_gain = _may_gain(means, largest, may_gain)
        logs = []
        for is_measured, since, gains in zip(is_data, noisy_since, may_gain.tolist()):
            lost = _share_of((since, since + _TAKEN_BACK), measurement.progress)
            logs.append(log_lead * (1.0 - lost) if is_measured else grown * gains)
        return logs

    def lost_to_noise(
        self, names: Sequence[str], state: RuleState, measurement: Measurement
    ) -> list[str]:
        """The measured data that have begun to lose their lead."""
        if self.growth(measurement) is None or not measurement.equations.any():
            return []
        since = _noisy_since(_means(state["log_losses"]), state["largest_losses"])
        lost = (since < measurement.progress) & ~measurement.equations
        return [name for name, is_lost in zip(names, lost) if is_lost and _says_data(name)]

    def _grows(self, equations: Sequence[str]) -> tuple[float, float]:
        """In which part of a run with these equations the lead grows."""
        # Noisy data may be among the equations, so that they have no lead.
        several = sum(not (_says_condition(n) or _says_data(n)) for n in equations) > 1
        return _WITH_SEVERAL if self.late or several else _WITH_ONE

    @staticmethod
    def start(n_loss: int) -> np.ndarray:
        """Of log L in each tenth of the run: sums, and of how many; shape [T, 10, 2]."""
        return np.zeros([n_loss, 10, 2])

    @staticmethod
    def summed(log_losses: np.ndarray, measurement: Measurement) -> np.ndarray:
        """``log_losses`` with this measurement, if it is known in which tenth of the run it is."""
        if math.isnan(measurement.progress):
            return log_losses
        is_positive = measurement.losses > 0
        logs = np.log(np.where(is_positive, measurement.losses, 1.0))
        log_losses = log_losses.copy()
        tenth = min(int(10 * measurement.progress), 9)
        log_losses[:, tenth] += np.stack([logs, is_positive], axis=1)
        return log_losses


def _share_of(part: tuple[float, float], progress: float) -> float:
    """How much of this part of the run is over, from 0 to 1."""
    first, last = part
    return min(max((progress - first) / (last - first), 0.0), 1.0)


def _means(log_losses: np.ndarray) -> np.ndarray:
    """Mean log L in each tenth of the run, shape [T, 10]; NaN where it is not known."""
    with np.errstate(all="ignore"):
        means: np.ndarray = log_losses[..., 0] / log_losses[..., 1]
    return means


def _learned(means: np.ndarray, largest: np.ndarray, share: float) -> np.ndarray:
    """Whether log L is below this share of its largest value in each tenth, shape [T, 10]."""
    with np.errstate(all="ignore"):
        learned: np.ndarray = means < np.log(share * largest)[:, None]
    return learned


def _may_gain(means: np.ndarray, largest: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """Which of the conditions can get a lead that comes late, shape [T].

    None that does not fall from the second tenth of the run to the third. If these are a large part
    of all, they are in conflict with others, so no condition can.
    """
    stuck = conditions & (means[:, 1] - means[:, 2] < math.log(_AT_REST))
    stuck &= _learned(means, largest, _LEARNED)[:, 2]
    if not stuck.any():
        return conditions
    logs = np.where(conditions, np.nan_to_num(means[:, 2], nan=-np.inf), -np.inf)
    shares = np.exp(logs - logs.max())
    in_conflict = shares[stuck].sum() > _IN_CONFLICT * shares.sum()
    may_gain: np.ndarray = conditions & ~stuck & ~in_conflict
    return may_gain


def _noisy_since(means: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """From which share of the run on each loss is noise, shape [T]; 1, its end, if it is not.

    A tenth that is not over yet says nothing of before, because the lead is lost only after it.
    """
    since = np.ones(len(largest))
    at_rest = np.abs(np.diff(means)) < math.log(_AT_REST)
    at_rest &= _learned(means, largest, _LEARNED_DATA)[:, 1:]
    for tenth in reversed(_TENTHS):
        since[at_rest[:, tenth - 1]] = (tenth + 1) / 10
    return since
