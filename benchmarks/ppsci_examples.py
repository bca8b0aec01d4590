"""PaddleScience's own examples with its loss aggregators and ours: example x balance x seed.

The examples are read from a snapshot of PaddleScience's repository in a folder of yours. Every run
is a process of its own, in a copy of the example's folder, and adds a line to runs.jsonl when it
is done. What is there already is not run again. Needs the package with ``.[cpu,ppsci]``. Run it
with --help for the options.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ppsci_examples_cases import EXAMPLES

# Name in the table, by the name on the command line, in the order in which they run.
BALANCES = {
    "original": "original",
    "of": "`of`",
    "of_bare": "`of`, no weights by hand, frozen before L-BFGS",
    "of_early": "`of`, `PinnRule(late=False)`",
    "of_beta2": "`of`, `beta2=0.99`",
    "of_tuned": "`of`, `tune_cpu`",
    "of_propagated": "`of`, `tune_cpu`, `propagate_derivatives`",
    "original_beta2": "original, `beta2=0.99`",
    "by_name": "by name",
    "GradNorm": "its GradNorm",
    "Relobralo": "its Relobralo",
    "NTK": "its NTK",
}
# In the table the default comes first.
COLUMNS = (
    *("of", "of_bare", "of_early", "of_beta2", "of_tuned", "of_propagated", "by_name"),
    *("original", "original_beta2"),
    *("GradNorm", "Relobralo", "NTK"),
)
RUN = Path(__file__).with_name("ppsci_examples_run.py")


@dataclass(frozen=True)
class Run:
    """One line of runs.jsonl, before it is run."""

    example: str
    balance: str
    seed: int
    full: bool

    def __str__(self) -> str:
        return f"{self.example}.{self.balance}.{self.seed}{'.full' if self.full else ''}"


def planned(
    examples: Iterable[str], balances: Sequence[str], seeds: Iterable[int], full: bool
) -> list[Run]:
    """All runs, seed by seed, so that an early end leaves a whole table of fewer seeds."""
    return [
        Run(example, balance, seed, full)
        for seed in seeds
        for example in examples
        for balance in balances
        if {"of_bare": EXAMPLES[example].has_bare_run, "by_name": EXAMPLES[example].adds_up}.get(
            balance, True
        )
    ]


def read(path: Path) -> dict[Run, dict[str, Any]]:
    """The finished runs. A line that a killed process has left unfinished is not one."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[Run(row["example"], row["balance"], row["seed"], row["full"])] = row
    return found


