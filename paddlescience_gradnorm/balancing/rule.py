"""Rule: a pure function from one step's measurement to the loss weights. It needs no Paddle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement

# What a rule remembers from one update to the next: arrays by name.
RuleState = Mapping[str, np.ndarray]


class Rule(ABC):
    """A balancing rule. Derive from it to write your own.

    A rule has options, which its constructor sets, but no state. What it must remember goes in
    and out of ``weigh`` as plain arrays. The balancer keeps these arrays, saves them in
    checkpoints, and restores earlier ones to undo an update.

    All processes of a distributed run call ``weigh`` with the same numbers and must get the
    same weights. So a rule that draws random numbers must seed them with ``measurement.step``.

    Examples:
        >>> class InverseNorms(Rule):
        ...     def weigh(self, weights, state, measurement):
        ...         return measurement.norms.mean() / measurement.norms, state
        >>> measured = Measurement(np.ones(2), gram=np.diag([4.0, 16.0]))
        >>> InverseNorms().weigh(np.ones(2), {}, measured)[0].tolist()
        [1.5, 0.75]
    """

    # What is measured besides the losses: "gram", "largest", "mean", "std", "kurtosis", as in
    # ``Measurement``. If it is empty, an update costs no more than any other step.
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    # Default number of steps from one update to the next.
    update_every: ClassVar[int] = 1
    # Whether gradients are taken on all of a network's parameters by default. If not, they are
    # taken on its last shared layer.
    on_all_parameters: ClassVar[bool] = True
    # Whether equations and conditions are treated differently.
    tells_equations: ClassVar[bool] = False
    # What the rule always does to equations and to conditions: see ``effects``.
    always: ClassVar[tuple[str, str]] = ("", "")
    # Whether the weights always sum to T.
    keeps_sum: ClassVar[bool] = False
    # How many losses must be left in a step for the rule to be asked.
    fewest_losses: ClassVar[int] = 2
    # Whether what ``weigh`` returns acts on the gradients of the same step: see ``DirectionRule``.
    acts_now: ClassVar[bool] = False

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"

    @property
    def needs_positive_losses(self) -> bool:
        """Whether a loss at or below zero is left out, such as because the rule forms ratios."""
        return False

    def remark(self, losses: np.ndarray) -> tuple[np.ndarray, str, str] | None:
        """What the rule does otherwise because of some of these losses, for a warning.

        Args:
            losses: Of one step, without those that are left out, shape [T].

        Returns:
            Which losses, boolean, shape [T]; what is wrong with them; and what follows. ``None``
            if all are as usual.
        """
        return None

    def effects(
        self,
        equations: Sequence[str],
        conditions: Sequence[str],
        total_steps: int | None = None,
    ) -> tuple[str, str]:
        """What the rule does to equations and to conditions, for the log: two predicates.

        Args:
            equations: Names of the losses that are equations.
            conditions: Names of the other losses.
            total_steps: Number of steps of the run; None if it is not known.
        """
        return self.always

    def start(self, n_loss: int) -> RuleState:
        """What the rule remembers before the first update.

        Args:
            n_loss: Number of losses T.

        Returns:
            Arrays by name, each of shape [T, ...] or []. A rule with references L(0) names them
            ``initial_losses``, with 0 for unknown, so that a balancer can report training rates.
        """
        return {}

    @abstractmethod
    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        """The weights that act from the next step on.

        The arguments leave out losses that cannot be balanced in this step, so T may be smaller
        than in ``start``. Do not change arrays in place.

        Args:
            weights: The weights w that act in this step, above 0, shape [T].
            state: The state that the last update, or ``start``, returned.
            measurement: The measurement of this step.

        Returns:
            The new weights, shape [T], and the new state, with the same names and shapes.
            The balancer raises weights below ``measurement.floor`` to it.
        """

    def first_weights(self, names: Sequence[str]) -> np.ndarray | None:
        """Weights for the first step if the user gives none, shape [T]; None for 1.

        Args:
            names: Names of the losses.
        """
        return None

    def imbalance(self, weights: np.ndarray, state: RuleState, measurement: Measurement) -> float:
        """The imbalance that the rule reduces, such as Lgrad; NaN for a rule that defines none."""
        return float("nan")

    def check(self, floor: float) -> None:  # noqa: B027 # most rules have nothing to check
        """Warn or raise if the rule's options conflict with the balancer's floor."""

    def meet(self, names: Sequence[str], complete: bool) -> None:  # noqa: B027 # as for check
        """Raise a ``ValueError`` if the rule's options do not fit losses of these names.

        Args:
            names: Names of the losses that are known so far.
            complete: Whether no loss can join any more.
        """

    def findings(
        self, names: Sequence[str], weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> list[str]:
        """What this rule adds to a diagnosis: sentences that say what to do, none if all is well.

        Args:
            names: Names of the losses.
            weights: The current weights, shape [T].
            state: The current state.
            measurement: The measurement of the last update.
        """
        return []


class DirectionRule(Rule):
    """A rule that combines the gradients of a step into one direction, from their Gram matrix.

    Its ``weigh`` returns coefficients c, shape [T], for the gradients that were measured: the
    network's gradient in this step is sum_i c_i g_i. A coefficient may be 0 or negative, so there
    is no floor. The weights that ``weigh`` is given are all 1.

    Such a rule should act in every step, because a combination that avoids a conflict in one step
    may make one in the next. With ``update_every`` above 1 the coefficients are held as weights.
    """

    acts_now: ClassVar[bool] = True
    # One gradient alone is a direction.
    fewest_losses: ClassVar[int] = 1
    # Up to how many losses no coefficient is negative. With more, a balancer warns against holding
    # them, because the network would climb a loss that has a negative coefficient.
    never_negative_up_to: ClassVar[float] = 1


class GradientStep(NamedTuple):
    """What a ``GradientRule`` computes in one step.

    Attributes:
        loss: The loss to minimise, Lgrad.
        gradient: Its gradient with respect to the weights, shape [T].
        state: The new state.
    """

    loss: float
    gradient: np.ndarray
    state: RuleState


class GradientRule(Rule):
    """A rule that descends along a gradient and keeps the sum of the weights at T.

    Only such a rule can leave the step to the caller's optimizer (``weight_lr=None``).
    """

    keeps_sum: ClassVar[bool] = True

    @abstractmethod
    def gradient(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> GradientStep:
        """The gradient that the weights descend; the arguments are those of ``weigh``."""

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        """A step of plain gradient descent, and then w <- w T / sum(w)."""
        step = self.gradient(weights, state, measurement)
        return renormalized(
            weights - measurement.rate * step.gradient, measurement.floor
        ), step.state

    def imbalance(self, weights: np.ndarray, state: RuleState, measurement: Measurement) -> float:
        """Lgrad."""
        return self.gradient(weights, state, measurement).loss


def renormalized(weights: np.ndarray, floor: float) -> np.ndarray:
    """The weights scaled so that they sum to T, none of them below ``floor``.

    The result is w T / sum(w) if no weight in it is below the floor. Otherwise such a weight is
    raised to the floor, and the others shrink in proportion to their excess over it.

    Args:
        weights: Any finite numbers, shape [T]; those at or below zero end on the floor.
        floor: The smallest weight allowed, in (0, 1).

    Examples:
        >>> renormalized(np.array([1.0, 3.0]), floor=0.125).tolist()
        [0.5, 1.5]
        >>> renormalized(np.array([-2.0, 3.0]), floor=0.125).tolist()
        [0.125, 1.875]
    """
    n_loss = len(weights)
    # Above zero, so that weights that are all at or below zero become equal.
    positive = [min(max(weight, 1e-20), 1e30) for weight in weights.tolist()]
    # The scaled weights' excess over the floor, times sum(w). If nothing is cut off, the excess
    # sums to T (1 - floor), and the result is w T / sum(w).
    cut = sum(positive) * floor
    above = [max(weight * n_loss - cut, 0.0) for weight in positive]
    scale = n_loss * (1.0 - floor) / sum(above)
    return np.array([floor + each * scale for each in above])
