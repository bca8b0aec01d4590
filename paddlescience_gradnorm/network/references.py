"""What RotoGrad remembers of its first steps, and whether a step's numbers can be used."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import NamedTuple, Union

import paddle

from paddlescience_gradnorm.shielded import ShieldedLayer, count_in


class References(ShieldedLayer):
    """Initial losses and gradient norms of T tasks, and the number of steps.

    Args:
        n_tasks: Number of tasks T.
        burn_in_period: The step, counted from 0, on which they are taken once more.
        dtype: float32 or float64.
    """

    def __init__(self, n_tasks: int, burn_in_period: int, dtype: paddle.dtype) -> None:
        super().__init__()
        self.burn_in_period = burn_in_period
        # Zero until it is known.
        self.register_buffer("initial_losses", paddle.zeros([n_tasks], dtype))
        self.register_buffer("initial_norms", paddle.zeros([n_tasks], dtype))
        self.register_buffer("initial_backbone_loss", paddle.zeros([1], dtype))
        self.register_buffer("step_count", paddle.zeros([], "int64").cpu())
        self._noted = _Noted()

    @property
    def dtype(self) -> paddle.dtype:
        """float32 or float64."""
        return self.initial_losses.dtype

    def begin_step(self) -> None:
        """Report what was wrong with the step before, if that is not known yet."""
        self._report()
        step = count_in(self._buffers["step_count"]).value
        if step != self._noted.next_step:  # a state was loaded since
            self._noted.next_step = step
            self._noted.known.clear()

    def end_step(self) -> None:
        """Count the step."""
        self._noted.next_step += 1
        count_in(self._buffers["step_count"]).value = self._noted.next_step

    def take(self, name: str, values: paddle.Tensor) -> paddle.Tensor:
        """The reference of this name, taken from these values if this is a step to do so.

        What is not finite and above zero cannot be a reference: then the old one stays, or
        the next value that can be becomes it.

        Args:
            name: Name of the buffer.
            values: In its shape.
        """
        noted = self._noted
        anew = noted.next_step in (0, self.burn_in_period)
        if anew or name not in noted.known:
            reference = self._buffers[name]
            valid = paddle.isfinite(values) & (values > 0)
            replaced = valid if anew else valid & (reference == 0)
            reference.copy_(paddle.where(replaced, values, reference), False)
            if (reference > 0).all().item():
                noted.known.add(name)
        return self._buffers[name]

    def observe(
        self, losses: paddle.Tensor, norms: paddle.Tensor, powers: paddle.Tensor | None
    ) -> Union[bool, paddle.Tensor]:
        """Whether norms and training rates are finite; if not, it is reported.

        Args:
            losses: The losses, shape [T].
            norms: The gradients' norms, shape [T].
            powers: r ** alpha of the training rates r, shape [T], if they are needed.

        Returns:
            A bool, or, on an accelerator, which nobody waits for, a boolean tensor, shape [].
        """
        total = norms.sum() if powers is None else (norms + powers).sum()
        on_host = total.place.is_cpu_place()
        usable = math.isfinite(total.item()) if on_host else paddle.isfinite(total)
        self._noted.unread = _Observation(self._noted.next_step, usable, losses, norms)
        if on_host:
            self._report()
        return usable

    def _report(self) -> None:
        """Warn of the first of several steps in a row; an accelerator is asked a step late."""
        noted = self._noted
        observation, noted.unread = noted.unread, None
        if observation is None:
            return
        usable = bool(observation.usable)
        if noted.was_usable and not usable:
            warnings.warn(
                f"step {observation.step}: losses {observation.losses.tolist()} with references "
                f"{self.initial_losses.tolist()} and gradients of norm "
                f"{observation.norms.tolist()} on the representation give no finite training "
                "rates or directions; rotations and weights stay as they are while this lasts",
                RuntimeWarning,
                stacklevel=5,
            )
        noted.was_usable = usable


def if_usable(gradient: paddle.Tensor, usable: Union[bool, paddle.Tensor]) -> paddle.Tensor:
    """The gradient, or zeros: a NaN would stay in an optimizer's moments for ever."""
    if isinstance(usable, bool):
        return gradient if usable else paddle.zeros_like(gradient)
    return paddle.where(usable, gradient, paddle.zeros_like(gradient))


class _Observation(NamedTuple):
    """A step, as it is needed to say afterwards what was wrong with it."""

    step: int
    usable: Union[bool, paddle.Tensor]
    losses: paddle.Tensor
    norms: paddle.Tensor


@dataclass
class _Noted:
    """What the host has noted of the steps; no attributes of the layer, which are dear to set."""

    next_step: int = 0
    known: set[str] = field(default_factory=set)  # references that need not be taken again
    unread: _Observation | None = None
    was_usable: bool = True
