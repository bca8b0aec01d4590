"""NetworkBase: the base class of this package's networks."""

from __future__ import annotations

from typing import Any, Union

import numpy as np
import paddle

from paddlescience_gradnorm import _inputs
from paddlescience_gradnorm._layers import PicklableLayer


class NetworkBase(PicklableLayer):
    """Base class of networks: a Paddle layer whose forward pass is ``nn_func``.

    For balancing on its last shared layer, a network also has ``get_last_shared_layer()``,
    which returns the last parameter (or layer) that all its losses go through.

    Instances pickle with their parameters on every Paddle version.

    Examples:
        >>> import paddle
        >>> class Bounded(NetworkBase):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = paddle.nn.Linear(2, 1)
        ...     def nn_func(self, ins):
        ...         return paddle.tanh(self.linear(ins))
        >>> list(Bounded()(paddle.ones([5, 2])).shape)
        [5, 1]
    """

    def nn_func(self, ins: paddle.Tensor) -> paddle.Tensor:
        """The network's output, shape [N, num_outs], at inputs of shape [N, num_ins]."""
        raise NotImplementedError(f"{type(self).__name__} does not define nn_func")

    def forward(self, ins: Union[paddle.Tensor, np.ndarray]) -> paddle.Tensor:
        """Same as ``nn_func``, to which a numpy array goes as a tensor of the network's dtype."""
        if isinstance(ins, np.ndarray):
            ins = _inputs.as_input("ins", ins, self)
        return self.nn_func(ins)

    def set_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a state dict of this network, or of a ``GradNorm`` around such a network."""
        own = self.state_dict(use_hook=False)
        if "balancer.loss_weights" in state_dict and own and not own.keys() & state_dict.keys():
            of_net = [key for key in state_dict if key.startswith("net.")]
            state_dict = {key[len("net.") :]: state_dict[key] for key in of_net}
        return super().set_state_dict(state_dict, *args, **kwargs)

    set_dict = set_state_dict
    load_dict = set_state_dict
