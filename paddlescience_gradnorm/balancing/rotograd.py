"""The mathematics of RotoGrad: gradients on a shared representation, their direction and size.

Javaloy and Valera, "RotoGrad: Gradient Homogenization in Multitask Learning", ICLR 2022,
arXiv:2103.02631. The representation Z has a row for every point, shape [N, D]. Task k sees
its rows rotated, r = R_k z, and G_k = dL_k/dZ is the gradient of its loss on Z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import paddle

from paddlescience_gradnorm import operators

# A task whose gradient is zero has no direction. It gets one of no length, not 0 / 0.
_SMALLEST_NORM = 1e-15


class LatentGradients:
    """The gradients G_k of T losses on the representation.

    Args:
        gradients: T matrices G_k, shape [N, D] each.
    """

    norms: paddle.Tensor

    def __init__(self, gradients: Sequence[paddle.Tensor]) -> None:
        self.norms = paddle.stack([gradient.square().sum() for gradient in gradients]).sqrt()
        self._stacked = paddle.stack(gradients)

    def combined(self, factors: paddle.Tensor) -> paddle.Tensor:
        """sum_k factors_k G_k, shape [N, D], for factors of shape [T]."""
        # A row times a matrix, for Paddle is slow at a scalar times a matrix.
        flat = self._stacked.reshape([self._stacked.shape[0], -1])
        return paddle.matmul(factors.reshape([1, -1]), flat).reshape(self._stacked.shape[1:])

    def norm_of(self, factors: paddle.Tensor) -> paddle.Tensor:
        """||sum_k factors_k G_k||, shape []."""
        return _norm(self.combined(factors))

    def norm_of_sum(self) -> paddle.Tensor:
        """||sum_k G_k||, shape []."""
        return _norm(self._stacked.sum(0))

    def products(self, factors: paddle.Tensor) -> paddle.Tensor:
        """G_k^T sum_j factors_j G_j, shape [T, D, D]."""
        return self.products_with(self.combined(factors))

    def products_with(self, matrix: paddle.Tensor) -> paddle.Tensor:
        """G_k^T matrix, shape [T, D, D], for a matrix of shape [N, D]."""
        return paddle.matmul(self._stacked, matrix, transpose_x=True)


class FactoredGradients(LatentGradients):
    """The same where G_k = P_k F_k^T, for factors that have few columns.

    A head that reads the representation through a matrix F_k, Y_k = Z F_k, has such a
    gradient, with P_k = dL_k/dY_k. No G_k is ever multiplied out.

    Args:
        outputs: T matrices P_k, shape [N, M_k] each.
        entries: T matrices F_k, shape [D, M_k] each.

    Examples:
        >>> import paddle
        >>> ones = paddle.ones([4, 1])
        >>> gradients = FactoredGradients([ones, -ones], [paddle.ones([9, 1])] * 2)
        >>> gradients.norms.tolist(), gradients.combined(paddle.to_tensor([1.0, 0.5]))[0, 0].item()
        ([6.0, 6.0], 0.5)
    """

    def __init__(self, outputs: Sequence[paddle.Tensor], entries: Sequence[paddle.Tensor]) -> None:
        self._widths = [entry.shape[1] for entry in entries]
        # Columns one after another, which Paddle is quicker to join than columns side by side.
        rows = [p.reshape([1, -1]) if p.shape[1] == 1 else p.t() for p in outputs]
        self._left = paddle.concat(rows)
        self._right = paddle.concat(entries, axis=1).t()
        self._left_gram = _gram(self._left)
        # <G_i, G_j>, once the columns of each task are added up.
        self._gram = self._left_gram * _gram(self._right)
        self._task_of_column = None
        if max(self._widths) > 1:
            tasks = paddle.eye(len(entries), dtype=self._left.dtype)
            blocks = paddle.repeat_interleave(tasks, paddle.to_tensor(self._widths), axis=0)
            self._gram = paddle.matmul(paddle.matmul(blocks, self._gram, transpose_x=True), blocks)
            self._task_of_column = blocks
        self.norms = self._gram.diagonal().abs().sqrt()

    def combined(self, factors: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(self._left, self._scaled(factors), transpose_x=True)

    def norm_of(self, factors: paddle.Tensor) -> paddle.Tensor:
        done = operators.balancing.norm_of_sum(self._gram, factors)
        if done is not None:
            return done
        square = paddle.matmul(factors, paddle.matmul(self._gram, factors))
        return square.abs().sqrt()  # below zero where gradients cancel each other to rounding

    def norm_of_sum(self) -> paddle.Tensor:
        done = operators.balancing.norm_of_sum(self._gram, None)
        return self._gram.sum().abs().sqrt() if done is None else done

    def products(self, factors: paddle.Tensor) -> paddle.Tensor:
        return self._from_entries(paddle.matmul(self._left_gram, self._scaled(factors)))

    def products_with(self, matrix: paddle.Tensor) -> paddle.Tensor:
        return self._from_entries(paddle.matmul(self._left, matrix))

    def _scaled(self, factors: paddle.Tensor) -> paddle.Tensor:
        """Factors times the entries, shape [sum of M, D]."""
        factors = factors.reshape([-1, 1])
        if self._task_of_column is not None:
            factors = paddle.matmul(self._task_of_column, factors)
        return self._right * factors

    def _from_entries(self, rows: paddle.Tensor) -> paddle.Tensor:
        """F_k times its block of the rows."""
        width = self._widths[0]
        if self._widths == [width] * len(self._widths):
            by_task = [len(self._widths), width, -1]
            return paddle.matmul(
                self._right.reshape(by_task), rows.reshape(by_task), transpose_x=True
            )
        blocks = zip(self._right.split(self._widths), rows.split(self._widths))
        return paddle.stack([paddle.matmul(f, q, transpose_x=True) for f, q in blocks])


def _gram(rows: paddle.Tensor) -> paddle.Tensor:
    return paddle.matmul(rows, rows, transpose_y=True)


def _norm(matrix: paddle.Tensor) -> paddle.Tensor:
    return matrix.square().sum().sqrt()  # 30 times as fast as Paddle's own


class RotationGradients(NamedTuple):
    """R_k^T dl_k/dR_k of what rotations are trained on, shape [T, D, D].

    Attributes:
        turning: That, but for V^T V, which is symmetric and so turns nothing.
        shares: V is the sum of shares_j G_j, shape [T]; None if nothing is left out.
    """

    turning: paddle.Tensor
    shares: paddle.Tensor | None

    def whole(self) -> paddle.Tensor:
        """With V^T V, shape [T, D, D]."""
        if self.shares is None:
            return self.turning
        tasks = self.turning.shape[0]
        flat = self.turning.reshape([tasks, -1])
        squares = paddle.matmul(self.shares.expand([tasks, tasks]), flat)  # for every task
        return (flat - squares).reshape(self.turning.shape)


def rotation_gradients(
    gradients: LatentGradients, pulls: paddle.Tensor | None, divisor: float
) -> RotationGradients:
    """R_k^T dl_k/dR_k of the losses l_k that turn all gradients one way.

    The common direction is v_n = ||mean_j G_j|| mean_j(pull_j g_jn / ||G_j||), a constant,
    and l_k = sum_n ||R_k v_n - R_k g_kn||^2 / divisor, where R_k g_kn, the gradient on
    the rotated point, is a constant too. Its gradient is 2 R_k (V - G_k)^T V / divisor,
    whatever R_k: what is returned does not depend on the rotation.

    Args:
        gradients: The gradients of the tasks.
        pulls: How much each task counts in the common direction, shape [T]; None for all
            alike, which is RotoGrad.
        divisor: 1, or the number of points for the mean.
    """
    shares = direction_shares(gradients.norm_of_sum(), gradients.norms)
    if pulls is not None:
        shares = shares * pulls
    return RotationGradients(gradients.products(shares) * (-2 / divisor), shares)


def direction_shares(norm_of_sum: paddle.Tensor, norms: paddle.Tensor) -> paddle.Tensor:
    """||mean_j G_j|| / T / ||G_k||, which G_k is multiplied by in the common direction.

    Args:
        norm_of_sum: ||sum_j G_j||, shape [].
        norms: ||G_k||, shape [T].
    """
    done = operators.balancing.direction_shares(norm_of_sum, norms, _SMALLEST_NORM)
    if done is not None:
        return done
    return norm_of_sum / norms.shape[0] ** 2 / (norms + _SMALLEST_NORM)


def cooperative(turning: paddle.Tensor, own: paddle.Tensor) -> paddle.Tensor:
    """Both gradients on each rotation together, each brought to the norm of their mean.

    Source: version 0.1.2 of the released package.

    Args:
        turning: From ``rotation_gradients``, the whole, shape [T, D, D].
        own: R_k^T dL_k/dR_k of the tasks' own losses, shape [T, D, D].
    """
    combined = []
    for pair in zip(paddle.unbind(turning), paddle.unbind(own)):
        mean_norm = _norm((pair[0] + pair[1]) / 2)
        scaled = [part * (mean_norm / _norm(part).clip(min=_SMALLEST_NORM)) for part in pair]
        combined.append(scaled[0] + scaled[1])
    return paddle.stack(combined)


def size_factors(norms: paddle.Tensor, initial_norms: paddle.Tensor) -> paddle.Tensor:
    """Factors that bring all gradients to one norm, a mean of theirs, shape [T].

    A task counts in that mean by how far its own norm is still from zero, relative to the
    initial one: slow tasks decide.

    Args:
        norms: ||G_k||, shape [T].
        initial_norms: ||G_k|| when the references were taken, shape [T].

    Examples:
        >>> import paddle
        >>> norms = paddle.to_tensor([1.0, 4.0])
        >>> (size_factors(norms, paddle.to_tensor([1.0, 4.0])) * norms).tolist()
        [2.5, 2.5]
    """
    norms = norms.clip(min=_SMALLEST_NORM)
    remaining = norms / initial_norms.clip(min=_SMALLEST_NORM)
    return (remaining / remaining.sum() * norms).sum() / norms


def softmax_weights(logits: paddle.Tensor) -> paddle.Tensor:
    """Weights above 0 that sum to their number T, shape [T]."""
    return paddle.nn.functional.softmax(logits) * logits.shape[0]


def logit_gradient(
    weights: paddle.Tensor,
    norms: paddle.Tensor,
    common_norm: paddle.Tensor,
    rate_powers: paddle.Tensor,
    through_sum: bool = True,
) -> paddle.Tensor:
    """Gradient of sum_k | w_k ||G_k|| - common_norm r_k^alpha | on the logits of w, shape [T].

    As GradNorm's rule, but for two things: the targets follow the norm of the mean gradient,
    where GradNorm takes the mean of the norms, so that gradients which cancel each other
    pull the weights down; and the weights are a softmax, where GradNorm renormalises.

    Args:
        weights: w = T softmax(logits), shape [T].
        norms: ||G_k||, shape [T].
        common_norm: ||mean_k(w_k G_k)||, a constant, shape [].
        rate_powers: r ** alpha, a constant, shape [T].
        through_sum: Whether to differentiate the sum in the softmax; if not, it counts
            as a constant, as in version 0.1.2.
    """
    arguments = (weights, norms, common_norm, rate_powers, through_sum)
    done = operators.balancing.logit_gradient(*arguments)
    if done is not None:
        return done
    weight_gradient = (weights * norms - common_norm * rate_powers).sign() * norms
    if through_sum:
        weight_gradient = weight_gradient - (weight_gradient * weights).mean()
    return weights * weight_gradient
