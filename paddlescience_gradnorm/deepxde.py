"""Balanced losses in DeepXDE on Paddle. Importing this imports ``deepxde``."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
import paddle

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.balancing import _equations
from paddlescience_gradnorm.balancing.balancer import LossBalancer
from paddlescience_gradnorm.balancing.rule import Rule
from paddlescience_gradnorm.balancing.rules import find_rule
from paddlescience_gradnorm.network._shared_layer import find_shared

try:
    import deepxde as dde
except ModuleNotFoundError as error:
    if error.name != "deepxde":
        raise
    raise ImportError(
        "paddlescience_gradnorm.deepxde needs DeepXDE, which is not installed: "
        "pip install 'deepxde>=1.15,<1.16'"
    ) from error

__all__ = ["Balance", "LossWeights", "balance"]

_log = logging.getLogger("paddlescience_gradnorm")

# Options of LossBalancer that mean nothing here, and why.
_NOT_HERE = {
    "n_loss": "the data say how many losses there are",
    "absent": "DeepXDE's losses are there in every step",
}
# Before the names of what a checkpoint holds beside the network.
_IN_CHECKPOINTS = "loss_balance."


def balance(
    model: dde.Model,
    rule: Union[str, Rule, None] = None,
    equations: Sequence[Union[int, str]] | None = None,
    *,
    names: Sequence[str] | None = None,
    shared: Any = None,
    **options: Any,
) -> Balance:
    """Let a DeepXDE model learn the weights of its losses.

    Call it once, after the first ``model.compile(...)``. From then on ``model.train`` balances the
    losses. Its ``iterations`` tell how long the run is. What DeepXDE prints, records and plots are
    the unweighted losses. A later ``model.compile`` keeps the weights: Adam goes on learning them,
    and for L-BFGS they are fixed. ``model.save`` and ``model.restore`` take the weights along. A
    model that has been restored before is restored once more after this call, because DeepXDE alone
    skips the weights.

    The model's data say which losses are equations: what the ``pde`` returns. All boundary,
    initial and point-set conditions are conditions. If ``compile`` was given ``loss_weights``, the
    weights start from these.

    Args:
        model: A compiled model, on the Paddle backend.
        rule: As for ``LossBalancer``; the default is ``"pinn"``.
        equations: The losses that count as equations, by name or number. Pass it for data other
            than a ``dde.data.PDE``, or to count noisy measurements among the equations.
        names: Names of all losses, in DeepXDE's order. The default is described under
            ``Balance``.
        shared: The shared parameters, as for ``GradNorm``. If the rule asks for the last shared
            layer, it is found in ``FNN``, ``PFNN`` and ``MsFFN``.
        **options: Options of ``LossBalancer``: ``alpha``, ``weight_lr``, ``update_every``,
            ``warmup_steps``, ``weight_attr``, ``floor``, ``total_steps``.

    Returns:
        What there is to know about the weights. It is ``model.balance`` too.

    Raises:
        RuntimeError: DeepXDE runs on another backend than Paddle.
        TypeError: An argument is of the wrong type, or an option does not exist.
        ValueError: The model has not been compiled, or for L-BFGS. It has only one loss, or is
            balanced already in another way. An option or ``loss_weights`` is out of range. It is
            in doubt which losses are equations, or no shared layer is found.

    Examples:
        >>> import deepxde as dde
        >>> line = dde.geometry.Interval(0, 1)
        >>> ends = dde.icbc.DirichletBC(line, lambda x: 0, lambda x, on: on)
        >>> data = dde.data.PDE(line, lambda x, u: dde.grad.hessian(u, x) + 1, ends, 8, 2)
        >>> model = dde.Model(data, dde.nn.FNN([1, 8, 1], "tanh", "Glorot normal"))
        >>> model.compile("adam", lr=1e-3, verbose=0)
        >>> weights = balance(model)
        >>> _ = model.train(20, verbose=0)
        >>> weights.names, weights.get_weights().shape
        (['pde', 'DirichletBC'], (2,))
    """
    _check_model(model)
    asked = {"rule": rule, "equations": equations, "names": names, "shared": shared, **options}
    if isinstance(model, _BalancedModel):
        model.balance._check_that_it_is(asked)
        return model.balance
    made = Balance(model, **asked)
    # Methods of a class, because they call those that they stand for.
    own = type(model)
    model.__class__ = type(own.__name__, (_BalancedModel, own), {"__module__": own.__module__})
    model.balance, model.loss_weights = made, None
    made._take_over()
    return made


class Balance:
    """The loss weights of a DeepXDE model, as ``balance`` returns it.

    The names of the losses are, by default, ``pde`` or ``pde0``, ``pde1`` and so on for what the
    ``pde`` returns. Conditions have the names of their classes. If conditions of a class are on
    different outputs of the network, the number of the output follows, as in ``DirichletBC y0``.
    If the name is still not unique, a number follows, from the second on: ``DirichletBC 2``.

    Args:
        model: The compiled model.
        **asked: The arguments of ``balance``.

    Attributes:
        names: Names of the losses, in the order of DeepXDE's list of losses.
        balancer: The ``LossBalancer`` that learns the weights. Its ``freeze()`` stops that.
    """

    def __init__(self, model: dde.Model, **asked: Any) -> None:
        self._model, self._asked = model, asked
        options = {name: value for name, value in asked.items() if value is not None}
        _check_options(asked)
        rule = find_rule(options.pop("rule", None), options.pop("alpha", None))
        shared = options.pop("shared", None)
        if shared is None and not rule.on_all_parameters:
            shared = _last_layer(model.net)
        shared = find_shared(model.net, shared, rule)
        n_loss, conditions = _n_loss(model), _conditions(model.data)
        self.names = _names(options.pop("names", None), n_loss, conditions)
        if "equations" not in options and conditions is not None:
            options["equations"] = self.names[: n_loss - len(conditions)]
        elif "equations" not in options and rule.tells_equations:
            options["equations"] = _equations.by_name(self.names, type(rule).__name__)
        start = _start(model.loss_weights, self.names)
        if start is not None and "weight_attr" in options:
            raise ValueError(
                f"weight_attr is {options['weight_attr']!r}, but compile was given loss_weights "
                f"{model.loss_weights!r}, from which the weights would start: leave one of them out"
            )
        if start is not None:
            options["weight_attr"] = start
        try:
            self.balancer = LossBalancer(shared, n_loss, rule=rule, **options)
        except ValueError as error:
            if start is None or "weight_attr" not in str(error):
                raise
            raise ValueError(f"{error}. weight_attr are the loss_weights of compile here") from None
        # A name that no loss has is an error here, and not in the first step.
        _equations.are_equations(self.balancer.equations or (), self.names)
        # L-BFGS never calls the balancer, so it need not look for that in every step.
        self.balancer._schedule.knows_steps = True
        if start is not None:
            _log.info("the loss weights start from the loss_weights of compile, %s", start)

    def __repr__(self) -> str:
        return f"Balance({self.names}, {self.balancer.extra_repr()})"

    def get_weights(self) -> np.ndarray:
        """The weights that the next step will use, in the order of ``names``, shape [T]."""
        return self.balancer.get_weights()

    def diagnose(self) -> list[str]:
        """What a user should act on, in words: see ``LossBalancer.diagnose``."""
        return self.balancer.diagnose()

    def _take_over(self) -> None:
        """Replace the step that ``compile`` has just made for the model."""
        external = dde.optimizers.is_external_optimizer(self._model.opt_name)
        self._model.train_step = self._lbfgs_step if external else self._step

    def _check_that_it_is(self, asked: dict[str, Any]) -> None:
        """Raise a ``ValueError`` if ``balance`` is asked for something else than this."""
        for name, value in asked.items():
            own = self._asked.get(name)
            if value is not None and value is not own and repr(value) != repr(own):
                raise ValueError(
                    f"{name} is {value!r}, but the model is balanced already, with {own!r}: leave "
                    "this call out, because compile keeps the weights; or make a new dde.Model"
                    "(data, net) to balance anew"
                )

    def _step(self, inputs: Any, targets: Any, auxiliary_vars: Any) -> None:
        model = self._model
        losses = self._losses(inputs, targets, auxiliary_vars)
        self.balancer.backward(dict(zip(self.names, losses)))
        model.opt.step()
        model.opt.clear_grad()
        if model.lr_scheduler is not None:
            model.lr_scheduler.step()

    def _lbfgs_step(self, inputs: Any, targets: Any, auxiliary_vars: Any) -> None:
        # The function that L-BFGS minimises must not change, so the weights are constants.
        model, weights = self._model, paddle.to_tensor(self.get_weights())

        def closure() -> paddle.Tensor:
            losses = model.outputs_losses_train(inputs, targets, auxiliary_vars)[1]
            self._check(losses)
            total = paddle.dot(losses, weights.astype(losses.dtype))
            model.opt.clear_grad()
            total.backward()
            return total

        model.opt.step(closure)

    def _losses(self, inputs: Any, targets: Any, auxiliary_vars: Any) -> list[paddle.Tensor]:
        """The losses, each with a graph of its own."""
        # DeepXDE stacks them, and a backward pass from an entry of the stack goes through the
        # graphs of all losses. So they are noted before.
        data = self._model.data
        found: list[paddle.Tensor] = []

        def noting(*arguments: Any, **keywords: Any) -> Any:
            losses = of_data(*arguments, **keywords)
            found.extend(losses if isinstance(losses, (list, tuple)) else [losses])
            return losses

        of_data, own = data.losses_train, vars(data).get("losses_train")
        data.losses_train = noting
        try:
            self._model.outputs_losses_train(inputs, targets, auxiliary_vars)
        finally:
            if own is None:
                del data.losses_train
            else:
                data.losses_train = own
        self._check(found)
        return found

    def _check(self, losses: Any) -> None:
        given = self._model.loss_weights
        if given is not None:
            raise ValueError(
                f"model.loss_weights has been set to {given!r}, but the model learns its weights: "
                "set it to None again"
            )
        if len(losses) != len(self.names):
            raise ValueError(
                f"the data give {len(losses)} losses, but when the model was balanced they were "
                f"{', '.join(self.names)}: make a new dde.Model(data, net) for other data"
            )

    def _add_to(self, state_dict: dict[str, Any]) -> None:
        """Add the names and the balancer's state to a network's state dict."""
        frozen = self.balancer._schedule.frozen
        state = {"names": list(self.names), "frozen": frozen, **self.balancer.state_dict()}
        state_dict.update({_IN_CHECKPOINTS + name: value for name, value in state.items()})

    def _load(self, state_dict: dict[str, Any]) -> None:
        """Load what ``add_to`` has added."""
        state = {
            name[len(_IN_CHECKPOINTS) :]: value
            for name, value in state_dict.items()
            if name.startswith(_IN_CHECKPOINTS)
        }
        frozen = state.pop("frozen", None)  # an older version did not save it
        self.balancer.set_state_dict({n: value for n, value in state.items() if n != "names"})
        if frozen is not None:
            self.balancer._schedule.frozen = frozen


class _BalancedModel(dde.Model):
    """What a balanced model does in another way than its class, which is the next base."""

    balance: Balance

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        given = inspect.signature(super().train).bind(*arguments, **keywords)
        path = given.arguments.pop("model_restore_path", None)
        if path is not None:  # first, because the checkpoint tells how many steps there were
            self.restore(path, verbose=1)
        steps = given.arguments.get("iterations", given.arguments.get("epochs"))  # the old name
        if steps is not None:  # L-BFGS needs none
            self.balance.balancer._expect_steps(steps)
        return super().train(*given.args, **given.kwargs)

    def compile(self, *arguments: Any, **keywords: Any) -> None:
        given = inspect.signature(super().compile).bind(*arguments, **keywords).arguments
        if given.get("loss_weights") is not None:
            raise ValueError(
                f"loss_weights is {given['loss_weights']!r}, but the model learns its weights, and "
                "compile keeps them: leave loss_weights out; or make a new dde.Model(data, net) "
                "for weights by hand"
            )
        super().compile(*arguments, **keywords)
        self.balance._take_over()

    def save(self, *arguments: Any, **keywords: Any) -> str:
        hook = self.net.register_state_dict_hook(self.balance._add_to)
        try:
            return super().save(*arguments, **keywords)
        finally:
            hook.remove()

    def restore(self, save_path: str, *arguments: Any, **keywords: Any) -> None:
        state_dict = paddle.load(save_path)["model"]
        names = state_dict.get(_IN_CHECKPOINTS + "names")
        if names is not None and names != self.balance.names:
            raise ValueError(
                f"{save_path} has weights of the losses {', '.join(names)}, but the model has "
                f"{', '.join(self.balance.names)}: restore it into a model with the same data; or "
                "pass the names that it had, names=[...], to balance"
            )
        super().restore(save_path, *arguments, **keywords)
        if names is not None:
            self.balance._load(state_dict)
            return
        warnings.warn(
            f"{save_path} has no loss weights, because the model that saved it was not balanced: "
            "the weights stay as they are",
            UserWarning,
            stacklevel=2,
        )


class LossWeights(dde.callbacks.Callback):
    """Prints the loss weights during the training, and keeps them for a plot.

    Args:
        period: Number of steps between two lines.
        filename: A file to print to; the terminal by default.
        precision: Digits after the point.

    Attributes:
        steps: Numbers of the steps at which the weights were taken.
        weights: The weights at these steps, shape [T] each.

    Raises:
        TypeError: ``period`` or ``precision`` is no integer.
        ValueError: ``period`` is below 1, or ``precision`` below 0.

    Examples:
        >>> shown = LossWeights(period=1000)
        >>> # model.train(iterations=10000, callbacks=[shown])
        >>> # shown.plot("weights.png")
    """

    def __init__(
        self, period: int = 1000, filename: Union[str, Path, None] = None, precision: int = 2
    ) -> None:
        super().__init__()
        self.period = _arguments.integer("period", period, at_least=1)
        self.precision = _arguments.integer("precision", precision, at_least=0)
        self.file = sys.stdout if filename is None else open(filename, "w")  # noqa: SIM115
        self.steps: list[int] = []
        self.weights: list[np.ndarray] = []

    def init(self) -> None:
        """Called by DeepXDE when the callback meets a model."""
        if not isinstance(self.model, _BalancedModel):
            raise ValueError(
                "LossWeights shows the weights of a balanced model: call balance(model) after "
                "model.compile(...), or leave the callback out"
            )
        self.steps, self.weights = [], []
        print(f"Loss weights: {', '.join(self.model.balance.names)}", file=self.file, flush=True)

    def on_train_begin(self) -> None:
        """Print the weights of the first step."""
        self._take()

    def on_epoch_end(self) -> None:
        """Print the weights if it is time."""
        if self.model.train_state.step - self.steps[-1] >= self.period:
            self._take()

    def on_train_end(self) -> None:
        """Print the last weights."""
        self._take()

    def _take(self) -> None:
        step = self.model.train_state.step
        if self.steps and self.steps[-1] == step:
            return
        self.steps.append(step)
        self.weights.append(self.model.balance.get_weights())
        text = dde.utils.list_to_str(self.weights[-1].tolist(), precision=self.precision)
        # On the terminal the line is between those of DeepXDE's table, which begin with a step too.
        start = "weights at step " if self.file is sys.stdout else ""
        print(f"{start}{step} {text}", file=self.file, flush=True)

    def plot(self, fname: Union[str, Path, None] = None) -> None:
        """Plot the weights over the steps; ``plt.show()`` shows the figure.

        Args:
            fname: A file to save the figure in.

        Raises:
            RuntimeError: There are no weights yet.
        """
        if not self.steps:
            raise RuntimeError(
                "there are no weights to plot yet: pass the callback to model.train, "
                "callbacks=[...], first"
            )
        import matplotlib.pyplot as plt

        plt.figure()
        for name, values in zip(self.model.balance.names, np.transpose(self.weights)):
            plt.semilogy(self.steps, values, label=name)
        plt.xlabel("# Steps")
        plt.ylabel("Loss weight")
        plt.legend()
        if fname is not None:
            plt.savefig(fname)


def _check_model(model: Any) -> None:
    backend = dde.backend.backend_name
    if backend != "paddle":
        raise RuntimeError(
            f"DeepXDE runs on the backend {backend!r}, but its losses can be balanced on Paddle "
            "only: set the environment variable DDE_BACKEND=paddle before Python starts"
        )
    if not isinstance(model, dde.Model):
        raise TypeError(f"model must be a deepxde.Model, got {model!r}")
    if model.train_step is None:
        raise ValueError(
            "model has not been compiled: call model.compile(...) first, and then balance(model)"
        )
    if not isinstance(model, _BalancedModel) and dde.optimizers.is_external_optimizer(
        model.opt_name
    ):
        raise ValueError(
            f"model is compiled with {model.opt_name!r}, which needs weights that stay: compile "
            'with "adam" first, balance, train, and then compile with "L-BFGS", which keeps the '
            "learned weights"
        )


def _check_options(asked: dict[str, Any]) -> None:
    for name, reason in _NOT_HERE.items():
        if name in asked:
            raise TypeError(f"balance takes no {name}, because {reason}")
    if "weight_lr" in asked and asked["weight_lr"] is None:
        raise ValueError(
            "weight_lr is None, but DeepXDE's optimizer does not hold the loss weights: pass a "
            "rate, such as 0.01"
        )
    known = {"names", "shared", *inspect.signature(LossBalancer.__init__).parameters}
    unknown = {name: value for name, value in asked.items() if name not in known}
    _arguments.refuse("balance", unknown, LossBalancer.__init__)


def _n_loss(model: dde.Model) -> int:
    """How many losses the model has, found by evaluating them."""
    # The test points, because in test mode there is no dropout that would use random numbers.
    points, targets, *auxiliary = model.data.test()
    given, model.loss_weights = model.loss_weights, None
    try:
        losses = model.outputs_losses_test(points, targets, *(auxiliary or [None]))[1]
    finally:
        model.loss_weights = given
    if len(losses) < 2:
        raise ValueError(
            "model has one loss only, so there is nothing to balance: leave balance(model) out"
        )
    return len(losses)


def _conditions(data: Any) -> list[Any] | None:
    """The boundary and initial conditions, whose losses come last; None for other data."""
    pde = data if isinstance(data, dde.data.PDE) else getattr(data, "pde", None)
    return list(pde.bcs) if isinstance(pde, dde.data.PDE) else None


def _names(given: Any, n_loss: int, conditions: list[Any] | None) -> list[str]:
    """Names of the losses, as the user gives them or as described under ``Balance``."""
    if given is not None:
        is_list = isinstance(given, (list, tuple)) and all(isinstance(n, str) for n in given)
        if not is_list:
            raise TypeError(f"names must be a list of strings, got {given!r}")
        if len(given) != n_loss or len(set(given)) != n_loss:
            raise ValueError(
                f"names must be {n_loss} different names, one for each loss, got {given!r}"
            )
        return list(given)
    if conditions is None:
        return [f"losses[{i}]" for i in range(n_loss)]
    n_equations = n_loss - len(conditions)
    names = ["pde"] if n_equations == 1 else [f"pde{i}" for i in range(n_equations)]
    outputs: dict[str, set[Any]] = {}
    for condition in conditions:
        outputs.setdefault(_kind(condition), set()).add(getattr(condition, "component", None))
    times: Counter[str] = Counter()
    for condition in conditions:
        name = _kind(condition)
        if len(outputs[name]) > 1:
            name = f"{name} y{condition.component}"
        times[name] += 1
        names.append(name if times[name] == 1 else f"{name} {times[name]}")
    return names


def _kind(condition: Any) -> str:
    return type(condition).__name__


def _start(loss_weights: Any, names: list[str]) -> list[float] | None:
    """The ``loss_weights`` that were given to ``compile``, checked."""
    if loss_weights is None:
        return None
    weights = np.ravel(np.asarray(loss_weights, np.float64))
    if len(weights) != len(names) or not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(
            f"loss_weights given to compile is {loss_weights!r}, but the weights can only start "
            f"from {len(names)} positive numbers, for {', '.join(names)}: correct it or leave it "
            "out"
        )
    return weights.tolist()


def _last_layer(net: paddle.nn.Layer) -> Any:
    """The weights of the last layer of a network of DeepXDE; None for other networks."""
    if isinstance(net, dde.nn.PFNN):
        last = net.layers[-1]
        return [layer.weight for layer in last.sublayers()] or last.weight
    if isinstance(net, dde.nn.MsFFN):
        return net._dense.weight
    return net.linears[-1].weight if isinstance(net, dde.nn.FNN) else None
