"""Says in words what a balancer does and what its numbers mean. It needs numpy, not Paddle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from paddlescience_gradnorm.balancing._equations import is_equation
from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import Rule, RuleState

# The gradients of a dead network are parallel to rounding.
_PARALLEL = 0.99999
# What to do about a loss that is left out, by a word of the fault.
_REMEDIES = {
    "nan": "Look for a division by 0, a root or a logarithm in it, or a batch without points.",
    "inf": "Look for a division by 0, an exponential or a logarithm in it.",
    "no gradient": "Leave it out of the losses if it is always met. If it acts on other "
    "parameters only, pass as shared= parameters that every loss goes through.",
    "training rate": "Losses that may be 0 or below can be balanced by rules that form no ratio of "
    "losses, such as PinnRule() with its defaults.",
    "too large": "Scale it down.",
}


def announcement(
    rule: Rule,
    update_every: int,
    names: Sequence[str],
    are_equations: Sequence[bool],
    total_steps: int | None = None,
) -> str:
    """What a balancer is about to do: its rule, its pace, the losses, and the effect on them.

    Args:
        rule: The balancing rule.
        update_every: Number of steps from one update to the next.
        names: Names of the losses; those that are not known yet may be missing from the end.
        are_equations: Which losses are residuals of equations.
        total_steps: Number of steps of the run; None if it is not known.
    """
    kinds = dict(zip(names, are_equations))
    groups = [("losses", list(kinds), "")]
    if rule.tells_equations:
        equations = [name for name, is_one in kinds.items() if is_one]
        conditions = [name for name, is_one in kinds.items() if not is_one]
        # A rule treats them alike if all are of one kind.
        alike = not (equations and conditions)
        effects = ("", "") if alike else rule.effects(equations, conditions, total_steps)
        groups = [
            ("equations", equations, effects[0]),
            ("conditions", conditions, effects[1]),
        ]
    losses = "; ".join(
        f"{kind} {', '.join(map(repr, group))} {effect}".rstrip()
        for kind, group, effect in groups
        if group
    )
    pace = "in every step" if update_every == 1 else f"every {update_every} steps"
    if rule.acts_now:
        return f"gradients on the shared parameters combined by {_named(rule)} {pace}: {losses}"
    return f"loss weights by {_named(rule)}, updated {pace}: {losses}"


def _named(rule: Rule) -> str:
    """The rule with those of its options that are not the defaults."""
    if not dataclasses.is_dataclass(rule):
        return repr(rule)
    values = {field: repr(getattr(rule, field.name)) for field in dataclasses.fields(rule)}
    chosen = (f"{f.name}={value}" for f, value in values.items() if value != repr(f.default))
    return f"{type(rule).__name__}({', '.join(chosen)})"


def diagnose(
    names: Sequence[str],
    weights: np.ndarray,
    rule: Rule,
    state: RuleState,
    measurement: Measurement,
    stopped: Mapping[str, tuple[int, str]] | None = None,
) -> list[str]:
    """Findings, each a sentence or two that name the loss and say what to do; none if all is well.

    Args:
        names: Names of the losses.
        weights: Their weights, shape [T].
        rule: The balancing rule, which adds findings of its own.
        state: What the rule remembers.
        measurement: The measurement of the last update.
        stopped: The losses that the last update left out: name -> since which step, and why, as a
            sentence without a subject, such as ``(10, "is nan")``.

    Examples:
        >>> from paddlescience_gradnorm.balancing.rules import PinnRule
        >>> rule, measured = PinnRule(), Measurement(np.ones(2), np.eye(2), step=40)
        >>> for finding in diagnose(
        ...     *(["pde", "data"], np.ones(2), rule, rule.start(2), measured),
        ...     stopped={"data": (10, "is nan")},
        ... ):
        ...     print(finding)
        'data' has been left out of the balancing since step 10, because it is nan. Look for a
        division by 0, a root or a logarithm in it, or a batch without points.
    """
    if is_dead(measurement.cosines):  # whatever else there is to say follows from it
        return [
            "The gradients of all losses are parallel. Either the network gives one value "
            "everywhere, because its units are dead or saturated: start again, with a lower "
            "learning rate or another initialisation. Or the losses are multiples of one loss: "
            "keep one of them."
        ]
    groups = sorted(_grouped(stopped or {}).items(), key=lambda group: group[0][0])
    lost = _lost(groups, len(names))
    if lost:
        return [lost]
    found = []
    for (since, fault), group in groups:
        has, it = ("has", "it") if len(group) == 1 else ("have", "each of them")
        remedy = next((text for word, text in _REMEDIES.items() if word in fault), "")
        found.append(
            f"{listed(group)} {has} been left out of the balancing since step {since}, because "
            f"{it} {fault}. {remedy}".rstrip()
        )
    if rule.tells_equations:
        found += _misnamed(names, measurement.equations)
    of_rule = rule.findings(names, weights, state, measurement)
    # What the rule says of a loss says more than that its weight is at the floor.
    told = [name for name in names if any(repr(name) in finding for finding in of_rule)]
    floor = measurement.floor
    at_floor = [n for n, w in zip(names, weights) if w <= 1.01 * floor and n not in told]
    if at_floor and not rule.acts_now:  # coefficients of gradients have no floor
        found.append(
            f"The weight of {listed(at_floor)} is at its floor of {floor:g}, where it cannot "
            "follow the rule. Scale the loss itself down, lower floor, or choose another rule."
        )
    return found + of_rule


def is_dead(cosines: np.ndarray) -> bool:
    """Whether all gradients are parallel, because the network gives one value everywhere.

    Two gradients that are opposite are no sign of it: they may be at rest.

    Args:
        cosines: Of the angles between the gradients, shape [T, T]; 0 or NaN for a loss without
            a gradient.
    """
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    pairs = pairs[np.isfinite(pairs) & (pairs != 0)]
    return bool(len(pairs) and (np.abs(pairs) > _PARALLEL).all() and pairs.max() > 0)


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names in quotation marks for a sentence.

    Examples:
        >>> listed(["pde"]), listed(["pde", "bc"]), listed("abcdefg")
        ("'pde'", "'pde' and 'bc'", "'a', 'b', 'c' and 4 more")
    """
    if len(names) > most:
        return f"{', '.join(map(repr, names[: most - 1]))} and {len(names) - most + 1} more"
    *first, last = map(repr, names)
    return f"{', '.join(first)} and {last}" if first else last


