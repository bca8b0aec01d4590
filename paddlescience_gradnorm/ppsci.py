"""GradNorm in PaddleScience: a loss aggregator for its Solver. Importing this imports ``ppsci``."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np
import paddle

from paddlescience_gradnorm import _paddle
from paddlescience_gradnorm.balancing import _one_pass
from paddlescience_gradnorm.balancing.balancer import LossBalancer
from paddlescience_gradnorm.balancing.rules import find_rule
from paddlescience_gradnorm.network import GradNorm
from paddlescience_gradnorm.network._shared_layer import find_shared

try:
    from ppsci.loss.mtl import LossAggregator
except ModuleNotFoundError as error:
    if error.name != "ppsci":
        raise
    raise ImportError(
        "paddlescience_gradnorm.ppsci needs PaddleScience, which is not installed: "
        "pip install 'paddlescience_gradnorm[ppsci]'"
    ) from error

__all__ = ["GradNormAggregator"]


class GradNormAggregator(LossAggregator):
    """Learns the weights of a Solver's losses, in one backward pass.

    Source: Chen et al., "GradNorm", ICML 2018, arXiv:1711.02257. The default is ``PinnRule``.
    The Solver's checkpoints hold the weights and the rule's state. ``log_to`` adds the weights to
    the Solver's logs.

    With ``update_freq`` the weights stay fixed while gradients accumulate. Then they take one
    step, on the means of all micro-batches. With L-BFGS they stay fixed within each step of the
    optimizer. Several ranks give the same weights as one rank with all points.

    Args:
        model: The Solver's model. If it is a ``GradNorm``, its own weights are used, and the
            options below must be given to it instead.
        n_loss: Number of losses T, at least 2. The Solver has one loss for each output name, and
            adds up losses of the same name from different constraints.
        alpha: As for ``LossBalancer``: it selects the paper's rule; the default is ``"pinn"``.
        num_losses: PaddleScience's word for ``n_loss``.
        shared: The shared parameters, as for ``GradNorm``.
        **options: Options of ``LossBalancer``: ``rule``, ``equations``, ``weight_lr``,
            ``update_every``, ``warmup_steps``, ``weight_attr``, ``floor``. With the paper's rule
            and ``weight_lr=None`` the Solver's optimizer steps the weights:
            build it as ``ppsci.optimizer.Adam(1e-3)((model, aggregator.balancer))``.

    Raises:
        TypeError: An argument is of the wrong type, or missing.
        ValueError: An argument is out of range, or no shared layer is found.

    Examples:
        >>> import paddle, ppsci
        >>> model = ppsci.arch.MLP(("x", "y"), ("u",), num_layers=2, hidden_size=8)
        >>> aggregator = GradNormAggregator(model, n_loss=2, alpha=0.12)
        >>> # solver = ppsci.solver.Solver(model, ..., loss_aggregator=aggregator)
        >>> # aggregator.log_to(solver); in a loop of one's own:
        >>> u = model({"x": paddle.rand([4, 1]), "y": paddle.rand([4, 1])})["u"]
        >>> total = aggregator({"laplace": u.square().mean(), "u": (u - 1).square().mean()})
        >>> total.backward()
        >>> round(float(aggregator.get_weights().sum()), 4)
        2.0
    """

    should_persist = True

    def __init__(
        self,
        model: paddle.nn.Layer,
        n_loss: int | None = None,
        alpha: float | None = None,
        *,
        num_losses: int | None = None,
        shared: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(model)
        if num_losses is not None:
            if n_loss not in (None, num_losses):
                raise ValueError(
                    f"n_loss is {n_loss}, but num_losses, which means the same, is {num_losses}"
                )
            n_loss = num_losses
        if isinstance(model, GradNorm):
            _check_that_they_agree(model, n_loss, alpha, {"shared": shared, **options})
            self.balancer = model.balancer
        else:
            if n_loss is None:
                raise TypeError("n_loss is missing, which only a GradNorm model knows itself")
            rule = find_rule(options.pop("rule", None), alpha)
            found = find_shared(model, shared, rule)
            self.balancer = LossBalancer(found, n_loss, rule=rule, **options)
        self.names: list[str] = []
        self._last_step: int | None = None
        # The weights of the current step, and the scale of its gradients.
        self._acting = self.balancer.loss_weights.detach().clone()
        self._scale = 1.0
        self._solver: Callable[[], Any] = lambda: None
        self._quantities: dict[str, Callable[[], np.ndarray]] = {}

    def log_to(self, solver: Any, norms: bool = False) -> None:
        """Let the Solver log the weights beside its losses, as ``weight/NAME``.

        They appear wherever its losses do: in the terminal, VisualDL, W&B and TensorBoard.

        Args:
            solver: The Solver that has this aggregator.
            norms: Whether to log the norms of the losses' gradients too, as
                ``gradient_norm/NAME``.
        """
        self._solver = weakref.ref(solver)
        self._quantities = {"weight": self.get_weights}
        if norms:
            self._quantities["gradient_norm"] = lambda: self.balancer.gradient_norms

    def forward(
        self, losses: Mapping[str, paddle.Tensor], step: int | None = None
    ) -> paddle.Tensor:
        """The weighted sum; its ``backward()`` runs the whole backward pass and the update.

        Args:
            losses: Name -> scalar, ``n_loss`` of them.
            step: Number of the optimizer's step, or None in a loop that evaluates each step
                once. A repeated number means another evaluation in the same step, in which
                the weights stay fixed.

        Returns:
            A tensor of shape [], which may be multiplied (loss scaling) or divided
            (accumulation) before its ``backward()``.

        Raises:
            ValueError: The number of losses is wrong, a loss does not depend on the shared
                parameters, or the Solver's optimizer cannot step the weights.
        """
        self._check(losses)
        if _paddle.is_amp_on():
            self._check_that_nobody_else_steps("use_amp=True")
        again = step is not None and step == self._last_step
        self._last_step = step
        self._enter_meters()
        with paddle.amp.auto_cast(enable=False):
            if again:
                self._check_that_nobody_else_steps("L-BFGS")
                return self._weighted_sum(losses)
            if self._goes_on():
                self.balancer.take_back()
            self._scale = 1.0
            self.balancer.get_weights()  # settles them after a step of the Solver's optimizer
            self._acting = self.balancer.loss_weights.detach().clone()
            total = self._weighted_sum(losses).detach()
        total.stop_gradient = False
        total.register_hook(functools.partial(self._backward, dict(losses)))
        return total

    def _backward(self, losses: Mapping[str, paddle.Tensor], gradient: paddle.Tensor) -> None:
        self._scale = gradient.item()
        self.balancer.backward(losses, scale=self._scale)

    def _weighted_sum(self, losses: Mapping[str, paddle.Tensor]) -> paddle.Tensor:
        dtype = self._acting.dtype
        return paddle.dot(self._acting, paddle.stack([x.astype(dtype) for x in losses.values()]))

    def _goes_on(self) -> bool:
        """Whether this is another micro-batch: the gradients of the last are still there."""
        gradients = [parameter.grad for parameter in self.balancer.shared]
        return self._scale != 1 and any(g is not None and (g != 0).any().item() for g in gradients)

    def _check(self, losses: Mapping[str, paddle.Tensor]) -> None:
        if len(losses) != self.balancer.n_loss:
            raise ValueError(
                f"n_loss is {self.balancer.n_loss}, but the constraints give {len(losses)}: "
                f"{', '.join(losses)}. Pass n_loss={len(losses)}; or give outputs names "
                "of their own, since the Solver adds up losses of the same name"
            )
        if self.names:
            return
        for name, loss in losses.items():
            if loss.grad_fn is not None and "Dy2St" in loss.grad_fn.name():
                raise ValueError(
                    f"loss {name!r} comes from a static program, whose losses Paddle cannot "
                    "differentiate one by one: give the Solver to_static=False"
                )
        # Checked here, because Paddle turns an error in the hook into an OSError.
        _one_pass.gradients_alone(
            list(losses.values()), self._acting, self.balancer.shared, list(losses)
        )
        self.names = list(losses)

    def _check_that_nobody_else_steps(self, what: str) -> None:
        if self.balancer.weight_lr is None:
            raise ValueError(
                f"with {what} the Solver's optimizer cannot step the loss weights: pass "
                "weight_lr=, and they are stepped here"
            )

    def _enter_meters(self) -> None:
        """Give the Solver the values to log, because it drops them after every epoch."""
        solver = self._solver()
        if solver is not None:
            for kind, values in self._quantities.items():
                for i, name in enumerate(self.names):
                    meter = _Meter(functools.partial(_entry, values, i))
                    solver.train_output_info[f"{kind}/{name}"] = meter

    def get_weights(self) -> np.ndarray:
        """The weights that the next step will use, in the order of ``names``, shape [T]."""
        return self.balancer.get_weights()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Weights, rule state and step count; the Solver's checkpoint has the model already."""
        return self.balancer.state_dict()

    def set_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load what ``state_dict`` returned."""
        return self.balancer.set_state_dict(state_dict)


class _Meter:
    """A number in the Solver's log, which is read when the log is written."""

    def __init__(self, value: Callable[[], float]) -> None:
        self._value = value

    @property
    def avg(self) -> float:
        """The value that the Solver logs."""
        return self._value()


def _entry(values: Callable[[], np.ndarray], i: int) -> float:
    return float(values()[i])


def _check_that_they_agree(
    model: GradNorm, n_loss: int | None, alpha: float | None, others: Mapping[str, Any]
) -> None:
    for name, value, own in ("n_loss", n_loss, model.n_loss), ("alpha", alpha, model.alpha):
        if value not in (None, own):
            raise ValueError(f"{name} is {value!r}, but the GradNorm that is the model has {own!r}")
    given = [name for name, value in others.items() if name != "shared" or value is not None]
    if given:
        raise TypeError(
            f"{', '.join(given)} cannot be given here, since the model is a GradNorm, which has "
            "loss weights of its own: give it to GradNorm"
        )
