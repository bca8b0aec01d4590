"""The cut between a backbone and its heads, which lets each be differentiated once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import paddle

from paddlescience_gradnorm._paddle import has_hooks
from paddlescience_gradnorm.network.fc_net import FCNet
from paddlescience_gradnorm.rotograd._gradients import FactoredGradients, LatentGradients


@dataclass(frozen=True)
class LatentSpace:
    """Which dimensions of a representation are rotated.

    Args:
        shape: Those that are rotated together, as one vector of D numbers.
        post_shape: Those that follow and are left as they are.

    Examples:
        >>> import paddle
        >>> space = LatentSpace((3,), post_shape=(4,))
        >>> list(space.to_rows(paddle.ones([8, 3, 4])).shape)
        [32, 3]
    """

    shape: tuple[int, ...]
    post_shape: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Size D of the rotations."""
        return math.prod(self.shape)

    @property
    def post_size(self) -> int:
        """How many vectors a point has."""
        return math.prod(self.post_shape)

    def check(self, latent: Any) -> None:
        """Raise an error if this is not such a representation.

        Raises:
            TypeError: It is no tensor.
            ValueError: Its shape has another end.
        """
        trailing = [*self.shape, *self.post_shape]
        if not isinstance(latent, paddle.Tensor):
            raise TypeError(f"the backbone must return a tensor first, got {latent!r}")
        if list(latent.shape[-len(trailing) :]) != trailing:
            raise ValueError(
                f"latent_size and post_shape say that the backbone returns shape "
                f"[..., {', '.join(map(str, trailing))}], but it returned {list(latent.shape)}"
            )

    def to_rows(self, latent: paddle.Tensor) -> paddle.Tensor:
        """A row for each vector that is rotated, shape [N, D]."""
        if self.post_size > 1:
            latent = latent.reshape([-1, self.size, self.post_size]).transpose([0, 2, 1])
        return latent.reshape([-1, self.size])

    def from_rows(self, rows: paddle.Tensor, shape: Sequence[int]) -> paddle.Tensor:
        """The representation of this shape that has these rows."""
        if self.post_size > 1:
            rows = rows.reshape([-1, self.post_size, self.size]).transpose([0, 2, 1])
        return rows.reshape(list(shape))

    def rotated(self, latent: paddle.Tensor, rotation: paddle.Tensor) -> paddle.Tensor:
        """R z for every vector z, for an R of its dtype."""
        rows = paddle.matmul(self.to_rows(latent), rotation, transpose_y=True)
        return self.from_rows(rows, latent.shape)


class LatentCut:
    """One pass through the heads that stops their gradients at the representation.

    Args:
        latent: The representation.
        space: Which of its dimensions are rotated.
    """

    def __init__(self, latent: paddle.Tensor, space: LatentSpace) -> None:
        self.latent = latent
        self._space = space
        self._detached = latent.detach()
        self._outputs: list[paddle.Tensor] = []
        self._entries: list[paddle.Tensor] = []

    @property
    def rows(self) -> paddle.Tensor:
        """The representation, detached, shape [N, D]."""
        return self._space.to_rows(self._detached)

    @property
    def n_rows(self) -> int:
        """Number N of vectors that are rotated."""
        n_vectors: int = self._detached.size // self._space.size
        return n_vectors

    def enter(self, head: paddle.nn.Layer, rotation: paddle.Tensor) -> Any:
        """What the head returns for the representation, rotated by a matrix of its dtype."""
        is_vector = len(self._space.shape) == 1 and not self._space.post_shape
        first = _first_linear(head) if is_vector else None
        if first is None:
            with paddle.no_grad():
                output = self._space.rotated(self._detached, rotation)
            output.stop_gradient = False
            self._outputs.append(output)
            self._entries.append(rotation.t())
            return head(output)
        # (Z R^T) W = Z (R^T W). R^T W costs next to nothing, and so does its gradient.
        entry = paddle.matmul(rotation, first.weight, transpose_x=True)
        output = paddle.nn.functional.linear(self._detached, entry, first.bias)
        output.retain_grads()
        self._outputs.append(output)
        self._entries.append(entry.detach())
        if head is first:
            return output  # its call would do no more
        with _answering(first, output):
            return head(self._detached)

    def has_gradients(self) -> bool:
        """Whether the losses depend on anything of this pass."""
        return any(output.grad is not None for output in self._outputs)

    def output_gradient(self, task: int) -> paddle.Tensor | None:
        """The losses' gradient on what this head reads, shape [N, M]; None without one."""
        output = self._outputs[task]
        if output.grad is None:
            return None
        if output.shape == self.latent.shape:
            return self._space.to_rows(output.grad)
        return output.grad.reshape([-1, output.shape[-1]])


def latent_gradients(cuts: Sequence[LatentCut], dtype: paddle.dtype) -> LatentGradients:
    """The losses' gradients on the representations of all cuts, one after the other.

    Args:
        cuts: Passes through the same heads, after the losses' backward pass.
        dtype: Of the result.

    Raises:
        ValueError: A head has got no gradient.
    """
    outputs, entries = [], []
    for task, entry in enumerate(cuts[0]._entries):
        parts = [cut.output_gradient(task) for cut in cuts]
        if all(part is None for part in parts):
            raise ValueError(
                f"no loss depends on the prediction of heads[{task}]; every head needs a loss "
                "that does (a prediction also loses its dependence when it is detached)"
            )
        # A head that no loss uses at some of the points has no gradient there.
        rows = [
            paddle.zeros([cut.n_rows, entry.shape[1]], entry.dtype) if part is None else part
            for part, cut in zip(parts, cuts)
        ]
        outputs.append(rows[0] if len(rows) == 1 else paddle.concat(rows))
        entries.append(entry)
    if entries[0].dtype != dtype:
        outputs, entries = ([x.astype(dtype) for x in part] for part in (outputs, entries))
    if sum(entry.shape[1] for entry in entries) < entries[0].shape[0]:
        return FactoredGradients(outputs, entries)
    return LatentGradients(
        [paddle.matmul(p, f, transpose_y=True) for p, f in zip(outputs, entries)]
    )


def _first_linear(layer: paddle.nn.Layer) -> paddle.nn.Linear | None:
    """The trainable linear layer that alone reads the layer's input; None if it is not known."""
    if has_hooks(layer) or "forward" in layer.__dict__:
        return None
    if type(layer) is paddle.nn.Linear:
        return None if layer.weight.stop_gradient else layer
    if type(layer) is paddle.nn.Sequential:
        return next((_first_linear(child) for child in layer.children()), None)
    own = (getattr(type(layer), name, None) for name in ("nn_func", "forward"))
    if isinstance(layer, FCNet) and tuple(own) == (FCNet.nn_func, FCNet.forward):
        return _first_linear(layer.linears[0])
    return None


@contextmanager
def _answering(layer: paddle.nn.Layer, output: paddle.Tensor) -> Iterator[None]:
    """The layer's next call returns this output, whatever it is given."""

    def forward(*_: Any) -> paddle.Tensor:
        del layer.__dict__["forward"]  # the head may use the layer again
        return output

    layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        layer.__dict__.pop("forward", None)
