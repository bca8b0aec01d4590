"""RotoGrad: rotations that make the gradients of several losses agree, and networks with them.

Source: Javaloy and Valera, "RotoGrad: Gradient Homogenization in Multitask Learning", ICLR 2022,
arXiv:2103.02631.
"""

from paddlescience_gradnorm.rotograd.rotate_only import RotateOnly
from paddlescience_gradnorm.rotograd.rotations import cached
from paddlescience_gradnorm.rotograd.rotograd import RotoGrad, RotoGradNorm

__all__ = ["RotateOnly", "RotoGrad", "RotoGradNorm", "cached"]
