"""PaddleScience's side of time_to_error.py: its Solver, with its GradNorm or this package."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import paddle
import ppsci
import sympy
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

from paddlescience_gradnorm.ppsci import GradNormAggregator, propagate_derivatives
from paddlescience_gradnorm.runtime import tune_cpu


def train(task: Task, contestant: str) -> Course:
    ours = contestant == "ppsci ours"
    if ours:
        tune_cpu(threads=1, build=True)
    model = ppsci.arch.MLP(
        tuple(task.coordinates), tuple(task.fields), HIDDEN_LAYERS, WIDTH, "tanh"
    )
    for linear, weight in zip((*model.linears, model.last_fc), task.weights):
        linear.weight.set_value(weight)
        linear.bias.set_value(np.zeros(linear.bias.shape, "float32"))
    constraint = constraints(task, in_sympy if ours else in_python)
    if ours:
        equations = [c.name for c in task.conditions if c.is_equation]
        outputs = [
            f"{name}.{output}" for name in equations for output in constraint[name].output_keys
        ]
        aggregator = GradNormAggregator.of(
            model, constraint, equations=outputs, total_steps=task.steps
        )
    else:
        losses = sum(len(c.expressions) for c in task.conditions)
        aggregator = ppsci.loss.mtl.GradNorm(model, losses)
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
            loss_aggregator=aggregator,
        )
        if ours:
            propagate_derivatives(solver)
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


def constraints(task: Task, form: Callable[[Task, Condition], Any]) -> dict[str, Any]:
    """One for each place, with a loss for each expression, which ``form`` writes."""
    found: dict[str, Any] = {}
    for condition in task.conditions:
        columns = {
            c: condition.points[:, k : k + 1].astype("float32")
            for k, c in enumerate(task.coordinates)
        }
        by_name = {f"{condition.name}_{k}": one for k, one in enumerate(condition.apart)}
        labels = {name: one.targets.astype("float32") for name, one in by_name.items()}
        expressions = {name: form(task, one) for name, one in by_name.items()}
        found[condition.name] = ppsci.constraint.SupervisedConstraint(
            {"dataset": {"name": "IterableNamedArrayDataset", "input": columns, "label": labels}},
            ppsci.loss.MSELoss("mean"),
            expressions,
            name=condition.name,
        )
    return found


def in_sympy(task: Task, condition: Condition) -> sympy.Expr:
    columns = sympy.symbols(task.coordinates)

    def of(field: int, path: tuple[int, ...]) -> sympy.Expr:
        value = sympy.Function(task.fields[field])(*columns)
        return value.diff(*(columns[k] for k in path)) if path else value

    return task.values(condition, sympy, columns, of)[0]


def in_python(task: Task, condition: Condition) -> Callable[[dict[str, paddle.Tensor]], Any]:
    return lambda out: values(task, condition, out)[0]


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
