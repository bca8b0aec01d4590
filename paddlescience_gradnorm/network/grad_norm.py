"""GradNorm: a network together with the learned weights of its losses."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Union

import numpy as np
import paddle

from paddlescience_gradnorm import _paddle
from paddlescience_gradnorm._layers import PICKLED_AS
from paddlescience_gradnorm.balancing._faults import warn_the_caller
from paddlescience_gradnorm.balancing._losses import Losses
from paddlescience_gradnorm.balancing._options import Shared
from paddlescience_gradnorm.balancing.balancer import LossBalancer
from paddlescience_gradnorm.balancing.rule import GradientRule, Rule
from paddlescience_gradnorm.balancing.rules import find_rule
from paddlescience_gradnorm.network._shared_layer import find_shared
from paddlescience_gradnorm.network.network_base import NetworkBase

# In so many calls a program that trains by net.backward(losses) has done so.
_MANY_CALLS = 200
# Default weight_lr for a rule without a gradient, whose weights no optimizer can step.
_OWN_RATE = 0.01

# What makes a network a container: net[0], len(net), iteration, ``in``.
_CONTAINER_METHODS = (
    *("__getitem__", "__setitem__", "__delitem__", "__len__"),
    *("__iter__", "__reversed__", "__contains__"),
)


class _ForwardOfTheNetwork:
    """The wrapped network's own forward, because exporting needs its signature."""

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        if instance is None:
            return NetworkBase.forward  # paddle.jit.save looks for functions of the class
        net = instance.net
        calls_more = _paddle.has_hooks(net) or type(net).__call__ is not paddle.nn.Layer.__call__
        forward: Callable[..., Any] = net.__call__ if calls_more else net.forward
        return forward

    def __set__(self, instance: Any, value: Callable[..., Any]) -> None:
        instance.net.forward = value  # paddle.jit.to_static puts a static one in its place


