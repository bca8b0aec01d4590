"""Converts losses of every accepted form to named scalars in a fixed order."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Union

import paddle

_FLOATING = (paddle.float32, paddle.float64, paddle.float16, paddle.bfloat16)
Losses = Union[Sequence[paddle.Tensor], Mapping[str, paddle.Tensor], paddle.Tensor]


class NamedLosses(dict[str, paddle.Tensor]):
    """A dict of losses that knows which of them are residuals of equations.

    Args:
        losses: Name -> scalar.
        equations: Names of those that are residuals of equations.
    """

    def __init__(self, losses: Mapping[str, paddle.Tensor], equations: Sequence[str]) -> None:
        super().__init__(losses)
        self.equations = tuple(equations)


class LossOrder:
    """Checks the losses of every step against the first step's names and number.

    Args:
        n_loss: Number of losses T, at least 2.
        reason: Why there are T losses, for error messages.
        absent: With ``"error"`` every dict must name the same losses. With ``"skip"`` a dict may
            lack some of them, and may bring new ones until there are T.

    Attributes:
        known: The names that dicts have set; empty if none has.
        names: Names of all T losses; ``losses[i]`` for one whose name is not known.
        equations: The names of the equations, if a ``NamedLosses`` has told them.
    """

    def __init__(self, n_loss: int, reason: str | None = None, absent: str = "error") -> None:
        self.n_loss = n_loss
        self.absent = absent
        self.known: list[str] = []
        self.names = _placeholders(n_loss)
        self.equations: tuple[str, ...] | None = None
        # Whether the first dict must name all losses, because a state without names was loaded and
        # this dict tells the order of its weights.
        self.whole_first = False
        self._reason = reason or f"n_loss is {n_loss}"
        self._zero: paddle.Tensor | None = None
        # Names, equations and known names before the last call of ``scalars``.
        self._before: tuple[Any, ...] = (self.names, self.equations, self.known)

    @property
    def named(self) -> bool:
        """Whether a dict has set the names."""
        return bool(self.known)

    @property
    def complete(self) -> bool:
        """Whether no loss can join any more."""
        return not self.known or len(self.known) == self.n_loss

    def is_absent(self, loss: paddle.Tensor) -> bool:
        """Whether this is the 0 that ``scalars`` returns for an absent loss."""
        return loss is self._zero

    def forget_last(self) -> None:
        """Forget what the last call of ``scalars`` has learned."""
        self.names, self.equations, self.known = self._before

    def resume(self, names: Sequence[str] | None) -> None:
        """Restore the names that a dict set in an earlier process; ``None`` if there was none."""
        placeholders = _placeholders(self.n_loss)
        self.names = placeholders if names is None else list(names)
        self.known = [name for name, i in zip(self.names, placeholders) if name != i]

    def scalars(self, losses: Losses) -> list[paddle.Tensor]:
        """The losses as 0-D tensors, in the order of the first step.

        Args:
            losses: A list or tuple of scalar tensors, a 1-D tensor, or a dict
                name -> scalar tensor. A dict's names label errors and reports. From the
                second step on they decide the order.

        Returns:
            T tensors. One for an absent loss is a constant 0.

        Raises:
            TypeError: ``losses`` or an entry has the wrong type, or is not floating point.
            ValueError: There are not ``n_loss`` losses, one is not scalar, or a dict's names
                differ from the first step's.
        """
        self._before = self.names, self.equations, self.known
        if isinstance(losses, Mapping):
            return self._by_name(losses)
        if isinstance(losses, paddle.Tensor):
            if not losses.ndim:
                raise ValueError(
                    "losses must be the single losses, got one tensor of shape [], such as their "
                    'sum: pass them apart, for example {"pde": pde, "boundary": boundary}'
                )
            if losses.ndim != 1:
                raise ValueError(
                    f"losses as one tensor must be 1-D with {self.n_loss} entries, "
                    f"got shape {list(losses.shape)}"
                )
            with paddle.enable_grad():  # so that the entries keep the graph
                scalars = paddle.unbind(losses)
        elif isinstance(losses, (list, tuple)):
            scalars = list(losses)
        else:
            raise TypeError(
                "losses must be a list or tuple of scalar tensors, a 1-D tensor or a "
                f"dict name -> scalar tensor, got {type(losses).__name__}"
            )
        if len(scalars) != self.n_loss:
            raise ValueError(f"losses has {len(scalars)} entries, but {self._reason}")
        return _checked(scalars, self.names)

    def _by_name(self, losses: Mapping[Any, paddle.Tensor]) -> list[paddle.Tensor]:
        by_name = {str(key): loss for key, loss in losses.items()}
        if len(by_name) != len(losses):
            raise ValueError(f"losses has names that are the same as text: {list(losses)}")
        keys = self.known
        if not keys or by_name.keys() != set(keys):
            keys = self._extended(keys, by_name)
        present = [key for key in keys if key in by_name]
        scalars = _checked([by_name[key] for key in present], present)
        # Last, because faulty losses must not set the names.
        told = getattr(losses, "equations", None)
        if told is not None and (self.equations is None or not set(told) <= set(self.equations)):
            self.equations = (*(self.equations or ()), *told)
            keys = list(keys)  # a new list, because the balancer looks for new names by identity
        if keys is not self.known:
            self.known = keys
            self.names = keys + _placeholders(self.n_loss)[len(keys) :]
        if len(scalars) == self.n_loss:
            return scalars
        if self._zero is None:
            self._zero = paddle.zeros([])
        of_present = dict(zip(present, scalars))
        return [of_present.get(name, self._zero) for name in self.names]

    def _extended(self, keys: list[str], by_name: Mapping[str, Any]) -> list[str]:
        """The names after this step, whose names are not those that were known."""
        new = [name for name in by_name if name not in keys]
        if not keys and self.whole_first and len(new) < self.n_loss:
            raise ValueError(
                f"losses has the names {new}, but a state dict of {self.n_loss} losses has been "
                "loaded, which holds no names: the first step after that must name all of them, "
                "in the order that they had"
            )
        if self.absent == "skip" and len(keys) + len(new) <= self.n_loss and by_name:
            return keys + new if new else keys
        if self.absent == "error" and not keys:
            if len(new) != self.n_loss:
                raise ValueError(f"losses has {len(new)} entries, but {self._reason}")
            return new
        what = f"losses has the names {list(by_name)}, but on the first step they were {keys}"
        if self.absent == "skip":
            near = difflib.get_close_matches(new[0], keys, n=1) if new else []
            hint = f" (did you mean {near[0]!r} by {new[0]!r}?)" if near else ""
            raise ValueError(
                f"losses has the names {list(by_name)}; with {keys} these are "
                f"{len(keys) + len(new)} losses{hint}, but {self._reason}"
            )
        raise ValueError(
            f"{what}; every step must name the same losses. If a loss may be absent from a step, "
            'pass absent="skip" to GradNorm or LossBalancer'
        )


def _placeholders(n_loss: int) -> list[str]:
    return [f"losses[{i}]" for i in range(n_loss)]


def _checked(scalars: list[paddle.Tensor], names: Sequence[str]) -> list[paddle.Tensor]:
    for i, (loss, name) in enumerate(zip(scalars, names)):
        usual = isinstance(loss, paddle.Tensor) and not loss.shape and loss.dtype in _FLOATING
        if not usual:
            scalars[i] = _scalar(loss, name)
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


def count(losses: Losses) -> int:
    """How many losses these are, after the same checks as in ``LossOrder.scalars``."""
    n_loss = 0  # of something that is checked below
    if isinstance(losses, paddle.Tensor):
        n_loss = int(losses.size)
    elif isinstance(losses, (list, tuple, Mapping)):
        n_loss = len(losses)
    LossOrder(n_loss).scalars(losses)
    return n_loss
