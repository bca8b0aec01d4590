"""Layers for the inputs and outputs of a network, which ``Residual`` differentiates fast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Union

import numpy as np
import paddle

from paddlescience_gradnorm import _arguments, _inputs

Numbers = Union[float, Sequence[float], np.ndarray]


class Scaling(paddle.nn.Layer):
    """A fixed linear scaling of each column: ``ins * factor + shift``.

    Args:
        factor: A number, which holds for all columns, or one for each column.
        shift: The same.

    Raises:
        ValueError: They are neither, not finite, or for different numbers of columns.

    Examples:
        >>> import paddle
        >>> from paddlescience_gradnorm import FCNet
        >>> net = paddle.nn.Sequential(Scaling.of_box([0, 0], [1, 4]), FCNet(2, 1, 3, 16))
        >>> net[0](paddle.to_tensor([[0.0, 0.0], [1.0, 4.0]])).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """

    def __init__(self, factor: Numbers, shift: Numbers = 0.0) -> None:
        super().__init__()
        for name, numbers in (("factor", factor), ("shift", shift)):
            values = np.asarray(numbers, float)
            if values.ndim > 1 or not np.isfinite(values).all():
                raise ValueError(
                    f"{name} must be a finite number, or one for each column, got {numbers!r}"
                )
            dtype = paddle.get_default_dtype()
            self.register_buffer(name, paddle.to_tensor(values, dtype))
        sizes = {x.shape[0] for x in (self.factor, self.shift) if x.ndim}
        if len(sizes) > 1:
            raise ValueError(
                "factor and shift must be for the same number of columns, got "
                f"{factor!r} and {shift!r}"
            )
        self._columns = sizes.pop() if sizes else None  # any

    @classmethod
    def of_box(cls, low: Sequence[float], high: Sequence[float]) -> Scaling:
        """The scaling that takes the box [low, high] to [-1, 1] in each column.

        Raises:
            ValueError: The corners do not make a box.
        """
        lower, upper = np.asarray(low, float), np.asarray(high, float)
        if lower.shape != upper.shape or lower.ndim != 1 or not (lower < upper).all():
            raise ValueError(
                f"low must lie below high in every coordinate, got {low!r} and {high!r}"
            )
        return cls(2 / (upper - lower), -(upper + lower) / (upper - lower))

    def forward(self, ins: paddle.Tensor) -> paddle.Tensor:
        """Of shape [N, d] like the inputs.

        Raises:
            ValueError: The inputs have another number of columns than factor or shift.
        """
        if self._columns is not None:  # one column would be broadcast to all
            _inputs.check_columns("ins", ins, self._columns)
        return ins * self.factor + self.shift


class PeriodicEmbedding(paddle.nn.Layer):
    """Makes a network exactly periodic in some of its inputs.

    In place of an input x of period P come two columns, cos(2 pi x / P) and sin(2 pi x / P). The
    other inputs stay as they are. It must be the first layer of a ``Sequential``.

    Dong and Ni, "A method for representing periodic functions and enforcing exactly periodic
    boundary conditions with deep neural networks", J. Comput. Phys. 2021.

    Args:
        periods: For each input its period, or None.
        trainable: Whether the frequencies 2 pi / P are learned.

    Raises:
        TypeError: ``periods`` is no list, tuple or array, or holds something else than numbers.
        ValueError: A period is not positive and finite, or there is none.

    Examples:
        >>> import paddle
        >>> from paddlescience_gradnorm import FCNet
        >>> net = paddle.nn.Sequential(PeriodicEmbedding([None, 2.0]), FCNet(3, 1, 3, 16))
        >>> here, there = net(paddle.to_tensor([[0.3, -1.0], [0.3, 1.0]]))
        >>> bool((here - there).abs() < 1e-5)
        True
    """

    def __init__(self, periods: Sequence[float | None], trainable: bool = False) -> None:
        super().__init__()
        if not isinstance(periods, (list, tuple, np.ndarray)):
            raise TypeError(
                "periods must be a list with a number or None for each input, such as "
                f"[2.0, None], got {periods!r}"
            )
        given = [p for p in periods if p is not None]
        if not given or not all(0 < _arguments.number("periods", p) < math.inf for p in given):
            raise ValueError(
                "periods must hold a positive number or None for each input, and one number at "
                f"least, got {periods!r}"
            )
        self._is_periodic = [p is not None for p in periods]
        self.frequency = self.create_parameter(
            [len(given)],
            attr=paddle.ParamAttr(trainable=trainable),
            default_initializer=paddle.nn.initializer.Assign(2 * np.pi / np.array(given)),
        )

    def frequencies(self) -> list[paddle.Tensor | None]:
        """For each input its angular frequency, shape [], or None."""
        of_periodic = iter(paddle.unbind(self.frequency))
        return [next(of_periodic) if periodic else None for periodic in self._is_periodic]

    def forward(self, ins: paddle.Tensor) -> paddle.Tensor:
        """Shape [N, number of inputs + number of periods] of inputs [N, number of inputs].

        Raises:
            ValueError: The inputs have another number of columns than there are periods and Nones.
        """
        _inputs.check_columns("ins", ins, len(self._is_periodic))
        columns = []
        for x, w in zip(paddle.split(ins, len(self._is_periodic), axis=-1), self.frequencies()):
            columns += [x] if w is None else [paddle.cos(w * x), paddle.sin(w * x)]
        return paddle.concat(columns, axis=-1)


class FourierFeatures(paddle.nn.Layer):
    """Random Fourier features: cos(x B), then sin(x B), with a fixed random matrix B.

    Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low
    Dimensional Domains", NeurIPS 2020, arXiv:2006.10739.

    Args:
        num_ins: Number of inputs.
        num_features: Number of columns of B; there are twice as many outputs.
        scale: Standard deviation of the numbers in B, in radians per unit of the inputs.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is below 1, or the scale is not positive and finite.

    Examples:
        >>> import paddle
        >>> from paddlescience_gradnorm import FCNet
        >>> net = paddle.nn.Sequential(FourierFeatures(2, 8), FCNet(16, 1, 3, 16))
        >>> list(net(paddle.rand([5, 2])).shape)
        [5, 1]
    """

    def __init__(self, num_ins: int, num_features: int, scale: float = 1.0) -> None:
        super().__init__()
        _arguments.integer("num_ins", num_ins, at_least=1)
        _arguments.integer("num_features", num_features, at_least=1)
        if not 0 < _arguments.number("scale", scale) < math.inf:
            raise ValueError(f"scale must be above 0 and finite, got {scale}")
        self.register_buffer("kernel", scale * paddle.randn([num_ins, num_features]))

    def forward(self, ins: paddle.Tensor) -> paddle.Tensor:
        """Shape [N, 2 num_features] of inputs [N, num_ins].

        Raises:
            ValueError: The inputs do not have ``num_ins`` columns.
        """
        _inputs.check_columns("ins", ins, self.kernel.shape[0])
        phases = paddle.matmul(ins, self.kernel)
        return paddle.concat([paddle.cos(phases), paddle.sin(phases)], axis=-1)
