"""How time and memory of a step grow with points, losses and the network, beside a model on paper.

    OMP_NUM_THREADS=1 python benchmarks/cost_growth.py --build

Each case is a process of its own, in which the plain step, the PINN rule and the published rule
take turns. The model counts the matrix products of the hidden layers: the value, two first
derivatives and the Laplacian at the points inside, and the value alone at those on the boundary,
forward and twice as much backward.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import paddle
from step_cost import HERE, Worker
from step_cost_worker import Case

from paddlescience_gradnorm.command_line import at_least

MODES = {"plain": "plain step", "gradnorm_pinn": "PINN rule", "gradnorm": "published rule"}
CASES = [
    *(Case("laplace", points, 2) for points in (500, 2000, 10_000, 50_000, 200_000)),
    *(Case("laplace", 2000, losses) for losses in (8, 32, 64)),
    *(Case("laplace", 2000, 2, width, layers) for width, layers in ((128, 5), (256, 5), (256, 9))),
]
CHANNELS = 4  # the value, u_x, u_y and u_xx + u_yy
UPDATE_EVERY = 10  # of the PINN rule
SECONDS = 0.3  # of a turn, roughly, but an update's period at least


def products(case: Case) -> float:
    """FLOP of the plain step, by the model."""
    of_a_value = 2 * (case.layers - 2) * case.width**2
    return 3 * of_a_value * (CHANNELS * case.points + case.points // 4)


def parameters(case: Case) -> int:
    """Of the network."""
    sizes = [2] + [case.width] * (case.layers - 1) + [1]
    return sum((before + 1) * after for before, after in zip(sizes, sizes[1:]))


def measured(case: Case, turns: int, build: bool) -> dict[str, Any]:
    """Milliseconds a step and megabytes of each mode, and the ratios within turns."""
    command = [sys.executable, str(HERE / "step_cost_paddle.py"), "--tune"]
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if build:
        command.append("--build")
    else:
        environment["GRADNORM_OPERATORS"] = "off"
    ms: dict[str, list[float]] = {mode: [] for mode in MODES}
    worker = Worker(command, environment)
    try:
        warm = worker.ask("prepare", case=asdict(case), modes=list(MODES))
        steps = UPDATE_EVERY * max(1, round(SECONDS / warm["plain"] / UPDATE_EVERY))
        for turn in range(turns):
            order = list(MODES)
            for mode in order[turn % 3 :] + order[: turn % 3]:
                answer = worker.ask("run", mode=mode, steps=steps)
                ms[mode].append(1e3 * answer["seconds"] / steps)
    finally:
        worker.close()
    row: dict[str, Any] = {**asdict(case), "parameters": parameters(case), "FLOP": products(case)}
    for mode in MODES:
        worker = Worker(command, environment)
        try:
            answer = worker.ask("memory", case=asdict(case), mode=mode)
        finally:
            worker.close()
        row[mode] = {
            "ms": statistics.median(ms[mode]),
            "to_plain": statistics.median(a / b for a, b in zip(ms[mode], ms["plain"])),
            "megabytes": answer["megabytes"],
        }
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| points | losses | network | plain, ms | GFLOP/s by the model | PINN rule | published | "
        "plain, MB | PINN rule, MB |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        plain, pinn, published = (row[mode] for mode in MODES)
        lines.append(
            f"| {row['points']:,} | {row['losses']} | {row['layers'] - 1} x {row['width']} | "
            f"{plain['ms']:.1f} | {row['FLOP'] / plain['ms'] / 1e6:.0f} | "
            f"{pinn['to_plain']:.2f} | {published['to_plain']:.2f} | "
            f"{_megabytes(plain)} | {_megabytes(pinn)} |"
        )
    return "\n".join(lines) + "\n"


def _megabytes(of: dict[str, Any]) -> str:
    return "-" if of["megabytes"] is None else f"{of['megabytes']:.0f}"


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    options = _parsed(arguments)
    cases = [c for c in CASES if c.points <= options.most_points and c.width <= options.most_width]
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows.append(measured(case, options.turns, options.build))
        report = {"paddle": paddle.__version__, "operators": options.build, "results": rows}
        (options.output / "cost_growth.json").write_text(json.dumps(report, indent=1) + "\n")
        print(f"{len(rows)} of {len(cases)} cases", file=sys.stderr, flush=True)
    (options.output / "cost_growth.md").write_text(table(rows))
    print(table(rows))
    return rows


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=at_least(1), default=9, help="of each kind of step")
    parser.add_argument("--most-points", type=at_least(1), default=200_000)
    parser.add_argument("--most-width", type=at_least(1), default=256)
    parser.add_argument("--build", action="store_true", help="with the operator in C++")
    parser.add_argument("--output", type=Path, default=Path("outputs/cost_growth"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
