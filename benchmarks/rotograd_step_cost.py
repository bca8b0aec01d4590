"""What a step of RotoGrad costs beside a plain one of the same trunk and heads.

Trunk: four tanh layers of 100; three heads; 2,000 points; a regression loss for each head, and
Adam. The contestants share a process and take turns, so that whatever else the machine does
meets all alike; a ratio is taken within a turn. Run it with --help for the options.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Callable

import numpy as np
import report
from turns import timed as in_turns

from paddlescience_gradnorm import RotateOnly, RotoGrad, RotoGradNorm
from paddlescience_gradnorm.command_line import at_least
from paddlescience_gradnorm.runtime import tune_cpu

import paddle  # isort: skip, after the package that sees to its loading

WIDTH, LAYERS, TASKS = 100, 4, 3
LEARNING_RATE = 1e-3
OWN_RATE = 1.0  # of that, for rotations and weights
WARM_UP = 5  # steps
CLASSES = {"RotateOnly": RotateOnly, "RotoGrad": RotoGrad, "RotoGradNorm": RotoGradNorm}

Run = Callable[[int], None]


class Opaque(paddle.nn.Layer):
    """A head that does not show that it begins with a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = paddle.nn.Linear(WIDTH, 1)

    def forward(self, latent: paddle.Tensor) -> paddle.Tensor:
        return self.layer(latent)


def perceptron() -> paddle.nn.Layer:
    linear = paddle.nn.Linear
    return paddle.nn.Sequential(linear(WIDTH, WIDTH), paddle.nn.Tanh(), linear(WIDTH, 1))


HEADS: dict[str, Callable[[], paddle.nn.Layer]] = {
    "linear, 100 -> 1": lambda: paddle.nn.Linear(WIDTH, 1),
    "two layers, 100 -> 100 -> 1": perceptron,
    "a class of one's own": Opaque,
}


def build(heads: str, contestant: str, n_points: int) -> Run:
    """The step of this contestant, ready to run; all start from the same parameters."""
    paddle.seed(0)
    sizes = [2, *[WIDTH] * LAYERS]
    layers = [
        layer
        for fan_in, fan_out in zip(sizes, sizes[1:])
        for layer in (paddle.nn.Linear(fan_in, fan_out), paddle.nn.Tanh())
    ]
    trunk = paddle.nn.Sequential(*layers)
    made = [HEADS[heads]() for _ in range(TASKS)]
    points = paddle.rand([n_points, 2])
    targets = [paddle.rand([n_points, 1]) for _ in range(TASKS)]
    network = [p for layer in (trunk, *made) for p in layer.parameters()]
    groups: list[dict[str, Any]] = [{"params": network}]
    model: Any = None
    if contestant != "plain":
        model = CLASSES[contestant](trunk, made, latent_size=WIDTH)
        groups.append({"params": model.mtl_parameters(), "learning_rate": OWN_RATE})
    optimizer = paddle.optimizer.Adam(LEARNING_RATE, parameters=groups)

    def run(steps: int) -> None:
        for _ in range(steps):
            if model is None:
                latent = trunk(points)
                predictions = [head(latent) for head in made]
            else:
                predictions = model(points)
            losses = [(u - y).square().mean() for u, y in zip(predictions, targets)]
            if model is None:
                sum(losses).backward()
            else:
                model.backward(losses)
            optimizer.step()
            optimizer.clear_grad()

    return run


def timed(heads: str, n_points: int, turns: int, steps: int) -> dict[str, np.ndarray]:
    """Milliseconds a step of every block, shape [turns] for each contestant."""
    contestants = {name: build(heads, name, n_points) for name in ("plain", *CLASSES)}
    for run in contestants.values():
        run(WARM_UP)
    return in_turns(contestants, turns, steps)


def quartiles(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "q1": float(low), "q3": float(high)}


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| heads | step | ms | / plain |", "|---|---|---|---|"]
    for heads, contestants in results.items():
        for name, entry in contestants.items():
            ms, ratio = (
                f"{q['median']:{style}} [{q['q1']:{style}}, {q['q3']:{style}}]"
                for q, style in ((entry["ms"], ".2f"), (entry["to_plain"], ".2f"))
            )
            lines.append(f"| {heads} | {name} | {ms} | {ratio} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parse(arguments)
    tuning = tune_cpu(threads=options.threads, build=False)
    print(tuning)
    results: dict[str, dict[str, Any]] = {}
    for heads in HEADS:
        ms = timed(heads, options.points, options.turns, options.steps)
        results[heads] = {
            name: {
                "ms": {**quartiles(values), "blocks": values.tolist()},
                "to_plain": quartiles(values / ms["plain"]),
            }
            for name, values in ms.items()
        }
    report.write("rotograd_step_cost", options, tuning, results, table(results))
    return results


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=at_least(1), default=2000)
    parser.add_argument("--turns", type=at_least(1), default=21)
    parser.add_argument("--steps", type=at_least(1), default=20, help="steps of a block")
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--output", type=Path, default=Path("outputs/rotograd_step_cost"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
