"""The forms in which losses arrive, brought to one: scalars in a fixed order, with names."""

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
        reason: Why there are that many, for the errors.
    """

    def __init__(self, n_loss: int, reason: str | None = None) -> None:
        self.n_loss = n_loss
        self._reason = reason or f"n_loss is {n_loss}"
        self.names: list[str] = [f"losses[{i}]" for i in range(n_loss)]
        self._keys: list[str] | None = None

    @property
    def named(self) -> bool:
        """Whether a dict has decided the names, which every later one must have."""
        return self._keys is not None

    def resume(self, names: Sequence[str] | None) -> None:
        """Go on with what a dict decided in an earlier process, ``None`` if there was none."""
        self._keys = None if names is None else list(names)
        self.names = self._keys or [f"losses[{i}]" for i in range(self.n_loss)]

    def scalars(self, losses: Losses) -> list[paddle.Tensor]:
        """The losses as 0-D tensors, in the order of the first step.

        Args:
            losses: A list or tuple of scalar tensors, a 1-D tensor, or a dict
                name -> scalar tensor. A dict's names label errors and reports, and
                from its second step on decide the order.

        Raises:
            TypeError: ``losses`` or one of them is of no accepted type, or not floating point.
            ValueError: The losses are not ``n_loss`` in number, not scalar, or a dict's
                names are not those of the first step.
        """
        names = self.names
        if isinstance(losses, paddle.Tensor):
            if losses.ndim != 1:
                raise ValueError(
                    f"losses as one tensor must be 1-D with {self.n_loss} entries, "
                    f"got shape {list(losses.shape)}"
                )
            self._check_number(losses.shape[0])
            scalars = paddle.unbind(losses)
        elif isinstance(losses, (list, tuple)):
            self._check_number(len(losses))
            scalars = list(losses)
        elif isinstance(losses, Mapping):
            self._check_number(len(losses))
            by_name = {str(key): loss for key, loss in losses.items()}
            names = self._keys or list(by_name)
            if set(by_name) != set(names) or len(by_name) != len(losses):
                raise ValueError(
                    f"losses has the names {list(losses)}, but on the first step they "
                    f"were {names}; every step must name the same losses"
                )
            scalars = [by_name[name] for name in names]
        else:
            raise TypeError(
                "losses must be a list or tuple of scalar tensors, a 1-D tensor or a "
                f"dict name -> scalar tensor, got {type(losses).__name__}"
            )
        scalars = [_scalar(loss, name) for loss, name in zip(scalars, names)]
        # Only now, for losses with a mistake in them must not decide the names.
        if names is not self.names:
            self.names = self._keys = names
        return scalars

    def indices(self, losses: Sequence[Union[int, str]]) -> tuple[int, ...]:
        """The numbers of losses that are given by number or by name, each once.

        Raises:
            ValueError: No loss has that name.
        """
        for loss in losses:
            if isinstance(loss, str) and loss not in self.names:
                raise ValueError(f"there is no loss {loss!r}, only {self.names}")
        numbers = (x if isinstance(x, int) else self.names.index(x) for x in losses)
        return tuple(dict.fromkeys(numbers))

    def _check_number(self, number: int) -> None:
        if number != self.n_loss:
            raise ValueError(f"losses has {number} entries, but {self._reason}")


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
    return loss.reshape([])
