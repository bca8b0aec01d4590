"""What a step costs by the order of its equation, and by the way its derivatives go.

    OMP_NUM_THREADS=1 python benchmarks/derivatives.py --build

A step of Adam on one residual, float32, 4 hidden layers of 50, without balancing. Three ways take
turns in one process: a sum of derivatives carried through the network as one, each derivative
for itself, and nested ``paddle.grad``. The times are those of the processor.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, Callable

import numpy as np
import paddle
import sympy
from turns import ratio, timed

from paddlescience_gradnorm import FCNet
from paddlescience_gradnorm.command_line import at_least
from paddlescience_gradnorm.pde import Residual
from paddlescience_gradnorm.runtime import tune_cpu

x, y = sympy.symbols("x y")
u = sympy.Function("u")
U = u(x, y)

# What is summed up; the residual is the sum.
EQUATIONS = {
    "second order, Laplace": [U.diff(x, 2), U.diff(y, 2)],
    "third order, Korteweg-de Vries": [U.diff(y) + 6 * U * U.diff(x), U.diff(x, 3)],
    "fourth order, plate": [U.diff(x, 4), 2 * U.diff(x, 2, y, 2), U.diff(y, 4)],
}
WAYS = ("a sum as one", "each for itself", "nested paddle.grad")
FIRST = "second order, Laplace"


def step_of(terms: list[sympy.Expr], way: str, activation: str, points: int) -> Callable[[], Any]:
    """A step of its own network."""
    paddle.seed(0)
    net = FCNet(2, 1, 5, 50, activation)
    inside = paddle.rand([points, 2])
    optimizer = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
    # As a system each is asked for, and so is carried.
    apart = way == "each for itself"
    residual = Residual(terms if apart else sum(terms), (x, y), (u,))
    network = (lambda ins: net(ins)) if way == "nested paddle.grad" else net

    def step() -> None:
        found = residual(network, inside)
        total = sum(found[1:], found[0]) if apart else found
        total.square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()

    return step


def measured(points: int, activation: str, turns: int, steps: int) -> list[str]:
    """Rows of the table."""
    contestants = {}
    for equation, terms in EQUATIONS.items():
        for way in WAYS:
            step = step_of(terms, way, activation, points)
            try:
                step()
            except RuntimeError as error:  # that Paddle cannot differentiate often enough
                if "differentiate often enough" not in str(error):
                    raise
                continue
            contestants[equation, way] = step

    def repeated(step: Callable[[], Any]) -> Callable[[int], None]:
        def run(count: int) -> None:
            for _ in range(count):
                step()

        return run

    named = {f"{e}: {w}": repeated(step) for (e, w), step in contestants.items()}
    ms = dict(zip(contestants, timed(named, turns, steps, time.process_time).values()))
    rows = []
    for equation in EQUATIONS:
        as_one = ms[equation, WAYS[0]]
        cells = [f"{np.median(as_one):.2f}", ratio(as_one, ms[FIRST, WAYS[0]])]
        for way in WAYS[1:]:
            other = ms.get((equation, way))
            cells.append("-" if other is None else ratio(other, as_one))
        rows.append(f"| {activation} | {points:,} | {equation} | {' | '.join(cells)} |")
    return rows


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, nargs="+", default=[500, 2000, 10_000])
    parser.add_argument("--activations", nargs="+", default=["tanh", "silu"])
    parser.add_argument("--turns", type=at_least(1), default=15)
    parser.add_argument("--steps", type=at_least(1), default=5, help="of a turn")
    parser.add_argument("--build", action="store_true", help="with the operator in C++")
    options = parser.parse_args(arguments)
    tune_cpu(threads=1, build=options.build)
    lines = [
        "| activation | points | equation | ms | / second order | each for itself / as one "
        "| nested / as one |",
        "|---" * 7 + "|",
    ]
    for activation in options.activations:
        for points in options.points:
            lines += measured(points, activation, options.turns, options.steps)
    text = "\n".join(lines) + "\n"
    print(text)
    return text


if __name__ == "__main__":
    main()
