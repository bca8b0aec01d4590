"""Seconds until a PINN's error stays below 1e-1, 1e-2 and 1e-3: this package and its peers.

All get the same points, the same network at first, and the same Adam and schedule. Every run is a
process of its own on a core of its own, and adds a line to runs.jsonl when it is done. What is
there is not run again. See README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import paddle
import sympy
from time_to_error_task import HIDDEN_LAYERS, WIDTH, Condition, Task

from paddlescience_gradnorm import FCNet
from paddlescience_gradnorm._machine import find_machine
from paddlescience_gradnorm.pde.problems import Problem, problem
from paddlescience_gradnorm.training import _runs
from paddlescience_gradnorm.training.signals import StopOnSignals

HERE = Path(__file__).parent
# The beam has derivatives of fourth order; a thousand points on a line would be too many.
PROBLEMS: dict[str, dict[str, int]] = {
    "poisson": {},
    "helmholtz": {},
    "burgers": {},
    "beam": {"interior": 100},
    "kovasznay": {},
    "heat": {},
    "klein_gordon": {},
}
STEPS = 3000
LEVELS = (1e-1, 1e-2, 1e-3)
EVALUATION_POINTS = 2000


@dataclass(frozen=True)
class Contestant:
    """A line of the table.

    Attributes:
        label: In table and figure.
        worker: time_to_error_WORKER.py.
        python: Which of the interpreters on the command line runs it.
        environment: Variables of the process.
        colour: In the figure.
        line: Its style there.
    """

    label: str
    worker: str
    python: str
    environment: tuple[tuple[str, str], ...] = ()
    colour: str = "C0"
    line: str = "-"


CONTESTANTS = {
    "pinn": Contestant("this package, default", "paddle", "own"),
    "pinn without C++": Contestant(
        "this package, default, without C++",
        "paddle",
        "own",
        (("GRADNORM_OPERATORS", "off"),),
        "C0",
        "--",
    ),
    "equal": Contestant("this package, equal weights", "paddle", "own", (), "C0", ":"),
    "pinn soap": Contestant("this package, default, by SOAP", "paddle", "ppsci", (), "C5"),
    "jax": Contestant("JAX jit, equal weights", "jax", "peers", (), "C1", ":"),
    "jax grad_norm": Contestant("JAX jit, jaxpi's grad_norm", "jax", "peers", (), "C1"),
    "torch": Contestant("PyTorch, equal weights", "torch", "peers", (), "C2", ":"),
    "torch gradnorm": Contestant("PyTorch, gradnorm-pytorch", "torch", "peers", (), "C2"),
    "deepxde torch": Contestant(
        "DeepXDE on PyTorch", "deepxde", "peers", (("DDE_BACKEND", "pytorch"),), "C3", "--"
    ),
    "deepxde paddle": Contestant(
        "DeepXDE on Paddle", "deepxde", "deepxde", (("DDE_BACKEND", "paddle"),), "C3"
    ),
    "ppsci": Contestant("PaddleScience, its GradNorm", "ppsci", "ppsci", (), "C4"),
    "ppsci ours": Contestant("PaddleScience, this package", "ppsci", "ppsci", (), "C4", "--"),
}


def task_of(name: str, seed: int, steps: int) -> Task:
    """The problem as every framework gets it."""
    known = problem(name)
    sampled = known.sample(seed=seed, points=PROBLEMS[name])
    targets = {name: columns for each in sampled._evaluations for name, columns in each.targets}
    derivatives: dict[str, tuple[int, tuple[int, ...]]] = {}
    conditions = []
    for condition in known.conditions:
        points = sampled.points[condition.region.name].numpy()
        zero = np.zeros((len(points), 1))
        columns = [zero if c is None else c.numpy() for c in targets[condition.name]]
        operators, _ = sampled._operators_and_targets(condition, points)
        conditions.append(
            Condition(
                name=condition.name,
                is_equation=condition.kind == "pde",
                points=points,
                expressions=[in_python(operator, known, derivatives) for operator in operators],
                targets=np.hstack(columns),
            )
        )
    paddle.seed(seed)
    net = FCNet(len(known.coordinates), len(known.fields), HIDDEN_LAYERS + 1, WIDTH)
    low, high = np.array(known.low), np.array(known.high)
    test = low + (high - low) * np.random.default_rng(0).random((EVALUATION_POINTS, len(low)))
    return Task(
        name=name,
        seed=seed,
        steps=steps,
        coordinates=[str(c) for c in known.coordinates],
        fields=[str(f) for f in known.fields],
        derivatives=derivatives,
        conditions=conditions,
        weights=[linear.weight.numpy() for linear in net.linears],
        points=test,
        solution=known.solution(test),
    )


def in_python(
    operator: sympy.Expr, known: Problem, derivatives: dict[str, tuple[int, tuple[int, ...]]]
) -> str:
    """The operator as a Python expression; the derivatives in it are added to the dict."""
    fields = [field(*known.coordinates) for field in known.fields]
    names = {}
    # Derivatives first, because a field is a part of its derivatives.
    for part in (*operator.atoms(sympy.Derivative), *operator.atoms(*map(type, fields))):
        is_field = part in fields
        field, path = (part, ()) if is_field else (part.expr, part.variables)
        axes = tuple(sorted(known.coordinates.index(symbol) for symbol in path))
        along = "".join(str(known.coordinates[axis]) for axis in axes)
        name = f"{field.func}_{along}" if axes else str(field.func)
        derivatives[name] = fields.index(field), axes
        names[part] = sympy.Symbol(name)
    return sympy.pycode(operator.xreplace(names), fully_qualified_modules=False)


def train(
    run: dict[str, Any],
    folder: Path,
    progress: Callable[[float], None],
    stop: StopOnSignals,
    *,
    pythons: dict[str, str],
) -> dict[str, Any] | None:
    """A run in a process of its own."""
    contestant = CONTESTANTS[run["contestant"]]
    folder.mkdir(parents=True, exist_ok=True)
    task, result, log = folder / "task.npz", folder / "result.json", folder / "log.txt"
    task_of(run["problem"], run["seed"], run["steps"]).write(task)
    settings = ("MALLOC_", "MKL_", "KMP_", "XLA_", "FLAGS_", "OPENBLAS_", "GLIBC_TUN")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(settings)}
    one_thread = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    worker = HERE / f"time_to_error_{contestant.worker}.py"
    command = [pythons[contestant.python], worker, task, run["contestant"], result]
    with log.open("w") as output, a_core(folder.parents[1]) as core:
        process = subprocess.Popen(
            command,
            env={**inherited, **one_thread, **dict(contestant.environment)},
            stdout=output,
            stderr=output,
        )
        os.sched_setaffinity(process.pid, {core})
        while True:
            try:
                code = process.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if stop.received:
                    process.kill()
                    process.wait()
                    return None
    if code:
        said = log.read_text().strip().splitlines()[-1:]
        raise RuntimeError(f"{worker.name} ended with {code}: {' '.join(said)}; see {log}")
    answer: dict[str, Any] = json.loads(result.read_text())
    return {**answer, "machine": find_machine().model}


@contextlib.contextmanager
def a_core(folder: Path) -> Iterator[int]:
    """A core that no other run has, because not every framework keeps to one thread."""
    for core in itertools.cycle(os.sched_getaffinity(0)):
        with (folder / f"core {core}").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
                continue
            yield core
            return


def seconds_to(course: Sequence[Sequence[float]], level: float) -> float:
    """Seconds until the error stays below the level; infinite if it does not."""
    reached = math.inf
    for _, seconds, error in reversed(course):
        if not error < level:  # it may be NaN
            break
        reached = seconds
    return reached


def courses_of(
    runs: Sequence[dict[str, Any]],
) -> dict[str, dict[Contestant, list[Sequence[Sequence[float]]]]]:
    """Problem -> contestant -> the courses of all seeds, of those that have any, in order."""
    found = {
        name: {
            contestant: [
                r["course"] for r in runs if (r["problem"], r["contestant"]) == (name, key)
            ]
            for key, contestant in CONTESTANTS.items()
        }
        for name in PROBLEMS
    }
    there = {name: {c: x for c, x in of.items() if x} for name, of in found.items()}
    return {name: of for name, of in there.items() if of}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Seconds to each level, and the error at the end: medians over the seeds."""
    lines = [
        "| problem | | "
        + " | ".join(f"{level:g}" for level in LEVELS)
        + " | at the end | ms a step |",
        "|---|---|" + "---|" * (len(LEVELS) + 2),
    ]
    for name, by_contestant in courses_of(runs).items():
        for contestant, found in by_contestant.items():
            cells = [
                _in_words(statistics.median(seconds_to(course, level) for course in found))
                for level in LEVELS
            ]
            error = statistics.median(course[-1][2] for course in found)
            pace = statistics.median(_pace(course) for course in found)
            lines.append(
                f"| {name} | {contestant.label} | {' | '.join(cells)} | {error:.1e} | {pace:.1f} |"
            )
    return "\n".join(lines)


