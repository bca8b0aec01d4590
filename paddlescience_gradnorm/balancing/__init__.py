"""Loss balancing: rules, and the balancer that measures each step and applies them.

No module here needs a network. ``Measurement``, ``Rule`` and ``balancing.rules`` need numpy only.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import DirectionRule, GradientRule, GradientStep, Rule
from paddlescience_gradnorm.balancing.rules import (
    DCGD,
    IMTLG,
    MGDA,
    NTK,
    RULES,
    AlignedMTL,
    AugmentedLagrangian,
    ConFIG,
    Directed,
    DualBalance,
    Equal,
    Fixed,
    GradNormRule,
    InverseNorm,
    LearningRateAnnealing,
    PCGrad,
    PinnRule,
    ReLoBRaLo,
    SoftAdapt,
    Uncertainty,
    UPGrad,
    find_rule,
)

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
    "DirectionRule",
    "DualBalance",
    "Equal",
    "Fixed",
    "GradNormRule",
    "GradientRule",
    "GradientStep",
    "InverseNorm",
    "LearningRateAnnealing",
    "LossBalancer",
    "Measurement",
    "PCGrad",
    "PinnRule",
    "ReLoBRaLo",
    "Rule",
    "SoftAdapt",
    "UPGrad",
    "Uncertainty",
    "find_rule",
]

if TYPE_CHECKING:
    from paddlescience_gradnorm.balancing.balancer import LossBalancer
else:

    def __getattr__(name):
        # Imported on first use, because it needs Paddle and the rules do not.
        if name != "LossBalancer":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return _import_module(f"{__name__}.balancer").LossBalancer
