"""The mathematics of RotoGrad: gradients on a shared representation, their direction and size.

Source: Javaloy and Valera, "RotoGrad: Gradient Homogenization in Multitask Learning", ICLR 2022,
arXiv:2103.02631.

The representation Z has a row for every point, shape [N, D]. Task k sees its rows rotated,
r = R_k z. G_k = dL_k/dZ is the gradient of its loss on Z. These matrices are tensors, and stay
where they are. The T x T numbers <G_i, G_j>, and all that is computed from them, are numpy arrays
on the host, because Paddle takes longer to start an operator than numpy takes for a handful of
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import paddle

from paddlescience_gradnorm.balancing.rules._rates import inverse_training_rates

# A task whose gradient is zero has no direction. It gets one of zero length, and not 0 / 0.
_SMALLEST_NORM = 1e-15


class LatentGradients:
    """The gradients G_k of T losses on the representation.

    Args:
        gradients: T matrices G_k, shape [N, D] each.

    Attributes:
        products_of_columns: What ``gram`` needs on the host, shape [C, C].

    Examples:
        >>> import paddle
        >>> gradients = LatentGradients([paddle.ones([4, 1]), -paddle.ones([4, 1])])
        >>> gradients.gram(gradients.products_of_columns.numpy()).tolist()
        [[4.0, -4.0], [-4.0, 4.0]]
    """

    products_of_columns: paddle.Tensor

    def __init__(self, gradients: Sequence[paddle.Tensor]) -> None:
        self._stacked = paddle.stack(gradients)
        self._flat = self._stacked.reshape([len(gradients), -1])
        self.products_of_columns = _products_of_rows(self._flat)

    def gram(self, products_of_columns: np.ndarray) -> np.ndarray:
        """<G_i, G_j>, shape [T, T], from the attribute of this name, on the host."""
        return products_of_columns

    def combined(self, factors: paddle.Tensor) -> paddle.Tensor:
        """sum_k factors_k G_k, shape [N, D], for factors of shape [T]."""
        # A row times a matrix, because Paddle is slow at a scalar times a matrix.
        combined = paddle.matmul(factors.reshape([1, -1]), self._flat)
        return combined.reshape(self._stacked.shape[1:])

    def times_combined(self, factors: paddle.Tensor) -> paddle.Tensor:
        """G_k^T sum_j factors_j G_j, shape [T, D, D]."""
        return self.times(self.combined(factors))

    def times(self, matrix: paddle.Tensor) -> paddle.Tensor:
        """G_k^T matrix, shape [T, D, D], for a matrix of shape [N, D]."""
        return paddle.matmul(self._stacked, matrix, transpose_x=True)


class FactoredGradients(LatentGradients):
    """The same for G_k = P_k F_k^T, with factors that have few columns.

    A head that reads the representation through a matrix F_k, Y_k = Z F_k, has such a
    gradient, with P_k = dL_k/dY_k. No G_k is ever multiplied out.

    Args:
        outputs: T matrices P_k, shape [N, M_k] each.
        entries: T matrices F_k, shape [D, M_k] each.

    Examples:
        >>> import paddle
        >>> ones = paddle.ones([4, 1])
        >>> gradients = FactoredGradients([ones, -ones], [paddle.ones([9, 1])] * 2)
        >>> gradients.gram(gradients.products_of_columns.numpy()).tolist()
        [[36.0, -36.0], [-36.0, 36.0]]
        >>> gradients.combined(paddle.to_tensor([1.0, 0.5]))[0, 0].item()
        0.5
    """

    def __init__(self, outputs: Sequence[paddle.Tensor], entries: Sequence[paddle.Tensor]) -> None:
        self._widths = [entry.shape[1] for entry in entries]
        # Columns become rows here, because Paddle is quicker to join rows.
        rows = [p.reshape([1, -1]) if p.shape[1] == 1 else p.t() for p in outputs]
        self._left = paddle.concat(rows)
        self._right = paddle.concat(entries, axis=1).t()
        self._left_products = _products_of_rows(self._left)
        self.products_of_columns = self._left_products * _products_of_rows(self._right)

    def gram(self, products_of_columns: np.ndarray) -> np.ndarray:
        if max(self._widths) == 1:
            return products_of_columns
        # The inner product of two tasks is the sum over their columns.
        starts = np.cumsum([0, *self._widths[:-1]])
        return np.add.reduceat(np.add.reduceat(products_of_columns, starts, 0), starts, 1)

    def combined(self, factors: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(self._left, self._scaled(factors), transpose_x=True)

    def times_combined(self, factors: paddle.Tensor) -> paddle.Tensor:
        return self._from_entries(paddle.matmul(self._left_products, self._scaled(factors)))

    def times(self, matrix: paddle.Tensor) -> paddle.Tensor:
        return self._from_entries(paddle.matmul(self._left, matrix))

    def _scaled(self, factors: paddle.Tensor) -> paddle.Tensor:
        """The entries times the factors of their tasks, shape [sum of M, D]."""
        if max(self._widths) > 1:
            factors = paddle.repeat_interleave(factors, paddle.to_tensor(self._widths))
        return self._right * factors.reshape([-1, 1])

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


def _products_of_rows(rows: paddle.Tensor) -> paddle.Tensor:
    return paddle.matmul(rows, rows, transpose_y=True)


class Sizes(NamedTuple):
    """How large the gradients of T tasks are in one step; host arrays in float64.

    Attributes:
        gram: <G_i, G_j>, shape [T, T].
        norms: ||G_k||, shape [T].
        initial_norms: ||G_k|| when the references were taken, shape [T].
        rate_powers: r_k ** alpha of the inverse training rates r_k, shape [T]; all 1 where no
            training rates are needed.
    """

    gram: np.ndarray
    norms: np.ndarray
    initial_norms: np.ndarray
    rate_powers: np.ndarray


class RotationGradients(NamedTuple):
    """R_k^T dl_k/dR_k of the losses l_k that rotations are trained on, shape [T, D, D].

    Attributes:
        turning: The same without V^T V, which is symmetric and so turns nothing.
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
    gradients: LatentGradients, shares: paddle.Tensor, divisor: float
) -> RotationGradients:
    """R_k^T dl_k/dR_k of the losses l_k that turn all gradients one way.

    V = sum_j shares_j G_j has the common direction v_n of every point n in its rows, and is a
    constant. l_k = sum_n ||R_k v_n - R_k g_kn||^2 / divisor, where R_k g_kn, the gradient on the
    rotated point, is a constant too. The gradient of l_k is 2 R_k (V - G_k)^T V / divisor for any
    R_k. So the result does not depend on the rotation.

    Args:
        gradients: The gradients of the tasks.
        shares: From ``direction_shares``, shape [T].
        divisor: 1, or the number of points for the mean.
    """
    return RotationGradients(gradients.times_combined(shares) * (-2 / divisor), shares)


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