def _in_words(seconds: float) -> str:
    return f"{seconds:.1f} s" if math.isfinite(seconds) else "-"


def _pace(course: Sequence[Sequence[float]]) -> float:
    """Milliseconds a step, without the first block, in which some compile."""
    times = np.diff([row[1] for row in course]) / np.diff([row[0] for row in course])
    return 1e3 * float(np.median(times))


def figure(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """The error over seconds, a panel for each problem; the median seed of each contestant."""
    problems = courses_of(runs)
    rows = -(-len(problems) // 4)
    columns = -(-len(problems) // rows)
    picture, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.2 * columns, 2.9 * rows + 1.1),
        squeeze=False,
        layout="constrained",
    )
    for axis, (name, by_contestant) in zip(axes.flat, problems.items()):
        for contestant, found in by_contestant.items():
            course = sorted(found, key=lambda course: course[-1][2])[len(found) // 2]
            _, seconds, errors = np.array(course).T
            axis.plot(
                seconds, errors, contestant.line, color=contestant.colour, label=contestant.label
            )
        axis.set(title=name, xscale="log", yscale="log", xlabel="seconds")
        axis.grid(True, alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("relative L2 error")
    for axis in list(axes.flat)[len(problems) :]:
        axis.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=3)
    picture.savefig(path, dpi=130)
    plt.close(picture)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parsed(arguments)
    pythons = {
        "own": sys.executable,
        "peers": options.peers_python,
        "deepxde": options.deepxde_python,
        "ppsci": options.ppsci_python,
    }
    contestants = [key for key in options.contestants if pythons[CONTESTANTS[key].python]]
    plan = [
        {"problem": name, "contestant": key, "seed": seed, "steps": options.steps}
        for seed in options.seeds
        for name in options.problems
        for key in contestants
    ]
    runs = _runs.read_runs(options.output)
    if not options.table:
        work = functools.partial(train, pythons=pythons)
        _runs.run_all(plan, runs, options.output, work, options.jobs, described)
        runs = _runs.read_runs(options.output)
    runs = [run for run in runs if run["steps"] == options.steps]
    text = table(runs)
    print(text)
    (options.output / "time_to_error.md").write_text(text + "\n")
    if runs:
        figure(runs, options.output / "time_to_error.png")


def described(run: dict[str, Any]) -> str:
    what = f"{run['problem']}, {run['contestant']}, seed {run['seed']}"
    if _runs.FAILED in run:
        return f"{what}: {run[_runs.FAILED]}"
    steps, seconds, error = run["course"][-1]
    return f"{what}: {error:.2e} after {steps:g} steps, {seconds:.0f} s"


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    listed: Callable[[str], list[str]] = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--output", type=Path, default=Path("outputs/time_to_error"))
    parser.add_argument("--problems", type=listed, default=list(PROBLEMS))
    parser.add_argument("--contestants", type=listed, default=list(CONTESTANTS))
    parser.add_argument(
        "--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2]
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, at most as many as cores"
    )
    parser.add_argument("--peers-python", help="with PyTorch, gradnorm-pytorch, JAX and DeepXDE")
    parser.add_argument("--deepxde-python", help="with DeepXDE and Paddle")
    parser.add_argument("--ppsci-python", help="with PaddleScience")
    parser.add_argument("--table", action="store_true", help="of what is there; run nothing")
    options = parser.parse_args(arguments)
    for what, given, known in (
        ("problems", options.problems, PROBLEMS),
        ("contestants", options.contestants, CONTESTANTS),
    ):
        wrong = [name for name in given if name not in known]
        if wrong:
            parser.error(f"{what} has {', '.join(wrong)}; choose from {', '.join(known)}")
    return options


if __name__ == "__main__":
    main()
