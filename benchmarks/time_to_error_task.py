"""What the contestants of time_to_error.py have in common: the problem on a file, and the clock.

Needs numpy alone, for it runs in the peers' environments too.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import CodeType
from typing import Any, Callable

import numpy as np

HIDDEN_LAYERS, WIDTH = 4, 50  # tanh
LEARNING_RATE = 2e-3  # of Adam at first; it falls to zero along a cosine
EVERY = 50  # steps from one evaluation to the next

FUNCTIONS = ("sin", "cos", "tanh", "exp", "sqrt")  # in expressions, in every framework

Predict = Callable[[np.ndarray], np.ndarray]  # points [N, d] -> fields [N, number of fields]


@dataclass(frozen=True)
class Condition:
    """A loss: the mean square of what an expression is minus what it has to be.

    If there are several expressions, the loss is the sum of their mean squares.

    Attributes:
        name: Of the loss.
        is_equation: Whether it is the residual of an equation.
        points: Shape [N, d].
        expressions: Python expressions in the coordinates, the fields, and their derivatives,
            which are called u_xx and the like.
        targets: What they have to be, shape [N, number of expressions].
    """

    name: str
    is_equation: bool
    points: np.ndarray
    expressions: Sequence[str]
    targets: np.ndarray

    @functools.cached_property
    def codes(self) -> list[CodeType]:
        return [compile(expression, self.name, "eval") for expression in self.expressions]

    @property
    def apart(self) -> list[Condition]:
        """A condition for each expression."""
        return [
            replace(self, expressions=[expression], targets=self.targets[:, k : k + 1])
            for k, expression in enumerate(self.expressions)
        ]


@dataclass(frozen=True)
class Task:
    """A problem as every framework gets it: the same points, the same network at first.

    Attributes:
        name: Of the problem.
        seed: From which points and network were drawn.
        steps: Of the training.
        coordinates: Their names, in the order of a point's columns.
        fields: Their names, in the order of the network's outputs.
        derivatives: Name -> field and coordinates, such as "u_xy" -> (0, (0, 1)).
        conditions: The losses.
        weights: Of the linear layers at first, [inputs, outputs] each; the biases are 0.
        points: Where the error is measured, shape [N, d].
        solution: The fields there, shape [N, number of fields].
    """

    name: str
    seed: int
    steps: int
    coordinates: Sequence[str]
    fields: Sequence[str]
    derivatives: Mapping[str, tuple[int, tuple[int, ...]]]
    conditions: Sequence[Condition]
    weights: Sequence[np.ndarray]
    points: np.ndarray
    solution: np.ndarray

    def write(self, path: Path) -> None:
        arrays = {"points": self.points, "solution": self.solution}
        plain = {k: v for k, v in asdict(self).items() if k not in arrays}
        plain["conditions"] = []
        for number, condition in enumerate(self.conditions):
            arrays[f"points {number}"] = condition.points
            arrays[f"targets {number}"] = condition.targets
            plain["conditions"].append(
                [condition.name, condition.is_equation, list(condition.expressions)]
            )
        for number, weight in enumerate(self.weights):
            arrays[f"weight {number}"] = weight
        plain["weights"] = len(self.weights)
        np.savez(path, plain=json.dumps(plain), **arrays)

    @classmethod
    def read(cls, path: Path) -> Task:
        with np.load(path) as file:
            plain = json.loads(str(file["plain"]))
            plain["conditions"] = [
                Condition(name, is_one, file[f"points {k}"], expressions, file[f"targets {k}"])
                for k, (name, is_one, expressions) in enumerate(plain["conditions"])
            ]
            plain["weights"] = [file[f"weight {k}"] for k in range(plain["weights"])]
            plain["derivatives"] = {
                name: (field, tuple(path)) for name, (field, path) in plain["derivatives"].items()
            }
            return cls(**plain, points=file["points"], solution=file["solution"])

    def used_in(self, condition: Condition) -> dict[str, tuple[int, tuple[int, ...]]]:
        """The fields and derivatives that its expressions have."""
        names = {name for code in condition.codes for name in code.co_names}
        return {name: what for name, what in self.derivatives.items() if name in names}

    def values(
        self,
        condition: Condition,
        framework: Any,
        columns: Sequence[Any],
        derivative: Callable[[int, tuple[int, ...]], Any],
    ) -> list[Any]:
        """What the condition's expressions are, each of shape [N, 1].

        Args:
            condition: The condition.
            framework: The module that has ``FUNCTIONS``.
            columns: The coordinates, shape [N, 1] each.
            derivative: Gives the derivative of a field along coordinates; () is the field itself.
        """
        scope = {name: getattr(framework, name) for name in FUNCTIONS}
        scope.update(zip(self.coordinates, columns), pi=math.pi)
        scope.update((name, derivative(*what)) for name, what in self.used_in(condition).items())
        return [eval(code, scope) for code in condition.codes]

    @property
    def regions(self) -> list[list[Condition]]:
        """The conditions at the same points, which share the network's derivatives there."""
        found: dict[bytes, list[Condition]] = {}
        for condition in self.conditions:
            found.setdefault(condition.points.tobytes(), []).append(condition)
        return list(found.values())

    def error(self, predict: Predict) -> float:
        """Relative L2 error, the mean over the fields."""
        off = np.asarray(predict(self.points), dtype=np.float64) - self.solution
        return float(np.mean(np.linalg.norm(off, axis=0) / np.linalg.norm(self.solution, axis=0)))


class Course:
    """The error over steps and seconds. The clock stands still while the error is measured."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.rows: list[tuple[int, float, float]] = []  # steps, seconds, error
        self._seconds = 0.0
        self._started = time.perf_counter()

    def record(self, step: int, predict: Predict) -> None:
        """Measure the error after a step, of which nothing may still be computing."""
        self._seconds += time.perf_counter() - self._started
        self.rows.append((step, self._seconds, self._task.error(predict)))
        self._started = time.perf_counter()


def main(train: Callable[[Task, str], Course], versions: Mapping[str, str]) -> None:
    """``WORKER TASK CONTESTANT RESULT``: train, and write the course to a file."""
    path, contestant, result = sys.argv[1:]
    course = train(Task.read(Path(path)), contestant)
    answer: dict[str, Any] = {"course": course.rows, "versions": dict(versions)}
    Path(result).write_text(json.dumps(answer))
