"""The weighted sum, whose ``backward()`` runs the whole backward pass; and what that has left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable

import numpy as np
import paddle

from paddlescience_gradnorm import _paddle


class Total(paddle.Tensor):
    """The weighted sum, whose ``backward()`` runs the whole backward pass and the update.

    A hook alone would do that too, but Paddle turns every error in a hook into an OSError of its
    own. So ``backward()`` calls ``run`` directly, also after a multiplication or division by a
    number. The hook is for a total that is used in any other way.

    Args:
        value: The weighted sum, shape [], without a graph.
        run: Called with the scale of all gradients.
        scale: Factor of the gradients that ``value`` contains already.
    """

    def __init__(
        self, value: paddle.Tensor, run: Callable[[float], None], scale: float = 1.0
    ) -> None:
        super().__init__(value)
        self.stop_gradient = False
        self._run, self._scale = run, scale
        # Without self, because a tensor that its own hook holds is never freed.
        self.register_hook(lambda gradient: run(scale * gradient.item()))

    def backward(
        self, grad_tensor: paddle.Tensor | None = None, retain_graph: bool = False
    ) -> None:
        self._run(self._scale * (1.0 if grad_tensor is None else grad_tensor.item()))

    def __mul__(self, other: Any) -> paddle.Tensor:
        factor = _number(other)
        if factor is None:
            return super().__mul__(other)
        return Total(self.detach() * other, self._run, self._scale * factor)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> paddle.Tensor:
        divisor = _number(other)
        if divisor is None:
            return super().__truediv__(other)
        return Total(self.detach() / other, self._run, self._scale / divisor)


def _number(value: Any) -> float | None:
    """The value of a number, or of a tensor that holds one and has no graph; None otherwise."""
    if isinstance(value, paddle.Tensor):
        return float(value.item()) if value.size == 1 and value.stop_gradient else None
    return float(value) if isinstance(value, (int, float, np.number)) else None


def with_gradient(parameters: Iterable[paddle.Tensor]) -> list[paddle.Tensor]:
    """Those whose gradient is not 0. An accelerator is read only once."""
    found = [parameter for parameter in parameters if parameter.grad is not None]
    if not found:
        return []
    others = [(_paddle.dense(p.grad, p).abs() != 0).any() for p in found]
    return [p for p, is_other in zip(found, paddle.stack(others).tolist()) if is_other]
