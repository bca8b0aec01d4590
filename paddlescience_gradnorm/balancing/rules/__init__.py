"""Balancing rules, by name and as classes. They need numpy, not Paddle."""

from __future__ import annotations

import inspect
from typing import Any

from paddlescience_gradnorm.balancing.rule import Rule
from paddlescience_gradnorm.balancing.rules.pinn import PinnRule
from paddlescience_gradnorm.balancing.rules.published import GradNormRule

__all__ = ["RULES", "GradNormRule", "PinnRule", "find_rule"]

RULES: dict[str, type[Rule]] = {"published": GradNormRule, "pinn": PinnRule}


def find_rule(rule: str | Rule | None = None, alpha: float | None = None) -> Rule:
    """The rule that a balancer's arguments select.

    Args:
        rule: A name in ``RULES``, or a rule. ``None`` means ``"published"`` if alpha is given,
            and ``"pinn"`` if not.
        alpha: The rule's alpha. ``None`` leaves it to the rule.

    Raises:
        TypeError: ``rule`` is not a rule, or its alpha is missing or not a number.
        ValueError: No rule has this name, this rule does not take alpha here, or alpha is out of
            range.

    Examples:
        >>> find_rule() == PinnRule(), find_rule(alpha=1.5)
        (True, GradNormRule(alpha=1.5))
    """
    if rule is None:
        rule = "pinn" if alpha is None else "published"
    if isinstance(rule, str):
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(map(repr, RULES))}, got {rule!r}")
        return _by_name(rule, alpha)
    if not isinstance(rule, Rule):
        hint = ""
        if isinstance(rule, type) and issubclass(rule, Rule):
            hint = f"; pass an instance, such as {rule.__name__}()"
        names = ", ".join(map(repr, RULES))
        raise TypeError(f"rule must be {names} or an instance of Rule, got {rule!r}{hint}")
    if alpha is not None:
        raise ValueError(f"alpha is {alpha}, but {rule} has its own options; give it there")
    return rule


def _by_name(name: str, alpha: float | None) -> Rule:
    kind: Any = RULES[name]
    option = inspect.signature(kind).parameters.get("alpha")
    if alpha is not None:
        if option is None:
            raise ValueError(f"alpha is {alpha}, but the rule {name!r} has none; leave it out")
        return kind(alpha=alpha)
    if option is not None and option.default is option.empty:
        raise TypeError(
            f"alpha is missing: the rule {name!r} has no default for it; the paper uses 0.12 to 3"
        )
    return kind()
