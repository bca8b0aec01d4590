"""GradNorm: a network together with the learned weights of its losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Callable, Union

import numpy as np
import paddle

from paddlescience_gradnorm.balancing.algorithm import GradNormRule, Rule, find_rule
from paddlescience_gradnorm.balancing.balancer import LossBalancer, Shared
from paddlescience_gradnorm.balancing.losses import Losses
from paddlescience_gradnorm.network.network_base import NetworkBase
from paddlescience_gradnorm.network.shared_layer import find_shared

# Of the weights by a rule that no optimizer can step.
_OWN_RATE = 0.01


class _ForwardOfTheNetwork:
    """The wrapped network's own forward, with its signature, which exporting needs."""

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        if instance is None:
            return NetworkBase.forward  # paddle.jit.save looks for functions of the class
        net = instance.net
        hooked = net._forward_pre_hooks or net._forward_post_hooks
        forward: Callable[..., Any] = net.__call__ if hooked else net.forward
        return forward

    def __set__(self, instance: Any, value: Callable[..., Any]) -> None:
        instance.net.forward = value  # paddle.jit.to_static puts a static one in its place


class GradNorm(NetworkBase):
    """Wraps a network and balances its losses; stands wherever the bare network stood.

    Source: Chen et al., "GradNorm", ICML 2018, arXiv:1711.02257. What GradNorm does
    not have itself is read from, and written to, the wrapped network.

    Args:
        net: The network, any Paddle layer.
        n_loss: Number of losses T, at least 2.
        alpha: Strength of the pull towards equal training rates, at least 0. With it alone the
            rule is the paper's; without it ``rule="pinn"``, which is made for PINNs.
        weight_attr: Weights of the first step, ``n_loss`` positive numbers; all 1 by
            default. By the published rule they sum to ``n_loss`` from the second step on. In a run
            that is resumed from a state dict, which has no names in it, losses given as a
            dict must come in the same order.
        shared: The shared parameters: a parameter, a layer, a list of either, a
            callable that picks one of these from the network, or ``"all"``, which is the
            default of ``"pinn"``. That of the published rule is what the network's
            ``get_last_shared_layer()`` returns, or else its ``get_shared_layer()``;
            PaddleScience's architectures need neither.
        weight_lr: ``None``: the weights are among ``parameters()``, and the caller's
            optimizer steps them. A number: GradNorm steps them itself at this rate,
            by plain gradient descent, and they are not among ``parameters()``. (They
            are among those of a layer that contains this one; without a gradient,
            an optimizer leaves them alone.) ``rule="pinn"`` always steps them itself, at
            0.01 unless this says otherwise, in the logarithm.
        warmup_steps: Number of updates over which the rate grows to ``weight_lr``.
        update_every: Update the weights on every this-many-th step only; by default every
            10th by ``"pinn"``, and every one by the published rule.
        floor: The smallest weight allowed, in (0, 1).
        rule: ``"published"``, ``"pinn"``, or a ``PinnRule``: see ``LossBalancer``.
        residuals: Which losses are residuals of equations: see ``LossBalancer``.

    Raises:
        TypeError: An argument is of the wrong type, such as a ``net`` that is no layer.
        ValueError: An argument is out of range, or there is no shared layer to be found.

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
        n_loss: int,
        alpha: float | None = None,
        weight_attr: Sequence[float] | None = None,
        *,
        shared: Union[Shared, str, Callable[[Any], Shared], None] = None,
        weight_lr: float | None = None,
        warmup_steps: int = 0,
        update_every: int | None = None,
        floor: float = 1e-3,
        rule: Union[str, Rule, None] = None,
        residuals: Sequence[Union[int, str]] = (0,),
    ) -> None:
        super().__init__()
        if not isinstance(net, paddle.nn.Layer):
            raise TypeError(f"net must be a paddle.nn.Layer, got {type(net).__name__} {net!r}")
        rule = find_rule(rule, alpha)
        if weight_lr is None and not isinstance(rule, GradNormRule):
            weight_lr = _OWN_RATE
        self.balancer = LossBalancer(
            find_shared(net, shared, rule),
            n_loss,
            lr=weight_lr,
            warmup_steps=warmup_steps,
            weight_attr=weight_attr,
            update_every=update_every,
            floor=floor,
            rule=rule,
            residuals=residuals,
        )
        self.net = net

    def nn_func(self, ins: paddle.Tensor) -> paddle.Tensor:
        """The wrapped network's output, shape [N, num_outs], at inputs of shape [N, num_ins]."""
        return self.forward(ins)

    forward = _ForwardOfTheNetwork()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            net = self._wrapped()
            if net is None:  # before __init__, in copying and unpickling
                raise
        return getattr(net, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Read from the network, so written to it: else code that sets
        # `net.some_option` would change nothing, without a word.
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
        return self.__dict__.get("_sub_layers", {}).get("net")

    def _is_of_network(self, name: str) -> bool:
        net = self._wrapped()
        return net is not None and name not in dir(self) and hasattr(net, name)

    def add_sublayer(self, name: str, sublayer: paddle.nn.Layer) -> Any:
        """Add a layer to the wrapped network."""
        return self.net.add_sublayer(name, sublayer)

    def add_parameter(self, name: str, parameter: Any) -> Any:
        """Add a parameter to the wrapped network."""
        return self.net.add_parameter(name, parameter)

    def register_buffer(self, name: str, tensor: Any, persistable: bool = True) -> None:
        """Add a buffer to the wrapped network."""
        self.net.register_buffer(name, tensor, persistable)

    def astype(self, dtype: Any = None) -> GradNorm:
        """Same as ``to(dtype=dtype)``."""
        # On Paddle 2.6 Layer.astype would turn the balancer's counts into floats.
        self.to(dtype=dtype)
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As of any layer; without the loss weights if ``weight_lr`` steps them."""
        weights = self.balancer._parameters["loss_weights"]
        for name, parameter in super().named_parameters(*args, **kwargs):
            if self.balancer.lr is None or parameter is not weights:
                yield name, parameter

    def set_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a state dict of this object, or one that the bare network has saved."""
        bare = set(self.net.state_dict())
        if bare and bare <= set(state_dict) and not bare & set(self.state_dict()):
            return self.net.set_state_dict(state_dict, *args, **kwargs)
        result = super().set_state_dict(state_dict, *args, **kwargs)
        self.balancer._forget_host_state()
        return result

    set_dict = set_state_dict
    load_dict = set_state_dict

    @property
    def loss_weights(self) -> paddle.Tensor:
        """The trainable parameter of the weights, shape [n_loss].

        Read it afresh in every step that uses it: reading renormalises it, in place,
        after a step of the caller's optimizer.
        """
        return self.balancer.loss_weights

    @property
    def n_loss(self) -> int:
        """Number of losses."""
        return self.balancer.n_loss

    @property
    def alpha(self) -> float:
        """Strength of the pull towards equal training rates."""
        return self.balancer.alpha

    @property
    def initial_losses(self) -> paddle.Tensor:
        """The references L(0), shape [n_loss]; zeros until the first step."""
        return self.balancer.initial_losses

    def backward(
        self,
        losses: Losses,
        update: bool = True,
        scale: float = 1.0,
        scaler: paddle.amp.GradScaler | None = None,
    ) -> paddle.Tensor:
        """The whole backward pass in one: see ``LossBalancer.backward``.

        Fills ``.grad`` of the network and, with ``weight_lr=None``, of
        ``loss_weights``; returns the weighted total, detached, shape [].
        """
        return self.balancer.backward(losses, update, scale, scaler)

    def get_grad_norm_loss(self, losses: Losses) -> paddle.Tensor:
        """Lgrad, after the caller's own ``backward(retain_graph=True)``, shape [].

        Writes ``loss_weights.grad``, or, with ``weight_lr``, steps the weights:
        see ``LossBalancer.step``.
        """
        return self.balancer.step(losses)

    def get_weights(self) -> np.ndarray:
        """The weights that the next step will use, a copy, shape [n_loss]."""
        return self.balancer.get_weights()

    def diagnose(self) -> list[str]:
        """What the last update says, in words: see ``LossBalancer.diagnose``."""
        return self.balancer.diagnose()

    def reset_initial_losses(self) -> None:
        """Forget L(0); the next update takes its losses as the new references."""
        self.balancer.reset_initial_losses()

    def freeze(self) -> None:
        """Stop updating the weights, for a last stage with L-BFGS, say."""
        self.balancer.freeze()

    def unfreeze(self) -> None:
        """Go on updating the weights."""
        self.balancer.unfreeze()

    def set_grad(self) -> None:
        """Give ``loss_weights`` a gradient of zero if it has none, for ``grad.set_value``."""
        self.balancer.set_grad()

    def renormalize(self) -> None:
        """Scale the weights in place to sum to ``n_loss``: see ``LossBalancer.renormalize``."""
        self.balancer.renormalize()
