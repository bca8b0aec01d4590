"""PaddleScience's side of time_to_error.py: its Solver with its GradNorm."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import numpy as np
import paddle
import ppsci
from ppsci.autodiff import hessian, jacobian
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


def train(task: Task, contestant: str) -> Course:
    model = ppsci.arch.MLP(
        tuple(task.coordinates), tuple(task.fields), HIDDEN_LAYERS, WIDTH, "tanh"
    )
    for linear, weight in zip((*model.linears, model.last_fc), task.weights):
        linear.weight.set_value(weight)
        linear.bias.set_value(np.zeros(linear.bias.shape, "float32"))
    constraint = constraints(task)
    losses = sum(len(c.expressions) for c in task.conditions)
    epochs = task.steps // EVERY
    schedule = ppsci.optimizer.lr_scheduler.Cosine(epochs, EVERY, LEARNING_RATE)()
    with tempfile.TemporaryDirectory() as folder:
        solver = ppsci.solver.Solver(
            model,
            constraint,
            folder,
            ppsci.optimizer.Adam(schedule)(model),
            schedule,
            epochs,
            EVERY,
            log_freq=task.steps + 1,
            loss_aggregator=ppsci.loss.mtl.GradNorm(model, losses),
        )
        solver.max_steps = task.steps

        def predict(points: np.ndarray) -> np.ndarray:
            with paddle.no_grad():
                columns = {
                    c: paddle.to_tensor(points[:, k : k + 1], dtype="float32")
                    for k, c in enumerate(task.coordinates)
                }
                outputs = model(columns)
                return np.concatenate([outputs[f].numpy() for f in task.fields], axis=1)

        course = Course(task)
        # As Solver.train does, without its checkpoints.
        for epoch in range(1, epochs + 1):
            solver.train_epoch_func(solver, epoch, solver.log_freq)
            solver.train_output_info.clear()
            course.record(epoch * EVERY, predict)
    return course


def constraints(task: Task) -> dict[str, Any]:
    """One for each place, with a loss for each expression."""
    found: dict[str, Any] = {}
    for condition in task.conditions:
        columns = {
            c: condition.points[:, k : k + 1].astype("float32")
            for k, c in enumerate(task.coordinates)
        }
        by_name = {f"{condition.name}_{k}": one for k, one in enumerate(condition.apart)}
        labels = {name: one.targets.astype("float32") for name, one in by_name.items()}
        expressions = {
            name: lambda out, one=one: values(task, one, out)[0] for name, one in by_name.items()
        }
        found[condition.name] = ppsci.constraint.SupervisedConstraint(
            {"dataset": {"name": "IterableNamedArrayDataset", "input": columns, "label": labels}},
            ppsci.loss.MSELoss("mean"),
            expressions,
            name=condition.name,
        )
    return found


def values(task: Task, condition: Condition, out: dict[str, paddle.Tensor]) -> list[paddle.Tensor]:
    columns = [out[name] for name in task.coordinates]

    def of(field: int, path: tuple[int, ...]) -> paddle.Tensor:
        return derivative(out[task.fields[field]], [columns[k] for k in path])

    return task.values(condition, paddle, columns, of)


def derivative(value: paddle.Tensor, along: list[paddle.Tensor]) -> paddle.Tensor:
    """By PaddleScience's own means, which remember derivatives of lower orders."""
    while along:
        if len(along) > 1 and along[0] is along[1]:
            value, along = hessian(value, along[0]), along[2:]
        else:
            value, along = jacobian(value, along[0]), along[1:]
    return value


if __name__ == "__main__":
    main(train, {"paddlepaddle": paddle.__version__, "paddlesci": version("paddlesci")})
