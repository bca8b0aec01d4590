"""Our side of time_to_error.py: with its operators, without them, unbalanced, by SOAP."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import paddle
from accuracy import OPTIMIZERS
from time_to_error_task import EVERY, HIDDEN_LAYERS, LEARNING_RATE, WIDTH, Course, Task, main

from paddlescience_gradnorm import FCNet
from paddlescience_gradnorm.balancing import LossBalancer
from paddlescience_gradnorm.pde.problems import problem
from paddlescience_gradnorm.runtime import tune_cpu


def train(task: Task, contestant: str) -> Course:
    tune_cpu(threads=1, build=True)
    training = problem(task.name).sample(seed=task.seed, points=points_of(task))
    net = FCNet(len(task.coordinates), len(task.fields), HIDDEN_LAYERS + 1, WIDTH)
    for linear, weight in zip(net.linears, task.weights):
        linear.weight.set_value(weight)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(LEARNING_RATE, T_max=task.steps)
    algorithm = OPTIMIZERS["soap" if contestant.endswith("soap") else "adam"]
    optimizer = algorithm(learning_rate=schedule, parameters=net.parameters())
    balancer = LossBalancer(net, rule="equal" if contestant == "equal" else "pinn")

    def predict(points: np.ndarray) -> np.ndarray:
        with paddle.no_grad():
            return net(paddle.to_tensor(points, dtype="float32")).numpy()

    course = Course(task)
    for step in range(1, task.steps + 1):
        balancer.backward(training.losses(net))
        optimizer.step()
        optimizer.clear_grad()
        schedule.step()
        if step % EVERY == 0:
            course.record(step, predict)
    return course


def points_of(task: Task) -> dict[str, int]:
    """How many points each region has."""
    counts = {c.name: len(c.points) for c in task.conditions}
    return {c.region.name: counts[c.name] for c in problem(task.name).conditions}


if __name__ == "__main__":
    main(train, {"paddlepaddle": paddle.__version__, "own": version("paddlescience_gradnorm")})
