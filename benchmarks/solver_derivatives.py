"""What a Solver's step costs with ``propagate_derivatives``, and without.

    OMP_NUM_THREADS=1 python benchmarks/solver_derivatives.py --build

Needs PaddleScience. A step of Adam on the residuals of one of its equations and on boundary values,
float32, tanh, 4 hidden layers of 50, without balancing. Two Solvers take turns in one process. The
times are those of the processor.
"""

from __future__ import annotations

import argparse
import logging
import time
from typing import Any, Callable

import numpy as np
import ppsci
from turns import ratio, timed

from paddlescience_gradnorm.command_line import at_least
from paddlescience_gradnorm.ppsci import propagate_derivatives
from paddlescience_gradnorm.runtime import tune_cpu

# Of each equation: PaddleScience's, and the outputs of the network.
EQUATIONS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "Laplace": (lambda: ppsci.equation.Laplace(2), ("u",)),
    "Navier-Stokes": (lambda: ppsci.equation.NavierStokes(0.01, 1.0, 2, False), ("u", "v", "p")),
    "biharmonic": (lambda: ppsci.equation.Biharmonic(2, 1.0, 1.0), ("u",)),
}
EDGE = 200  # points


def solver_of(name: str, points: int, propagates: bool) -> Any:
    """A Solver with a network of its own, the same for both ways."""
    ppsci.utils.misc.set_random_seed(0)
    build, outputs = EQUATIONS[name]
    equation = build()
    model = ppsci.arch.MLP(("x", "y"), outputs, num_layers=4, hidden_size=50)
    square = ppsci.geometry.Rectangle((0.0, 0.0), (1.0, 1.0))
    loader = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1}
    inside = ppsci.constraint.InteriorConstraint(
        dict(equation.equations),
        dict.fromkeys(equation.equations, 0),
        square,
        {**loader, "batch_size": points},
        ppsci.loss.MSELoss(),
    )
    edge = ppsci.constraint.BoundaryConstraint(
        {"u": lambda out: out["u"]},
        {"u": lambda ins: ins["x"] * ins["y"]},
        square,
        {**loader, "batch_size": EDGE},
        ppsci.loss.MSELoss(),
    )
    solver = ppsci.solver.Solver(
        model,
        {"EQ": inside, "BC": edge},
        output_dir=None,
        optimizer=ppsci.optimizer.Adam(1e-3)(model),
        epochs=1,
        iters_per_epoch=1,
        equation={name: equation},
    )
    if propagates:
        paths = propagate_derivatives(solver)
        assert all(path.startswith("Taylor propagation") for path in paths.values()), paths
    return solver


def train(solver: Any, steps: int) -> None:
    """Make so many steps, in one epoch; also if the Solver has been trained before."""
    solver.iters_per_epoch = solver.log_freq = steps
    solver.best_metric["epoch"] = 0
    solver.train()


def measured(name: str, points: int, turns: int, steps: int) -> str:
    """A row of the table."""
    own, ours = (solver_of(name, points, propagates) for propagates in (False, True))
    for solver in (own, ours):
        train(solver, 2)
    ms = timed(
        {"own": lambda n: train(own, n), "ours": lambda n: train(ours, n)},
        turns,
        steps,
        time.process_time,
    )
    cells = [name, f"{points:,}", f"{np.median(ms['own']):.1f}", f"{np.median(ms['ours']):.1f}"]
    return f"| {' | '.join(cells)} | {ratio(ms['ours'], ms['own'])} |"


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, nargs="+", default=[500, 2000, 10_000])
    parser.add_argument("--turns", type=at_least(1), default=9)
    parser.add_argument("--steps", type=at_least(1), default=10, help="of a turn")
    parser.add_argument("--build", action="store_true", help="with the operator in C++")
    options = parser.parse_args(arguments)
    tune_cpu(threads=1, build=options.build)
    ppsci.utils.logger.init_logger("ppsci", None, logging.ERROR)
    lines = ["| equation | points | ms | with propagate_derivatives | ratio |", "|---" * 5 + "|"]
    for name in EQUATIONS:
        lines += [measured(name, points, options.turns, options.steps) for points in options.points]
    text = "\n".join(lines) + "\n"
    print(text)
    return text


if __name__ == "__main__":
    main()
