"""The balances that accuracy.py compares: what turns the losses of a step into gradients."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Callable, ClassVar, Union

import paddle

from paddlescience_gradnorm import LossBalancer
from paddlescience_gradnorm.balancing import PinnRule

ALPHA = 1.0  # of the published rule
FIXED = 50.0  # what a user might guess
Losses = Mapping[str, paddle.Tensor]


class _InCheckpoints:
    """What a checkpoint is to hold of a balance: attributes, which are there from the start."""

    SAVED: ClassVar[tuple[str, ...]]

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.SAVED}

    def set_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self.SAVED:
            setattr(self, name, state[name])


class Fixed(_InCheckpoints):
    """These conditions have this weight, all other losses 1."""

    SAVED = ("loss_weights",)

    def __init__(self, conditions: Sequence[str], weight: float, n_loss: int) -> None:
        self.conditions, self.weight = conditions, weight
        self.loss_weights = paddle.ones([n_loss])

    def backward(self, losses: Losses) -> paddle.Tensor:
        factors = [self.weight if name in self.conditions else 1.0 for name in losses]
        self.loss_weights = paddle.to_tensor(factors)
        total = paddle.add_n([factor * loss for factor, loss in zip(factors, losses.values())])
        total.backward()
        return total


class WeightedConditions(_InCheckpoints):
    """Weights for the conditions from statistics of all parameters' gradients; equations have 1."""

    SAVED = ("weights", "mean_values", "steps", "loss_weights")

    def __init__(
        self, net: paddle.nn.Layer, residuals: Sequence[str], conditions: Sequence[str]
    ) -> None:
        self.parameters = net.parameters()
        self.residuals, self.conditions = residuals, conditions
        self.weights = paddle.ones([len(conditions)])
        self.mean_values = paddle.zeros([len(conditions)])
        self.steps = 0
        self.loss_weights = paddle.ones([len(residuals) + len(conditions)])

    def backward(self, losses: Losses) -> paddle.Tensor:
        values = paddle.stack([losses[name].detach() for name in self.conditions])
        if self.is_due():
            equation = self._gradient(paddle.add_n([losses[name] for name in self.residuals]))
            gradients = [self._gradient(losses[name]).abs().mean() for name in self.conditions]
            self.update(equation.abs().max(), paddle.stack(gradients), values)
        self.steps += 1
        factors = dict(zip(self.conditions, paddle.unbind(self.weights)))
        one = paddle.ones([])
        self.loss_weights = paddle.stack([factors.get(name, one) for name in losses])
        total = paddle.dot(self.loss_weights, paddle.stack(list(losses.values())))
        total.backward()
        return total

    def is_due(self) -> bool:
        return True

    def update(self, largest: paddle.Tensor, means: paddle.Tensor, values: paddle.Tensor) -> None:
        """From max |g| of the equations, mean |g| of each condition, and its loss."""
        raise NotImplementedError

    def _gradient(self, loss: paddle.Tensor) -> paddle.Tensor:
        gradients = paddle.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        return paddle.concat([g.flatten() for g in gradients if g is not None])


class MaxOverMean(WeightedConditions):
    """Wang, Teng, Perdikaris, SIAM J. Sci. Comput. 43 (2021), algorithm 1; every 10th step."""

    def is_due(self) -> bool:
        return self.steps % 10 == 0

    def update(self, largest: paddle.Tensor, means: paddle.Tensor, values: paddle.Tensor) -> None:
        self.weights = 0.9 * self.weights + 0.1 * largest / (self.weights * means)


class DualBalanced(WeightedConditions):
    """Zhou et al., "Dual-Balancing for PINNs", IJCAI 2025, arXiv:2505.11117, by the mean.

    All conditions share one weight, the sum of max over mean, by how hard they are: their loss
    over its mean so far. What acts is the mean of the weights so far.
    """

    def update(self, largest: paddle.Tensor, means: paddle.Tensor, values: paddle.Tensor) -> None:
        count = self.steps + 1
        if self.steps == 0:
            self.mean_values = values
        self.mean_values = self.mean_values + (values - self.mean_values) / count
        difficulty = values / self.mean_values
        aggregated = (largest / (self.weights * means)).sum()
        weights = difficulty / difficulty.sum() * aggregated
        self.weights = self.weights + (weights - self.weights) / count


class OfPaddleScience:
    """A loss aggregator of the ppsci package."""

    def __init__(self, name: str, net: paddle.nn.Layer, n_loss: int) -> None:
        mtl = importlib.import_module("ppsci.loss.mtl")
        build = getattr(mtl, name)
        self.aggregator = build(n_loss) if name == "Relobralo" else build(net, n_loss)
        self.steps = 0

    def backward(self, losses: Losses) -> paddle.Tensor:
        total = self.aggregator(dict(losses), self.steps)
        total.backward()
        self.steps += 1
        return total


Balance = Union[LossBalancer, Fixed, WeightedConditions, OfPaddleScience]
Build = Callable[[paddle.nn.Layer, Sequence[str], Sequence[str]], Balance]


def _fixed(weight: float) -> Build:
    return lambda _, residuals, conditions: Fixed(
        conditions, weight, len(residuals) + len(conditions)
    )


def _published(net: Any, residuals: Sequence[str], conditions: Sequence[str]) -> Balance:
    n_loss = len(residuals) + len(conditions)
    return LossBalancer(net.get_last_shared_layer(), n_loss, alpha=ALPHA, weight_lr=None)


def pinn(shared: str = "all", lr: float = 0.01, **options: float) -> Build:
    """GradNorm by the PINN rule with these options."""

    def build(net: Any, residuals: Sequence[str], conditions: Sequence[str]) -> Balance:
        n_loss = len(residuals) + len(conditions)
        where = net if shared == "all" else net.get_last_shared_layer()
        rule = PinnRule(**options)
        return LossBalancer(where, n_loss, weight_lr=lr, rule=rule, equations=list(residuals))

    return build


def _of_paddlescience(name: str) -> Build:
    return lambda net, residuals, conditions: OfPaddleScience(
        name, net, len(residuals) + len(conditions)
    )


# By the name on the command line: the name in tables, and how to build it.
BALANCES: dict[str, tuple[str, Build]] = {
    "equal": ("equal weights", _fixed(1.0)),
    "fixed": (f"conditions x {FIXED:g}", _fixed(FIXED)),
    "pinn": ("GradNorm, PINN rule", pinn()),
    "published": ("GradNorm as published", _published),
    "max_mean": ("max/mean (Wang 2021)", MaxOverMean),
    "db_pinn": ("DB-PINN (Zhou 2025)", DualBalanced),
    "relobralo": ("Relobralo (ppsci)", _of_paddlescience("Relobralo")),
    "ppsci_gradnorm": ("GradNorm (ppsci)", _of_paddlescience("GradNorm")),
    "ntk": ("NTK (ppsci)", _of_paddlescience("NTK")),
}
