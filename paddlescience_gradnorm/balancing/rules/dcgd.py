"""DCGD: a direction in the cone of those that conflict with neither equations nor conditions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import DirectionRule, RuleState
from paddlescience_gradnorm.balancing.rules._checks import check_choice, check_not_negative
from paddlescience_gradnorm.balancing.rules._kinds import cancels_out, kinds


@dataclass(frozen=True)
class DCGD(DirectionRule):
    """Combines the sum of the equations' gradients, g_r, with that of the conditions', g_b.

    Source: Hwang, Lim, "Dual Cone Gradient Descent for Training Physics-Informed Neural Networks",
    NeurIPS 2024, arXiv:2409.18426. With g = g_r + g_b and a = g_r . g_b:

    - ``"center"``: g projected on the bisector of g_r and g_b, in every step.
    - ``"proj"``: g, unless it conflicts with g_b or g_r. Then the other of them, without its part
      along the one.
    - ``"avg"``: g, unless it conflicts with either. Then the mean of both projections,
      ((1 - a / |g_b|^2) g_b + (1 - a / |g_r|^2) g_r) / 2.

    With equations or conditions alone, or where the gradients of one kind cancel out, it is the
    plain sum, c_i = 1. If g_r and g_b are opposite, the combined gradient is 0; the authors end
    the training there.

    Args:
        form: ``"center"``, ``"proj"`` or ``"avg"``.
        eps: Added to the two norms, in the unit of a gradient, at least 0. The authors add 1e-8.

    Raises:
        TypeError: ``eps`` is not a number.
        ValueError: An argument is out of range.

    Examples:
        >>> measured = Measurement(
        ...     np.ones(2), np.array([[4.0, -1.5], [-1.5, 1.0]]), equations=np.array([True, False])
        ... )
        >>> for form in ("center", "proj", "avg"):
        ...     print(DCGD(form).weigh(np.ones(2), {}, measured)[0].tolist())
        [0.75, 1.5]
        [1.0, 1.5]
        [0.6875, 1.25]
    """

    never_negative_up_to: ClassVar[float] = math.inf
    form: str = "center"
    eps: float = 0.0
    tells_equations: ClassVar[bool] = True
    always: ClassVar[tuple[str, str]] = (
        "act without conflict with conditions",
        "act without conflict with equations",
    )

    def __post_init__(self) -> None:
        check_choice("form", self.form, ("center", "proj", "avg"))
        check_not_negative("eps", self.eps)

    def weigh(
        self, weights: np.ndarray, state: RuleState, measurement: Measurement
    ) -> tuple[np.ndarray, RuleState]:
        members = kinds(measurement.equations)
        assert measurement.gram is not None
        gram = members @ measurement.gram @ members.T
        if len(members) < 2 or cancels_out(gram, members, measurement.norms):
            return np.ones(len(weights)), state
        return self._of_kinds(gram.diagonal(), float(gram[0, 1])) @ members, state

    def _of_kinds(self, sizes: np.ndarray, product: float) -> np.ndarray:
        """Coefficients of g_r and g_b, from their squared norms and their product, shape [2]."""
        norms = np.sqrt(sizes) + self.eps
        if self.form == "center":
            cosine = product / norms.prod()
            if 1 + cosine < 1e-8:
                return norms.sum() / 2 / norms  # the limit
            on_sum = ((sizes + product) / norms).sum()
            return on_sum / (2 * (1 + cosine)) / norms
        conflicts = sizes + product < 0
        if not conflicts.any():
            return np.ones(2)
        if self.form == "avg":
            return (1 - product / norms**2) / 2
        return np.where(conflicts, -product / norms**2, 1.0)
