"""Balancing rules, by name and as classes. They need numpy, not Paddle."""

from __future__ import annotations

import inspect
from typing import Any

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.balancing.rule import Rule
from paddlescience_gradnorm.balancing.rules.aligned_mtl import AlignedMTL
from paddlescience_gradnorm.balancing.rules.augmented_lagrangian import AugmentedLagrangian
from paddlescience_gradnorm.balancing.rules.config import ConFIG
from paddlescience_gradnorm.balancing.rules.dcgd import DCGD
from paddlescience_gradnorm.balancing.rules.directed import Directed
from paddlescience_gradnorm.balancing.rules.dual_balance import DualBalance
from paddlescience_gradnorm.balancing.rules.fixed import Equal, Fixed
from paddlescience_gradnorm.balancing.rules.imtl_g import IMTLG
from paddlescience_gradnorm.balancing.rules.inverse_norm import InverseNorm
from paddlescience_gradnorm.balancing.rules.lr_annealing import LearningRateAnnealing
from paddlescience_gradnorm.balancing.rules.mgda import MGDA
from paddlescience_gradnorm.balancing.rules.ntk import NTK
from paddlescience_gradnorm.balancing.rules.pcgrad import PCGrad
from paddlescience_gradnorm.balancing.rules.pinn import PinnRule
from paddlescience_gradnorm.balancing.rules.published import GradNormRule
from paddlescience_gradnorm.balancing.rules.relobralo import ReLoBRaLo
from paddlescience_gradnorm.balancing.rules.softadapt import SoftAdapt
from paddlescience_gradnorm.balancing.rules.uncertainty import Uncertainty
from paddlescience_gradnorm.balancing.rules.upgrad import UPGrad

__all__ = [
    "DCGD",
    "IMTLG",
    "MGDA",
    "NTK",
    "RULES",
    "AlignedMTL",
    "AugmentedLagrangian",
    "ConFIG",
    "Directed",
    "DualBalance",
    "Equal",
    "Fixed",
    "GradNormRule",
    "InverseNorm",
    "LearningRateAnnealing",
    "PCGrad",
    "PinnRule",
    "ReLoBRaLo",
    "SoftAdapt",
    "UPGrad",
    "Uncertainty",
    "find_rule",
]

RULES: dict[str, type[Rule]] = {
    "published": GradNormRule,
    "pinn": PinnRule,
    "equal": Equal,
    "fixed": Fixed,
    "softadapt": SoftAdapt,
    "relobralo": ReLoBRaLo,
    "uncertainty": Uncertainty,
    "augmented_lagrangian": AugmentedLagrangian,
    "lr_annealing": LearningRateAnnealing,
    "inverse_norm": InverseNorm,
    "ntk": NTK,
    "dual_balance": DualBalance,
    "config": ConFIG,
    "dcgd": DCGD,
    "imtl_g": IMTLG,
    "pcgrad": PCGrad,
    "upgrad": UPGrad,
    "mgda": MGDA,
    "aligned_mtl": AlignedMTL,
    "directed": Directed,
}


def find_rule(
    rule: str | Rule | None = None, /, alpha: float | None = None, **options: Any
) -> Rule:
    """The rule that a balancer's arguments select.

    Args:
        rule: A name in ``RULES``, or a rule. ``None`` means ``"published"`` if alpha is given,
            and ``"pinn"`` if not.
        alpha: The rule's alpha. ``None`` leaves it to the rule.
        options: Other options of the rule that ``rule`` names.

    Raises:
        TypeError: ``rule`` is not a rule, has no such option, or an option that it must have is
            missing or not a number.
        ValueError: No rule has this name, this rule does not take alpha here, or an option is out
            of range.

    Examples:
        >>> find_rule() == PinnRule(), find_rule(alpha=1.5)
        (True, GradNormRule(alpha=1.5))
        >>> find_rule("relobralo", beta=0.9).beta
        0.9
    """
    if rule is None:
        rule = "pinn" if alpha is None else "published"
    if isinstance(rule, str):
        if rule not in RULES:
            names = ", ".join(map(repr, RULES))
            meant = {kind.__name__: name for name, kind in RULES.items()}.get(rule, rule)
            hint = _arguments.did_you_mean(meant, RULES)
            raise ValueError(f"rule must be one of {names}, got {rule!r}{hint}")
        return _by_name(rule, alpha, options)
    if not isinstance(rule, Rule):
        hint = ""
        if isinstance(rule, type) and issubclass(rule, Rule):
            hint = f"; pass an instance, such as {rule.__name__}()"
        names = ", ".join(map(repr, RULES))
        raise TypeError(f"rule must be {names} or an instance of Rule, got {rule!r}{hint}")
    if alpha is not None:
        options["alpha"] = alpha
    if options:
        name, value = next(iter(options.items()))
        raise ValueError(f"{name} is {value}, but {rule} has its own options; give it there")
    return rule


def _by_name(name: str, alpha: float | None, options: dict[str, Any]) -> Rule:
    kind: Any = RULES[name]
    _arguments.refuse(f"the rule {name!r}", options, kind)
    option = inspect.signature(kind).parameters.get("alpha")
    if alpha is not None:
        if option is None:
            raise ValueError(f"alpha is {alpha}, but the rule {name!r} has none; leave it out")
        return kind(alpha=alpha, **options)
    if option is not None and option.default is option.empty:
        raise TypeError(
            f"alpha is missing: the rule {name!r} has no default for it; the paper uses 0.12 to 3"
        )
    if kind is Fixed and "weights" not in options:
        raise TypeError(
            "weights are missing: pass the rule itself in place of 'fixed', such as "
            "Fixed({'bc': 50}) or Fixed([1, 50])"
        )
    return kind(**options)
