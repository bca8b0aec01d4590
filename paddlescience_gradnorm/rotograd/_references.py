"""What RotoGrad remembers of its first steps, and whether a step's numbers can be used."""

from __future__ import annotations

import numpy as np
import paddle

from paddlescience_gradnorm._layers import PreciseLayer, on_host
from paddlescience_gradnorm.balancing._faults import FaultReporter


class References(PreciseLayer):
    """Initial losses and gradient norms of T tasks, and the number of steps.

    Args:
        n_tasks: Number of tasks T.
        burn_in_period: The step, counted from 0, on which the references are taken once more.
    """

    step_count: paddle.Tensor
    initial_losses: paddle.Tensor
    initial_norms: paddle.Tensor
    initial_backbone_loss: paddle.Tensor

    def __init__(self, n_tasks: int, burn_in_period: int) -> None:
        super().__init__()
        self.burn_in_period = burn_in_period
        self.register_buffer("step_count", on_host(np.zeros([], np.int64)))
        # A reference is zero until it is known.
        self.register_buffer("initial_losses", on_host(np.zeros(n_tasks)))
        self.register_buffer("initial_norms", on_host(np.zeros(n_tasks)))
        self.register_buffer("initial_backbone_loss", on_host(np.zeros(1)))
        self._faults = FaultReporter("rotations and weights stay as they are while this lasts")

    def take(self, name: str, step: int, values: np.ndarray) -> np.ndarray:
        """The reference of this name, taken from these values if this is a step to do so.

        A value that is not finite and above zero cannot be a reference. Then the old one
        stays, or, if there is none, the next value that can be becomes it.

        Args:
            name: Name of the buffer.
            step: Number of this step, from 0.
            values: In the buffer's shape.
        """
        buffer = getattr(self, name)
        reference = buffer.numpy()
        anew = step in (0, self.burn_in_period)
        if anew or not (reference > 0).all():
            valid = np.isfinite(values) & (values > 0)
            replaced = valid if anew else valid & (reference == 0)
            reference = np.where(replaced, values, reference)
            buffer.copy_(on_host(reference), False)
        return reference

    def observe(
        self, step: int, losses: np.ndarray, norms: np.ndarray, results: np.ndarray
    ) -> bool:
        """Whether a step's results are finite; the first of several that are not is reported.

        Args:
            step: Number of this step, from 0.
            losses: The losses, shape [T].
            norms: The gradients' norms, shape [T].
            results: What rotations and weights are to be trained on.

        Warns:
            RuntimeWarning: They are not finite, and those of the last step were.
        """
        usable = bool(np.isfinite(results).all())
        if usable:
            self._faults.forget()
        else:
            self._faults.report(
                step,
                "losses and gradients",
                "give no finite training rates or directions",
                f"losses {losses.tolist()}, their references {self.initial_losses.tolist()}, "
                f"norms of the gradients on the representation {norms.tolist()}",
            )
        return usable