def still_to_do(
    runs: Iterable[Run], finished: dict[Run, dict[str, Any]], failed_again: bool
) -> list[Run]:
    """Those that are not finished; and those that failed, if asked for."""
    return [r for r in runs if r not in finished or (failed_again and finished[r]["fails"])]


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a line, on a line of its own even after one that was cut off."""
    with path.open("a+b") as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def compute_data(folder: Path, names: Iterable[str]) -> None:
    """Write the solutions of Allen-Cahn and of the lid-driven cavity, where they are not yet."""
    missing = sorted({name for name in names if not (folder / name).exists()})
    if not missing:
        return
    import numpy as np
    import scipy.io

    from paddlescience_gradnorm.pde.problems import _reference_solutions as solutions

    folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        print(f"computing {name}", flush=True)
        if name == "allen_cahn.mat":
            times, values = solutions.solve_allen_cahn()
            places = -1 + 2 * np.arange(values.shape[1]) / values.shape[1]
            data = {"usol": values[::2, ::4], "t": times[::2][None], "x": places[::4][None]}
        else:
            solutions.CAVITY_REYNOLDS = float(name.removeprefix("ldc_Re").removesuffix(".mat"))
            axis = np.linspace(0, 1, 65)
            points = np.stack([x.ravel() for x in np.meshgrid(axis, axis, indexing="ij")], 1)
            velocity = solutions.interpolate_velocity(*solutions.solve_cavity(64))(points)
            u, v = velocity[:, 0].reshape(65, 65), velocity[:, 1].reshape(65, 65)
            data = {"u": u, "v": v, "x": axis[None], "y": axis[None]}
        unfinished = folder / f"unfinished_{name}"
        scipy.io.savemat(unfinished, data)
        unfinished.replace(folder / name)


class Processes:
    """Runs of this driver, which end with it."""

    def __init__(self, snapshot: Path, work: Path, timeout: float) -> None:
        self.snapshot, self.work, self.timeout = snapshot, work, timeout
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def stop(self) -> None:
        """End what runs. It leaves no line, so it is run again next time."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _end(process)

    def make(self, run: Run) -> dict[str, Any] | None:
        """The run's line; None if it was stopped."""
        example = EXAMPLES[run.example]
        folder = self.work / "runs" / str(run)
        shutil.rmtree(folder, ignore_errors=True)
        copy, result = folder / "example", folder / "result.json"
        shutil.copytree(self.snapshot / "examples" / example.folder, copy)
        for place, name in example.data.items():
            (copy / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.work / "data" / name, copy / place)
        command = [sys.executable, str(RUN), run.example, run.balance, str(run.seed)]
        command += [str(copy), str(result), *(["--full"] if run.full else [])]
        root = str(RUN.parents[1])
        paths = [root, os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        environment.setdefault("OMP_NUM_THREADS", "1")
        with (folder / "log.txt").open("wb") as log:
            with self._lock:
                if self._stopped:
                    return None
                # A session of its own, because the example's data loaders outlive it.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                failure = None if process.wait(self.timeout) == 0 else f"exit {process.returncode}"
            except subprocess.TimeoutExpired:
                failure = f"not done after {self.timeout:g} s"
            finally:
                _end(process)
            with self._lock:
                self._running.discard(process)
                if self._stopped:
                    return None
        row = {"example": run.example, "balance": run.balance, "seed": run.seed, "full": run.full}
        if result.exists():
            row.update(json.loads(result.read_text()))
        else:
            row.update({"error": None, "fails": failure or "no result"})
        if not row["fails"]:
            shutil.rmtree(folder)
        return row


def _end(process: subprocess.Popen) -> None:
    """End a run and all processes that it has started, if there are any left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def verdict(original: Sequence[float], ours: Sequence[float]) -> str:
    """Whether our errors are worse than the original's beyond the spread of its seeds.

    A run that failed has the error infinity.
    """
    if min(len(original), len(ours)) < 2:
        return "too few seeds"
    if min(original) == math.inf:
        return "the original fails"
    middle = statistics.median(ours)
    if middle > max(original):
        return "worse"
    return "better" if middle < min(original) else "as good"


def cell(rows: Sequence[dict[str, Any]]) -> str:
    """Median, smallest and largest error of a balance's seeds, and failures."""
    errors = [row["error"] for row in rows if not row["fails"]]
    failed = len(rows) - len(errors)
    if not rows:
        return ""
    if not errors:
        return "fails"
    text = f"{statistics.median(errors):.2g}"
    if len(errors) > 1:
        text += f" ({min(errors):.2g}..{max(errors):.2g})"
    return text + (f", {failed} of {len(rows)} fail" if failed else "")


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown: an example a line, a balance a column; below it, why runs have failed."""
    by_example: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_example[row["example"]][row["balance"]].append(row)
    used = [name for name in COLUMNS if any(name in found for found in by_example.values())]
    head = ["example", *(BALANCES[name] for name in used), "seconds", "`of` against original"]
    lines = [head, ["---"] * len(head)]
    failures: dict[str, list[str]] = defaultdict(list)
    for name in [name for name in EXAMPLES if name in by_example]:
        found = by_example[name]
        errors = {
            balance: [math.inf if row["fails"] else row["error"] for row in found[balance]]
            for balance in ("original", "of")
        }
        seconds = []
        for balance in errors:
            of_each = [row["cpu_seconds"] for row in found[balance] if not row["fails"]]
            seconds.append(f"{statistics.median(of_each):.0f}" if of_each else "-")
        lines.append(
            [
                name,
                *(cell(found[balance]) for balance in used),
                " / ".join(seconds),
                verdict(errors["original"], errors["of"]),
            ]
        )
        for balance in used:
            for row in found[balance]:
                if row["fails"]:
                    reason = " ".join(row["fails"].split())
                    failures[f"{BALANCES[balance]}: {reason[:300]}"].append(name)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    for reason, names in failures.items():
        text += f"\n\nFails in {', '.join(dict.fromkeys(names))}. {reason}"
    return text


def summary(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown: a balance a line, with its medians beside the original's; "" without an original.

    The mean is over the examples in which no run of any balance fails. A median of runs of which
    most fail is infinite, so it is never the best.
    """
    errors: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        errors[row["example"]][row["balance"]].append(math.inf if row["fails"] else row["error"])
    used = [name for name in COLUMNS if any(name in found for found in errors.values())]
    if "original" not in used or len(used) == 1:
        return ""
    medians = {
        example: {balance: statistics.median(found[balance]) for balance in used}
        for example, found in errors.items()
        if all(balance in found for balance in used)
    }
    whole = [
        name for name in medians if all(max(runs) < math.inf for runs in errors[name].values())
    ]
    lines = [
        f"| balance | error / original, on {len(whole)} examples | best, or within 5 % of it, of "
        f"{len(medians)} |",
        "|---|---|---|",
    ]
    for balance in used:
        ratios = [medians[name][balance] / medians[name]["original"] for name in whole]
        mean = f"{statistics.geometric_mean(ratios):.2f}" if ratios else "-"
        near = sum(of[balance] <= 1.05 * min(of.values()) < math.inf for of in medians.values())
        lines.append(f"| {BALANCES[balance]} | {mean} | {near} |")
    return "\n".join(lines)


def setting() -> dict[str, Any]:
    """Versions and machine, for every line."""
    versions = {}
    for package in ("paddlepaddle", "paddlesci", "paddlescience_gradnorm"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {**versions, "machine": platform.machine(), "finished": time.strftime("%FT%T")}


def listed(text: str, known: Iterable[str], what: str) -> list[str]:
    """Names with commas between them."""
    names, known = text.split(","), list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"{what}: there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def report(rows: Sequence[dict[str, Any]]) -> None:
    print(table(rows), summary(rows), sep="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="The results are in WORK/runs.jsonl."
    )
    parser.add_argument(
        "snapshot", type=Path, help="snapshot of PaddleScience's repository, with its examples/"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for results, logs and copies"
    )
    parser.add_argument("--examples", default=",".join(EXAMPLES), help="default: all")
    parser.add_argument("--balances", default=",".join(BALANCES), help="default: all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--full", action="store_true", help="at the examples' own length and size")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one core")
    parser.add_argument("--timeout", type=float, help="of a run; default: 900 s, 2 h with --full")
    parser.add_argument("--failed-again", action="store_true", help="repeat runs that failed")
    parser.add_argument("--table", action="store_true", help="print the table, and run nothing")
    args = parser.parse_args()
    examples = listed(args.examples, EXAMPLES, "--examples")
    balances = listed(args.balances, BALANCES, "--balances")
    runs = planned(examples, balances, [int(seed) for seed in args.seeds.split(",")], args.full)
    path = args.work.absolute() / "runs.jsonl"
    if args.table:
        finished = read(path)
        report([finished[run] for run in runs if run in finished])
        return

    snapshot = args.snapshot.absolute()
    if not (snapshot / "examples").is_dir():
        raise SystemExit(
            f"{snapshot} has no folder examples: name a snapshot of PaddleScience's repository, "
            "such as a git clone of PaddlePaddle/PaddleScience"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    to_do = still_to_do(runs, read(path), args.failed_again)
    compute_data(
        path.parent / "data",
        [name for run in to_do for name in EXAMPLES[run.example].data.values()],
    )
    processes = Processes(snapshot, path.parent, args.timeout or (7200 if args.full else 900))
    about, lock, count = setting(), threading.Lock(), 0

    def make(run: Run) -> None:
        nonlocal count
        row = processes.make(run)
        if row is None:
            return
        with lock:
            count += 1
            append(path, {**row, **about, "finished": time.strftime("%FT%T")})
            outcome = " ".join((row["fails"] or f"error {row['error']:.3g}").split())
            print(f"{count}/{len(to_do)} {run}: {outcome[:200]}", flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            for future in [pool.submit(make, run) for run in to_do]:
                future.result()
        except BaseException as error:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            processes.stop()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                raise SystemExit("stopped; the same command goes on from here") from None
            raise
    report([row for run, row in read(path).items() if run in set(runs)])


if __name__ == "__main__":
    main()
