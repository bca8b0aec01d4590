"""RotateOnly: several heads on one backbone, whose gradients are turned one way."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import paddle

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm._layers import PicklableLayer, shield
from paddlescience_gradnorm.balancing._losses import Losses, LossOrder
from paddlescience_gradnorm.balancing._one_pass import explaining_a_used_graph
from paddlescience_gradnorm.rotograd._gradients import (
    LatentGradients,
    RotationGradients,
    Sizes,
    cooperative,
    direction_shares,
    inverse_rate_powers,
    rotation_gradients,
)
from paddlescience_gradnorm.rotograd._latent_cut import LatentCut, LatentSpace, latent_gradients
from paddlescience_gradnorm.rotograd._references import References
from paddlescience_gradnorm.rotograd.rotations import Rotations, add_gradient

VERSIONS = ("0.1.6", "0.1.2")
MANY_PASSES = 200  # more than a step has, so that they are evaluations


class RotateOnly(PicklableLayer):
    """A backbone and T heads, each behind a rotation that turns its gradient towards the others'.

    Head k gets R_k z in place of z. ``backward`` differentiates every head once and the
    backbone once, and gives each rotation its gradient towards a common direction. Rotations
    start as the identity. Source: Javaloy and Valera, "RotoGrad", ICLR 2022, arXiv:2103.02631,
    the part that acts on directions. Details follow its released package.

    In training mode the backbone is cut off its heads. So a prediction cannot be differentiated
    in the model's input, and for a PINN the backbone returns the derivatives as further vectors
    of z. Several calls of the model may precede one ``backward``; until then it keeps their graphs.
    So evaluate it after ``eval()`` or within ``paddle.no_grad()``.

    Args:
        backbone: Returns the representation z, shape [..., *latent_size, *post_shape], or a
            tuple (z, *extras).
        heads: T layers, at least 2, from a tensor like z to a prediction, or to a tuple
            (prediction, *extras).
        latent_size: What is rotated: the length D of z's last dimension, or a shape whose
            entries are rotated together.
        burn_in_period: The references are the losses and gradient norms of the first step. After
            this number of steps they are taken once more.
        normalize_losses: Differentiate L / L(0) in place of L, for the heads' parameters too.
        post_shape: Trailing dimensions of z that are not rotated, such as those of an image.
        alpha: How strongly a slow task draws the common direction its way, at least 0;
            only in version 0.1.2.
        version: The release of the package to follow, "0.1.6" or "0.1.2". The newer one sums
            the distances from the common direction over the points, and has no ``alpha``. The
            older one takes their mean, as the newer one does with ``post_shape``.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or there are fewer than two heads.

    Examples:
        >>> import paddle
        >>> from paddlescience_gradnorm import FCNet
        >>> heads = [paddle.nn.Linear(16, 1) for _ in range(2)]
        >>> model = RotateOnly(FCNet(2, 16, 3, 16), heads, latent_size=16)
        >>> optimizers = [
        ...     paddle.optimizer.Adam(1e-3, parameters=model.model_parameters()),
        ...     paddle.optimizer.Adam(1e-4, parameters=model.mtl_parameters()),
        ... ]
        >>> for _ in range(3):
        ...     u, v = model(paddle.rand([8, 2]))
        ...     total = model.backward([(u - 1).square().mean(), (9 * v).square().mean()])
        ...     for optimizer in optimizers:
        ...         optimizer.step()
        ...         optimizer.clear_grad()
        >>> len(model), list(model.rotation.shape), list(model[1](paddle.rand([5, 2])).shape)
        (2, [2, 16, 16], [5, 1])
    """

    _versions_with_alpha: tuple[str, ...] = ("0.1.2",)

    def __init__(
        self,
        backbone: paddle.nn.Layer,
        heads: Sequence[paddle.nn.Layer],
        latent_size: Union[int, Sequence[int]],
        burn_in_period: int = 20,
        normalize_losses: bool = False,
        post_shape: Sequence[int] = (),
        *,
        alpha: float = 0.0,
        version: str = "0.1.6",
    ) -> None:
        super().__init__()
        layers = _checked_layers(backbone, heads)
        self.space = LatentSpace(
            _checked_shape("latent_size", latent_size), _checked_shape("post_shape", post_shape)
        )
        if not self.space.shape:
            raise ValueError(f"latent_size must have at least one dimension, got {latent_size!r}")
        self.burn_in_period = _arguments.integer("burn_in_period", burn_in_period, at_least=0)
        if not isinstance(normalize_losses, bool):
            raise TypeError(f"normalize_losses must be True or False, got {normalize_losses!r}")
        self.normalize_losses = normalize_losses
        if version not in VERSIONS:
            raise ValueError(f"version must be one of {VERSIONS}, got {version!r}")
        self.version = version
        if not 0 <= _arguments.number("alpha", alpha) < math.inf:
            raise ValueError(f"alpha must be finite and at least 0, got {alpha}")
        if alpha and version not in self._versions_with_alpha:
            raise ValueError(
                f"{type(self).__name__} has no alpha in version {version!r}, got {alpha}; "
                "leave it out, or pass version='0.1.2'"
            )
        self.alpha = float(alpha)
        self.backbone = backbone
        self.heads = paddle.nn.LayerList(layers)
        dtype = next((p.dtype for p in self.parameters()), paddle.get_default_dtype())
        if not str(dtype).endswith(("float32", "float64")):
            dtype = paddle.float32  # half precision cannot resolve a step of a rotation
        self.rotations = Rotations(len(layers), self.space.size, dtype)
        self.references = References(len(layers), self.burn_in_period)
        self._coop = False
        self._order = LossOrder(len(layers), f"there are {len(layers)} heads")
        self._cuts = _Cuts()
        # Of the last backward; in a list, because setting an attribute of a layer takes 5 us.
        self._last_turned: list[RotationGradients] = []

    def forward(self, ins: Any) -> Any:
        """All predictions.

        Args:
            ins: What the backbone takes.

        Returns:
            A list of the heads' predictions. If the backbone or a head returns extras, a
            tuple of this list and a list of the extras: first the backbone's, then a tuple
            for every head that has some.

        Raises:
            TypeError: The backbone returns no tensor.
            ValueError: The tensor does not match ``latent_size`` and ``post_shape``.

        Warns:
            RuntimeWarning: This is the 200th pass in training mode since the last ``backward``.
        """
        latent, extras = _split(self.backbone(ins))
        self.space.check(latent)
        rotations = paddle.unbind(self.rotations.matrices().astype(latent.dtype))
        if self.training and paddle.is_grad_enabled():
            cut = LatentCut(latent, self.space)
            returned = [cut.enter(head, r) for head, r in zip(self.heads, rotations)]
            self._cuts.append(cut)
            if len(self._cuts) == MANY_PASSES:
                warnings.warn(
                    f"the model was called {MANY_PASSES} times in training mode without backward, "
                    "and keeps the graph of each call; evaluate it after model.eval() or within "
                    "paddle.no_grad()",
                    RuntimeWarning,
                    stacklevel=3,
                )
        else:
            returned = [
                head(self.space.rotated(latent, r)) for head, r in zip(self.heads, rotations)
            ]
        predictions = []
        for prediction, of_head in map(_split, returned):
            predictions.append(prediction)
            extras += [tuple(of_head)] if of_head else []
        return (predictions, extras) if extras else predictions

    def backward(
        self,
        losses: Losses,
        backbone_loss: paddle.Tensor | None = None,
        retain_graph: bool = False,
    ) -> paddle.Tensor:
        """The whole backward pass; adds to ``.grad`` of all parameters, the rotations' too.

        The heads' parameters get the gradient of the sum of the losses, or of L / L(0) with
        ``normalize_losses``. The backbone's parameters get what the combined gradient on z gives.

        Args:
            losses: A loss for each head: a list or tuple of scalars, a 1-D tensor, or a dict
                name -> scalar. It may depend on the other heads as well.
            backbone_loss: A further loss, of the backbone alone, a scalar.
            retain_graph: Keep the graphs. This is needed where a loss depends on the backbone's
                parameters by another way than through its heads.

        Returns:
            The sum of the losses as they are, detached, shape [].

        Raises:
            RuntimeError: The model is in evaluation mode or has not been called, or a graph
                is gone.
            TypeError: The losses are no tensors of floating-point type.
            ValueError: They are not as many as the heads, not scalar, or a head has none.

        Warns:
            RuntimeWarning: Gradients or training rates are not finite. Rotations and weights
                then get a gradient of zero. The network's gradients are as they are.
        """
        if not self.training:
            raise RuntimeError(
                "backward was called in evaluation mode; call train() before the forward pass"
            )
        scalars = self._order.scalars(losses)
        if not self._cuts:
            raise RuntimeError(
                "backward was called before a forward pass; call the model first, in training "
                "mode and with gradients switched on"
            )
        for name, loss in zip(self._order.names, scalars):
            if loss.stop_gradient:
                raise ValueError(f"loss {name!r} does not depend on a prediction of this model")
        cuts = list(self._cuts)
        self._cuts.clear()
        with paddle.no_grad():
            return self._backward(scalars, backbone_loss, cuts, retain_graph)

    def _backward(
        self,
        scalars: list[paddle.Tensor],
        backbone_loss: paddle.Tensor | None,
        cuts: list[LatentCut],
        retain_graph: bool,
    ) -> paddle.Tensor:
        """The same for losses that have been checked."""
        dtype = self.rotations.base.dtype
        losses = paddle.stack([x if x.dtype == dtype else x.astype(dtype) for x in scalars])
        step: int = self.references.step_count.item()
        seeds = self._seeds("initial_losses", step, losses, scalars)
        with explaining_a_used_graph(", ".join(self._order.names)):
            paddle.autograd.backward(scalars, seeds, retain_graph)
        cuts = [cut for cut in cuts if cut.has_gradients()] or cuts
        gradients = latent_gradients(cuts, dtype)
        combined = gradients.combined(self._balanced(step, losses, gradients, cuts))

        ends = [cut.latent for cut in cuts]
        parts = combined.split([cut.n_rows for cut in cuts]) if len(cuts) > 1 else [combined]
        seeds = [
            self.space.from_rows(part, end.shape).astype(end.dtype)
            for part, end in zip(parts, ends)
        ]
        if backbone_loss is not None:
            own = LossOrder(1).scalars({"backbone_loss": backbone_loss})
            ends += own
            values = own[0].astype(dtype).reshape([1])
            seeds += self._seeds("initial_backbone_loss", step, values, own)
        reached = [(end, seed) for end, seed in zip(ends, seeds) if not end.stop_gradient]
        if reached:  # else the backbone is frozen
            with explaining_a_used_graph("backbone"):
                paddle.autograd.backward(*map(list, zip(*reached)), retain_graph)
        self.references.step_count.fill_(step + 1)
        return losses.sum()

    def _seeds(
        self, name: str, step: int, losses: paddle.Tensor, scalars: list[paddle.Tensor]
    ) -> list[paddle.Tensor | None]:
        """What backward starts with at each loss: 1, or 1 / L(0) of the references ``name``."""
        if not self.normalize_losses:
            return [None] * len(scalars)
        initial = self.references.take(name, step, losses.numpy())
        # A loss that has no reference yet is not normalised.
        inverse = 1 / np.where(initial > 0, initial, 1.0)
        seeds = paddle.unbind(paddle.to_tensor(inverse, losses.dtype, losses.place))
        return [seed.astype(scalar.dtype) for seed, scalar in zip(seeds, scalars)]

    def _balanced(
        self,
        step: int,
        losses: paddle.Tensor,
        gradients: LatentGradients,
        cuts: list[LatentCut],
    ) -> paddle.Tensor:
        """Give rotations and weights their gradients.

        All small numbers go to the host in one copy, and what follows from them comes back in
        another.

        Returns:
            The factors of the gradients on z that the backbone is trained on, shape [T].
        """
        n_tasks, references, trained = len(self), self.references, self._trained_sizes()
        products = gradients.products_of_columns
        copied = paddle.concat([losses, products.flatten(), *trained]).numpy()
        numbers, end = copied.astype(np.float64), n_tasks + products.size
        values, of_columns, of_trained = numbers[:n_tasks], numbers[n_tasks:end], numbers[end:]
        with np.errstate(all="ignore"):
            gram = gradients.gram(of_columns.reshape(products.shape))
            norms = np.sqrt(np.abs(gram.diagonal()))
            initial_losses = references.take("initial_losses", step, values)
            powers = np.ones(n_tasks)
            if self._needs_rates():
                powers = inverse_rate_powers(values, initial_losses, self.alpha)
            sizes = Sizes(gram, norms, references.take("initial_norms", step, norms), powers)
            pulls = powers if self.version == "0.1.2" else np.ones(n_tasks)
            shares = direction_shares(gram, pulls)
            factors, slopes = self._factors(sizes, of_trained)
            results = np.stack([factors, shares, *slopes]).astype(copied.dtype)
        usable = references.observe(step, values, norms, results[1:])
        if not usable:  # a NaN would stay in an optimizer's moments for ever
            results[1:] = 0.0
        factors, shares, *slopes = paddle.unbind(paddle.to_tensor(results, place=losses.place))
        if usable:
            turned = self._turned(gradients, shares, cuts)
        else:
            turned = RotationGradients(paddle.zeros_like(self.rotations.base), None)
        self._last_turned[:] = [turned]
        self.rotations.add_gradient(turned.turning)
        for parameter, slope in zip(trained, slopes):
            shield(parameter)
            add_gradient(parameter, slope)
        return factors

    def _trained_sizes(self) -> list[paddle.Tensor]:
        """The parameters that decide factors, shape [T] each."""
        return []

    def _needs_rates(self) -> bool:
        return self.alpha > 0

    def _factors(self, sizes: Sizes, trained: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """What each task's gradient on z is multiplied by for the backbone.

        Args:
            sizes: Of this step.
            trained: The values of ``_trained_sizes``, one parameter after the other.

        Returns:
            The factors, shape [T], and the gradient of each of ``_trained_sizes``, shape [T].
        """
        return np.ones(len(self)), []

    def _turned(
        self, gradients: LatentGradients, shares: paddle.Tensor, cuts: list[LatentCut]
    ) -> RotationGradients:
        """The gradients of the rotations."""
        is_mean = self.version == "0.1.2" or self.space.post_shape
        n_points = sum(cut.n_rows for cut in cuts) / self.space.post_size
        turned = rotation_gradients(gradients, shares, n_points if is_mean else 1)
        if self._coop:
            rows = paddle.concat([cut.rows for cut in cuts]).astype(turned.turning.dtype)
            both = cooperative(turned.whole(), gradients.times(rows))
            turned = RotationGradients(both, None)
        return turned

    @property
    def rotation(self) -> paddle.Tensor:
        """The rotations R, without a gradient, shape [T, D, D]."""
        return self.rotations.matrices()

    @property
    def rotation_gradient(self) -> paddle.Tensor:
        """dl_k/dR_k of the last backward, shape [T, D, D].

        An optimizer sees the part of it that lies in the manifold of rotations.

        Raises:
            RuntimeError: There has been no backward.
        """
        if not self._last_turned:
            raise RuntimeError("there is no gradient yet: call backward(losses) first")
        with paddle.no_grad():
            return paddle.matmul(self.rotations.base, self._last_turned[0].whole())

    def set_rotation(self, matrices: Any) -> None:
        """Take these as the rotations: T arrays or tensors of shape [D, D].

        Raises:
            ValueError: They are of another shape or number, or not orthogonal.
        """
        self.rotations.set(matrices)

    def extra_state(self) -> dict[str, Any]:
        """The losses' names, for checkpoints."""
        return {"names": list(self._order.names), "named": self._order.named}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from ``extra_state`` of an equal model."""
        self._order.resume(state["names"] if state["named"] else None)

    def coop(self, value: bool = True) -> RotateOnly:
        """Whether each rotation also descends its own task's loss; off at first.

        The two gradients on a rotation are brought to the norm of their mean, and added. This
        is the cooperative mode of version 0.1.2, here with either version.

        Returns:
            This model.
        """
        self._coop = bool(value)
        return self

    def mtl_parameters(self) -> list[paddle.Tensor]:
        """The parameters of RotoGrad itself; give them a lower rate than the network."""
        return [self.rotations.tangent, *self._trained_sizes()]

    def model_parameters(self) -> list[paddle.Tensor]:
        """The parameters of backbone and heads."""
        own = {id(parameter) for parameter in self.mtl_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def __len__(self) -> int:
        return len(self.heads)

    def __getitem__(self, task: int) -> SingleTask:
        index = operator.index(task)
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} tasks, got {task}")
        return SingleTask(self, index % len(self))


class SingleTask(PicklableLayer):
    """Backbone, rotation and head of one task, end to end; what ``model[i]`` returns.

    It shares the model's layers. Gradients flow through the backbone, and not into the
    rotation.

    Args:
        model: The model.
        task: Number of the task, from 0.
    """

    def __init__(self, model: RotateOnly, task: int) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.head = model.heads[task]
        self.rotations = model.rotations
        self.space, self.task = model.space, task

    def forward(self, ins: Any) -> Any:
        """What the head returns, extras included."""
        latent, _ = _split(self.backbone(ins))
        self.space.check(latent)
        rotation = self.rotations.matrices()[self.task].astype(latent.dtype)
        return self.head(self.space.rotated(latent, rotation))


class _Cuts(list):
    """The forward passes since the last backward. A copy of the model does not get them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Cuts:
        return _Cuts()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _Cuts, ()


def _split(returned: Any) -> tuple[Any, list[Any]]:
    """The first of what a layer has returned, and the extras."""
    if isinstance(returned, (list, tuple)):
        return returned[0], list(returned[1:])
    return returned, []


def _checked_layers(backbone: Any, heads: Any) -> list[paddle.nn.Layer]:
    if not isinstance(backbone, paddle.nn.Layer):
        raise TypeError(f"backbone must be a paddle.nn.Layer, got {backbone!r}")
    if not isinstance(heads, (list, tuple, paddle.nn.LayerList)):
        raise TypeError(f"heads must be a list of layers, got {type(heads).__name__}")
    layers = list(heads)
    for i, head in enumerate(layers):
        if not isinstance(head, paddle.nn.Layer):
            raise TypeError(f"heads[{i}] must be a paddle.nn.Layer, got {head!r}")
    if len(layers) < 2:
        raise ValueError(
            f"heads must be at least 2 for their gradients to agree, got {len(layers)}"
        )
    return layers


def _checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, (list, tuple)):
        return (_arguments.integer(name, shape, at_least=1),)
    return tuple(_arguments.integer(f"{name}[{i}]", n, at_least=1) for i, n in enumerate(shape))
