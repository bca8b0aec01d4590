"""Loss balancing: knows tensors, losses and weights, and no network."""

from paddlescience_gradnorm.balancing.algorithm import GradNormRule, PinnRule
from paddlescience_gradnorm.balancing.balancer import LossBalancer

__all__ = ["GradNormRule", "LossBalancer", "PinnRule"]
