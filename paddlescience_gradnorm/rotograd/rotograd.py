"""RotoGrad and RotoGradNorm: gradients on a shared representation that agree in size too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
import paddle

from paddlescience_gradnorm._layers import shielded_parameter
from paddlescience_gradnorm.rotograd._gradients import (
    Sizes,
    logit_gradient,
    norm_of_sum,
    size_factors,
    softmax_weights,
)
from paddlescience_gradnorm.rotograd.rotate_only import VERSIONS, RotateOnly


class RotoGrad(RotateOnly):
    """Rotations as in ``RotateOnly``, and gradients of one size.

    The gradients on the representation are scaled to one norm before they are added. It is a
    mean of their norms in which slow tasks count more. Version 0.1.2 came before the paper's
    last form and adds them as they are, so that this is ``RotateOnly``.

    Args and Raises: as for ``RotateOnly``.

    Examples:
        >>> import paddle
        >>> trunk = paddle.nn.Sequential(paddle.nn.Linear(2, 8), paddle.nn.Tanh())
        >>> model = RotoGrad(trunk, [paddle.nn.Linear(8, 1) for _ in range(3)], latent_size=8)
        >>> u, v, p = model(paddle.rand([4, 2]))
        >>> total = model.backward([u.square().mean(), 9 * v.abs().mean(), (p - 1).square().mean()])
        >>> list(trunk[0].weight.grad.shape)
        [2, 8]
    """

    def _factors(self, sizes: Sizes, trained: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        if self.version == "0.1.2":
            return super()._factors(sizes, trained)
        return size_factors(sizes.norms, sizes.initial_norms), []


class RotoGradNorm(RotateOnly):
    """Rotations as in ``RotateOnly``, and learned weights for the gradients' sizes.

    The weights are RotoGrad's variant of GradNorm (Chen et al., ICML 2018, arXiv:1711.02257):
    a softmax times T, trained by the same optimizer as the rotations. They scale the tasks'
    gradients on the representation. Heads are trained on the bare losses.

    In version 0.1.2 the softmax's sum counts as a constant in the weights' gradient, and
    ``alpha`` acts on the rotations as well.

    Args:
        backbone: As for ``RotateOnly``, like all arguments but alpha.
        heads: T layers, at least 2.
        latent_size: What is rotated.
        alpha: Strength of the pull towards equal training rates, at least 0.
        burn_in_period: Number of steps after which the references are taken once more.
        normalize_losses: Differentiate L / L(0) in place of L.
        post_shape: Trailing dimensions of z that are not rotated.
        version: The release of the package to follow.

    Raises:
        TypeError: As for ``RotateOnly``.
        ValueError: As for ``RotateOnly``.

    Examples:
        >>> import paddle
        >>> trunk = paddle.nn.Sequential(paddle.nn.Linear(2, 8), paddle.nn.Tanh())
        >>> model = RotoGradNorm(trunk, [paddle.nn.Linear(8, 1) for _ in range(3)], 8, alpha=1.0)
        >>> u, v, p = model(paddle.rand([4, 2]))
        >>> total = model.backward([u.square().mean(), 9 * v.abs().mean(), (p - 1).square().mean()])
        >>> model.weight.tolist()
        [1.0, 1.0, 1.0]
    """

    _versions_with_alpha = VERSIONS

    def __init__(
        self,
        backbone: paddle.nn.Layer,
        heads: Sequence[paddle.nn.Layer],
        latent_size: Union[int, Sequence[int]],
        alpha: float = 1.0,
        burn_in_period: int = 20,
        normalize_losses: bool = False,
        post_shape: Sequence[int] = (),
        *,
        version: str = "0.1.6",
    ) -> None:
        super().__init__(
            backbone,
            heads,
            latent_size,
            burn_in_period,
            normalize_losses,
            post_shape,
            alpha=alpha,
            version=version,
        )
        self.references.weight_logits = shielded_parameter(
            np.zeros(len(self)), self.rotations.base.dtype
        )

    @property
    def weight(self) -> paddle.Tensor:
        """The weights of the tasks' gradients, without a gradient; they sum to T, shape [T]."""
        return paddle.to_tensor(self.get_weights(), place=self.references.weight_logits.place)

    def get_weights(self) -> np.ndarray:
        """The weights that the next step will use, a copy, shape [T]."""
        logits = self.references.weight_logits.numpy()
        return softmax_weights(logits.astype(np.float64)).astype(logits.dtype)

    def _trained_sizes(self) -> list[paddle.Tensor]:
        return [self.references.weight_logits]

    def _needs_rates(self) -> bool:
        return True

    def _factors(self, sizes: Sizes, trained: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        weights = softmax_weights(trained)
        common_norm = norm_of_sum(sizes.gram, weights) / len(self)
        through_sum = self.version != "0.1.2"
        return weights, [
            logit_gradient(weights, sizes.norms, common_norm, sizes.rate_powers, through_sum)
        ]
