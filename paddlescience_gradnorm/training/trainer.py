"""Trainer: a training run of a network on several losses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, Protocol, Union

import paddle
from paddle.callbacks import Callback, EarlyStopping, LRScheduler, ReduceLROnPlateau

from paddlescience_gradnorm import arguments
from paddlescience_gradnorm.balancing.losses import Losses, LossOrder
from paddlescience_gradnorm.network.grad_norm import GradNorm
from paddlescience_gradnorm.training.history import History


class Balancer(Protocol):
    """What turns losses into gradients: ``LossBalancer``, or anything with its ``backward``.

    Where it has ``loss_weights``, ``gradient_norms`` and ``training_rates``, tensors of
    shape [T], the history has them too.
    """

    def backward(self, losses: Mapping[str, paddle.Tensor], /) -> paddle.Tensor:
        """Run the backward pass; the weighted total, shape []."""


class Trainer:
    """A run: network, balancer, optimizers and their schedules, step, epoch and history.

    Args:
        net: The network, any Paddle layer.
        losses: ``losses(net, *batch)`` gives the losses of a batch: a dict name -> scalar,
            whose names label the history, a list or tuple of scalars, or a 1-D tensor.
        optimizers: One of ``paddle.optimizer``, or several: of the network and of the
            weights, say. All of them step in every step.
        balancer: What runs the backward pass. By default that of a ``GradNorm`` network;
            without one the plain sum of the losses is differentiated.
        callbacks: Of ``paddle.callbacks``, such as ``EarlyStopping``, or with its interface.
            They find this object in ``self.model``.
        schedule_by: ``"step"`` or ``"epoch"``: how often the optimizers' learning-rate
            schedules advance.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: ``schedule_by`` is neither, there is no optimizer, or a schedule needs a
            number to step by or is in ``callbacks`` too.

    Example:
        >>> import paddle
        >>> from paddlescience_gradnorm import FCNet, GradNorm
        >>> net = GradNorm(FCNet(1, 1, 3, 16), n_loss=2, alpha=1.0)
        >>> x = paddle.linspace(0, 1, 32).reshape([-1, 1])
        >>> def losses(net):
        ...     u = net(x)
        ...     return {"data": (u - x.sin()).square().mean(), "end": (u[-1] - 0.84).square().sum()}
        >>> adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
        >>> trainer = Trainer(net, losses, adam)
        >>> history = trainer.fit(epochs=20)
        >>> history = trainer.fit_lbfgs(epochs=2)
        >>> len(history), bool(history.losses["data"][-1] < history.losses["data"][0])
        (22, True)
    """

    def __init__(
        self,
        net: paddle.nn.Layer,
        losses: Callable[..., Losses],
        optimizers: Union[paddle.optimizer.Optimizer, Sequence[paddle.optimizer.Optimizer]],
        balancer: Balancer | None = None,
        callbacks: Sequence[Callback] = (),
        schedule_by: str = "step",
    ) -> None:
        if not isinstance(net, paddle.nn.Layer):
            raise TypeError(f"net must be a paddle.nn.Layer, got {type(net).__name__} {net!r}")
        if not callable(losses):
            raise TypeError(f"losses must be a function of the network and a batch, got {losses!r}")
        if isinstance(optimizers, paddle.optimizer.Optimizer):
            optimizers = [optimizers]
        if not optimizers:
            raise ValueError(f"optimizers must hold one at least, got {optimizers!r}")
        for optimizer in optimizers:
            _check_optimizer(optimizer)
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be of paddle.callbacks.Callback, got {callback!r}")
            if isinstance(callback, LRScheduler):
                raise ValueError(
                    "schedules advance by schedule_by; leave out callbacks.LRScheduler"
                )
        if schedule_by not in ("step", "epoch"):
            raise ValueError(f"schedule_by must be 'step' or 'epoch', got {schedule_by!r}")
        if balancer is None and isinstance(net, GradNorm):
            balancer = net
        self.net = net
        self.losses = losses
        self.optimizers = list(optimizers)
        self.balancer = balancer.balancer if isinstance(balancer, GradNorm) else balancer
        self.callbacks = list(callbacks)
        self.schedule_by = schedule_by
        self.history = History()
        self.step = 0
        self.epoch = 0
        self.stop_training = False
        self._order: LossOrder | None = None

    @property
    def _optimizer(self) -> paddle.optimizer.Optimizer:
        """The network's optimizer, under the name by which Paddle's callbacks look for it."""
        return self.optimizers[0]

    def fit(
        self,
        data: Iterable[Any] | None = None,
        epochs: int = 1,
        validate: Callable[[paddle.nn.Layer], Mapping[str, float]] | None = None,
        validate_every: int = 1,
    ) -> History:
        """Train for some epochs more.

        Args:
            data: The batches of an epoch, such as a ``paddle.io.DataLoader``: each is a
                list or tuple, the arguments of ``losses`` after the network, or the only
                one. Without it an epoch is one step with ``losses(net)``.
            epochs: Their number, at least 1. An ``EarlyStopping`` may make it less.
            validate: ``validate(net)`` gives numbers by name, which ``EarlyStopping`` and
                ``ReduceLROnPlateau`` watch (by ``monitor``). It runs in evaluation mode.
            validate_every: Epochs from one call of it to the next.

        Returns:
            The history of the whole run.

        Raises:
            TypeError: ``epochs`` or ``validate_every`` is no integer; or as the balancer's
                ``backward`` raises.
            ValueError: One of them is below 1; an early stop without ``validate``; ``data``
                has no batch; or as the balancer's ``backward`` raises.
        """
        return self._run(
            data, epochs, validate, validate_every, self._step, self._advance_schedules
        )

    def fit_lbfgs(
        self,
        data: Iterable[Any] | None = None,
        epochs: int = 1,
        validate: Callable[[paddle.nn.Layer], Mapping[str, float]] | None = None,
        validate_every: int = 1,
        *,
        line_search_fn: str | None = "strong_wolfe",
        **options: Any,
    ) -> History:
        """Go on by L-BFGS, with the weights of the losses frozen as they are.

        The last stage of a run on the same points in every step: L-BFGS needs a function
        that does not change. What it minimises is sum_i w_i L_i.

        Args:
            data: As for :meth:`fit`; best one batch, all points.
            epochs: Their number, at least 1; for each batch of an epoch L-BFGS makes up to
                ``max_iter`` iterations, and the history one row, with what they start from.
            validate: As for :meth:`fit`.
            validate_every: As for :meth:`fit`.
            line_search_fn: As of ``paddle.optimizer.LBFGS``; without the line search, which
                is Paddle's default, L-BFGS often diverges.
            **options: More of ``paddle.optimizer.LBFGS``, such as ``max_iter``.

        Returns:
            The history of the whole run. Norms and rates of these steps are not measured.

        Raises:
            TypeError: The balancer's gradients are no weighted sum's; or as for :meth:`fit`.
            ValueError: As for :meth:`fit`.
        """
        weights, own = None, set()
        if self.balancer is not None:
            if not hasattr(self.balancer, "loss_weights"):
                raise TypeError(
                    "fit_lbfgs minimises a weighted sum, but the balancer has no loss_weights: "
                    f"{type(self.balancer).__name__}"
                )
            weights = self.balancer.loss_weights.detach().clone()
            if isinstance(self.balancer, paddle.nn.Layer):
                own = {id(p) for p in self.balancer.parameters()}
        parameters = {id(p): p for p in self._trained() if id(p) not in own}
        optimizer = paddle.optimizer.LBFGS(
            parameters=list(parameters.values()), line_search_fn=line_search_fn, **options
        )

        def step(batch: Sequence[Any]) -> paddle.Tensor:
            started = False

            def closure() -> paddle.Tensor:
                nonlocal started
                optimizer.clear_grad()
                losses = self._losses(batch)
                values = _stacked(losses.values())
                acting = paddle.ones_like(values) if weights is None else weights
                if not started:
                    self.history.record(list(losses), values.detach(), acting)
                    started = True
                total = paddle.dot(acting.astype(values.dtype), values)
                total.backward()
                return total

            total = optimizer.step(closure)
            optimizer.clear_grad()
            return total

        return self._run(data, epochs, validate, validate_every, step)

    def _run(
        self,
        data: Iterable[Any] | None,
        epochs: int,
        validate: Callable[[paddle.nn.Layer], Mapping[str, float]] | None,
        validate_every: int,
        step: Callable[[Sequence[Any]], paddle.Tensor],
        advance: Callable[[], None] | None = None,
    ) -> History:
        """The epochs with all callbacks; ``advance`` steps the schedules."""
        arguments.integer("epochs", epochs, at_least=1)
        arguments.integer("validate_every", validate_every, at_least=1)
        self.stop_training = False
        steps = 1 if data is None else _length(data)
        for callback in self.callbacks:
            if validate is None and isinstance(callback, (EarlyStopping, ReduceLROnPlateau)):
                raise ValueError(
                    f"{type(callback).__name__} watches what validate returns, but validate is "
                    "None; pass validate=, a function of the network"
                )
            callback.set_model(self)
            callback.set_params({"epochs": epochs, "steps": steps, "metrics": ["loss"]})
        self._call("on_train_begin")
        self.net.train()
        try:
            for epoch in range(1, epochs + 1):
                self._epoch(data, step)
                if advance is not None and self.schedule_by == "epoch":
                    advance()
                if validate is not None and epoch % validate_every == 0:
                    self._validate(validate)
                if self.stop_training:
                    break
        finally:
            self._call("on_train_end")
        return self.history

    def _epoch(
        self, data: Iterable[Any] | None, step: Callable[[Sequence[Any]], paddle.Tensor]
    ) -> None:
        self._call("on_epoch_begin", self.epoch)
        number = -1
        for number, batch in enumerate([()] if data is None else data):
            self._call("on_train_batch_begin", number)
            total = step(as_arguments(batch))
            self.step += 1
            self._call("on_train_batch_end", number, {"loss": total.detach()})
            if self.stop_training:
                break
        if number < 0:
            raise ValueError(f"data has no batch: {data!r}; an epoch needs at least one")
        self.epoch += 1
        self._call("on_epoch_end", self.epoch - 1)

    def _step(self, batch: Sequence[Any]) -> paddle.Tensor:
        losses = self._losses(batch)
        values = _stacked(loss.detach() for loss in losses.values())
        weights = getattr(self.balancer, "loss_weights", None)
        if weights is not None:
            weights = weights.detach().clone()  # which the step may change in place
        if self.balancer is None:
            weights = paddle.ones_like(values)
            total = sum(losses.values())
            total.backward()
        else:
            total = self.balancer.backward(losses)
        self.history.record(
            list(losses),
            values,
            weights,
            getattr(self.balancer, "gradient_norms", None),
            getattr(self.balancer, "training_rates", None),
        )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.clear_grad()
        if self.schedule_by == "step":
            self._advance_schedules()
        return total

    def _losses(self, batch: Sequence[Any]) -> dict[str, paddle.Tensor]:
        losses = self.losses(self.net, *batch)
        if self._order is None:
            self._order = LossOrder(count(losses))
        scalars = self._order.scalars(losses)
        return dict(zip(self._order.names, scalars))

    def _trained(self) -> Iterator[paddle.Tensor]:
        """What the optimizers step."""
        for optimizer in self.optimizers:
            for group in optimizer._param_groups:  # or parameters, where there are no groups
                yield from group["params"] if isinstance(group, dict) else [group]

    def _advance_schedules(self) -> None:
        schedules = {
            id(schedule): schedule
            for schedule in (optimizer._learning_rate for optimizer in self.optimizers)
            if isinstance(schedule, paddle.optimizer.lr.LRScheduler)
        }
        for schedule in schedules.values():  # several optimizers may share one
            schedule.step()

    def _validate(self, validate: Callable[[paddle.nn.Layer], Mapping[str, float]]) -> None:
        self._call("on_eval_begin")
        self.net.eval()
        results = {name: float(value) for name, value in validate(self.net).items()}
        self.net.train()
        self._call("on_eval_end", results)

    def _call(self, name: str, *values: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(*values)


def as_arguments(batch: Any) -> Sequence[Any]:
    """What a batch hands to the losses: its parts, or the whole if it has none."""
    return batch if isinstance(batch, (list, tuple)) else [batch]


def _length(data: Any) -> int | None:
    """The number of batches, if it is known beforehand."""
    try:
        return len(data)
    except (TypeError, ValueError, RuntimeError):  # of an IterableDataset and its DataLoader
        return None


def _stacked(scalars: Iterable[paddle.Tensor]) -> paddle.Tensor:
    """The scalars as one tensor, shape [T], in a precision that numpy has."""
    scalars = list(scalars)
    dtype = "float64" if any(x.dtype == paddle.float64 for x in scalars) else "float32"
    return paddle.stack([x.astype(dtype) for x in scalars])


def count(losses: Losses) -> int:
    """How many losses these are."""
    return int(losses.size) if isinstance(losses, paddle.Tensor) else len(losses)


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, paddle.optimizer.Optimizer):
        raise TypeError(
            f"optimizers must be of paddle.optimizer, got {type(optimizer).__name__} {optimizer!r}"
        )
    if isinstance(optimizer, paddle.optimizer.LBFGS):
        raise TypeError("optimizers must make one step a backward pass; for LBFGS call fit_lbfgs")
    if isinstance(optimizer._learning_rate, paddle.optimizer.lr.ReduceOnPlateau):
        raise ValueError(
            "a ReduceOnPlateau schedule steps by a measured number; pass a plain rate, "
            "paddle.callbacks.ReduceLROnPlateau in callbacks, and fit(validate=...)"
        )
