"""RotoGrad and RotoGradNorm: gradients on a shared representation that agree in size too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
import paddle

from paddlescience_gradnorm.balancing.rotograd import (
    LatentGradients,
    logit_gradient,
    size_factors,
    softmax_weights,
)
from paddlescience_gradnorm.network.references import if_usable
from paddlescience_gradnorm.network.rotate_only import VERSIONS, RotateOnly
from paddlescience_gradnorm.shielded import add_gradient, shield, shielded_parameter


class RotoGrad(RotateOnly):
    """Rotations as in ``RotateOnly``, and gradients of one size.

    The gradients on the representation are scaled to one norm before they are added, a mean of
    theirs in which slow tasks count more. In version 0.1.2, which came before the
    paper's last form, they are added as they are, and this is ``RotateOnly``.

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

    def _combined(
        self,
        gradients: LatentGradients,
        powers: paddle.Tensor | None,
        usable: Union[bool, paddle.Tensor],
    ) -> paddle.Tensor:
        if self.version == "0.1.2":
            return super()._combined(gradients, powers, usable)
        return gradients.combined(size_factors(gradients.norms, self.references.initial_norms))


class RotoGradNorm(RotateOnly):
    """Rotations as in ``RotateOnly``, and learned weights for the gradients' sizes.

    The weights are RotoGrad's variant of GradNorm (Chen et al., ICML 2018, arXiv:1711.02257):
    a softmax times T, trained by the same optimizer as the rotations. They
    scale the tasks' gradients on the representation; heads are trained on the bare losses.

    In version 0.1.2 the softmax's sum counts as a constant in the weights' gradient, and
    ``alpha`` acts on the rotations as well.

    Args:
        backbone: As for ``RotateOnly``, as is all but alpha.
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
            np.zeros(len(self)), self.references.dtype
        )

    @property
    def weight(self) -> paddle.Tensor:
        """The weights of the tasks' gradients, without a gradient; they sum to T, shape [T]."""
        with paddle.no_grad():
            return softmax_weights(self.references.weight_logits)

    def get_weights(self) -> np.ndarray:
        """The weights that the next step will use, a copy, shape [T]."""
        return self.weight.numpy().copy()

    def mtl_parameters(self) -> list[paddle.Tensor]:
        return [*super().mtl_parameters(), self.references.weight_logits]

    def _needs_rates(self) -> bool:
        return True

    def _combined(
        self, gradients: LatentGradients, powers: paddle.Tensor, usable: Union[bool, paddle.Tensor]
    ) -> paddle.Tensor:
        weights, logits = self.weight, self.references.weight_logits
        combined = gradients.combined(weights)
        common_norm = gradients.norm_of(weights) / len(self)
        gradient = logit_gradient(
            weights, gradients.norms, common_norm, powers, through_sum=self.version != "0.1.2"
        )
        shield(logits)
        add_gradient(logits, if_usable(gradient, usable))
        return combined
