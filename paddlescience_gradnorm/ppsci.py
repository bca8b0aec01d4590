"""GradNorm in PaddleScience: a loss aggregator for its Solver. Importing this imports ``ppsci``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np
import paddle
from paddle.base import core
from paddle.base.framework import _dygraph_tracer

from paddlescience_gradnorm import arguments
from paddlescience_gradnorm.balancing.algorithm import find_rule
from paddlescience_gradnorm.balancing.balancer import LossBalancer
from paddlescience_gradnorm.balancing.task_gradients import task_gradients
from paddlescience_gradnorm.network import GradNorm
from paddlescience_gradnorm.network.shared_layer import find_shared

try:
    from ppsci.loss.mtl import LossAggregator
    from ppsci.solver import printer
    from ppsci.utils import misc
except ModuleNotFoundError as error:
    if error.name != "ppsci":
        raise
    raise ImportError(
        "paddlescience_gradnorm.ppsci needs PaddleScience, which is not installed: "
        "pip install 'paddlescience_gradnorm[ppsci]'"
    ) from error


class GradNormAggregator(LossAggregator):
    """Learns the weights of a Solver's losses by GradNorm, in one backward pass.

    Source: Chen et al., "GradNorm", ICML 2018, arXiv:1711.02257. Its weights and the norms of
    the losses' gradients appear beside the losses in every log of the Solver, as
    ``weight/NAME`` and ``gradient_norm/NAME``, and in its checkpoints together with L(0).

    With ``update_freq`` the weights rest while gradients are accumulated and then take one
    step, on the means of all micro-batches. With L-BFGS they rest within each step of the
    optimizer. On several ranks they are those of one rank with all points.

    Args:
        model: The Solver's model. If it is a ``GradNorm``, its own weights are used, and
            the arguments below are its business.
        num_losses: Number of losses T, at least 2. The Solver has one loss for each name of an
            output, and adds up those of the same name in different constraints.
        alpha: As of ``LossBalancer``: with it the paper's rule, without it the PINN's.
        shared: The shared parameters, as for ``GradNorm``.
        **options: Those of ``LossBalancer``: ``lr``, ``warmup_steps``, ``weight_attr``,
            ``update_every``, ``floor``, ``rule``, ``residuals``. With ``lr=None``, by the paper's
            rule, the Solver's optimizer steps the weights: build it as
            ``ppsci.optimizer.Adam(1e-3)((model, aggregator.balancer))``.

    Raises:
        TypeError: An argument is of the wrong type, or missing.
        ValueError: An argument is out of range, or there is no shared layer to be found.

    Examples:
        >>> import paddle, ppsci
        >>> model = ppsci.arch.MLP(("x", "y"), ("u",), num_layers=2, hidden_size=8)
        >>> aggregator = GradNormAggregator(model, num_losses=2, alpha=0.12)
        >>> # ppsci.solver.Solver(model, ..., loss_aggregator=aggregator); in a loop of one's own:
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
        num_losses: int | None = None,
        alpha: float | None = None,
        *,
        shared: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(model)
        if isinstance(model, GradNorm):
            _check_that_they_agree(model, num_losses, alpha, {"shared": shared, **options})
            self.balancer = model.balancer
        else:
            if num_losses is None:
                raise TypeError("num_losses is missing, which only a GradNorm model knows itself")
            arguments.integer("num_losses", num_losses, at_least=2)
            rule = find_rule(options.pop("rule", None), alpha)
            found = find_shared(model, shared, rule)
            self.balancer = LossBalancer(found, num_losses, rule=rule, **options)
        self.names: list[str] = []
        self._last_step: int | None = None
        # The weights of the running step, and the scale that its gradients had.
        self._acting = self.balancer.loss_weights.detach().clone()
        self._scale = 1.0

    def forward(
        self, losses: Mapping[str, paddle.Tensor], step: int | None = None
    ) -> paddle.Tensor:
        """The weighted sum; its ``backward()`` runs the whole backward pass and the update.

        Args:
            losses: Name -> scalar, ``num_losses`` of them.
            step: Number of the optimizer's step, or None in a loop that evaluates each
                only once. The same again means a further evaluation in the same step, for
                which the weights rest.

        Returns:
            A tensor of shape [], which may be multiplied (loss scaling) or divided
            (accumulation) before its ``backward()``.

        Raises:
            ValueError: There are more losses or fewer, a loss does not depend on the shared
                parameters, or the weights cannot be stepped by the Solver's optimizer.
        """
        self._check(losses)
        if _dygraph_tracer()._amp_level != core.AmpLevel.O0:
            self._check_that_nobody_else_steps("use_amp=True")
        again = step is not None and step == self._last_step
        self._last_step = step
        with paddle.amp.auto_cast(enable=False):
            if again:
                self._check_that_nobody_else_steps("L-BFGS")
                return self._weighted_sum(losses)
            if self._goes_on():
                self.balancer.take_back()
            self._scale = 1.0
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
        """Whether this is a further micro-batch: the gradients of the last are still there."""
        gradients = [parameter.grad for parameter in self.balancer.shared]
        return self._scale != 1 and any(g is not None and (g != 0).any().item() for g in gradients)

    def _check(self, losses: Mapping[str, paddle.Tensor]) -> None:
        if len(losses) != self.balancer.n_loss:
            raise ValueError(
                f"num_losses is {self.balancer.n_loss}, but the constraints give {len(losses)}: "
                f"{', '.join(losses)}. Pass num_losses={len(losses)}; or give outputs names "
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
        # Raised by the hook it would come out as an OSError of Paddle's.
        task_gradients(list(losses.values()), self.balancer.shared, list(losses))
        self.names = list(losses)

    def _check_that_nobody_else_steps(self, what: str) -> None:
        if self.balancer.lr is None:
            raise ValueError(
                f"with {what} the Solver's optimizer cannot step the loss weights: pass "
                "lr=, or weight_lr= to GradNorm, and they are stepped here"
            )

    def get_weights(self) -> np.ndarray:
        """The weights that the next step will use, in the order of ``names``, shape [T]."""
        return self.balancer.get_weights()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Weights, L(0) and step count; the model is in the Solver's checkpoint already."""
        return self.balancer.state_dict()

    def set_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load what ``state_dict`` gave."""
        return self.balancer.set_state_dict(state_dict)


def _check_that_they_agree(
    model: GradNorm, num_losses: int | None, alpha: float | None, others: Mapping[str, Any]
) -> None:
    for name, value, own in ("num_losses", num_losses, model.n_loss), ("alpha", alpha, model.alpha):
        if value not in (None, own):
            raise ValueError(f"{name} is {value!r}, but the GradNorm that is the model has {own!r}")
    given = [name for name, value in others.items() if name != "shared" or value is not None]
    if given:
        raise TypeError(
            f"{', '.join(given)} cannot be given here, since the model is a GradNorm, which has "
            "loss weights of its own: give it to GradNorm (there lr is called weight_lr)"
        )


def _with_weights(log_train_info: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(log_train_info)
    def logged(solver: Any, *args: Any, **kwargs: Any) -> None:
        aggregator = solver.loss_aggregator
        if isinstance(aggregator, GradNormAggregator):
            for kind, values in [
                ("weight", aggregator.get_weights()),
                ("gradient_norm", aggregator.balancer.gradient_norms.numpy()),
            ]:
                for name, value in zip(aggregator.names, values):
                    meter = misc.AverageMeter(f"{kind}/{name}")
                    meter.update(float(value))
                    solver.train_output_info[meter.name] = meter
        log_train_info(solver, *args, **kwargs)

    return logged


# What the Solver logs is decided there, out of an aggregator's reach. Others see no difference.
printer.log_train_info = _with_weights(printer.log_train_info)
