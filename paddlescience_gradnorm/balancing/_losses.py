"""Converts losses of every accepted form to named scalars in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Union

import paddle

_FLOATING = (paddle.float32, paddle.float64, paddle.float16, paddle.bfloat16)
Losses = Union[Sequence[paddle.Tensor], Mapping[str, paddle.Tensor], paddle.Tensor]


class LossOrder:
    """Checks the losses of every step against the first step's names and number.

    Args:
        n_loss: Number of losses T, at least 2.
        reason: Why there are T losses, for error messages.
    """

    def __init__(self, n_loss: int, reason: str | None = None) -> None:
        self.n_loss = n_loss
        self._reason = reason or f"n_loss is {n_loss}"
        self.names: list[str] = [f"losses[{i}]" for i in range(n_loss)]
        self._keys: list[str] | None = None

    @property
    def named(self) -> bool:
        """Whether a dict has set the names, which every later dict must have."""
        return self._keys is not None

    def resume(self, names: Sequence[str] | None) -> None:
        """Restore the names that a dict set in an earlier process; ``None`` if there was none."""
        self._keys = None if names is None else list(names)
        self.names = self._keys or [f"losses[{i}]" for i in range(self.n_loss)]

    def scalars(self, losses: Losses) -> list[paddle.Tensor]:
        """The losses as 0-D tensors, in the order of the first step.

        Args:
            losses: A list or tuple of scalar tensors, a 1-D tensor, or a dict
                name -> scalar tensor. A dict's names label errors and reports. From the
                second step on they decide the order.

        Raises:
            TypeError: ``losses`` or an entry has the wrong type, or is not floating point.
            ValueError: There are not ``n_loss`` losses, one is not scalar, or a dict's names
                differ from the first step's.
        """
        if isinstance(losses, paddle.Tensor):
            if losses.ndim != 1:
                raise ValueError(
                    f"losses as one tensor must be 1-D with {self.n_loss} entries, "
                    f"got shape {list(losses.shape)}"
                )
            with paddle.enable_grad():  # so that the entries keep the graph
                scalars = paddle.unbind(losses)
        elif isinstance(losses, (list, tuple, Mapping)):
            scalars = list(losses)  # the names, if it is a dict
        else:
            raise TypeError(
                "losses must be a list or tuple of scalar tensors, a 1-D tensor or a "
                f"dict name -> scalar tensor, got {type(losses).__name__}"
            )
        if len(scalars) != self.n_loss:
            raise ValueError(f"losses has {len(scalars)} entries, but {self._reason}")
        names = self.names
        if isinstance(losses, Mapping):
            by_name = {str(key): loss for key, loss in losses.items()}
            names = self._keys or list(by_name)
            if set(by_name) != set(names) or len(by_name) != len(losses):
                raise ValueError(
                    f"losses has the names {list(losses)}, but on the first step they "
                    f"were {names}; every step must name the same losses"
                )
            scalars = [by_name[name] for name in names]
        for i, (loss, name) in enumerate(zip(scalars, names)):
            usual = isinstance(loss, paddle.Tensor) and not loss.shape and loss.dtype in _FLOATING
            if not usual:
                scalars[i] = _scalar(loss, name)
        # Last, because faulty losses must not set the names.
        if names is not self.names:
            self.names = self._keys = names
        return scalars


def _scalar(loss: paddle.Tensor, name: str) -> paddle.Tensor:
    if not isinstance(loss, paddle.Tensor):
        raise TypeError(f"loss {name!r} must be a scalar tensor, got {type(loss).__name__}")
    if loss.dtype not in _FLOATING:  # Tensor.is_floating_point takes ten times as long
        raise TypeError(f"loss {name!r} must be a floating-point tensor, got {loss.dtype}")
    if not loss.shape:
        return loss
    if loss.size != 1:
        raise ValueError(
            f"loss {name!r} must be a scalar, got shape {list(loss.shape)}; "
            "reduce it with .mean() or .sum()"
        )
    with paddle.enable_grad():  # so that it keeps the graph
        return loss.reshape([])
