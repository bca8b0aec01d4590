"""The DeepXDE side of time_to_error.py, on the backend that DDE_BACKEND names."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import deepxde as dde
import numpy as np
from time_to_error_task import (
    EVERY,
    HIDDEN_LAYERS,
    LEARNING_RATE,
    WIDTH,
    Condition,
    Course,
    Task,
    main,
)

IS_TORCH = dde.backend.backend_name == "pytorch"
if IS_TORCH:
    import torch as framework

    framework.set_num_threads(1)
else:
    import paddle as framework


def train(task: Task, contestant: str) -> Course:
    dde.config.set_default_float("float32")
    equations = [c for c in task.conditions if c.is_equation]
    interior = equations[0].points
    assert all(np.array_equal(c.points, interior) for c in equations)
    sources = [as_tensor(c.targets) for c in equations]

    def values(condition: Condition, inputs: Any, outputs: Any) -> list[Any]:
        columns = [inputs[:, k : k + 1] for k in range(len(task.coordinates))]
        return task.values(condition, framework, columns, partial(derivative, outputs, inputs))

    def pde(inputs: Any, outputs: Any) -> list[Any]:
        residuals = []
        for number, condition in enumerate(equations):
            (value,) = values(condition, inputs, outputs)
            # DeepXDE wants the residuals at the conditions' points too, which come first, and
            # leaves them out of the loss.
            if len(sources[number]) < len(value):
                ahead = np.zeros((len(value) - len(interior), 1))
                sources[number] = as_tensor(np.vstack([ahead, equations[number].targets]))
            residuals.append(value - sources[number])
        return residuals

    conditions = []
    for condition in task.conditions:
        for one in () if condition.is_equation else condition.apart:

            def operator(inputs: Any, outputs: Any, _: Any, one: Condition = one) -> Any:
                return values(one, inputs, outputs)[0]

            conditions.append(dde.icbc.PointSetOperatorBC(one.points, one.targets, operator))
    domain = dde.geometry.PointCloud(interior)
    data = dde.data.PDE(domain, pde, conditions, num_domain=0, num_boundary=0, anchors=interior)
    sizes = [len(task.coordinates), *[WIDTH] * HIDDEN_LAYERS, len(task.fields)]
    net = dde.nn.FNN(sizes, "tanh", "Glorot uniform")
    for linear, weight in zip(net.linears, task.weights):
        set_weight(linear, weight)
    model = dde.Model(data, net)
    if IS_TORCH:
        model.compile("adam", lr=LEARNING_RATE, decay=("cosine", task.steps, 0.0), verbose=0)
        schedule = None
    else:
        schedule = framework.optimizer.lr.CosineAnnealingDecay(LEARNING_RATE, T_max=task.steps)
        adam = framework.optimizer.Adam(schedule, parameters=net.parameters())
        model.compile(adam, verbose=0)
    clock = Clock(task, schedule)
    model.train(iterations=task.steps, display_every=task.steps + 1, callbacks=[clock], verbose=0)
    return clock.course


class Clock(dde.callbacks.Callback):
    """Records the error, and steps the schedule where DeepXDE does not."""

    course: Course

    def __init__(self, task: Task, schedule: Any) -> None:
        super().__init__()
        self._task = task
        self._schedule = schedule
        self._step = 0

    def on_train_begin(self) -> None:
        self.course = Course(self._task)

    def on_epoch_end(self) -> None:
        self._step += 1
        if self._schedule is not None:
            self._schedule.step()
        if self._step % EVERY == 0:
            self.course.record(self._step, self._predict)

    def _predict(self, points: np.ndarray) -> np.ndarray:
        with framework.no_grad():
            return self.model.net(as_tensor(points)).detach().numpy()


def as_tensor(values: np.ndarray) -> Any:
    make = framework.tensor if IS_TORCH else framework.to_tensor
    return make(values, dtype=framework.float32 if IS_TORCH else "float32")


def set_weight(linear: Any, weight: np.ndarray) -> None:
    if IS_TORCH:
        with framework.no_grad():
            linear.weight.copy_(framework.from_numpy(weight.T))
    else:
        linear.weight.set_value(weight)


def derivative(outputs: Any, inputs: Any, field: int, path: tuple[int, ...]) -> Any:
    """By DeepXDE's own means, which remember derivatives of lower orders."""
    if not path:
        return outputs[:, field : field + 1]
    if len(path) == 1:
        return dde.grad.jacobian(outputs, inputs, i=field, j=path[0])
    if len(path) == 2:
        return dde.grad.hessian(outputs, inputs, component=field, i=path[0], j=path[1])
    before = derivative(outputs, inputs, field, path[:-2])
    return dde.grad.hessian(before, inputs, i=path[-2], j=path[-1])


if __name__ == "__main__":
    name = "torch" if IS_TORCH else "paddlepaddle"
    main(train, {name: version(name), "deepxde": version("deepxde")})
