"""PaddleScience's loss aggregators and ours, in its Solver, on its Laplace example.

The set-up of PaddleScience's examples/laplace: cos(x) cosh(y) on the unit square, MLP of 5 x 20,
Adam at 1e-3, 20,000 steps on 10,201 even points inside and 400 random ones on the edge, both
losses summed over their points. Every aggregator is a process of its own, one after the other,
with its own defaults. Needs the package with ``.[cpu,ppsci]``. Writes a table (markdown) and all
figures (JSON).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ALPHA = 0.12
# Name in the table, by the name on the command line.
CONTESTANTS = {
    "ours_default": "`GradNormAggregator.of`, by default",
    "sum": "default sum",
    "ppsci_gradnorm": "PaddleScience's GradNorm",
    "relobralo": "Relobralo",
    "ntk": "NTK",
    "agda": "AGDA",
    "pcgrad": "PCGrad",
    "ours": "`GradNormAggregator`, weights stepped by Adam",
    "ours_lr": "`GradNormAggregator`, weights stepped at `lr`",
}
# Of the gradient descent on the weights: norms here are in the thousands, as losses are sums.
LR = 1e-7


def train(name: str, steps: int, seed: int) -> dict[str, Any]:
    """Errors, seconds and weights of one run, in this process."""
    from paddlescience_gradnorm.runtime import tune_cpu

    tune_cpu()
    import numpy as np
    import ppsci
    from ppsci.loss import mtl
    from ppsci.utils import logger

    from paddlescience_gradnorm.ppsci import GradNormAggregator

    logger.init_logger("ppsci", None, "error")
    ppsci.utils.misc.set_random_seed(seed)
    model = ppsci.arch.MLP(("x", "y"), ("u",), num_layers=5, hidden_size=20)
    equation = {"laplace": ppsci.equation.Laplace(dim=2)}
    square = ppsci.geometry.Rectangle((0.0, 0.0), (1.0, 1.0))

    def solution(points: dict[str, Any]) -> Any:
        return np.cos(points["x"]) * np.cosh(points["y"])

    epochs = 20 if steps % 20 == 0 else 1
    # For the constraints: the same points in every step, not so many times as many at once.
    data = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1}
    inside = ppsci.constraint.InteriorConstraint(
        equation["laplace"].equations,
        {"laplace": 0},
        square,
        {**data, "batch_size": 10201},
        ppsci.loss.MSELoss("sum"),
        evenly=True,
        name="EQ",
    )
    edge = ppsci.constraint.BoundaryConstraint(
        {"u": lambda out: out["u"]},
        {"u": solution},
        square,
        {**data, "batch_size": 400},
        ppsci.loss.MSELoss("sum"),
        name="BC",
    )
    constraint = {"EQ": inside, "BC": edge}
    aggregator = {
        "ours_default": lambda: GradNormAggregator.of(model, constraint, equation),
        "sum": lambda: None,
        "ppsci_gradnorm": lambda: mtl.GradNorm(model, num_losses=2),
        "relobralo": lambda: mtl.Relobralo(num_losses=2),
        "ntk": lambda: mtl.NTK(model, num_losses=2),
        "agda": lambda: mtl.AGDA(model),
        "pcgrad": lambda: mtl.PCGrad(model),
        "ours": lambda: GradNormAggregator(model, n_loss=2, alpha=ALPHA, weight_lr=None),
        "ours_lr": lambda: GradNormAggregator(model, n_loss=2, alpha=ALPHA, weight_lr=LR),
    }[name]()
    layers = (model, aggregator.balancer) if name == "ours" else model
    with tempfile.TemporaryDirectory() as output:
        solver = ppsci.solver.Solver(
            model,
            constraint,
            output,
            ppsci.optimizer.Adam(1e-3)(layers),
            epochs=epochs,
            iters_per_epoch=steps // epochs,
            log_freq=10**9,
            equation=equation,
            loss_aggregator=aggregator,
        )
        begin, busy = time.perf_counter(), time.process_time()
        try:
            solver.train()
        except Exception as error:  # of the aggregator, which the table then names
            return {"name": name, "fails": f"{type(error).__name__}: {error}"}
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    axis = np.linspace(0, 1, 101, dtype="float32")
    grid = {key: at.reshape(-1, 1) for key, at in zip("xy", np.meshgrid(axis, axis))}
    exact = solution(grid)
    difference = solver.predict(grid, batch_size=None, return_numpy=True)["u"] - exact
    weights = {
        "ppsci_gradnorm": lambda: aggregator.weight.tolist(),
        "ntk": lambda: aggregator.weight.tolist(),
        "relobralo": lambda: aggregator.lmbda.tolist(),
        "sum": lambda: [1.0, 1.0],
    }.get(name, lambda: aggregator.get_weights().tolist())()
    return {
        "name": name,
        "relative_l2_error": float(np.linalg.norm(difference) / np.linalg.norm(exact)),
        "mse": float((difference**2).mean()),
        "max_error": float(np.abs(difference).max()),
        "losses": {k: solver.train_loss_info[k].history[-1] for k in ("EQ", "BC")},
        "weights": weights,
        "seconds": seconds,
        "cpu_seconds": busy,
    }


def table(results: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """The results as markdown."""
    lines = [
        f"{machine['steps']:,} steps, seed{'s' if len(machine['seeds']) > 1 else ''} "
        f"{', '.join(map(str, machine['seeds']))}, "
        f"{machine['processor']}, {machine['threads']} threads, "
        f"Paddle {machine['paddle']}, paddlesci {machine['paddlesci']}.",
        "",
        "| aggregator | seed | relative L2 error | MSE | max. error | weights laplace, u | "
        "CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        label = f"| {CONTESTANTS[result['name']]} | {result['seed']} |"
        if "fails" in result:
            lines.append(f"{label} fails: `{result['fails']}` | | | | |")
            continue
        weights = ", ".join(f"{weight:.3g}" for weight in result["weights"])
        lines.append(
            f"{label} {result['relative_l2_error']:.2e} | {result['mse']:.2e} | "
            f"{result['max_error']:.2e} | {weights} | {result['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2024])
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--output", type=Path, default=Path("outputs/ppsci_aggregators"))
    parser.add_argument("--worker", choices=CONTESTANTS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.worker:
        print(json.dumps(train(options.worker, options.steps, options.seeds[0])))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "ppsci_aggregators.json"
    machine = described(options)
    results = []
    if path.exists():  # a run that was cut off goes on
        earlier = json.loads(path.read_text())
        if earlier["machine"] == machine:
            results = earlier["results"]
    done = {(result["name"], result["seed"]) for result in results}
    for seed in options.seeds:
        for name in options.only:
            if (name, seed) in done:
                continue
            command = [sys.executable, "-W", "ignore", __file__, "--worker", name]
            command += ["--steps", str(options.steps), "--seeds", str(seed)]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append({**json.loads(run.stdout.splitlines()[-1]), "seed": seed})
            print(json.dumps(results[-1]), flush=True)
            path.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    (options.output / "ppsci_aggregators.md").write_text(table(results, machine))
    print(table(results, machine))


def described(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "steps": options.steps,
        "seeds": options.seeds,
        "processor": _processor(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "paddle": version("paddlepaddle"),
        "paddlesci": version("paddlesci"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
