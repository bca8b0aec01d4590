"""Trial: what a run trains. Two trials of one seed differ in nothing but the rule."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple

import numpy as np
import paddle

from paddlescience_gradnorm.balancing._losses import Losses
from paddlescience_gradnorm.network import FCNet

MakeOptimizer = Callable[[list[paddle.Tensor], int], paddle.optimizer.Optimizer]

LEARNING_RATE = 2e-3  # at first; it falls to zero along a cosine
# With Paddle's 0.999 Adam takes small steps long after the gradients have become small.
BETA2 = 0.99


class Trial(NamedTuple):
    """A network with its losses.

    Attributes:
        net: The network.
        losses: ``losses(net)`` gives the losses by name.
        parameters: What is trained besides the network.
        error: The error of a network; ``None`` if no solution is known.
        optimizer: ``optimizer(parameters, steps)`` gives what trains it.
        equations: Losses that are residuals of equations; ``None`` if their names tell.
        found: What else is to be known of a network at the end.
    """

    net: paddle.nn.Layer
    losses: Callable[[Any], Losses]
    parameters: list[paddle.Tensor]
    error: Callable[[Any], float] | None
    optimizer: MakeOptimizer
    equations: Sequence[int | str] | None
    found: Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class KnownProblem:
    """A tanh network on one of ``PROBLEMS``, whose solution is known.

    Attributes:
        name: In ``PROBLEMS``.
        hidden_layers: Number of hidden layers.
        width: Of each.
        n_points: Number of points in the interior; ``None`` for the problem's own.
        points: Numbers of points in regions by name, instead of those.
        point_weights: Of the equations, as for ``Problem.sample``.
    """

    name: str
    hidden_layers: int
    width: int
    n_points: int | None = None
    points: Mapping[str, int] = field(default_factory=dict)
    point_weights: str | None = None

    def begin(self, seed: int) -> Trial:
        """Points, noise and network of this seed."""
        # Here, because it imports scipy: then Paddle 2.6.2 may crash, and most runs do without.
        from paddlescience_gradnorm.pde.problems import problem

        task = problem(self.name)
        seed_all(seed)
        number: dict[str, Any] = {} if self.n_points is None else {"n_points": self.n_points}
        training = task.sample(
            seed=seed, points=self.points, point_weights=self.point_weights, **number
        )
        net = FCNet(len(task.coordinates), len(task.fields), self.hidden_layers + 1, self.width)

        def error(net: Any) -> float:
            errors = task.relative_errors(net)
            # Of a flow that of the speed, otherwise the mean.
            return errors.get("speed", float(np.mean(list(errors.values()))))

        def found(net: Any) -> dict[str, Any]:
            return {
                "errors": task.relative_errors(net),
                "coefficients": training.coefficients(),
                "coefficient_errors": training.coefficient_errors(),
            }

        return Trial(net, training.losses, training.parameters(), error, adam, None, found)


def seed_all(seed: int) -> None:
    """Seed what a network and its points may be drawn from."""
    paddle.seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def adam(parameters: list[paddle.Tensor], steps: int) -> paddle.optimizer.Optimizer:
    """Adam with a short memory, at a rate that falls to zero along a cosine within these steps."""
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(LEARNING_RATE, T_max=steps)
    return paddle.optimizer.Adam(schedule, beta2=BETA2, parameters=parameters)
