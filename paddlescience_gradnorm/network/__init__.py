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
    "NetworkBase",
    "PeriodicEmbedding",
    "RotateOnly",
    "RotoGrad",
    "RotoGradNorm",
    "Scaling",
    "cached",
]

if TYPE_CHECKING:
    from paddlescience_gradnorm.rotograd import RotateOnly, RotoGrad, RotoGradNorm, cached
else:

    def __getattr__(name):
        # Imported on first use, because that package imports this one.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(_import_module("paddlescience_gradnorm.rotograd"), name)
