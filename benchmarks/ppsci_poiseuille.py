"""Plane Poiseuille flow by PaddleScience's Solver: plain sum, the default, and two options.

    OMP_NUM_THREADS=1 python benchmarks/ppsci_poiseuille.py

The channel is 2 long and 1 high, nu is 0.1, and the fluid enters with its parabolic profile. A run
takes half a minute on one core. Needs the package with ``.[cpu,ppsci]``.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import numpy as np
import ppsci

from paddlescience_gradnorm.balancing import PinnRule
from paddlescience_gradnorm.ppsci import GradNormAggregator

NU = 0.1
LENGTH = 2.0
RULES = {
    "plain sum": None,
    "default": PinnRule(),
    "PinnRule(late=False)": PinnRule(late=False),
    "PinnRule(late=False, lead=1)": PinnRule(late=False, lead=1.0),
}


def velocity(points: dict[str, np.ndarray]) -> np.ndarray:
    return 4 * points["y"] * (1 - points["y"])


def pressure(points: dict[str, np.ndarray]) -> np.ndarray:
    return 8 * NU * (LENGTH - points["x"])


def constraints(equations: Any) -> dict[str, Any]:
    channel = ppsci.geometry.Rectangle((0.0, 0.0), (LENGTH, 1.0))
    loader = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1}
    mean = ppsci.loss.MSELoss("mean")

    def values(name: str, of: dict[str, Any], n_points: int, where: Any) -> Any:
        fields = {field: lambda out, field=field: out[field] for field in of}
        points = {**loader, "batch_size": n_points}
        return ppsci.constraint.BoundaryConstraint(
            fields, of, channel, points, mean, criteria=where, name=name
        )

    zeros = dict.fromkeys(("continuity", "momentum_x", "momentum_y"), 0)
    inside = ppsci.constraint.InteriorConstraint(
        equations, zeros, channel, {**loader, "batch_size": 400}, mean, name="EQ"
    )
    walls = values("walls", {"u": 0, "v": 0}, 100, lambda x, y: np.isclose(y * (1 - y), 0))
    inlet = values("inlet", {"u": velocity, "v": 0}, 50, lambda x, y: np.isclose(x, 0))
    outlet = values("outlet", {"p": 0}, 50, lambda x, y: np.isclose(x, LENGTH))
    return {each.name: each for each in (inside, walls, inlet, outlet)}


def errors(rule: str, steps: int, seed: int) -> tuple[float, float]:
    """Relative L2 errors of u and p after so many steps of Adam."""
    ppsci.utils.misc.set_random_seed(seed)
    model = ppsci.arch.MLP(("x", "y"), ("u", "v", "p"), 4, 40, "tanh")
    equation = {"NS": ppsci.equation.NavierStokes(NU, 1.0, 2, False)}
    constraint = constraints(equation["NS"].equations)
    chosen, options = RULES[rule], {}
    if chosen is not None:
        aggregator = GradNormAggregator.of(model, constraint, equation, rule=chosen)
        options["loss_aggregator"] = aggregator
    schedule = ppsci.optimizer.lr_scheduler.Cosine(steps, 1, 3e-3)()
    with tempfile.TemporaryDirectory() as folder:
        solver = ppsci.solver.Solver(
            model,
            constraint,
            folder,
            ppsci.optimizer.Adam(schedule)(model),
            epochs=steps,
            iters_per_epoch=1,
            log_freq=steps,
            equation=equation,
            **options,
        )
        solver.train()
    x, y = (np.random.default_rng(0).random((2, 2000, 1)) * [[[LENGTH]], [[1.0]]]).astype("float32")
    points = {"x": x, "y": y}
    found = solver.predict(points, return_numpy=True)
    u, p = velocity(points), pressure(points)
    return tuple(
        float(np.linalg.norm(found[name] - exact) / np.linalg.norm(exact))
        for name, exact in (("u", u), ("p", p))
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 1")
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1)
    rows = {rule: [errors(rule, arguments.steps, seed) for seed in seeds] for rule in RULES}
    print("| | error of u | error of p |\n|---|---|---|")
    for rule, found in rows.items():
        columns = (", ".join(f"{x:.2g}" for x in of_field) for of_field in zip(*found))
        print(f"| {rule} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
