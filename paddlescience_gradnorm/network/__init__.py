"""Networks and their wrappers. RotoGrad's are in ``rotograd`` and can be imported here too."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from paddlescience_gradnorm.network.embeddings import FourierFeatures, PeriodicEmbedding, Scaling
from paddlescience_gradnorm.network.fc_net import FCNet
from paddlescience_gradnorm.network.grad_norm import GradNorm
from paddlescience_gradnorm.network.network_base import NetworkBase

__all__ = [
    "FCNet",
    "FourierFeatures",
    "GradNorm",
    "HardConstraint",
    "NetworkBase",
    "PeriodicEmbedding",
    "RotateOnly",
    "RotoGrad",
    "RotoGradNorm",
    "Scaling",
    "cached",
]

if TYPE_CHECKING:
    from paddlescience_gradnorm.network.hard_constraint import HardConstraint
    from paddlescience_gradnorm.rotograd import RotateOnly, RotoGrad, RotoGradNorm, cached
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # Imported on first use: the one takes sympy, and the others' package imports this one.
        if name == "HardConstraint":
            return getattr(_import_module(f"{__name__}.hard_constraint"), name)
        return getattr(_import_module("paddlescience_gradnorm.rotograd"), name)
