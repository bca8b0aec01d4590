"""FCNet: a fully connected network, the usual choice for a PINN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import paddle

from paddlescience_gradnorm import _arguments, _inputs
from paddlescience_gradnorm.network._structure import find_layers
from paddlescience_gradnorm.network._taylor import HIGHEST_ORDER, propagate
from paddlescience_gradnorm.network.network_base import NetworkBase


class FCNet(NetworkBase):
    """Fully connected network with Xavier-uniform weights and zero biases.

    Layer sizes: ``num_ins`` -> ``hidden_size`` (``num_layers - 1`` times, each with
    the activation) -> ``num_outs``.

    Args:
        num_ins: Number of inputs, the coordinates.
        num_outs: Number of outputs, the fields.
        num_layers: Number of linear layers, at least 2.
        hidden_size: Width of the hidden layers.
        activation: Name of a function in ``paddle.nn.functional``, or ``"sin"``. An equation of
            second or higher order needs a smooth one; ``"relu"`` is not.

    Raises:
        TypeError: A size is not an integer, or ``activation`` is not a string.
        ValueError: A size is below its minimum, or the activation is unknown.

    Examples:
        >>> import paddle
        >>> net = FCNet(num_ins=2, num_outs=1, num_layers=4, hidden_size=16)
        >>> list(net(paddle.ones([8, 2])).shape)
        [8, 1]
        >>> list(net.get_last_shared_layer().shape)
        [16, 1]
    """

    def __init__(
        self,
        num_ins: int,
        num_outs: int,
        num_layers: int,
        hidden_size: int,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        _arguments.integer("num_ins", num_ins, at_least=1)
        _arguments.integer("num_outs", num_outs, at_least=1)
        _arguments.integer("num_layers", num_layers, at_least=2)
        _arguments.integer("hidden_size", hidden_size, at_least=1)
        if not isinstance(activation, str):
            raise TypeError(f"activation must be a string, got {activation!r}")
        if not callable(_function(activation)):
            raise ValueError(
                f"activation {activation!r} is not in paddle.nn.functional; 'tanh', 'sin', "
                "'sigmoid', 'silu', 'gelu' and 'softplus' can be differentiated as a PDE needs it"
            )
        self.num_ins = num_ins
        self.num_outs = num_outs
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.activation = activation
        sizes = [num_ins] + [hidden_size] * (num_layers - 1) + [num_outs]
        self.linears = paddle.nn.LayerList(
            paddle.nn.Linear(
                fan_in,
                fan_out,
                weight_attr=paddle.ParamAttr(initializer=paddle.nn.initializer.XavierUniform()),
            )
            for fan_in, fan_out in zip(sizes, sizes[1:])
        )

    def nn_func(self, ins: Union[paddle.Tensor, np.ndarray]) -> paddle.Tensor:
        """Outputs of shape [N, num_outs] at inputs of shape [N, num_ins].

        A numpy array becomes a tensor of the network's dtype. That takes about 0.1 ms for 2,000
        points, so large arrays are better converted once, before the training.

        Raises:
            TypeError: The inputs are a tensor of another dtype than the network's, or neither a
                tensor nor an array of real numbers.
            ValueError: They do not have ``num_ins`` columns.
        """
        activation = _function(self.activation)
        *hidden_layers, last = self.linears  # a slice builds a new LayerList in 70 us
        hidden = self._checked(ins, hidden_layers[0])
        for linear in hidden_layers:
            hidden = activation(linear(hidden))
        return last(hidden)

    def partial_derivatives(
        self, ins: paddle.Tensor, indices: Sequence[tuple[int, ...]]
    ) -> list[paddle.Tensor] | None:
        """Derivatives of the outputs in the inputs, faster than with ``paddle.grad``.

        A residual calls this, and differentiates the network itself if it gets ``None``.

        Args:
            ins: Inputs, shape [N, num_ins], as for ``nn_func``.
            indices: Which derivatives, as tuples of input numbers: () is the value,
                (0, 1) the second derivative in inputs 0 and 1.

        Returns:
            A tensor of shape [N, num_outs] for each index; or ``None`` if an order is above 4
            or the formulas do not apply, because the network is not the plain one or its
            activation is none of tanh, sin, sigmoid, silu (also called swish), gelu and softplus.

        Examples:
            >>> import paddle
            >>> net = FCNet(num_ins=2, num_outs=1, num_layers=3, hidden_size=8)
            >>> value, laplacian = net.partial_derivatives(paddle.rand([4, 2]), [(), (0, 0)])
            >>> list(laplacian.shape)
            [4, 1]
        """
        layers = find_layers(self)
        if isinstance(layers, str) or max(map(len, indices), default=0) > HIGHEST_ORDER:
            return None
        return propagate(layers, self._checked(ins, self.linears[0]), indices)

    def _checked(
        self, ins: Union[paddle.Tensor, np.ndarray], first: paddle.nn.Layer
    ) -> paddle.Tensor:
        """Inputs that the first layer takes."""
        ins = _inputs.as_input("ins", ins, self)
        if type(first) is paddle.nn.Linear:  # or it has been replaced, and takes who knows what
            _inputs.check_columns("ins", ins, first.weight.shape[0])
            if not _inputs.fits(ins.dtype, first.weight.dtype):
                raise _inputs.wrong_dtype("ins", ins.dtype, first.weight.dtype)
        return ins

    def get_last_shared_layer(self) -> paddle.Tensor:
        """The last layer's weight, shape [hidden_size, num_outs]: all losses go through it."""
        return self.linears[-1].weight

    def get_shared_layer(self) -> paddle.Tensor:
        """Same as ``get_last_shared_layer``, under the hook's other name."""
        return self.get_last_shared_layer()


def _function(activation: str) -> Any:
    return paddle.sin if activation == "sin" else getattr(paddle.nn.functional, activation, None)
