"""What GradNorm adds to a step, to the percent: Paddle alone, in one process, in short turns.

Between two turns of step_cost.py lie seconds, in which others on the machine begin and end. Here a
turn is a few steps, and there are a hundred. What disturbs a step only ever makes it longer, so
that the lower quartile says more of the step itself than the median. With --rules it is each rule
of the package against the plain step, in seconds of the processor, on four losses. Run it with
--help for the options.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np
import report
from step_cost_paddle import build
from step_cost_worker import WARM_UP, Case
from turns import timed as in_turns

from paddlescience_gradnorm import _operators
from paddlescience_gradnorm.balancing import RULES
from paddlescience_gradnorm.command_line import at_least
from paddlescience_gradnorm.runtime import tune_cpu

TITLES = {
    "plain": "plain step",
    "gradnorm_pinn": "PINN rule",
    "gradnorm_own": "published rule, weight_lr",
    "gradnorm": "published rule, the caller's optimizer",
    "gradnorm_every_10": "the same, update_every=10",
    "gradnorm_pinn_every_30": "PINN rule, update_every=30",
}
ON_ONE_GRAPH = ("gradnorm_every_10", "gradnorm_pinn_every_30")
CASES = [
    *(Case("laplace", points, 2) for points in (500, 2000, 10_000)),
    Case("navier_stokes", 2000, 3),
]
CASE_OF_RULES = Case("laplace", 2000, 4)
# By its name the published rule would have no alpha. Fixed weights cost what equal ones do.
RULE_NAMES = ["gradnorm_own" if name == "published" else name for name in RULES if name != "fixed"]
PERIOD = 30  # steps, so that every kind of step updates as often in each turn
SECONDS = 0.04  # of a turn, roughly, but a period at least


def timed(
    case: Case, modes: list[str], turns: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, np.ndarray]:
    """Milliseconds a step of every turn, shape [turns] for each kind of step."""
    runs = {mode: build(case, mode) for mode in modes}
    for run in runs.values():
        run(5 * WARM_UP)
    start = time.perf_counter()
    runs["plain"](WARM_UP)
    periods = round(SECONDS / (time.perf_counter() - start) * WARM_UP / PERIOD)
    gc.collect()
    gc.disable()  # nobody pays for another's garbage
    ms = in_turns(runs, turns, PERIOD * max(1, periods), clock)
    gc.enable()
    return ms


def row(case: Case, mode: str, ms: dict[str, np.ndarray]) -> dict[str, Any]:
    low, plain = np.quantile(ms[mode], 0.25), np.quantile(ms["plain"], 0.25)
    quartiles = np.quantile(ms[mode] / ms["plain"], [0.25, 0.5, 0.75])
    return {
        "equation": case.equation,
        "points": case.points,
        "losses": case.losses,
        "step": TITLES.get(mode, mode),
        "ms": low,
        "to_plain": low / plain,
        "paired": quartiles.tolist(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| losses | points | step | ms | / plain | in pairs |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        how = {"laplace": "disjoint", "navier_stokes": "on one graph"}[r["equation"]]
        losses = f"{r['losses']}, {how}"
        low, middle, high = r["paired"]
        lines.append(
            f"| {losses} | {r['points']:,} | {r['step']} | {r['ms']:.2f} | {r['to_plain']:.3f} | "
            f"{middle:.3f} [{low:.3f}, {high:.3f}] |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    options = parse(arguments)
    # Without --build not even operators that are there.
    os.environ[_operators.CHOICE] = "on" if options.build else "off"
    tuning = tune_cpu(build=options.build, threads=options.threads)
    print(tuning)
    rows = []
    for case in [CASE_OF_RULES] if options.rules else CASES:
        if options.rules:
            ms = timed(case, ["plain", *RULE_NAMES], options.turns, time.process_time)
        else:
            on_one_graph = case.equation != "laplace"
            modes = [mode for mode in TITLES if on_one_graph or mode not in ON_ONE_GRAPH]
            ms = timed(case, modes, options.turns)
        rows += [row(case, mode, ms) for mode in ms]
    report.write("step_overhead", options, tuning, rows, table(rows))
    return rows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rules", action="store_true", help="each rule against the plain step")
    parser.add_argument("--turns", type=at_least(1), default=100, help="of each kind of step")
    parser.add_argument("--threads", type=at_least(1), help="as many as cores by default")
    parser.add_argument("--build", action="store_true", help="with the operators in C++")
    parser.add_argument("--output", type=Path, default=Path("outputs/step_overhead"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
