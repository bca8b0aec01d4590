"""The PyTorch side of time_to_error.py: equal weights, and gradnorm-pytorch from PyPI."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from gradnorm_pytorch import GradNormLossWeighter
from time_to_error_task import EVERY, LEARNING_RATE, Course, Task, main

ALPHA, WEIGHT_LR = 0.12, 0.01  # as in step_cost.py


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
    regions = [
        (torch.tensor(conditions[0].points, dtype=torch.float32), conditions)
        for conditions in task.regions
    ]
    targets = {c.name: torch.tensor(c.targets, dtype=torch.float32) for c in task.conditions}

    def losses() -> list[torch.Tensor]:
        found = {}
        for points, conditions in regions:
            differentiated = any(
                path for each in conditions for _, path in task.used_in(each).values()
            )
            at = points.detach().requires_grad_(differentiated)
            fields, columns = Derivatives(net(at), at), at.split(1, dim=1)
            for each in conditions:
                values = torch.cat(task.values(each, torch, columns, fields.of), dim=1)
                found[each.name] = (values - targets[each.name]).square().mean(dim=0).sum()
        return [found[condition.name] for condition in task.conditions]

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