class GradNorm(NetworkBase):
    """Wraps a network and balances its losses; use it in place of the bare network.

    Source: Chen et al., "GradNorm", ICML 2018, arXiv:1711.02257. Attributes that GradNorm does
    not have itself are read from, and written to, the wrapped network. ``net[0]``, ``len(net)``,
    iteration and ``in`` work if they do for the network. The network itself is ``net.net``, and a
    bare network loads ``net.net.state_dict()``.

    Args:
        net: The network, any Paddle layer. Nothing in it may balance losses already.
        n_loss: Number of losses T, at least 2. It may be left out if GradNorm steps the weights
            itself; then the first step tells it.
        alpha: Strength of the pull towards equal training rates, at least 0. It selects the
            paper's rule if ``rule`` is not given. If neither is given, the rule is ``"pinn"``,
            which is made for PINNs.
        weight_attr: Weights of the first step, ``n_loss`` positive numbers; all 1 by default.
            With the published rule they sum to ``n_loss`` from the second step on. A state dict
            holds no names, so a dict of losses must keep its order in a resumed run.
        shared: The shared parameters: a parameter, a layer, a list of either, a callable that
            picks one of these from the network, or ``"all"``. The default is ``"all"`` for
            ``"pinn"``. For the published rule it is what the network's
            ``get_last_shared_layer()`` or else ``get_shared_layer()`` returns; PaddleScience's
            architectures need neither.
        weight_lr: With ``None`` the weights are among ``parameters()``, and the caller's optimizer
            steps them. With a number GradNorm steps them itself at this rate, and they are not
            among ``parameters()``. (A layer that contains this one still lists them, but they
            have no gradient, so an optimizer leaves them alone.) If the rule has no gradient,
            such as ``"pinn"``, GradNorm always steps them itself, by default at 0.01.
        rule: ``"published"``, ``"pinn"``, or a ``Rule``, which may be your own.
        **options: Further options of ``LossBalancer``: ``equations``, ``absent``,
            ``update_every``, ``warmup_steps``, ``floor``, ``total_steps``.

    Raises:
        TypeError: An argument is of the wrong type, such as a ``net`` that is not a layer or that
            holds a ``GradNorm``, or an option does not exist.
        ValueError: An argument is out of range, no shared layer is found, or a parameter of the
            network has a name that GradNorm has itself, such as ``alpha``.

    Warns:
        UserWarning: The network has other attributes or methods whose names GradNorm has itself,
            such as ``freeze``. The network's own are ``net.net.freeze`` and so on.
        RuntimeWarning: The network has been called 200 times for training, but ``backward(losses)``
            never.

    Examples:
        >>> import paddle
        >>> from paddlescience_gradnorm import FCNet
        >>> net = GradNorm(FCNet(2, 1, 3, 16), n_loss=2, alpha=1.0)
        >>> optimizer = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
        >>> for _ in range(3):
        ...     inside, edge = net(paddle.rand([8, 2])), net(paddle.rand([4, 2]))
        ...     total = net.backward({"pde": inside.square().mean(), "bc": (edge - 1).abs().mean()})
        ...     optimizer.step()
        ...     optimizer.clear_grad()
        >>> net.num_outs, round(float(net.get_weights().sum()), 4)
        (1, 2.0)
    """

    def __init__(
        self,
        net: paddle.nn.Layer,
        n_loss: int | None = None,
        alpha: float | None = None,
        weight_attr: Sequence[float] | None = None,
        *,
        shared: Union[Shared, str, Callable[[Any], Shared], None] = None,
        weight_lr: float | None = None,
        rule: Union[str, Rule, None] = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(net, paddle.nn.Layer):
            raise TypeError(f"net must be a paddle.nn.Layer, got {type(net).__name__} {net!r}")
        _check_that_nothing_balances(net)
        rule = find_rule(rule, alpha)
        if weight_lr is None and not isinstance(rule, GradientRule):
            weight_lr = _OWN_RATE
        self.balancer = LossBalancer(
            find_shared(net, shared, rule),
            n_loss,
            weight_lr=weight_lr,
            weight_attr=weight_attr,
            rule=rule,
            **options,
        )
        # Before self.net, because from then on a name that the network has is set on the network.
        self._caller_steps = weight_lr is None
        self._calls = [0]  # before the first step; a list, because setting an attribute is slow
        self.net = net
        self._say_clashes(net)
        object.__setattr__(self, "__class__", _as_container(type(self), type(net)))

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """The wrapped network's output, after the weights of the last step have been settled."""
        if self._caller_steps:  # because a loop may form the weighted sum itself after this call
            self.balancer.settle()
        if self._calls[0] < _MANY_CALLS:
            self._count_call()
        return super().__call__(*inputs, **kwargs)

    def _count_call(self) -> None:
        """Warn if many calls were for a training that does not balance."""
        if not (self.training and paddle.is_grad_enabled()):
            return
        self._calls[0] += 1
        if self._calls[0] == _MANY_CALLS and not self.balancer.step_count.item():
            warn_the_caller(
                f"the network has been called {_MANY_CALLS} times, but none of its losses has been "
                "balanced: call net.backward(losses), with the losses in a dict or list, in place "
                "of sum(losses).backward(). Calls under paddle.no_grad() do not count"
            )

    def nn_func(self, ins: paddle.Tensor) -> paddle.Tensor:
        """The wrapped network's output, shape [N, num_outs], at inputs of shape [N, num_ins]."""
        if self._caller_steps:
            self.balancer.settle()
        return self.forward(ins)

    forward = _ForwardOfTheNetwork()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            net = self._wrapped()
            if net is None:  # before __init__, while copying or unpickling
                raise
        return getattr(net, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # What is read from the network is also written to it. Otherwise setting
        # `net.some_option` would silently change nothing.
        if self._is_of_network(name):
            setattr(self.net, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_of_network(name):
            delattr(self.net, name)
        else:
            super().__delattr__(name)

    def _wrapped(self) -> Any:
        return _paddle.sublayer(self, "net")

    def _is_of_network(self, name: str) -> bool:
        net = self._wrapped()
        return net is not None and name not in dir(self) and hasattr(net, name)

    def _own_names(self) -> set[str]:
        """Names that hide a network's own: GradNorm has them, and a plain network does not."""
        beyond = set(dir(self)) - set(dir(NetworkBase()))
        return {"backward", *(name for name in beyond if not name.startswith("__"))}

    def _say_clashes(self, net: paddle.nn.Layer) -> None:
        clashes = self._own_names() & set(dir(net))
        if getattr(net.backward, "__func__", None) is paddle.nn.Layer.backward:
            clashes.discard("backward")  # which only raises an error
        kind = type(net).__name__
        for name, _ in paddle.nn.Layer.named_parameters(net, include_sublayers=False):
            # A warning would not do: a loss that reads net.alpha would train without the parameter.
            if name in clashes:
                raise ValueError(
                    f"{kind} has a parameter {name!r}, which GradNorm would hide, because "
                    f"net.{name} is GradNorm's own: rename the parameter, or leave the network "
                    "unwrapped and use LossBalancer(net, n_loss=...)"
                )
        if clashes:
            names = sorted(clashes)
            warnings.warn(
                f"{kind} has attributes whose names GradNorm has itself: {', '.join(names)}. "
                f"For net = GradNorm(...), net.{names[0]} is GradNorm's, and the network's own "
                f"is net.net.{names[0]}",
                stacklevel=3,
            )

    def _refuse_own(self, name: str) -> None:
        if name in self._own_names():
            raise ValueError(
                f"nothing can be added to the network as {name!r} through GradNorm, which has an "
                "attribute of this name itself: choose another name"
            )

    def add_sublayer(self, name: str, sublayer: paddle.nn.Layer) -> Any:
        """Add a layer to the wrapped network."""
        self._refuse_own(name)
        return self.net.add_sublayer(name, sublayer)

    def add_parameter(self, name: str, parameter: Any) -> Any:
        """Add a parameter to the wrapped network."""
        self._refuse_own(name)
        return self.net.add_parameter(name, parameter)

    def register_buffer(self, name: str, tensor: Any, persistable: bool = True) -> None:
        """Add a buffer to the wrapped network."""
        self._refuse_own(name)
        self.net.register_buffer(name, tensor, persistable)

    def astype(self, dtype: Any = None) -> GradNorm:
        """Same as ``to(dtype=dtype)``."""
        # On Paddle 2.6 Layer.astype would turn the balancer's counts into floats.
        self.to(dtype=dtype)
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As for any layer, but without the loss weights if GradNorm steps them itself."""
        weights = getattr(self.balancer, "loss_weights", None)
        for name, parameter in super().named_parameters(*args, **kwargs):
            if self.balancer.weight_lr is None or parameter is not weights:
                yield name, parameter

    def set_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a state dict of this object, or one that the bare network has saved."""
        bare = set(self.net.state_dict())
        if bare and bare <= set(state_dict) and not bare & set(self.state_dict()):
            return self.net.set_state_dict(state_dict, *args, **kwargs)
        state_dict = self.balancer._completed(state_dict, "balancer.")
        return super().set_state_dict(state_dict, *args, **kwargs)

    set_dict = set_state_dict
    load_dict = set_state_dict

    @property
    def loss_weights(self) -> paddle.Tensor:
        """The trainable parameter that holds the weights, shape [n_loss].

        If the caller's optimizer steps them, the next call of the network, ``backward`` or
        ``get_weights`` settles them (published rule: renormalises them).
        """
        return self._of_balancer("loss_weights")

    @property
    def n_loss(self) -> int | None:
        """Number of losses; None if the first step will tell it."""
        return self.balancer.n_loss

    @property
    def alpha(self) -> float | None:
        """Strength of the pull towards equal training rates; None for a rule without it."""
        return self.balancer.alpha

    @property
    def initial_losses(self) -> paddle.Tensor:
        """The references L(0), shape [n_loss]. They are 0 until the first step."""
        return self._of_balancer("initial_losses")

    def _of_balancer(self, name: str) -> paddle.Tensor:
        # An AttributeError would make Python look for the name in the network.
        found: paddle.Tensor | None = getattr(self.balancer, name, None)
        if found is None:
            raise RuntimeError(
                f"there are no {name} yet, because n_loss was not given and the first step will "
                "tell it; or the rule has none"
            )
        return found

    def backward(
        self,
        losses: Losses,
        update: bool = True,
        scale: float = 1.0,
        scaler: paddle.amp.GradScaler | None = None,
    ) -> paddle.Tensor:
        """Run the whole backward pass: see ``LossBalancer.backward``.

        It fills ``.grad`` of the network and, if the caller's optimizer steps the weights, of
        ``loss_weights``. It returns the weighted sum, detached, shape [].
        """
        return self.balancer.backward(losses, update, scale, scaler)

    def get_grad_norm_loss(self, losses: Losses) -> paddle.Tensor:
        """Lgrad, shape []; call it after your own ``backward(retain_graph=True)``.

        It writes ``loss_weights.grad``, or steps the weights if ``weight_lr`` is a number: see
        ``LossBalancer.step``.
        """
        return self.balancer.step(losses)

    def get_weights(self) -> np.ndarray:
        """The weights that the next step will use, a copy, shape [n_loss]."""
        return self.balancer.get_weights()

    def diagnose(self) -> list[str]:
        """Explain the last update in words: see ``LossBalancer.diagnose``."""
        return self.balancer.diagnose()

    def reset_initial_losses(self) -> None:
        """Forget L(0) and all else that the rule remembers; the next update starts anew."""
        self.balancer.reset_initial_losses()

    def freeze(self) -> None:
        """Stop updating the weights, such as for a final stage with L-BFGS."""
        self.balancer.freeze()

    def unfreeze(self) -> None:
        """Resume updating the weights."""
        self.balancer.unfreeze()

    def set_grad(self) -> None:
        """Give ``loss_weights`` a zero gradient if it has none, so ``grad.set_value`` works."""
        self.balancer.set_grad()

    def renormalize(self) -> None:
        """Scale weights that were set by hand to the rule's sum: see ``LossBalancer``."""
        self.balancer.renormalize()


def _check_that_nothing_balances(net: paddle.nn.Layer) -> None:
    """Raise a ``TypeError`` if the network is, or holds, something that weighs losses itself."""
    from paddlescience_gradnorm.rotograd import RotateOnly  # which imports this package

    for path, layer in net.named_sublayers(include_self=True):
        where = f"net.{path}" if path else "net"
        for kind, advice in (
            (GradNorm, f"take the network in it, {where}.net"),
            (LossBalancer, "use it alone, outside of the network, or GradNorm alone"),
            (RotateOnly, "call its own backward(losses), and do not wrap it"),
        ):
            if isinstance(layer, kind):
                raise TypeError(
                    "net must hold nothing that weighs losses itself, but "
                    f"{where} is a {type(layer).__name__}: {advice}"
                )


def _as_container(cls: Any, network: type) -> Any:
    """The class for a GradNorm around such a network: with the network's container methods.

    Python looks up special methods on the class, so ``__getattr__`` cannot supply them. If every
    GradNorm had them, every GradNorm would pass for a container, even around a network that is
    none. So a subclass has just those methods that the network has.
    """
    names = (x for x in _CONTAINER_METHODS if hasattr(network, x) and not hasattr(cls, x))
    return _with_methods(cls, *names)


@functools.cache
def _with_methods(cls: Any, *names: str) -> Any:
    if not names:
        return cls
    attributes = {x: getattr(cls, x) for x in ("__module__", "__qualname__", "__doc__")}
    attributes.update({name: _of_the_network(name) for name in names})
    attributes[PICKLED_AS] = (_with_methods, (cls, *names))
    return type(cls.__name__, (cls,), attributes)


def _of_the_network(name: str) -> Callable[..., Any]:
    def method(self: GradNorm, *arguments: Any) -> Any:
        return getattr(type(self.net), name)(self.net, *arguments)

    method.__name__ = name
    return method
