"""What the numbers of a balancing mean, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from paddlescience_gradnorm.balancing.algorithm import PinnRule, Rule

# A loss so many times its reference has not become that hard: the reference was an accident.
_TOO_SMALL_A_REFERENCE = 10.0
# Of its moving average; noise alone keeps a loss that falls slowly below it.
_NO_LONGER_FALLING = 0.98


def diagnose(
    names: Sequence[str],
    weights: np.ndarray,
    losses: np.ndarray,
    references: np.ndarray,
    gradient_norms: np.ndarray,
    cosines: np.ndarray,
    rule: Rule,
    floor: float,
    updates: int,
    falling: bool = True,
) -> list[str]:
    """Findings, each a sentence or two that name the loss; none if all is well.

    Args:
        names: Of the losses.
        weights: Shape [T], as are the next three, of the last update.
        losses: L.
        references: L(0).
        gradient_norms: ||g_i||.
        cosines: Of the angles between the losses' gradients on the shared parameters,
            shape [T, T].
        rule: Of the balancing.
        floor: The smallest weight allowed.
        updates: How many there have been.
        falling: Whether to name losses that no longer fall.

    Examples:
        >>> ones = np.ones(2)
        >>> against = np.array([[1.0, -0.5], [-0.5, 1.0]])
        >>> values = (ones, ones, ones, ones, against, PinnRule(), 1e-3, 10)
        >>> for finding in diagnose(["pde", "data"], *values):
        ...     print(finding[:75])
        The gradients of 'pde' and 'data' (cosine -0.50) point against each other:
    """
    found = []
    for name, weight in zip(names, weights):
        if weight <= 1.01 * floor:
            advice = "lower strength or bound" if isinstance(rule, PinnRule) else 'try rule="pinn"'
            found.append(
                f"The weight of {name!r} is at its floor of {floor:g}: the loss is all but "
                f"ignored. Raise floor, or {advice}."
            )
        elif isinstance(rule, PinnRule) and abs(math.log(weight)) >= 0.99 * math.log(rule.bound):
            side = "above" if weight > 1 else "below"
            found.append(
                f"The weight of {name!r} is at its bound, {rule.bound:g} times {side} 1: its "
                "gradients are of another size than the bound allows for. Scale the "
                "loss itself, or raise bound."
            )
    for name, loss, reference, norm in zip(names, losses, references, gradient_norms):
        if norm == 0:
            found.append(
                f"The loss of {name!r} has no gradient on the shared parameters: nothing is "
                "left to learn from it, or it depends on other parameters only."
            )
        elif loss > _TOO_SMALL_A_REFERENCE * reference:
            found.append(
                f"The loss of {name!r} is {loss / reference:.3g} times its reference L(0) = "
                f"{reference:.3g}: that was too small to mean anything, as of an untrained "
                "network that fulfils an equation by accident. Call reset_initial_losses() "
                'once the losses have settled, or use rule="pinn".'
            )
        elif (
            falling
            and isinstance(rule, PinnRule)
            and updates * (1 - rule.memory) > 1
            and loss > _NO_LONGER_FALLING * reference
        ):
            found.append(
                f"The loss of {name!r} no longer falls: {loss:.3g}, {reference:.3g} on the "
                f"average of about {1 / (1 - rule.memory):.0f} updates."
            )
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
