"""Networks, and what wraps them."""

from paddlescience_gradnorm.network.fc_net import FCNet
from paddlescience_gradnorm.network.grad_norm import GradNorm
from paddlescience_gradnorm.network.network_base import NetworkBase

__all__ = ["FCNet", "GradNorm", "NetworkBase"]
