"""The mathematics of RotoGrad: gradients on a shared representation, their direction and size.

Javaloy and Valera, "RotoGrad: Gradient Homogenization in Multitask Learning", ICLR 2022,
arXiv:2103.02631. The representation Z has a row for every point, shape [N, D]. Task k sees
its rows rotated, r = R_k z, and G_k = dL_k/dZ is the gradient of its loss on Z.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle

# A task whose gradient is zero has no direction. It gets one of no length, not 0 / 0.
_SMALLEST_NORM = 1e-15


class LatentGradients:
    """The gradients G_k of T losses on the representation.

    A head reads the representation through a matrix, Y_k = Z F_k: its rotation, or its
    first layer's weight with the rotation in it. So G_k = P_k F_k^T with P_k = dL_k/dY_k,
    and where F_k is narrow, a product with G_k is cheaper through its factors.

    Args:
        outputs: T matrices P_k, shape [N, M_k] each.
        entries: T matrices F_k, shape [D, M_k] each.

    Example:
        >>> import paddle
        >>> ones = paddle.ones([4, 1])
        >>> gradients = LatentGradients([ones, -ones], [paddle.ones([2, 1])] * 2)
        >>> gradients.combined(paddle.to_tensor([1.0, 0.5])).shape[0], gradients.norms.tolist()
        (4, [2.8284270763397217, 2.8284270763397217])
    """

    def __init__(self, outputs: Sequence[paddle.Tensor], entries: Sequence[paddle.Tensor]) -> None:
        self._outputs, self._entries = outputs, entries
        self._full = [paddle.matmul(p, f, transpose_y=True) for p, f in zip(outputs, entries)]
        self._flat = paddle.stack(self._full).reshape([len(outputs), -1])
        self.norms = paddle.stack([norm(gradient) for gradient in self._full])

    def combined(self, factors: paddle.Tensor) -> paddle.Tensor:
        """sum_k factors_k G_k, shape [N, D], for factors of shape [T]."""
        # One product of a row with a matrix: a scalar times a matrix takes Paddle longer.
        return paddle.matmul(factors.unsqueeze(0), self._flat).reshape(self._full[0].shape)

    def transposed_times(self, matrix: paddle.Tensor) -> paddle.Tensor:
        """G_k^T matrix, shape [T, D, D], for a matrix of shape [N, D]."""
        return paddle.stack(
            [
                paddle.matmul(f, paddle.matmul(p, matrix, transpose_x=True))
                if f.shape[1] < f.shape[0]
                else paddle.matmul(g, matrix, transpose_x=True)
                for g, p, f in zip(self._full, self._outputs, self._entries)
            ]
        )


def norm(matrix: paddle.Tensor) -> paddle.Tensor:
    """Frobenius norm, shape []."""
    return matrix.square().sum().sqrt()  # 30 times as fast as Paddle's own


def rotation_gradients(
    gradients: LatentGradients, pulls: paddle.Tensor, divisor: float
) -> paddle.Tensor:
    """R_k^T dl_k/dR_k of the losses l_k that turn all gradients one way.

    The common direction is v_n = ||mean_j G_j|| mean_j(pull_j g_jn / ||G_j||), a constant,
    and l_k = sum_n ||R_k v_n - R_k g_kn||^2 / divisor, where R_k g_kn, the gradient on
    the rotated point, is a constant too. Its gradient is 2 R_k (V - G_k)^T V / divisor,
    whatever R_k: what is returned does not depend on the rotation.

    Args:
        gradients: The gradients of the tasks.
        pulls: How much each task counts in the common direction, shape [T]; 1 is RotoGrad.
        divisor: 1, or the number of points for the mean.

    Returns:
        Shape [T, D, D].
    """
    tasks = pulls.shape[0]
    mean = gradients.combined(paddle.full([tasks], 1 / tasks, pulls.dtype))
    shares = norm(mean) * pulls / gradients.norms.clip(min=_SMALLEST_NORM) / tasks
    products = gradients.transposed_times(gradients.combined(shares))  # G_k^T V
    size = products.shape[1]
    of_direction = paddle.matmul(shares.unsqueeze(0), products.reshape([tasks, -1]))  # V^T V
    return (of_direction.reshape([1, size, size]) - products) * (2 / divisor)


def cooperative(turning: paddle.Tensor, own: paddle.Tensor) -> paddle.Tensor:
    """Both gradients on each rotation together, each brought to the norm of their mean.

    Source: version 0.1.2 of the released package.

    Args:
        turning: From :func:`rotation_gradients`, shape [T, D, D].
        own: R_k^T dL_k/dR_k of the tasks' own losses, shape [T, D, D].
    """
    combined = []
    for pair in zip(paddle.unbind(turning), paddle.unbind(own)):
        mean_norm = norm((pair[0] + pair[1]) / 2)
        scaled = [part * (mean_norm / norm(part).clip(min=_SMALLEST_NORM)) for part in pair]
        combined.append(scaled[0] + scaled[1])
    return paddle.stack(combined)


def size_factors(norms: paddle.Tensor, initial_norms: paddle.Tensor) -> paddle.Tensor:
    """Factors that bring all gradients to one norm, a mean of theirs, shape [T].

    A task counts in that mean by how far its own norm is still from zero, relative to the
    initial one: slow tasks decide.

    Args:
        norms: ||G_k||, shape [T].
        initial_norms: ||G_k|| when the references were taken, shape [T].

    Example:
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
    weight_gradient = (weights * norms - common_norm * rate_powers).sign() * norms
    if through_sum:
        weight_gradient = weight_gradient - (weight_gradient * weights).mean()
    return weights * weight_gradient
