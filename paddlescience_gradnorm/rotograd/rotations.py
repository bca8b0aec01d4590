"""Trainable rotations, one for each task, which stay orthogonal whatever steps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from paddlescience_gradnorm._layers import PreciseLayer, shielded_parameter

_cache: dict[Rotations, paddle.Tensor] | None = None


@contextmanager
def cached() -> Iterator[None]:
    """Compute every rotation once in this block, however often it is used.

    Outside such a block every use looks whether an optimizer has stepped the rotation. Inside,
    a step takes effect only after the block. Blocks may be nested.

    Examples:
        >>> import paddle
        >>> from paddlescience_gradnorm import RotateOnly
        >>> model = RotateOnly(paddle.nn.Linear(2, 3), [paddle.nn.Linear(3, 1)] * 2, 3)
        >>> with cached():
        ...     inside, edge = model(paddle.rand([8, 2])), model(paddle.rand([4, 2]))
        ...     total = model.backward([u.square().mean() + v.mean() for u, v in zip(inside, edge)])
    """
    global _cache
    outer = _cache
    if outer is None:
        _cache = {}
    try:
        yield
    finally:
        _cache = outer


class Rotations(PreciseLayer):
    """T rotation matrices, trained on their manifold by any optimizer.

    Each is R = B exp(P - P^T). The trainable ``tangent`` P gets gradients in its strict lower
    triangle. Once an optimizer has stepped P, the next use of R moves the step into B, and P
    returns to zero, where the derivative of the exponential needs no computation. Source:
    "dynamic trivialization", Lezcano-Casado, NeurIPS 2019, arXiv:1909.09501.

    The exponential of a small step A is its Taylor polynomial, and that of a larger one is
    ``paddle.linalg.matrix_exp``. Paddle 2.6 lacks that function and uses the Cayley transform
    (1 - A/2)^-1 (1 + A/2), another orthogonal matrix with the same first two derivatives.

    Args:
        n_tasks: Number of rotations T.
        size: Their number of rows D.
        dtype: float32 or float64.

    Examples:
        >>> import paddle
        >>> rotations = Rotations(n_tasks=2, size=3, dtype=paddle.float32)
        >>> rotations.add_gradient(paddle.ones([2, 3, 3]).triu())
        >>> paddle.optimizer.SGD(0.1, parameters=rotations.parameters()).step()
        >>> turned = rotations.matrices()[0]
        >>> (paddle.matmul(turned, turned.t()) - paddle.eye(3)).abs().max().item() < 1e-6
        True
    """

    tangent: paddle.Tensor
    base: paddle.Tensor

    def __init__(self, n_tasks: int, size: int, dtype: paddle.dtype) -> None:
        super().__init__()
        self.tangent = shielded_parameter(np.zeros([n_tasks, size, size]), dtype)
        identity = paddle.eye(size, dtype=dtype)
        self.register_buffer("base", paddle.stack([identity] * n_tasks))
        self.register_buffer("_identity", identity, persistable=False)
        self._run = _Run()
        # These have three dimensions too, because Paddle is slow where it broadcasts.
        self.register_buffer("_halves", paddle.stack([identity / 2] * n_tasks), persistable=False)
        lower = paddle.stack([paddle.tril(paddle.ones_like(identity), -1)] * n_tasks)
        self.register_buffer("_lower", lower, persistable=False)

    def matrices(self) -> paddle.Tensor:
        """The rotations, shape [T, D, D], without a gradient."""
        if _cache is not None and self in _cache:
            return _cache[self]
        with paddle.no_grad():
            matrices = self._settled()
        if _cache is not None:
            _cache[self] = matrices
        return matrices

    def set(self, matrices: Any) -> None:
        """Take these as the rotations: T arrays or tensors of shape [D, D].

        Raises:
            ValueError: They are of another shape, or not orthogonal.
        """
        arrays = np.stack([np.asarray(matrix, dtype=np.float64) for matrix in matrices])
        if list(arrays.shape) != list(self.base.shape):
            raise ValueError(
                f"rotations must have shape {list(self.base.shape)}, got {list(arrays.shape)}"
            )
        error = np.abs(arrays @ arrays.transpose(0, 2, 1) - np.eye(arrays.shape[1])).max()
        if not error < 1e-4:
            raise ValueError(f"rotations must be orthogonal, but R R^T is off 1 by {error:.2g}")
        given = paddle.to_tensor(arrays, dtype=self.base.dtype)
        with paddle.no_grad():
            self.base = given
            self.tangent.copy_(paddle.zeros_like(self.tangent), False)
        if _cache is not None:
            _cache.pop(self, None)

    def extra_state(self) -> dict[str, Any]:
        """How far rounding errors may have added up, for checkpoints."""
        return {"drift": self._run.drift}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from ``extra_state`` of equal rotations."""
        self._run.drift = state["drift"]

    def add_gradient(self, gradients: paddle.Tensor) -> None:
        """Add to ``tangent.grad``, given R_k^T dL/dR_k, shape [T, D, D].

        The symmetric part of the argument makes no difference.
        """
        self._run.has_gradient = True
        add_gradient(self.tangent, (gradients - gradients.transpose([0, 2, 1])) * self._lower)

    def _settled(self) -> paddle.Tensor:
        """The rotations, after a step of the tangent has been moved into the base."""
        tangent, base, run = self.tangent, self.base, self._run
        # After a gradient an optimizer has most likely stepped, and this need not be asked.
        if not run.has_gradient and tangent.square().sum().item() == 0:
            return base
        run.has_gradient = False
        skew = tangent - tangent.transpose([0, 2, 1])
        second = paddle.matmul(skew, skew)
        # This bounds the eigenvalues of A, much more closely than the norm of A does. An
        # accelerator waits here for its queue, as it would in matrix_exp.
        bound = second.square().sum().item() ** 0.25
        if bound != 0:  # else no optimizer has stepped
            step = self._exponential_less_1(skew, second, bound)
            # A new tensor, because somebody may still hold the old rotations.
            base = base + paddle.matmul(base, step)
            # Rounding errors add up, the faster the larger the steps are. A step of Newton's
            # iteration takes them out.
            run.drift += 1 / 16 + bound
            if run.drift > 1:
                base = base - paddle.matmul(self._from_orthogonal(base), base) / 2
                run.drift = 0.0
            self.base = base
            tangent.zero_()
        return base

    def _exponential_less_1(
        self, skew: paddle.Tensor, second: paddle.Tensor, bound: float
    ) -> paddle.Tensor:
        """exp(A) - 1 to rounding, given A, A A and a bound for the eigenvalues of A."""
        rounding = 6e-8 if skew.dtype == paddle.float32 else 1e-16
        # Taylor's polynomials, grouped for few products, where rounding loses the next term anyway.
        if bound**5 / 120 < rounding:
            fourth = paddle.matmul(second, second / 24 + skew / 6 + self._halves)
            return skew + fourth
        if bound**7 / 5040 < rounding:
            third = paddle.matmul(second, skew)
            sixth = paddle.matmul(third, third / 720 + second / 120 + skew / 24)
            return skew + second / 2 + third / 6 + sixth
        if hasattr(paddle.linalg, "matrix_exp"):
            return paddle.linalg.matrix_exp(skew) - self._identity
        half = skew / 2
        cayley = paddle.linalg.solve(self._identity - half, self._identity + half)
        return cayley - self._identity

    def _from_orthogonal(self, matrices: paddle.Tensor) -> paddle.Tensor:
        """How far R R^T is from 1."""
        return paddle.matmul(matrices, matrices, transpose_y=True) - self._identity

    def _stays_on_host(self, buffer: paddle.Tensor) -> bool:
        return False  # what is multiplied with the tangent goes where the tangent goes


@dataclass
class _Run:
    """What changes from step to step beside parameters and buffers.

    In an object of its own, because setting an attribute of a layer takes 5 us.
    """

    drift: float = 0.0  # how far rounding errors may have added up
    has_gradient: bool = False  # since the last use of the rotations


def add_gradient(parameter: paddle.Tensor, gradient: paddle.Tensor) -> None:
    """Add to the parameter's ``.grad``, as a backward pass does."""
    before = parameter.grad
    parameter.grad = gradient if before is None else before + gradient
