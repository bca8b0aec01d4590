"""The default rule: GradNorm adapted to the losses of a PINN."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.balancing._diagnosis import listed
from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, RuleState
from paddlescience_gradnorm.balancing.rules._lead import Lead
from paddlescience_gradnorm.balancing.rules._rates import check_alpha, too_small_references

_LARGEST_RATE = 0.1  # of the weights, that is advised: 10 % for each step


@dataclass(frozen=True)
class PinnRule(Rule):
    """GradNorm adapted to the losses of a PINN.

    GradNorm makes the weighted norms w_i ||g_i|| follow r_i ** alpha, so its weights settle in
    proportion to r_i ** alpha / ||g_i||. This rule moves each log w_i towards the logarithm of a
    target, by rate * clip(log target_i - log w_i, -1, 1). It differs from GradNorm in ten ways:

    - Gradients are taken on all parameters, because an equation's derivatives act on all
      layers and a condition's value mostly on the last.
    - The target is (r_i ** alpha / ||g_i||) ** strength. A strength of 1/3 is a compromise between
      equal norms and equal weights. So a loss with almost no gradient does not get a huge weight.
    - The conditions' targets are multiplied by ``lead``, because the conditions decide which of
      the equations' many solutions is found. The lead grows from 1 to ``lead`` over the first half
      of the run; if there are several equations, between 0.3 and 0.8 of it. So the equations shape
      the solution first. With a lead from the start, the network fits the values on a flow's
      walls by a thin layer beside them, and the velocity inside stays wrong.
    - Measured data, which a loss's name tells, such as ``data`` or ``sensors``, have the lead from
      the start, because unknown coefficients are found by them. If their loss comes to rest in the
      first 0.6 of the run, what is left of it is noise. Then they lose the lead again within 0.3 of
      the run, so that the noise is not learned.
    - With several equations, a condition that is at rest before the lead begins to grow gets none,
      because more weight would not make it fall. If such conditions are more than a tenth of all
      conditions' losses, none gets a lead. In the corners of a lid-driven cavity, for example,
      boundary values contradict each other: with more weight on the walls alone the lid would drive
      less of the flow.
    - ||g_i|| / sqrt(L_i) stands for ||g_i||. Up to a factor of 2 it is the norm of the gradient of
      the root mean square. So a loss does not gain weight because it has become small.
    - A condition that is met loses that lead again. Otherwise its weight would grow while its
      gradient vanishes, and would disturb the equations of a beam or of an ordinary
      differential equation.
    - Weights do not sum to T. Their unit is the geometric mean of the equations' targets, so the
      equations' weights stay near 1 and the conditions' weights rise. The reason is that Adam
      remembers the size of gradients for a thousand steps. So the network moves fast if the
      conditions' weights rise, and hardly at all if the equations' weights fall.
    - Steps are proportional to the distance from the target, up to a limit. The published rule
      uses only the sign of the distance.
    - L(0) is a moving average of the loss, because an untrained network's loss means little.

    The rate is multiplied by the number of steps between updates, so the weights move at the
    same pace at any ``update_every``.

    Args:
        alpha: Strength of the pull towards equal training rates, at least 0. Raise it if one
            loss stands still while others fall; 0 uses gradient norms only.
        strength: How far to go from equal weights towards equal norms, above 0, at most 1.
            Lower it if equal weights are nearly right.
        lead: Factor of the conditions' targets, above 0. Raise it if the solution is
            smooth and wrong, and its boundary values are off.
        bound: Limit of the targets, above 1: they stay between 1 / ``bound`` and ``bound``. Lower
            it if every loss must keep some influence.
        memory: Share of the average L(0) that an update keeps, in [0, 1). At 0.99 the average
            remembers about 100 updates. Move it towards 1 for runs with more updates.
        met: A condition is met if its weighted loss is below ``met`` times that of the equations,
            and its loss below ``met`` times the largest that it has been. Then its target falls
            with the square of its loss, but not below 1. A loss in other units never counts as
            met. At least 0. Pass 0 if a condition must keep its lead.
        late: When the lead comes. By default it grows over the first half of the run if there is
            one equation, and between 0.3 and 0.8 of the run if there are several. (A loss among
            them whose name says otherwise, such as ``data``, does not count.) With True it is
            between 0.3 and 0.8 in any case: pass it if the only equation's loss is the sum of
            several equations, such as a flow's. With False the whole lead acts from the start, and
            measured data keep it. Pass False if you are sure that the problem is elliptic, and its
            data exact. If nobody has said how long the run is, measured data have the lead from the
            start, and so have the conditions of one equation, unless ``late`` is True. The
            conditions of several equations have none then.
        by_root: Whether norms are divided by sqrt(L_i). Pass False, and ``late=False``, for
            Burgers' equation or if you are sure that the problem is elliptic: on most such problems
            the gain is larger then. A loss at or below 0 has no root; while there is one, norms are
            not divided, and you are warned.

    Raises:
        TypeError: An argument is not a number, or ``late`` or ``by_root`` is no bool.
        ValueError: An argument is out of range.

    Warns:
        UserWarning: The balancer's floor is above 1 / ``bound``.

    Examples:
        >>> rule, weights = PinnRule(strength=0.5, lead=2.0), np.ones(3)
        >>> measured = Measurement(  # an equation with a large gradient, and two conditions
        ...     np.ones(3), np.diag([1e4, 1.0, 1.0]), equations=np.array([True, False, False])
        ... )
        >>> state = rule.start(3)
        >>> for _ in range(1000):
        ...     weights, state = rule.weigh(weights, state, measured)
        >>> weights.round(1).tolist()
        [1.0, 20.0, 20.0]
    """

    alpha: float = 0.0
    strength: float = 1 / 3
    lead: float = 20.0
    bound: float = 1000.0
    memory: float = 0.99
    met: float = 0.01
    late: bool | None = None
    by_root: bool = True
    update_every: ClassVar[int] = 10
    tells_equations: ClassVar[bool] = True
    fewest_losses: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if not 0 < _arguments.number("strength", self.strength) <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {self.strength}")
        if not 0 < _arguments.number("lead", self.lead) < math.inf:
            raise ValueError(f"lead must be finite and above 0, got {self.lead}")
        if not 1 < _arguments.number("bound", self.bound) < math.inf:
            raise ValueError(f"bound must be finite and above 1, got {self.bound}")
        if not 0 <= _arguments.number("met", self.met) < math.inf:
            raise ValueError(f"met must be finite and at least 0, got {self.met}")
        if not (self.late is None or isinstance(self.late, bool)):
            raise TypeError(f"late must be True, False or None, got {self.late!r}")
        if not isinstance(self.by_root, bool):
            raise TypeError(f"by_root must be True or False, got {self.by_root!r}")
        if not 0 <= _arguments.number("memory", self.memory) < 1:
            raise ValueError(f"memory must be at least 0 and below 1, got {self.memory}")

    @property
    def needs_positive_losses(self) -> bool:
        return self.alpha > 0

    def remark(self, losses: np.ndarray) -> tuple[np.ndarray, str, str] | None:
        """See ``Rule.remark``."""
        if not self.by_root or losses.min() > 0:
            return None
        consequence = (
            "while this lasts, the norms of all losses' gradients are compared as they are, not "
            "divided by the roots of the losses. If the loss is an energy, which may be negative, "
            "pass rule=PinnRule(by_root=False)"
        )
        return losses <= 0, "is at or below 0 and has no root", consequence

    def effects(
        self,
        equations: Sequence[str],
        conditions: Sequence[str],
        total_steps: int | None = None,
    ) -> tuple[str, str]:
        """See ``Rule.effects``."""
        given, advice = self._lead.described(equations, conditions, total_steps)
        return "keep weights near 1", f"get {given}, weights up to {self.bound:g}{advice}"

    @property
    def _lead(self) -> Lead:
        return Lead(self.lead, self.late)

    def start(self, n_loss: int) -> RuleState:
        # An update without an equation uses the unit of the last update that had one.
        return {
            "initial_losses": np.zeros(n_loss),
            "largest_losses": np.zeros(n_loss),
            "log_losses": Lead.start(n_loss),
            "log_unit": np.array(np.nan),
        }

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        initial = []  # moving averages, each over the updates in which the loss was above 0
        for loss, average in zip(measurement.losses.tolist(), state["initial_losses"].tolist()):
            moved = average + (max(loss, 0.0) - average) * (1.0 - self.memory)
            # The loss itself replaces an average that is unknown or has been rounded to 0.
            is_average = average > 0 and moved > 0
            initial.append(average if loss <= 0 else moved if is_average else loss)

        logs = [-math.log(norm) for norm in measurement.norms.tolist()]
        # A loss at or below 0, such as an energy, is no mean square and has no root.
        if self.by_root and measurement.losses.min() > 0:
            logs = [log + 0.5 * math.log(x) for log, x in zip(logs, measurement.losses.tolist())]
        if self.alpha:
            # The unit cancels the mean by which r_i is divided, so L / L(0) will do. Its logarithm
            # is formed from two, because the ratio may overflow.
            for i, (loss, average) in enumerate(zip(measurement.losses.tolist(), initial)):
                logs[i] += self.alpha * (math.log(loss) - math.log(average))
        equations = measurement.equations.tolist()
        log_unit = state["log_unit"]
        of_unit = [log for log, is_equation in zip(logs, equations) if is_equation]
        if of_unit:
            log_unit = np.array(sum(of_unit) / len(of_unit))
        largest = np.maximum(state["largest_losses"], measurement.losses)
        new_state = {
            "initial_losses": np.array(initial),
            "largest_losses": largest,
            "log_losses": Lead.summed(state["log_losses"], measurement),
            "log_unit": log_unit,
        }
        leads = not np.isnan(log_unit)
        if len(logs) == 1 and (of_unit or not leads):  # there is nothing to compare it with
            return weights, new_state
        unit = float(log_unit) if leads else sum(logs) / len(logs)
        limit = math.log(self.bound)
        rate = min(1.0, measurement.rate * measurement.interval)  # 1 goes all the way
        new = []
        for weight, log, is_equation, log_lead, share in zip(
            weights.tolist(),
            logs,
            equations,
            self._lead.logs(new_state, measurement),
            self._log_shares(weights, largest, measurement),
        ):
            target = self.strength * (log - unit)
            if leads and not is_equation:
                target += log_lead
                if target > 0:
                    target = max(0.0, target + 2 * share)
            missing = min(max(target, -limit), limit) - math.log(weight)
            new.append(weight * math.exp(min(max(missing, -1.0), 1.0) * rate))
        return np.array(new), new_state

    def _log_shares(
        self, weights: np.ndarray, largest: np.ndarray, measurement: Measurement
    ) -> list[float]:
        """How far below the limits of ``met`` each loss is, as a logarithm; 0 if it is not met."""
        losses = measurement.losses.tolist()
        weighted = [weight * max(loss, 0.0) for weight, loss in zip(weights.tolist(), losses)]
        enough = self.met * sum(x for x, is_one in zip(weighted, measurement.equations) if is_one)
        shares = []
        for x, loss, most in zip(weighted, losses, largest.tolist()):
            # The equations' losses are huge at first, so it must have fallen by itself too.
            own = loss / (self.met * most) if self.met * most > 0 else 1.0
            # Logarithms of ratios that may underflow.
            beside = math.log(x) - math.log(enough) if 0 < x < enough else -math.inf
            by_itself = math.log(own) if own > 0 else -math.inf
            shares.append(max(beside, by_itself) if x < enough and own < 1 else 0.0)
        if any(shares):  # a loss in other units is small beside the equations', and yet not met
            shares = np.where(self._is_out_of_scale(measurement), 0.0, shares).tolist()
        return shares

    def imbalance(self, weights: np.ndarray, state: RuleState, measurement: Measurement) -> float:
        """Sum of |change of log w_i| at a rate of 1."""
        new, _ = self.weigh(weights, state, dataclasses.replace(measurement, rate=1.0))
        return float(np.abs(np.log(new / weights)).sum())

    def check(self, floor: float) -> None:
        if self.bound * floor > 1 + 1e-9:
            warnings.warn(
                f"bound is {self.bound:g}, but no weight falls below the floor of {floor:g}: "
                f"downwards the bound acts as {1 / floor:g}. Pass floor={1 / self.bound:g} for "
                "the whole of it",
                UserWarning,
                stacklevel=3,
            )

    def findings(
        self, names: Sequence[str], weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> list[str]:
        found = []
        at_rest = self._at_rest(weights, state, measurement)
        limit = math.log(self.bound)
        weights = np.where(weights > 0, weights, 1.0)  # one set to 0 by hand is not balanced
        missing = np.abs(np.log(at_rest / weights))
        off_floor = weights > 1.01 * measurement.floor
        # One measurement may be noise, but the weight shows what the earlier ones were. It counts
        # as far only if it has taken nearly the largest steps from 1 for as long as it could.
        way, steps = np.abs(np.log(weights)), self._steps_of_full_pace(measurement)
        share = 0.8 if self._lead.growth(measurement) is None else 0.5
        far = (missing > 1) & (steps > 0) & (way > share * measurement.rate * steps)
        bounded = off_floor & (np.abs(np.log(at_rest)) > 0.99 * limit)
        far, bounded = far & off_floor & ~bounded, bounded & (far | (way > 0.9 * limit))
        bounded &= self._is_out_of_scale(measurement)
        if bounded.any():
            several = listed([name for name, is_bounded in zip(names, bounded) if is_bounded])
            found.append(
                f"The gradients of {several} are so far from those of the others in size that "
                f"bound={self.bound:g} limits the weight. Write the problem without dimensions or "
                "scale the loss itself; if its size is right, raise bound."
            )
        if far.any():
            found.append(self._far_from_rest(names, weights, at_rest, far, measurement))
        noisy = self._lead.lost_to_noise(names, state, measurement)
        if noisy:
            has, its = ("has", "its loss") if len(noisy) == 1 else ("have", "their losses")
            found.append(
                f"{listed(noisy)} {has} come to rest, so what is left of {its} counts as noise, "
                "and loses its lead. If the data are exact, check their values, signs and units."
            )
        ratios = too_small_references(self.alpha, state, measurement)
        if ratios:
            found.append(
                f"The loss of {listed([names[i] for i in ratios])} has risen to up to "
                f"{max(ratios.values()):.3g} times its moving average. Call "
                "reset_initial_losses() to start the average anew."
            )
        return found

    def _at_rest(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> np.ndarray:
        """The weights that would be reached if losses and gradients stayed as they are.

        A loss that cannot be balanced keeps its weight.
        """
        losses, norms, equations = measurement.losses, measurement.norms, measurement.equations
        good = np.isfinite(losses) & np.isfinite(norms) & (norms > 0) & (weights > 0)
        if self.needs_positive_losses:
            good &= losses > 0
        at_rest = np.where(weights > 0, weights, 1.0)
        if good.sum() < 2 or (equations.any() and not (equations & good).any()):
            return at_rest
        some = {name: array[good] if array.ndim else array for name, array in state.items()}
        measured = dataclasses.replace(measurement.of(good), rate=1.0)
        while True:
            before = at_rest[good]
            at_rest[good], _ = self.weigh(before, some, measured)
            if np.abs(np.log(at_rest[good] / before)).max() < 1e-6:
                return at_rest

    def _steps_of_full_pace(self, measurement: Measurement) -> float:
        """For how many steps a weight on its way to a far target has moved at the largest pace.

        From the start; or from where a lead that grows has reached e, because a target within a
        factor of e lets the weight go more slowly.
        """
        steps, growth = measurement.step + measurement.interval, self._lead.growth(measurement)
        if growth is None:
            return steps
        first, last = growth
        begins = first + (last - first) / max(abs(math.log(self.lead)), 1.0)
        return steps * max(0.0, 1 - begins / max(measurement.progress, begins))

    def _is_out_of_scale(self, measurement: Measurement) -> np.ndarray:
        """Whether a loss is in other units than the equations, boolean, shape [T].

        A gradient may also be small because its loss is small already. ||g||^2 / L shows the
        difference: it is proportional to the units of L, but does not shrink as L is trained.
        """
        with np.errstate(all="ignore"):
            scales = np.log(measurement.norms**2 / np.abs(measurement.losses))
        good, equations = np.isfinite(scales), measurement.equations
        unit = good & equations if (good & equations).any() else good
        if not unit.any():
            return unit
        # At the end of runs on the suite the losses of a problem differ by 10^4.2 at most.
        return good & (np.abs(scales - scales[unit].mean()) > math.log(1e5))

    def _far_from_rest(
        self,
        names: Sequence[str],
        weights: np.ndarray,
        at_rest: np.ndarray,
        far: np.ndarray,
        measurement: Measurement,
    ) -> str:
        steps, rate = measurement.step + measurement.interval, measurement.rate
        way = np.abs(np.log(at_rest / weights))
        first = [i for i in np.argsort(-way) if far[i]]
        each = [f"{names[i]!r} ({weights[i]:.3g}, heading for {at_rest[i]:.3g})" for i in first]
        shown = ", ".join(each[:3]) + (f" and {len(each) - 3} more" if len(each) > 3 else "")
        more = float(f"{way[first[0]] / rate:.2g}")
        remedies = [f"train for {more:.0f} steps more at least"]
        # A rate at which half of the steps so far would have been enough, if it is not too high.
        pace_for = self._steps_of_full_pace(measurement)
        faster = 2 * np.abs(np.log(at_rest))[far].max() / pace_for
        if 1.5 * rate < faster <= min(_LARGEST_RATE, 1 / measurement.interval):
            remedies.insert(more < steps, f"raise weight_lr from {rate:.2g} to {faster:.1g}")
        advice = ", or ".join(remedies)
        return (
            f"In the last update, in step {measurement.step + 1}, weights were still moving at the "
            f"largest pace: {shown}. "
            f"{advice[0].upper()}{advice[1:]}."
        )
