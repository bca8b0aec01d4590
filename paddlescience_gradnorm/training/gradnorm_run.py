"""train_gradnorm: a whole run with GradNorm in one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from paddlescience_gradnorm.balancing._losses import count
from paddlescience_gradnorm.balancing._options import Shared
from paddlescience_gradnorm.balancing.balancer import LossBalancer
from paddlescience_gradnorm.training._batches import as_arguments
from paddlescience_gradnorm.training.history import History
from paddlescience_gradnorm.training.trainer import Trainer

if TYPE_CHECKING:
    from numpy.typing import NDArray


def train_gradnorm(
    net: paddle.nn.Layer,
    layer: Shared,
    alpha: float,
    dataloader: Iterable[Any],
    num_epochs: int,
    lr: float,
    weight_lr: float,
    log: bool = True,
    progress: bool | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Train a multitask network and the weights of its losses, both by Adam.

    Source: Chen et al., "GradNorm", ICML 2018, arXiv:1711.02257. For schedules, other
    optimizers, callbacks and the gradient norms use ``Trainer``.

    Args:
        net: The network, which gives the losses: ``net(*batch)`` is a list or tuple of scalars, a
            1-D tensor, or a dict name -> scalar, of at least two losses.
        layer: The shared parameters W, usually the last layer that all tasks share: a
            layer, a parameter, or a list of either.
        alpha: Strength of the pull towards equal training rates, at least 0.
        dataloader: The batches of an epoch, such as a ``paddle.io.DataLoader``. It is asked
            once more, at the start, for a batch to count the losses by.
        num_epochs: Number of epochs, at least 1.
        lr: Adam's learning rate for the network.
        weight_lr: Adam's learning rate for the weights: about as much they move in a step.
        log: Whether to return the two arrays.
        progress: Whether to show how far the run is, as for ``Trainer``.

    Returns:
        ``(log_weights, log_loss)``, shape [steps, T] each: the weights that acted in every
        step, which sum to T, and the unweighted losses at its start. ``None`` without ``log``.

    Raises:
        TypeError: An argument is of the wrong type, such as a generator for ``dataloader``.
        ValueError: An argument is out of range, there is no batch, or a loss does not depend
            on ``layer``.

    Examples:
        >>> import paddle
        >>> class Fit(paddle.nn.Layer):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk = paddle.nn.Linear(1, 8)
        ...         self.heads = paddle.nn.LayerList([paddle.nn.Linear(8, 1) for _ in range(2)])
        ...     def forward(self, x):
        ...         hidden = self.trunk(x).tanh()
        ...         targets = (x.sin(), 100 * x.cos())
        ...         return [(h(hidden) - y).square().mean() for h, y in zip(self.heads, targets)]
        >>> net = Fit()
        >>> batches = paddle.io.DataLoader(
        ...     paddle.io.TensorDataset([paddle.rand([64, 1])]), batch_size=16
        ... )
        >>> log_weights, log_loss = train_gradnorm(net, net.trunk, 0.12, batches, 2, 1e-3, 1e-2)
        >>> log_weights.shape, bool(log_weights[-1, 0] > log_weights[-1, 1])
        ((8, 2), True)
    """
    if iter(dataloader) is dataloader:
        raise TypeError(
            f"dataloader must start anew in every epoch, got {type(dataloader).__name__}, which "
            "can be run through once; pass a paddle.io.DataLoader or a list of batches"
        )
    optimizers = [paddle.optimizer.Adam(lr, parameters=net.parameters())]
    balancer = LossBalancer(layer, _count_losses(net, dataloader), alpha, weight_lr=None)
    optimizers.append(paddle.optimizer.Adam(weight_lr, parameters=balancer.parameters()))
    trainer = Trainer(
        net,
        lambda net, *batch: net(*batch),
        optimizers,
        balancer,
        progress=progress,
        history=History(limit=None) if log else None,
    )
    history = trainer.fit(dataloader, num_epochs).to_numpy()
    return (history["weights"], history["losses"]) if log else None


def _count_losses(net: paddle.nn.Layer, dataloader: Iterable[Any]) -> int:
    """How many losses the network gives, found in evaluation mode, which leaves its state alone."""
    net.eval()
    for batch in dataloader:
        losses = net(*as_arguments(batch, net))
        net.train()
        return count(losses)
    raise ValueError(f"dataloader has no batch: {dataloader!r}")
