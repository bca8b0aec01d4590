"""Trainable rotations, one for each task, that stay orthogonal whatever steps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from paddlescience_gradnorm.shielded import ShieldedLayer, add_gradient, shielded_parameter

_cache: dict[Rotations, paddle.Tensor] | None = None


@contextmanager
def cached() -> Iterator[None]:
    """Compute every rotation once in this block, however often it is used.

    Without it a rotation is looked up afresh at each use, in case an optimizer has stepped
    it; inside, such a step takes effect only after the block. Blocks may be nested.

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


class Rotations(ShieldedLayer):
    """T rotation matrices, trained on their manifold by any optimizer.

    Each is R = B exp(P - P^T), with a trainable ``tangent`` P that gets gradients in
    its strict lower triangle: "dynamic trivialization" (Lezcano-Casado, NeurIPS 2019,
    arXiv:1909.09501). Once an optimizer has stepped P, the next use of R moves the step into B
    and P returns to zero, where the derivative of the exponential needs no computation.

    The exponential of a small step is its Taylor polynomial; of a larger one,
    ``paddle.linalg.matrix_exp``, or, on Paddle 2.6, which lacks that, the Cayley transform
    (1 - A/2)^-1 (1 + A/2), another orthogonal matrix with the same first two derivatives.

    Args:
        n_tasks: Number of rotations T.
        size: Their number of rows D.
        dtype: float32 or float64.
    """

    def __init__(self, n_tasks: int, size: int, dtype: paddle.dtype) -> None:
        super().__init__()
        self.tangent = shielded_parameter(np.zeros([n_tasks, size, size]), dtype)
        identity = paddle.eye(size, dtype=dtype)
        self.register_buffer("base", paddle.stack([identity] * n_tasks))
        self.register_buffer("_identity", identity, persistable=False)
        self._noted = _Noted()
        # Of three dimensions too, for Paddle is slow where it broadcasts.
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
            self._buffers["base"] = given
            self.tangent.copy_(paddle.zeros_like(self.tangent), False)
        if _cache is not None:
            _cache.pop(self, None)

    def noted(self) -> dict[str, Any]:
        """How far rounding errors may have added up, for checkpoints."""
        return {"drift": self._noted.drift}

    def note(self, noted: dict[str, Any]) -> None:
        """Go on from what ``noted`` has given."""
        self._noted.drift = noted["drift"]

    def add_gradient(self, gradients: paddle.Tensor) -> None:
        """Add to ``tangent.grad``, given R_k^T dL/dR_k, shape [T, D, D].

        What of it is symmetric makes no difference.
        """
        self._noted.has_gradient = True
        add_gradient(self.tangent, (gradients - gradients.transpose([0, 2, 1])) * self._lower)

    def _settled(self) -> paddle.Tensor:
        tangent, noted = self.tangent, self._noted
        if not noted.has_gradient and tangent.square().sum().item() == 0:
            return self.base
        noted.has_gradient = False
        skew = tangent - tangent.transpose([0, 2, 1])
        second = paddle.matmul(skew, skew)
        # For the eigenvalues of A, and much closer than its norm. An accelerator waits here
        # for its queue, as it would in matrix_exp.
        bound = second.square().sum().item() ** 0.25
        if bound != 0:  # else no optimizer has stepped
            step = self._exponential_less_1(skew, second, bound)
            # A new tensor, for somebody may still hold the old rotations.
            base = self.base + paddle.matmul(self.base, step)
            # Rounding errors add up, the faster the larger the steps, and Newton's iteration
            # takes them out.
            noted.drift += 1 / 16 + bound
            if noted.drift > 1:
                base = base - paddle.matmul(self._from_orthogonal(base), base) / 2
                noted.drift = 0.0
            self._buffers["base"] = base
            tangent.zero_()
        return self._buffers["base"]

    def _exponential_less_1(
        self, skew: paddle.Tensor, second: paddle.Tensor, bound: float
    ) -> paddle.Tensor:
        """exp(A) - 1, to rounding, given A, A A and a bound for the eigenvalues of A."""
        rounding = 6e-8 if skew.dtype == paddle.float32 else 1e-16
        # Taylor's polynomials, grouped for few products, as far as the next term is lost anyway.
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
        return paddle.matmul(matrices, matrices, transpose_y=True) - self._identity


@dataclass
class _Noted:
    """What the host has noted; no attributes of the layer, which are dear to set."""

    drift: float = 0.0  # how far rounding errors may have added up
    has_gradient: bool = False  # so that an optimizer will have stepped
