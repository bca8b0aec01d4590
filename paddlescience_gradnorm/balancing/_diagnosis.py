"""Explains the numbers of a balancer in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, RuleState


def diagnose(
    names: Sequence[str],
    weights: np.ndarray,
    rule: Rule,
    state: RuleState,
    measurement: Measurement,
) -> list[str]:
    """Findings, each a sentence or two that name the loss; none if all is well.

    Args:
        names: Names of the losses.
        weights: Their weights, shape [T].
        rule: The balancing rule, which adds findings of its own.
        state: What the rule remembers.
        measurement: The measurement of the last update.

    Examples:
        >>> from paddlescience_gradnorm.balancing.rules import PinnRule
        >>> rule, gram = PinnRule(), np.array([[1.0, -0.5], [-0.5, 1.0]])
        >>> measured = Measurement(np.ones(2), gram)
        >>> for finding in diagnose(["pde", "data"], np.ones(2), rule, rule.start(2), measured):
        ...     print(finding[:75])
        The gradients of 'pde' and 'data' (cosine -0.50) point against each other:
    """
    found = []
    for name, weight, norm in zip(names, weights, measurement.norms):
        if weight <= 1.01 * measurement.floor:
            found.append(
                f"The weight of {name!r} is at its floor of {measurement.floor:g}: the loss is all "
                "but ignored. Lower floor if that is wanted, or scale the loss itself down."
            )
        if norm == 0:
            found.append(
                f"The loss of {name!r} has no gradient on the shared parameters: nothing is "
                "left to learn from it, or it depends on other parameters only."
            )
    found += rule.findings(names, weights, state, measurement)
    cosines = measurement.cosines
    conflicts = [
        f"{names[j]!r} and {names[i]!r} (cosine {cosines[i, j]:.2f})"
        for i in range(len(names))
        for j in range(i)
        if cosines[i, j] < 0
    ]
    if conflicts:
        found.append(
            f"The gradients of {', '.join(conflicts)} point against each other: what one gains "
            "the other loses. Seen once it is noise; seen often, no weights resolve it, and a "
            "larger network or RotoGrad may."
        )
    return found
