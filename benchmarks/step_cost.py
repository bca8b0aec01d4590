"""What a GradNorm step costs beside a plain one, and beside PyTorch's and JAX's.

Every contestant is a process, or shares one with its like, that runs blocks of training steps
when told to. The blocks take turns, so that whatever else the machine does meets all alike;
ratios are taken within a round of blocks. Memory is measured in fresh processes. See README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from step_cost_worker import Case

from paddlescience_gradnorm.command_line import at_least

HERE = Path(__file__).parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ROUNDS = 3  # of blocks, each time that it is a process's turn
# A thread pool spins for up to 0.2 s after its last task and would slow down the next process.
SETTLE = 0.25

MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}
THREADS = {"OMP_NUM_THREADS": str(CORES)}


@dataclass(frozen=True)
class Contestant:
    """One line of the table: a mode of a worker."""

    worker: str
    mode: str
    label: str


# Without and with the operators in C++; each has its own plain step.
KINDS = {"paddle": "Paddle", "paddle operators": "Paddle with operators"}
PLAIN, PINN, GRADNORM, OWN, EVERY_10, TWO_PASS = (
    {worker: Contestant(worker, mode, f"{name}, {what}") for worker, name in KINDS.items()}
    for mode, what in (
        ("plain", "plain step"),
        ("gradnorm_pinn", "PINN rule"),
        ("gradnorm", "GradNorm"),
        ("gradnorm_own", "GradNorm, weight_lr"),
        ("gradnorm_every_10", "GradNorm, update_every=10"),
        ("two_pass", "GradNorm by get_grad_norm_loss"),
    )
)
# Rules whose direction acts on the step's own gradients, here and in TorchJD.
DIRECTIONS = {"config": "ConFIG", "upgrad": "UPGrad"}
OUR_DIRECTIONS = tuple(
    Contestant(worker, mode, f"{name}, {title}")
    for worker, name in KINDS.items()
    for mode, title in DIRECTIONS.items()
)
PEERS = (
    *(Contestant("torch", mode, f"PyTorch, TorchJD's {DIRECTIONS[mode]}") for mode in DIRECTIONS),
    Contestant("paddle", "nested", "Paddle, plain step by nested paddle.grad"),
    Contestant("paddle as installed", "plain", "Paddle as installed, plain step"),
    Contestant("torch", "plain", "PyTorch, plain step"),
    Contestant("torch", "gradnorm", "PyTorch, gradnorm-pytorch"),
    Contestant("torch malloc", "gradnorm", "PyTorch, gradnorm-pytorch, malloc settings"),
    Contestant("jax", "plain", "JAX jit, plain step"),
    Contestant("jax", "gradnorm", "JAX jit, GradNorm"),
    Contestant("jax malloc", "gradnorm", "JAX jit, GradNorm, malloc settings"),
)
OURS = tuple(x[worker] for worker in KINDS for x in (PLAIN, PINN, GRADNORM, OWN, TWO_PASS))


class Worker:
    """A process of one of the sides."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        # Nothing of the caller's own tuning: "as installed" means it.
        settings = ("MALLOC_", "MKL_", "OMP_", "KMP_", "XLA_", "FLAGS_", "OPENBLAS_", "GLIBC_TUN")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(settings)}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the process
        self._process = subprocess.Popen(
            command,
            env={**inherited, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.about = self._answer()
        except RuntimeError:
            self.close()
            raise

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        print(json.dumps({"do": do, **request}), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(last)
        return json.loads(line)


def commands(peers_python: Path | None) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Command and environment of every worker that this machine may have."""
    paddle = [sys.executable, str(HERE / "step_cost_paddle.py")]
    nothing_built = {"PADDLE_EXTENSION_DIR": str(HERE / "nothing")}
    found: dict[str, tuple[list[str], dict[str, str]]] = {
        "paddle": ([*paddle, "--tune"], nothing_built),
        "paddle operators": ([*paddle, "--tune", "--build"], {}),
        "paddle as installed": (paddle, {}),
    }
    if peers_python is None:
        print("peers skipped: --peers-python is not given")
    elif not peers_python.exists():
        print(f"peers skipped: there is no {peers_python}")
    else:
        for name in ("torch", "jax"):
            command = [str(peers_python), str(HERE / f"step_cost_{name}.py")]
            found[name] = (command, THREADS)
            found[f"{name} malloc"] = (command, {**THREADS, **MALLOC})
    return found


def started(found: dict[str, tuple[list[str], dict[str, str]]]) -> dict[str, Worker]:
    workers = {}
    for name, (command, environment) in found.items():
        try:
            workers[name] = Worker(command, environment)
        except RuntimeError as error:
            if name.startswith("paddle"):
                raise
            print(f"{name} skipped: {error}")
    return workers


def plan(quick: bool, available: set[str]) -> dict[Case, list[Contestant]]:
    """Who runs what. The case of 2,000 points and 2 losses is in both series."""
    points = (500, 2000) if quick else (500, 2000, 10_000, 50_000)
    losses = (4, 8) if quick else (4, 8, 16, 32)
    beside_peers = [*OURS, *OUR_DIRECTIONS, *PEERS]
    cases = {Case("laplace", n, 2): beside_peers if n <= 10_000 else [*OURS] for n in points}
    cases.update({Case("laplace", 2000, t): [*OURS] for t in losses})
    shared = [x[worker] for worker in KINDS for x in (PLAIN, PINN, GRADNORM, EVERY_10, TWO_PASS)]
    cases[Case("navier_stokes", 2000, 3)] = shared
    return {case: [c for c in who if c.worker in available] for case, who in cases.items()}


def timed(
    workers: dict[str, Worker], case: Case, who: list[Contestant], repeats: int, block: float
) -> dict[Contestant, np.ndarray]:
    """Milliseconds a step of every block, shape [ROUNDS * repeats] each, turn by turn."""
    names = list(dict.fromkeys(c.worker for c in who))
    steps: dict[Contestant, int] = {}
    for name in names:
        mine = [c for c in who if c.worker == name]
        seconds = workers[name].ask("prepare", case=asdict(case), modes=[c.mode for c in mine])
        for c in mine:
            steps[c] = max(1, round(block / seconds[c.mode]))
            if c in [*PINN.values(), *EVERY_10.values()]:  # whole periods, each with its one update
                steps[c] = 10 * math.ceil(steps[c] / 10)
    result: dict[Contestant, list[float]] = {c: [] for c in who}
    for turn in range(repeats):
        for name in names:
            if len(names) > 1:
                time.sleep(SETTLE)
            mine = [c for c in who if c.worker == name]
            # Short blocks, for the machine is not the same from one second to the next.
            for number in range(ROUNDS * turn, ROUNDS * (turn + 1)):
                first = number % len(mine)  # nobody always comes after the same one
                for c in mine[first:] + mine[:first]:
                    seconds = workers[name].ask("run", mode=c.mode, steps=steps[c])["seconds"]
                    result[c].append(1000 * seconds / steps[c])
    for name in names:
        workers[name].ask("prepare", case=asdict(case), modes=[])  # let go of the memory
    return {c: np.array(ms) for c, ms in result.items()}


def quartiles(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "q1": float(low), "q3": float(high)}


def row(
    case: Case, c: Contestant, ms: dict[Contestant, np.ndarray], memory: dict[Contestant, Any]
) -> dict[str, Any]:
    """A line of the results; the ratios' numerators and denominators are of the same round."""
    entry = {**asdict(case), **asdict(c), "ms": {**quartiles(ms[c]), "blocks": ms[c].tolist()}}
    plain = PLAIN.get(c.worker, PLAIN["paddle"])
    entry["to_plain"] = quartiles(ms[c] / ms[plain])
    for worker, gradnorm in GRADNORM.items():
        if gradnorm in ms:
            entry[f"{worker} to this"] = quartiles(ms[gradnorm] / ms[c])
    if c.worker == "torch" and c.mode in DIRECTIONS:
        for ours in OUR_DIRECTIONS:
            if ours.mode == c.mode and ours in ms:
                entry[f"{ours.worker}'s to this"] = quartiles(ms[ours] / ms[c])
    entry["megabytes"] = memory.get(c)
    if memory.get(c) is not None and memory.get(plain):
        entry["megabytes_to_plain"] = memory[c] / memory[plain]
    return entry


def table(rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    settings = "\n".join(f"- {name}: {text}" for name, text in machine["settings"].items())
    text = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}. {versions}.\n",
        f"{settings}\n",
        "Median of the blocks, quartiles in brackets. Ratios are medians of the ratios within "
        "a round of blocks. Memory: what the steps need at their peak beyond a process that is "
        "ready to make them.\n",
    ]
    laplace = [r for r in rows if r["equation"] == "laplace"]
    ours = [r for r in laplace if is_balancing(r)]
    peers = [r for r in laplace if r["losses"] == 2 and r["points"] <= 10_000]
    for title, column, chosen in (
        ("Points (2 losses, disjoint)", "points", [r for r in ours if r["losses"] == 2]),
        ("Losses (2,000 points, disjoint)", "losses", [r for r in ours if r["points"] == 2000]),
        (
            "Losses that share a forward graph (Navier-Stokes, 3 residuals)",
            "points",
            [r for r in rows if r["equation"] == "navier_stokes"],
        ),
    ):
        text.append(f"## {title}\n")
        text.append(f"| {column} | step | ms | / plain | MB | / plain |\n|---|---|---|---|---|---|")
        for r in chosen:
            text.append(
                f"| {r[column]:,} | {r['label']} | {spread(r['ms'], '.1f')} | "
                f"{spread(r['to_plain'], '.3f')} | {number(r['megabytes'], '.1f')} | "
                f"{number(r.get('megabytes_to_plain'), '.2f')} |"
            )
        text.append("")
    text.append("## All contestants (2 losses)\n")
    text.append(
        "| points | step | ms | Paddle, GradNorm / this | Paddle with operators, GradNorm / this "
        "| MB |\n|---|---|---|---|---|---|"
    )
    for r in peers:
        text.append(
            f"| {r['points']:,} | {r['label']} | {spread(r['ms'], '.1f')} | "
            f"{' | '.join(spread(r[f'{worker} to this'], '.2f') for worker in KINDS)} | "
            f"{number(r['megabytes'], '.1f')} |"
        )
    theirs = [r for r in peers if r["worker"] == "torch" and r["mode"] in DIRECTIONS]
    if theirs:
        text.append("\n## Directions beside TorchJD (2 losses)\n")
        text.append(
            "| points | rule | TorchJD, ms | Paddle / TorchJD | Paddle with operators / TorchJD |\n"
            "|---|---|---|---|---|"
        )
    for r in theirs:
        ratios = " | ".join(spread(r[f"{worker}'s to this"], ".2f") for worker in KINDS)
        text.append(
            f"| {r['points']:,} | {DIRECTIONS[r['mode']]} | {spread(r['ms'], '.1f')} | {ratios} |"
        )
    return "\n".join(text) + "\n"


def is_balancing(row: dict[str, Any]) -> bool:
    """Whether it is in the tables of Paddle alone."""
    return row["worker"] in KINDS and row["mode"] not in ("nested", *DIRECTIONS)


def spread(q: dict[str, float], style: str) -> str:
    return f"{q['median']:{style}} [{q['q1']:{style}}, {q['q3']:{style}}]"


def number(value: float | None, style: str) -> str:
    return "-" if value is None else f"{value:{style}}"


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(17.5, 4.5), layout="constrained")
    laplace = [r for r in rows if r["equation"] == "laplace"]
    ours = [r for r in laplace if is_balancing(r)]
    labels = dict.fromkeys(r["label"] for r in laplace)
    colors = dict(zip(labels, itertools.cycle(plt.get_cmap("tab20").colors)))
    for axis, x, value, chosen in (
        (axes[0], "points", "to_plain", [r for r in ours if r["losses"] == 2]),
        (axes[1], "losses", "to_plain", [r for r in ours if r["points"] == 2000]),
        (axes[2], "points", "ms", [r for r in laplace if r["losses"] == 2]),
    ):
        for label in dict.fromkeys(r["label"] for r in chosen):
            line = [r for r in chosen if r["label"] == label]
            middle, low, high = (
                np.array([r[value][k] for r in line]) for k in ("median", "q1", "q3")
            )
            ticks = [r[x] for r in line]
            error, shown = [middle - low, high - middle], {"label": label, "color": colors[label]}
            axis.errorbar(ticks, middle, error, marker=".", capsize=2, **shown)
        axis.set_xscale("log")
        ticks = sorted({r[x] for r in chosen})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.set(xlabel=x, ylabel="ms a step" if value == "ms" else "step / plain step")
        axis.grid(alpha=0.3)
    axes[0].set_title("2 losses, disjoint")
    axes[1].set_title("2,000 points, disjoint losses")
    axes[2].set_title("all contestants, 2 losses")
    axes[2].set_yscale("log")
    # It has the labels of all panels.
    axes[2].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def described(workers: dict[str, Worker]) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), cpu)
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    settings = {}
    for name, worker in workers.items():
        versions.update(worker.about["versions"])
        settings[name] = worker.about["settings"]
    return {
        "cpu": cpu,
        "cores": CORES,
        "system": f"{platform.system()} {platform.release()}",
        "load_before": os.getloadavg()[0],
        "versions": versions,
        "settings": settings,
    }


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    repeats = options.repeats or (3 if options.quick else 15)
    block = 0.1
    begin = time.perf_counter()
    found = commands(options.peers_python)
    workers = started(found)
    machine = described(workers)
    print(f"Paddle is tuned by: {machine['settings']['paddle']}", flush=True)
    cases = plan(options.quick, set(workers))
    times = {}
    for case, who in cases.items():
        times[case] = timed(workers, case, who, repeats, block)
        middle = ", ".join(f"{c.label} {np.median(ms):.1f}" for c, ms in times[case].items())
        print(f"{case.equation}, {case.points} points, {case.losses} losses: {middle}", flush=True)
    for worker in workers.values():
        worker.close()

    rows = []
    for case, who in cases.items():
        memory = {}
        for c in () if options.quick and case.losses > 2 else who:
            worker = Worker(*found[c.worker])
            answer = worker.ask("memory", case=asdict(case), mode=c.mode)
            memory[c] = answer["megabytes"]
            worker.close()
        rows += [row(case, c, times[case], memory) for c in who]
    machine["seconds"] = round(time.perf_counter() - begin)

    options.output.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "repeats": repeats, "block_seconds": block, "results": rows}
    (options.output / "step_cost.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "step_cost.md").write_text(table(rows, machine))
    plot(options.output / "step_cost.png", rows)
    print(table(rows, machine))
    print(f"{machine['seconds']} s; written to {options.output}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/step_cost"))
    parser.add_argument("--repeats", type=at_least(1), help="turns; 15, or 3 with --quick")
    parser.add_argument("--quick", action="store_true", help="small sizes: a minute")
    parser.add_argument("--peers-python", type=Path, help="a Python with torch and jax: README.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