def _norm(matrix: paddle.Tensor) -> paddle.Tensor:
    return matrix.square().sum().sqrt()  # 30 times as fast as Paddle's own


def norm_of_sum(gram: np.ndarray, factors: np.ndarray) -> float:
    """||sum_k factors_k G_k||.

    Args:
        gram: <G_i, G_j>, shape [T, T].
        factors: Shape [T].
    """
    # The square falls below zero where gradients cancel each other to rounding.
    return float(np.sqrt(abs(factors @ gram @ factors)))


def direction_shares(gram: np.ndarray, pulls: np.ndarray) -> np.ndarray:
    """What each G_k is multiplied by in the common direction, shape [T].

    The common direction is v_n = ||mean_j G_j|| mean_j(pull_j g_jn / ||G_j||) at point n.

    Args:
        gram: <G_i, G_j>, shape [T, T].
        pulls: How much each task counts, shape [T]; all 1 in RotoGrad.

    Examples:
        >>> direction_shares(np.diag([9.0, 16.0]), np.ones(2)).round(4).tolist()
        [0.4167, 0.3125]
    """
    norms = np.sqrt(np.abs(gram.diagonal()))
    length = norm_of_sum(gram, np.ones(len(gram)))
    return pulls * length / len(gram) ** 2 / (norms + _SMALLEST_NORM)


def size_factors(norms: np.ndarray, initial_norms: np.ndarray) -> np.ndarray:
    """Factors that bring all gradients to one norm, a mean of their norms, shape [T].

    A task counts in the mean by how far its own norm is still from zero, relative to the
    initial one. So slow tasks decide.

    Args:
        norms: ||G_k||, shape [T].
        initial_norms: ||G_k|| when the references were taken, shape [T].

    Examples:
        >>> norms = np.array([1.0, 4.0])
        >>> (size_factors(norms, norms) * norms).tolist()
        [2.5, 2.5]
    """
    norms = np.maximum(norms, _SMALLEST_NORM)
    remaining = norms / np.maximum(initial_norms, _SMALLEST_NORM)
    return (remaining / remaining.sum() * norms).sum() / norms


def inverse_rate_powers(losses: np.ndarray, initial_losses: np.ndarray, alpha: float) -> np.ndarray:
    """r_k ** alpha of the inverse training rates r_k, shape [T].

    A rate that is negative or unknown gives NaN, whatever alpha.

    Args:
        losses: L, shape [T].
        initial_losses: Their references L(0), shape [T].
        alpha: The exponent, at least 0.

    Examples:
        >>> inverse_rate_powers(np.array([1.0, 6.0]), np.array([2.0, 4.0]), 2.0).tolist()
        [0.25, 2.25]
    """
    rates = inverse_training_rates(losses, initial_losses)
    return np.where(rates >= 0, rates**alpha, np.nan)


def softmax_weights(logits: np.ndarray) -> np.ndarray:
    """Weights above 0 that sum to their number T, shape [T].

    Examples:
        >>> softmax_weights(np.log([1.0, 3.0])).round(4).tolist()
        [0.5, 1.5]
    """
    powers = np.exp(logits - logits.max())
    return powers * (len(powers) / powers.sum())


def logit_gradient(
    weights: np.ndarray,
    norms: np.ndarray,
    common_norm: float,
    rate_powers: np.ndarray,
    through_sum: bool = True,
) -> np.ndarray:
    """Gradient of sum_k | w_k ||G_k|| - common_norm r_k^alpha | on the logits of w, shape [T].

    This is GradNorm's rule but for two things. The targets follow the norm of the mean
    gradient, where GradNorm takes the mean of the norms, so that gradients which cancel each
    other pull the weights down. And the weights are a softmax, where GradNorm renormalises.

    Args:
        weights: w = T softmax(logits), shape [T].
        norms: ||G_k||, shape [T].
        common_norm: ||mean_k(w_k G_k)||, a constant.
        rate_powers: r ** alpha, a constant, shape [T].
        through_sum: Whether to differentiate the sum in the softmax; if not, it counts
            as a constant, as in version 0.1.2.

    Examples:
        >>> ones = np.ones(2)
        >>> logit_gradient(ones, np.array([3.0, 1.0]), 1.5, ones).tolist()
        [2.0, -2.0]
    """
    weight_gradient = np.sign(weights * norms - common_norm * rate_powers) * norms
    if through_sum:
        weight_gradient = weight_gradient - (weight_gradient * weights).mean()
    return weights * weight_gradient
