"""Trainer: a training run of a network on several losses."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, Protocol, Union

import numpy as np
import paddle
from paddle.callbacks import (
    Callback,
    EarlyStopping,
    LRScheduler,
    ProgBarLogger,
    ReduceLROnPlateau,
)

from paddlescience_gradnorm import _arguments, _paddle, point_weights
from paddlescience_gradnorm.balancing import LossBalancer, _ranks
from paddlescience_gradnorm.balancing._losses import Losses, LossOrder, count
from paddlescience_gradnorm.network._shared_layer import unwrapped_of_ranks
from paddlescience_gradnorm.network.grad_norm import GradNorm
from paddlescience_gradnorm.rotograd import RotateOnly
from paddlescience_gradnorm.training._batches import (
    Data,
    as_arguments,
    batches_and_epochs,
    length,
)
from paddlescience_gradnorm.training._checkpoint_file import PathLike
from paddlescience_gradnorm.training._closed_over import layers_of
from paddlescience_gradnorm.training._diagnosis import broken
from paddlescience_gradnorm.training._trainer_state import TrainerState, count_on, counting
from paddlescience_gradnorm.training.checkpoints import Checkpoints
from paddlescience_gradnorm.training.history import History
from paddlescience_gradnorm.training.live import LiveView
from paddlescience_gradnorm.training.progress import ProgressBar
from paddlescience_gradnorm.training.run_state import RunState

# Extras of these types have no part in the order of the batches.
_NOT_DRAWN_FROM = (paddle.nn.Layer, paddle.Tensor, paddle.optimizer.Optimizer)
# Callbacks that show how far the run is.
_DISPLAYS = (ProgressBar, LiveView, ProgBarLogger)

# ``validate(net)`` gives numbers by name.
Validate = Callable[[paddle.nn.Layer], Mapping[str, float]]
# What ``History.record`` takes.
Row = tuple[Any, ...]


class Balancer(Protocol):
    """What turns losses into gradients: ``LossBalancer``, or anything with its ``backward``.

    The history records its ``loss_weights``, a tensor, and its ``gradient_norms`` and
    ``training_rates``, tensors or numpy arrays, as far as it has them; shape [T] each.
    """

    def backward(self, losses: Mapping[str, paddle.Tensor], /) -> paddle.Tensor:
        """Run the backward pass; the weighted total, shape []."""


class Trainer:
    """A run: network, balancer, optimizers and their schedules, step, epoch and history.

    Args:
        net: The network, any Paddle layer.
        losses: ``losses(net, *batch)`` gives the losses of a batch: a dict name -> scalar,
            whose names label the history, a list or tuple of scalars, or a 1-D tensor. If it is a
            layer with buffers, such as weights of points, or a method of one, checkpoints hold
            that layer. They also hold such layers that the function itself names.
        optimizers: An optimizer of ``paddle.optimizer``, or several, such as one for the network
            and one for the weights. All of them step in every step.
        balancer: What runs the backward pass; by default the network if it is a ``GradNorm`` or
            rotates gradients, in ``paddle.DataParallel`` or not.
            Without one the plain sum of the losses is differentiated.
        callbacks: Callbacks of ``paddle.callbacks``, such as ``EarlyStopping``, or with the same
            interface. They find this object in ``self.model``.
        schedule_by: ``"step"`` or ``"epoch"``: how often the optimizers' learning-rate
            schedules advance.
        extras: What else belongs into a checkpoint, by name, as for ``RunState``. Random generators
            of the sampling are an example, and layers that ``losses`` uses without naming them.
        progress: Whether to show a ``ProgressBar`` on the standard error. By default it is shown
            if that is a terminal, by the first of several processes, and not under pytest.
            ``True`` shows it in a notebook too, and every 30 seconds in a file. There is none
            beside a ``ProgressBar``, ``LiveView`` or ``ProgBarLogger`` in ``callbacks``.
        history: Where the steps are recorded; by default ``History()``, which thins a long run.
            ``History(limit=None)`` keeps every step.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: ``schedule_by`` is neither, there is no optimizer, none holds a parameter of
            ``net``, or none the loss weights with ``weight_lr=None``, or a schedule needs a number
            to step by or is in ``callbacks`` too.

    Examples:
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
        >>> trainer
        <Trainer of GradNorm(FCNet): 22 steps, 22 epochs, losses data, end; balanced by
        GradNormRule(alpha=1.0); Adam>
    """

    def __init__(
        self,
        net: paddle.nn.Layer,
        losses: Callable[..., Losses],
        optimizers: Union[paddle.optimizer.Optimizer, Sequence[paddle.optimizer.Optimizer]],
        balancer: Balancer | None = None,
        callbacks: Sequence[Callback] = (),
        schedule_by: str = "step",
        extras: Mapping[str, Any] | None = None,
        progress: bool | None = None,
        history: History | None = None,
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
        if not isinstance(callbacks, (list, tuple)):
            raise TypeError(
                f"callbacks must be a list, got {type(callbacks).__name__} {callbacks!r}; pass one "
                "callback as [callback]"
            )
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be of paddle.callbacks.Callback, got {callback!r}")
            if isinstance(callback, LRScheduler):
                raise ValueError(
                    "schedules advance by schedule_by; leave out callbacks.LRScheduler"
                )
        if schedule_by not in ("step", "epoch"):
            raise ValueError(f"schedule_by must be 'step' or 'epoch', got {schedule_by!r}")
        if not (progress is None or isinstance(progress, bool)):
            raise TypeError(f"progress must be True, False or None, got {progress!r}")
        if not (history is None or isinstance(history, History)):
            raise TypeError(f"history must be a History, got {history!r}")
        if not (extras is None or isinstance(extras, Mapping)):
            raise TypeError(
                f"extras must be a dict name -> part, got {extras!r}; give each part a name, such "
                'as {"points": generator}'
            )
        if balancer is None:
            balancer = _balancer_of(net)
        if balancer is not None and (
            isinstance(balancer, type) or not callable(getattr(balancer, "backward", None))
        ):
            raise TypeError(
                f"balancer must be a LossBalancer or have its backward(losses), got {balancer!r}; "
                'a rule is chosen in GradNorm(net, rule="pinn")'
            )
        self.net = net
        self.losses = losses
        self.optimizers = list(optimizers)
        self.balancer = balancer.balancer if isinstance(balancer, GradNorm) else balancer
        self._check_that_they_are_trained()
        self.callbacks = list(callbacks)
        self.schedule_by = schedule_by
        self.progress = progress
        self.history = History() if history is None else history
        self.step = 0
        self.epoch = 0
        self.stop_training = False
        self._order = LossOrder(0)  # the first step tells how many losses there are
        # How many batches the running epoch has had, and what its order was drawn from.
        self._batch = 0
        self._epoch_random: dict[str, Any] | None = None
        # The epoch that the running call of fit began with, and whether something has stopped
        # that call before its last epoch.
        self._first_epoch = 0
        self._stopped = False
        # What the callbacks had counted, until the next call of fit hands it to them.
        self._resumed: dict[str, Any] | None = None
        self._bar: ProgressBar | None = None  # beside the callbacks
        self._has_looked_for_untrained = False
        self.extras = dict(extras or {})
        drawn_from = {k: x for k, x in self.extras.items() if not isinstance(x, _NOT_DRAWN_FROM)}
        self._sources = RunState(**drawn_from)
        parts = {"net": self.net, "optimizers": self.optimizers, "history": self.history}
        own = {id(layer) for layer in net.sublayers(include_self=True)}
        if id(self.balancer) not in own and hasattr(self.balancer, "set_state_dict"):
            parts["balancer"] = self.balancer
        parts["trainer"] = TrainerState(self)
        for part in (self.balancer, *self.extras.values()):
            own.update(id(x) for x in _sublayers(part))
        held = {id(buffer) for buffer in net.buffers()}
        for name, layer in layers_of(losses).items():
            if id(layer) not in own and any(id(buffer) not in held for buffer in layer.buffers()):
                parts[f"losses {name}" if name else "losses"] = layer
                own.update(id(x) for x in _sublayers(layer))
        parts.update({f"extras {name}": part for name, part in self.extras.items()})
        self._state = RunState(**parts)
        self._saved = own
        # Weights of points that the losses call, as the first step shows, and that are not saved.
        self._unsaved: list[point_weights.PointWeights] | None = None

    def __repr__(self) -> str:
        bare, balancer = unwrapped_of_ranks(self.net), self.balancer
        net = type(bare).__name__
        if isinstance(bare, GradNorm):
            net += f"({type(bare.net).__name__})"
        by = getattr(balancer, "rule", type(balancer).__name__)
        names = ", ".join(self.history.names) or "not known yet"
        return (
            f"<Trainer of {net}: {_number(self.step, 'step')}, {_number(self.epoch, 'epoch')}, "
            f"losses {names}; {'not balanced' if balancer is None else f'balanced by {by}'}; "
            f"{', '.join(type(optimizer).__name__ for optimizer in self.optimizers)}>"
        )

    @property
    def _optimizer(self) -> paddle.optimizer.Optimizer:
        """The network's optimizer, under the name by which Paddle's callbacks look for it."""
        return self.optimizers[0]

    def fit(
        self,
        data: Data = None,
        epochs: int | None = None,
        validate: Validate | None = None,
        validate_every: int = 1,
        checkpoints: Checkpoints | None = None,
        resume: PathLike | None = None,
    ) -> History:
        """Train for some epochs more.

        The balancer learns from this how many steps the run will have, unless it was given
        ``total_steps``. If the number of batches is not known beforehand, neither is that.
        Gradients that the optimizers' parameters have from before are cleared.

        Args:
            data: The batches of an epoch, such as a ``paddle.io.DataLoader``. A batch is a list
                or tuple of the arguments that ``losses`` takes after the network, or the only
                argument itself. Its numpy arrays of floats become tensors of the network's dtype.
                Without data an epoch is one step with ``losses(net)``, and ``fit(1000)`` means
                ``fit(epochs=1000)``.
            epochs: Number of epochs, at least 1, which is the default. An ``EarlyStopping`` may
                end the call earlier.
            validate: ``validate(net)`` gives numbers by name, which ``EarlyStopping`` and
                ``ReduceLROnPlateau`` watch (by ``monitor``). It runs in evaluation mode.
            validate_every: Epochs from one call of ``validate`` to the next.
            checkpoints: Where checkpoints are written. There is one after every so many steps,
                at the end, and after a step in which something, such as ``StopOnSignals``, sets
                ``stop_training``.
            resume: A checkpoint to go on from: a file, or ``"latest"`` for the last one in
                ``checkpoints`` that is not damaged. This call then finishes the one that was
                interrupted, and ``epochs`` counts from where that one began. Without a checkpoint
                in the folder the run starts, with a warning. The learning rate is the
                checkpoint's; if the program has another number, a warning names both.

        Returns:
            The history of the whole run.

        Raises:
            TypeError: An argument is of the wrong type; ``validate`` gives no numbers by name;
                ``data`` does not hold batches, as a single tensor, a dict or a ``Dataset`` does
                not, or, as a generator, holds them for one epoch of several; or as the
                balancer's ``backward`` raises.
            ValueError: One of them is below 1; an early stop without ``validate``; ``data``
                has no batch; or as the balancer's ``backward`` raises.
            CheckpointError: A checkpoint is damaged, or of another run; or the folder holds
                checkpoints of later steps, which have not been loaded; or another process, which
                the error names, has its run there.
            OSError: A checkpoint cannot be read or written.

        Warns:
            UserWarning: No optimizer holds a parameter that the losses depend on, such as an
                unknown coefficient. Or the checkpoint has another learning rate.
            RuntimeWarning: The losses call weights of points that ``checkpoints`` will not hold,
                because the function of losses does not name the layer.
        """
        data, epochs = batches_and_epochs(data, epochs)
        _check_validation(validate, validate_every)
        if not (checkpoints is None or isinstance(checkpoints, Checkpoints)):
            raise TypeError(
                f"checkpoints must be a Checkpoints, got {checkpoints!r}; pass Checkpoints(folder)"
            )
        if not (resume is None or isinstance(resume, (str, os.PathLike))):
            raise TypeError(
                f"resume must be a file or 'latest', got {resume!r}; pass resume='latest' to go on "
                "from the last checkpoint"
            )
        self._resumed = None
        if resume is not None:
            self._resume(resume, checkpoints)
        if checkpoints is not None:
            checkpoints.begin(self.step)
        try:
            return self._run(
                data,
                epochs,
                validate,
                validate_every,
                self._step,
                self._advance_schedules,
                checkpoints,
            )
        finally:
            if checkpoints is not None:
                checkpoints.end()

    def save(self, path: PathLike) -> None:
        """Write all that decides how the run goes on; see ``RunState.save``.

        Callbacks may call it at the end of a batch or of an epoch.

        Warns:
            RuntimeWarning: The losses call weights of points that are not saved.
        """
        self._warn_of_unsaved(stacklevel=3)
        self._state.save(path, step=self.step)

    def load(self, path: PathLike) -> None:
        """Let the next ``fit`` go on where ``save`` was called; see ``RunState.load``.

        If that was within an epoch, the rest of it comes first and counts as one of the epochs of
        ``fit``, which must be given the same data.
        """
        self._state.load(path)

    def fit_lbfgs(
        self,
        data: Data = None,
        epochs: int | None = None,
        validate: Validate | None = None,
        validate_every: int = 1,
        *,
        line_search_fn: str | None = "strong_wolfe",
        **options: Any,
    ) -> History:
        """Go on by L-BFGS, with the weights of the losses, and of points, frozen as they are.

        This is the last stage of a run that has the same points in every step, because L-BFGS
        needs a function that does not change. It minimises sum_i w_i L_i.

        Args:
            data: As for ``fit``; best a single batch of all points.
            epochs: Number of epochs, at least 1, which is the default. For each batch of an epoch
                L-BFGS makes up to ``max_iter`` iterations, and the history gets one row with what
                they start from.
            validate: As for ``fit``.
            validate_every: As for ``fit``.
            line_search_fn: As for ``paddle.optimizer.LBFGS``. Without a line search, which is
                Paddle's default, L-BFGS often diverges.
            **options: More options of ``paddle.optimizer.LBFGS``, such as ``max_iter``.

        Returns:
            The history of the whole run. Norms and rates of these steps are not measured.

        Raises:
            TypeError: The balancer's gradients are no weighted sum's; or as for ``fit``.
            ValueError: A direction has left a negative weight; or as for ``fit``.
        """
        data, epochs = batches_and_epochs(data, epochs)
        _check_validation(validate, validate_every)
        weights, own = None, set()
        if self.balancer is not None:
            if not (
                isinstance(self.balancer, LossBalancer) or hasattr(self.balancer, "loss_weights")
            ):
                raise TypeError(
                    "fit_lbfgs minimises a weighted sum, but the balancer has no loss_weights: "
                    f"{type(self.balancer).__name__}"
                )
            weights = self._acting_weights()
            if weights is not None and (weights < 0).any().item():
                raise ValueError(
                    f"fit_lbfgs minimises a weighted sum, which has no minimum with the negative "
                    f"weights {weights.tolist()}: call renormalize() of the balancer, which raises "
                    "them to its floor, or set loss_weights"
                )
            if isinstance(self.balancer, paddle.nn.Layer):
                own = {id(p) for p in self.balancer.parameters()}
        parameters = {id(p): p for p in self._trained() if id(p) not in own}
        optimizer = paddle.optimizer.LBFGS(
            parameters=list(parameters.values()), line_search_fn=line_search_fn, **options
        )

        def step(batch: Sequence[Any]) -> tuple[paddle.Tensor, Row]:
            row: Row = ()

            def closure() -> paddle.Tensor:
                nonlocal row
                optimizer.clear_grad()
                _, scalars = self._losses(batch)
                values = _stacked(scalars)
                acting = paddle.ones_like(values) if weights is None else weights
                row = row or (self._order.names, self._recorded(scalars), acting)
                total = paddle.dot(acting.astype(values.dtype), values)
                total.backward()
                return total

            with point_weights.held():
                total = optimizer.step(closure)
            optimizer.clear_grad()
            return total, row

        try:
            return self._run(data, epochs, validate, validate_every, step)
        finally:
            # Paddle's optimizers refer to themselves, so that up to 200 vectors of the size of all
            # parameters would wait for the garbage collector.
            optimizer.state.clear()

    def diagnose(self) -> list[str]:
        """What a user should act on, in words; an empty list if there is nothing.

        These are the findings of the history (``History.diagnose``) and, after its first update,
        of the balancer (``LossBalancer.diagnose``).
        """
        history, balancer = self.history, self.balancer
        if not (isinstance(balancer, LossBalancer) and balancer.last_measurement.step >= 0):
            return history.diagnose()
        rows = history.to_numpy()
        over = broken(history.names, rows["losses"], rows["weights"], rows["steps"])
        return over or history.diagnose(balancer.cosines) + balancer.diagnose()

    def _run(
        self,
        data: Iterable[Any] | None,
        epochs: int,
        validate: Validate | None,
        validate_every: int,
        step: Callable[[Sequence[Any]], tuple[paddle.Tensor, Row]],
        advance: Callable[[], None] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> History:
        """The epochs with all callbacks; ``advance`` steps the schedules."""
        resumed, self._resumed = self._resumed, None
        self.stop_training = resumed is not None and self._stopped
        self._stopped = False
        if resumed is None:
            self._first_epoch = self.epoch
        first = self._first_epoch
        steps = 1 if data is None else length(data)
        done = self.epoch - first if steps is None else (self.epoch - first) * steps + self._batch
        if advance is not None and isinstance(self.balancer, LossBalancer):
            self.balancer._expect_steps(None if steps is None else epochs * steps - done)
        self._bar = self._progress_bar()
        for callback in self._acting_callbacks():
            if validate is None and isinstance(callback, (EarlyStopping, ReduceLROnPlateau)):
                raise ValueError(
                    f"{type(callback).__name__} watches what validate returns, but validate is "
                    "None; pass validate=, a function of the network"
                )
            callback.set_model(self)
            params = {"epochs": epochs, "steps": steps, "metrics": ["loss"], "initial": done}
            callback.set_params(params)
        loaded = self._sources.state()
        self._call("on_train_begin")
        if resumed is not None:  # and the callbacks have begun anew
            self._sources.prepare(loaded)()
            for name, callback in counting(self.callbacks):
                count_on(callback, resumed[name])
        self.net.train()
        self._clear_gradients()  # which a loop of the user's may have left
        try:
            while not self.stop_training and self.epoch < first + epochs:
                ended = self._epoch(data, step, checkpoints)
                if advance is not None and self.schedule_by == "epoch":
                    advance()
                if validate is not None and (self.epoch - first) % validate_every == 0:
                    self._validate(validate)
                self._agree_to_stop()
                self._stopped = ended and self.stop_training
                over = self._stopped or (ended and self.epoch >= first + epochs)
                if over and checkpoints is not None and checkpoints.every is not None:
                    checkpoints.save(self._state, self.step)
        except BaseException:
            self._batch = 0  # the next call begins an epoch
            self._clear_gradients()  # of a step that has not ended
            if isinstance(self.balancer, LossBalancer):
                self.balancer.discard_micro_batches()
            raise
        finally:
            self._call("on_train_end")
            self._bar = None
        return self.history

    def _agree_to_stop(self) -> None:
        """Stop all processes in the step in which one is to stop, for none goes on alone."""
        self.stop_training = _ranks.any_has(self.stop_training)

    def _epoch(
        self,
        data: Iterable[Any] | None,
        step: Callable[[Sequence[Any]], tuple[paddle.Tensor, Row]],
        checkpoints: Checkpoints | None,
    ) -> bool:
        """An epoch, or the rest of one; whether all its batches have been through."""
        self._call("on_epoch_begin", self.epoch)
        for batch in self._rest_of_epoch(data):
            number = self._batch
            self._call("on_train_batch_begin", number)
            total, row = step(as_arguments(batch, self.net))
            # Together, so that the history has as many steps as the run even after Ctrl-C.
            self.history.record(*row)
            self.step += 1
            self._batch += 1
            self._check_that_coefficients_are_trained()
            self._call("on_train_batch_end", number, {"loss": total.detach()})
            self._agree_to_stop()
            if checkpoints is not None:
                self._warn_of_unsaved(stacklevel=5)
                if self.stop_training:
                    checkpoints.save(self._state, self.step)
                else:
                    checkpoints.step(self._state, self.step)
            if self.stop_training:
                break
        if not self._batch:
            raise ValueError(
                f"data has no batch, or none is left: {data!r}; an epoch needs at least one"
            )
        self._batch = 0
        self.epoch += 1
        stopped = self.stop_training
        self._call("on_epoch_end", self.epoch - 1)
        return not stopped

    def _rest_of_epoch(self, data: Iterable[Any] | None) -> Iterator[Any]:
        """The epoch's batches, without those that it has had before a checkpoint."""
        if not self._batch:
            # What is drawn for the order of the batches must be drawn again on resuming.
            drawn = not (data is None or isinstance(data, (list, tuple)))
            self._epoch_random = self._sources.state() if drawn else None
            return iter([()] if data is None else data)
        now = self._sources.state()
        if self._epoch_random is not None:
            self._sources.prepare(self._epoch_random)()
        batches = iter([()] if data is None else data)
        for number in range(self._batch):
            try:
                next(batches)
            except StopIteration:
                raise ValueError(
                    f"data has {number} batches in an epoch, but the run was stopped after "
                    f"{self._batch}; pass the data that it was trained on"
                ) from None
        self._sources.prepare(now)()
        return batches

    def _resume(self, resume: PathLike, checkpoints: Checkpoints | None) -> None:
        rates = self._rates()
        if resume != "latest":
            self.load(resume)
            self._warn_of_other_rates(rates, resume)
            return
        if checkpoints is None:
            raise ValueError(
                "resume is 'latest', but checkpoints is None; pass Checkpoints(folder)"
            )
        if checkpoints.load_latest(self._state) is None:
            warnings.warn(
                f"there is no checkpoint in {checkpoints.folder}; the run starts anew",
                RuntimeWarning,
                stacklevel=3,
            )
        else:
            self._warn_of_other_rates(rates, checkpoints.last)

    def _rates(self) -> list[float | None]:
        """The optimizers' learning rates; None for that of a schedule, which moves."""
        return [None if _paddle.schedule_of(x) else float(x.get_lr()) for x in self.optimizers]

    def _warn_of_other_rates(self, own: Sequence[float | None], path: PathLike | None) -> None:
        """Warn if the checkpoint has other rates than the program had."""
        if any(isinstance(callback, ReduceLROnPlateau) for callback in self.callbacks):
            return  # which has lowered them since
        for i, (rate, loaded) in enumerate(zip(own, self._rates())):
            if rate != loaded:
                warnings.warn(
                    f"optimizers[{i}] has the learning rate {rate} in the program and {loaded} in "
                    f"{path}, and goes on with {loaded}. For {rate} call "
                    f"trainer.load({str(path)!r}), then optimizer.set_lr({rate}), then fit without "
                    "resume",
                    UserWarning,
                    stacklevel=4,
                )

    def _step(self, batch: Sequence[Any]) -> tuple[paddle.Tensor, Row]:
        losses, scalars = self._losses(batch)
        values = self._recorded(scalars)
        if isinstance(self.balancer, LossBalancer) and self.balancer.n_loss is None:
            self.balancer.set_n_loss(len(scalars))
        weights: Any = None
        if self.balancer is None:
            weights = paddle.ones_like(values)
            total = sum(scalars)
            total.backward()
        elif isinstance(self.balancer, LossBalancer):
            total = self.balancer.backward(losses)
            weights = self.balancer.acted_weights
        else:
            weights = self._acting_weights()  # which the balancer's step replaces
            total = self.balancer.backward(dict(zip(self._order.names, scalars)))
        row = (
            self._order.names,
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
        return total, row

    def _clear_gradients(self) -> None:
        # To zeros, as after a step, and not to None, by which Adam would leave a parameter out.
        for optimizer in self.optimizers:
            optimizer.clear_grad()

    def _acting_weights(self) -> paddle.Tensor | None:
        """The weights that the balancer's next step will use; None if it does not tell them."""
        balancer: Any = self.balancer
        if isinstance(balancer, LossBalancer):
            balancer.settle()
        # A copy on the device, so that an accelerator does not wait.
        weights = getattr(balancer, "loss_weights", None)
        return None if weights is None else weights.detach().clone()

    def _losses(self, batch: Sequence[Any]) -> tuple[Losses, list[paddle.Tensor]]:
        """The losses of a batch as they are given, and as scalars in the order of their names."""
        if self._unsaved is None:
            with point_weights.called() as layers:
                losses = self.losses(self.net, *batch)
            self._unsaved = [layer for layer in layers if id(layer) not in self._saved]
        else:
            losses = self.losses(self.net, *batch)
        if self._order.n_loss == 0:
            balancer, n_loss, absent = self.balancer, None, "error"
            if isinstance(balancer, LossBalancer):
                n_loss, absent = balancer.n_loss, balancer.absent
            self._order = LossOrder(n_loss or count(losses), absent=absent)
        return losses, self._order.scalars(losses)

    def _recorded(self, scalars: Sequence[paddle.Tensor]) -> paddle.Tensor:
        """The losses for the history, shape [T]; NaN for one that is absent."""
        nan = [float("nan") if self._order.is_absent(x) else 0.0 for x in scalars]
        values = _stacked(x.detach() for x in scalars)
        return values + paddle.to_tensor(nan, values.dtype) if any(map(np.isnan, nan)) else values

    def _trained(self) -> Iterator[paddle.Tensor]:
        """What the optimizers step."""
        for optimizer in self.optimizers:
            for group in _paddle.parameter_groups(optimizer):
                yield from group

    def _check_that_they_are_trained(self) -> None:
        """Raise if no optimizer steps the network, or the loss weights that wait for one."""
        held, balancer, weights = {id(p) for p in self._trained()}, self.balancer, None
        if isinstance(balancer, LossBalancer) and balancer.weight_lr is None:
            weights = balancer.loss_weights
        trained = [p for p in self.net.parameters() if p is not weights and not p.stop_gradient]
        if trained and not any(id(p) in held for p in trained):
            raise ValueError(
                "optimizers hold no parameter of net, so it would never change: build the "
                "optimizer with net.parameters(), not with those of another network or of a copy"
            )
        if weights is not None and id(weights) not in held:
            raise ValueError(
                "optimizers do not hold the loss weights, which they must step because weight_lr "
                "is None: build the optimizer with net.parameters() of the GradNorm, or with "
                "balancer.loss_weights too; or pass weight_lr= to the balancer"
            )

    def _check_that_coefficients_are_trained(self) -> None:
        """Warn, after the first step, of parameters of the losses that no optimizer steps."""
        if self._has_looked_for_untrained:
            return
        self._has_looked_for_untrained = True
        others = [self.net, *_sublayers(self.balancer)]
        known = {id(p) for p in self._trained()} | {id(p) for x in others for p in x.parameters()}
        extras = [x for x in self.extras.values() if isinstance(x, paddle.nn.Layer)]
        untrained = {
            id(p): f"{name} of {type(layer).__name__}"
            for layer in [*layers_of(self.losses).values(), *extras]
            for name, p in layer.named_parameters()
            if not p.stop_gradient and id(p) not in known
            # Zeros, not None, are left by an optimizer that has trained the layer before.
            if p.grad is not None and bool((p.grad != 0).any())
        }
        if untrained:
            warnings.warn(
                f"optimizers do not hold {', '.join(untrained.values())}, on which the losses "
                "depend, and what no optimizer steps never changes: build the optimizer with the "
                "parameters of that layer too, as in Adam(parameters=[*net.parameters(), "
                "*residual.parameters()]), or set stop_gradient=True of what is to stay",
                UserWarning,
                stacklevel=5,
            )

    def _warn_of_unsaved(self, stacklevel: int) -> None:
        """Warn, once, of weights of points that a checkpoint does not hold."""
        if self._unsaved:
            warnings.warn(
                f"checkpoints do not hold {', '.join(map(repr, self._unsaved))}, because the "
                "function of losses does not name the layer, and a resumed run would begin with "
                'new weights of points: pass Trainer(..., extras={"points": layer})',
                RuntimeWarning,
                stacklevel=stacklevel,
            )
            self._unsaved = []

    def _advance_schedules(self) -> None:
        schedules = {id(s): s for s in map(_paddle.schedule_of, self.optimizers) if s is not None}
        for schedule in schedules.values():  # several optimizers may share one
            schedule.step()

    def _validate(self, validate: Validate) -> None:
        self._call("on_eval_begin")
        self.net.eval()
        try:
            with point_weights.held():  # which a function of losses moves otherwise
                results = _numbers(validate(self.net))
        finally:
            self.net.train()
        self._call("on_eval_end", results)
        for optimizer in self.optimizers:
            # ReduceLROnPlateau sets an attribute, which no step but the first looks at.
            if _paddle.schedule_of(optimizer) is None:
                optimizer.set_lr(optimizer.get_lr())

    def _progress_bar(self) -> ProgressBar | None:
        """The progress bar, if it is wanted and the callbacks have none."""
        if any(isinstance(callback, _DISPLAYS) for callback in self.callbacks):
            return None
        shown = self.progress
        if shown is None:
            shown = (
                sys.stderr is not None  # as in a program without a console
                and sys.stderr.isatty()
                and "PYTEST_CURRENT_TEST" not in os.environ
                and paddle.distributed.get_rank() == 0
            )
        return ProgressBar() if shown else None

    def _acting_callbacks(self) -> list[Callback]:
        return self.callbacks if self._bar is None else [*self.callbacks, self._bar]

    def _call(self, name: str, *values: Any) -> None:
        for callback in self._acting_callbacks():
            getattr(callback, name)(*values)


def _balancer_of(net: paddle.nn.Layer) -> Balancer | None:
    """What balances this network's losses, if the network is that itself.

    Raises:
        ValueError: It is something deeper within the network, which would be passed over.
    """
    bare = unwrapped_of_ranks(net)
    if isinstance(bare, (GradNorm, RotateOnly)):
        return bare
    for path, layer in net.named_sublayers():
        if isinstance(layer, (GradNorm, LossBalancer, RotateOnly)):
            raise ValueError(
                f"net has a {type(layer).__name__} in net.{path}, which balances nothing unless "
                f"you say so: pass balancer=net.{path}, or a network without it"
            )
    return None


def _sublayers(part: Any) -> list[paddle.nn.Layer]:
    is_layer = isinstance(part, paddle.nn.Layer)
    return list(part.sublayers(include_self=True)) if is_layer else []


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _stacked(scalars: Iterable[paddle.Tensor]) -> paddle.Tensor:
    """The scalars as one tensor, shape [T], in a precision that numpy has."""
    scalars = list(scalars)
    dtype = "float64" if any(x.dtype == paddle.float64 for x in scalars) else "float32"
    return paddle.stack([x.astype(dtype) for x in scalars])


def _check_validation(validate: Any, validate_every: Any) -> None:
    if not (validate is None or callable(validate)):
        raise TypeError(f"validate must be a function of the network, got {validate!r}")
    _arguments.integer("validate_every", validate_every, at_least=1)


def _numbers(results: Any) -> dict[str, float]:
    """What ``validate`` has given, as floats."""
    try:
        return {name: float(value) for name, value in results.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            f"validate must give numbers by name, such as {{'error': 0.1}}, got {results!r}"
        ) from error


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, paddle.optimizer.Optimizer):
        raise TypeError(
            f"optimizers must be of paddle.optimizer, got {type(optimizer).__name__} {optimizer!r}"
        )
    if isinstance(optimizer, paddle.optimizer.LBFGS):
        raise TypeError("optimizers must make one step a backward pass; for LBFGS call fit_lbfgs")
    if isinstance(_paddle.schedule_of(optimizer), paddle.optimizer.lr.ReduceOnPlateau):
        raise ValueError(
            "a ReduceOnPlateau schedule steps by a measured number; pass a plain rate, "
            "paddle.callbacks.ReduceLROnPlateau in callbacks, and fit(validate=...)"
        )