def _grouped(left_out: Mapping[str, tuple[int, str]]) -> dict[tuple[int, str], list[str]]:
    groups: dict[tuple[int, str], list[str]] = {}
    for name, reason in left_out.items():
        groups.setdefault(reason, []).append(name)
    return groups


def _lost(groups: Sequence[tuple[tuple[int, str], list[str]]], n_loss: int) -> str:
    """The finding that no loss is finite any more, and which began; empty if one is.

    Args:
        groups: The losses that are left out, by the step since when and the fault, the first first.
        n_loss: How many losses there are.
    """
    bad = [group for group in groups if any(word in group[0][1] for word in ("nan", "inf"))]
    if sum(len(names) for _, names in bad) < n_loss:
        return ""
    (since, fault), first = bad[0]
    if len(first) == n_loss:
        return (
            f"All losses have been left out of the balancing since step {since}, because each of "
            f"them {fault}. Since they failed together, look for NaN in the network's parameters "
            "and in the points. A gradient is infinite where a root or a logarithm is taken of 0, "
            "or where the learning rate is too high."
        )
    it = "it" if len(first) == 1 else "each of them"
    remedy = next(text for word, text in _REMEDIES.items() if word in fault)
    return (
        f"{listed(first)} failed first, in step {since}, because {it} {fault}, and then all other "
        f"losses, because the network's parameters are not finite any more. {remedy}"
    )


def _misnamed(names: Sequence[str], are_equations: np.ndarray) -> list[str]:
    """Whether a loss with an equation's name is a condition, while none of the equations has one.

    If some of the equations have such a name, leaving out another may well be meant.
    """
    like = [is_equation(name) is True for name in names]
    among = [name for name, is_like, e in zip(names, like, are_equations) if is_like and not e]
    equations = [name for name, is_equation in zip(names, are_equations) if is_equation]
    if not among or not equations or (np.array(like) & are_equations).any():
        return []
    return [
        f"{listed(among)} has an equation's name, but is balanced as a condition, and "
        f"{listed(equations)} as an equation. Unless this is meant, pass equations={among}."
    ]
