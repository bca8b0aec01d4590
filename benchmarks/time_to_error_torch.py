"""The PyTorch side of time_to_error.py: equal weights, and gradnorm-pytorch from PyPI."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from gradnorm_pytorch import GradNormLossWeighter
from time_to_error_task import EVERY, LEARNING_RATE, Course, Task, main

ALPHA, WEIGHT_LR = 0.12, 0.01  # as in step_cost.py
FUNCTIONS = {name: getattr(torch, name) for name in ("sin", "cos", "tanh", "exp", "sqrt")}


def train(task: Task, contestant: str) -> Course:
    torch.set_num_threads(1)
    net = network(task)
    parameters = list(net.parameters())
    adam = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, task.steps)
    weighter = GradNormLossWeighter(
        num_losses=len(task.conditions),
        learning_rate=WEIGHT_LR,
        restoring_force_alpha=ALPHA,
        grad_norm_parameters=net[-1].weight,
    )
    # Conditions at the same points share the network's derivatives there.
    regions: dict[bytes, list[Any]] = {}
    for number, condition in enumerate(task.conditions):
        points = torch.tensor(condition.points, dtype=torch.float32)
        targets = torch.tensor(condition.targets, dtype=torch.float32)
        names = list(task.used_in(condition).items())
        of_region = regions.setdefault(condition.points.tobytes(), [points, []])
        of_region[1].append((number, condition.codes, targets, names))

    def losses() -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for points, conditions in regions.values():
            differentiated = any(path for *_, names in conditions for _, (_, path) in names)
            at = points.detach().requires_grad_(differentiated)
            values = Derivatives(net(at), at)
            coordinates = {c: at[:, k : k + 1] for k, c in enumerate(task.coordinates)}
            for number, codes, targets, names in conditions:
                known = {name: values.of(*what) for name, what in names}
                scope = {**FUNCTIONS, "pi": np.pi, **coordinates, **known}
                found[number] = sum(
                    (eval(code, scope) - targets[:, k : k + 1]).square().mean()
                    for k, code in enumerate(codes)
                )
        return [found[number] for number in range(len(found))]

    def predict(at: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.tensor(at, dtype=torch.float32)).numpy()

    course = Course(task)
    for step in range(1, task.steps + 1):
        if contestant == "torch":
            sum(losses()).backward(inputs=parameters)
        else:
            weighter.backward(losses())
        adam.step()
        adam.zero_grad()
        schedule.step()
        if step % EVERY == 0:
            course.record(step, predict)
    return course


def network(task: Task) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for weight in task.weights:
        linear = torch.nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight.T))
            linear.bias.zero_()
        layers += [linear, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


class Derivatives:
    """Of fields at points; those of lower orders are computed once."""

    def __init__(self, fields: torch.Tensor, points: torch.Tensor) -> None:
        self._fields, self._points = fields, points
        self._gradients: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}

    def of(self, field: int, path: tuple[int, ...]) -> torch.Tensor:
        """The derivative of a field along these coordinates, shape [N, 1]."""
        if not path:
            return self._fields[:, field : field + 1]
        before, last = (field, path[:-1]), path[-1]
        if before not in self._gradients:
            (self._gradients[before],) = torch.autograd.grad(
                self.of(*before).sum(), self._points, create_graph=True
            )
        return self._gradients[before][:, last : last + 1]


if __name__ == "__main__":
    names = ("torch", "gradnorm-pytorch")
    main(train, {name: version(name) for name in names})
