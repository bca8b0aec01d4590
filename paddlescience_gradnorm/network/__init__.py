"""Networks, and what wraps them."""

from paddlescience_gradnorm.network.fc_net import FCNet
from paddlescience_gradnorm.network.grad_norm import GradNorm
from paddlescience_gradnorm.network.network_base import NetworkBase
from paddlescience_gradnorm.network.rotate_only import RotateOnly
from paddlescience_gradnorm.network.rotations import cached
from paddlescience_gradnorm.network.rotograd import RotoGrad, RotoGradNorm

__all__ = [
    "FCNet",
    "GradNorm",
    "NetworkBase",
    "RotateOnly",
    "RotoGrad",
    "RotoGradNorm",
    "cached",
]
