"""Measurement: what one step tells a balancing rule. It needs numpy, not Paddle."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

# What may be measured of the entries of a gradient: one number for each loss.
STATISTICS = ("largest", "mean", "std", "kurtosis")


@dataclass(frozen=True)
class Measurement:
    """The input of a rule in one update: host arrays in float64, for T losses.

    A balancer measures in one backward pass. It gives a rule only the losses that can be balanced
    in this step. So a rule may rely on finite losses and on finite, nonzero gradients.

    Args:
        losses: L_i, unweighted, shape [T].
        gram: Inner products g_i . g_j of the unweighted losses' gradients on the shared
            parameters, shape [T, T]; None unless the rule needs ``"gram"``.
        largest: max |g_i| over the shared parameters, shape [T]; None unless the rule needs
            ``"largest"``.
        mean: mean |g_i| over the shared parameters, shape [T]; None unless the rule needs
            ``"mean"``.
        std: Standard deviation of the entries of g_i, the root of their mean squared distance
            from their mean, shape [T]; None unless the rule needs ``"std"``.
        kurtosis: Their mean fourth power of (g - mean) / std, shape [T]: 3 for a normal
            distribution, NaN if all entries are equal. None unless the rule needs ``"kurtosis"``.
        names: Names of the losses; empty if they are not known.
        equations: Which losses are residuals of equations, boolean, shape [T]; the others are
            conditions. By default none are.
        step: Number of this step, from 0.
        interval: Number of steps from one update to the next, at least 1.
        rate: Learning rate of this update: the balancer's ``weight_lr``, with its warm-up.
        floor: The smallest weight allowed.
        progress: Share of the run that is over, from 0 to 1; NaN if nobody has said how many steps
            it has.
        all_equations: Names of the equations, also of those that ``of`` has left out. By default
            the names of those that are here, "" for each if they are not known. If you replace
            ``equations``, pass these too, or None.

    Examples:
        >>> measured = Measurement(np.array([1.0, 2.0]), gram=np.array([[4.0, -3.0], [-3.0, 9.0]]))
        >>> measured.norms.tolist(), measured.cosines[0].tolist()
        ([2.0, 3.0], [1.0, -0.5])
    """

    losses: np.ndarray
    gram: np.ndarray | None = None
    largest: np.ndarray | None = None
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    kurtosis: np.ndarray | None = None
    names: tuple[str, ...] = ()
    equations: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    step: int = 0
    interval: int = 1
    rate: float = 0.01
    floor: float = 1e-3
    progress: float = math.nan
    all_equations: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.equations) != len(self.losses):
            object.__setattr__(self, "equations", np.zeros(len(self.losses), bool))
        if self.all_equations is None:
            names = self.names or ("",) * len(self.losses)
            found = tuple(name for name, is_one in zip(names, self.equations) if is_one)
            object.__setattr__(self, "all_equations", found)

    @cached_property
    def norms(self) -> np.ndarray:
        """||g_i||, shape [T]; NaN if gradients were not measured."""
        if self.gram is None:
            return np.full(len(self.losses), np.nan)
        return np.sqrt(self.gram.diagonal())

    @cached_property
    def cosines(self) -> np.ndarray:
        """Cosines of the angles between the gradients, shape [T, T]; 0 for a zero gradient."""
        if self.gram is None:
            return np.full([len(self.losses)] * 2, np.nan)
        lengths = np.where(self.norms == 0, 1.0, self.norms)
        with np.errstate(invalid="ignore"):  # NaN for a gradient that is not finite
            return (self.gram / lengths / lengths[:, None]).clip(-1.0, 1.0)

    def of(self, which: np.ndarray) -> Measurement:
        """The same measurement for some losses only.

        Args:
            which: The losses to keep, boolean, shape [T].
        """
        statistics: dict[str, Any] = {
            name: None if (values := getattr(self, name)) is None else values[which]
            for name in STATISTICS
        }
        return dataclasses.replace(
            self,
            losses=self.losses[which],
            gram=None if self.gram is None else self.gram[which][:, which],
            **statistics,
            names=tuple(name for name, kept in zip(self.names, which) if kept),
            equations=self.equations[which],
        )
