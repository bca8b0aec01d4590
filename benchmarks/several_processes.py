"""What several processes cost: a step, plain and balanced, and its all-reduces.

    OMP_NUM_THREADS=1 python benchmarks/several_processes.py

Measured here, with gloo: the step in 1, 2 and 4 processes that share out 2,000 points, and the time
of an all-reduce by its size. From the step of as many processes that do not talk to each other, and
from a line through the all-reduces, a model on paper predicts the step; the table has both.
Then the same model says what 8 to 512 GPUs would take. Nothing of that is measured: the speeds of
GPU and network are assumptions, and options.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cost_growth import parameters, products
from step_cost_worker import Case

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.pde.problems import problem
from paddlescience_gradnorm.runtime import tune_cpu

import paddle  # isort: skip, after the package that sees to its loading
from paddle.distributed.fleet.utils.hybrid_parallel_util import (  # isort: skip
    fused_allreduce_gradients,
)

POINTS, LOSSES = 2000, 5
NETWORK = Case("laplace", POINTS, LOSSES)  # 4 hidden layers of 50
HERE = (1, 2, 4)  # processes
WAYS = {"plain": 0, "PINN rule": 10, "PINN rule, updated in every step": 1}  # update_every
# Plain, but without DataParallel: the gradients are averaged at the end of the step.
AFTERWARDS = "plain, averaged afterwards"
SIZES = (4, 4_000, 40_000, 400_000, 4_000_000)  # bytes of an all-reduce
GPUS = (8, 64, 512)
# Points of a GPU in a step, losses, and the network.
LARGE = [
    Case("laplace", 10_000, 5, 50, 5),
    Case("laplace", 100_000, 5, 256, 9),
    Case("laplace", 100_000, 64, 256, 9),
]
BYTES = 4  # of a value
# With several processes an update needs a backward pass of its own, because DataParallel averages
# the gradients of one pass only.
BACKWARD = 2 / 3  # of a plain step


@dataclass(frozen=True)
class Network:
    """How long an all-reduce takes.

    Args:
        latency: Seconds of a message from one process to another.
        bandwidth: Bytes a second that a process sends.
    """

    latency: float
    bandwidth: float

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds: up and down a tree, and 2 (p - 1) / p of the bytes sent by each process."""
        if ranks == 1:
            return 0.0
        hops = 2 * math.log2(ranks)
        return hops * self.latency + 2 * (ranks - 1) / ranks * size / self.bandwidth


def fitted(seconds: dict[int, float], ranks: int) -> Network:
    """The network whose line through these all-reduces is best, in relative error."""
    sizes, times = (np.array(list(x), float) for x in (seconds, seconds.values()))
    hops, sent = 2 * math.log2(ranks), 2 * (ranks - 1) / ranks * sizes
    columns = np.stack([np.full(len(sizes), hops), sent], axis=1) / times[:, None]
    latency, per_byte = np.linalg.lstsq(columns, np.ones(len(sizes)), rcond=None)[0]
    return Network(float(latency), float(1 / per_byte))


def bytes_of(n_loss: int, n_shared: int) -> int:
    """What the all-reduce of an update is over: T losses and their gradients on W."""
    return n_loss * (n_shared + 1) * BYTES


def predicted(
    computing: float, updating: float, n_loss: int, n: int, every: int, ranks: int, network: Network
) -> float:
    """Seconds of a step.

    Args:
        computing: Seconds of a plain step with a process's share of the points.
        updating: Seconds that an update adds to it, in one process.
        n_loss: Number of losses.
        n: Number of the network's parameters, all of which are shared.
        every: Steps from one update to the next; 0 for no balancing.
        ranks: Number of processes.
        network: Between them.
    """
    seconds = computing + network.all_reduce(n * BYTES, ranks)
    if every:
        seconds += (updating + network.all_reduce(bytes_of(n_loss, n), ranks)) / every
    return seconds


def measure(points: int, repeats: int, steps: int) -> dict[str, Any]:
    """Median milliseconds of a step, the ways in turns so that a slow minute meets all."""
    ranks = paddle.distributed.get_world_size()
    if ranks > 1:
        paddle.distributed.init_parallel_env()
    tune_cpu(threads=1, build=False)
    sample = problem("laplace").sample(points, seed=paddle.distributed.get_rank())
    ways = {}
    for way, every in {**WAYS, AFTERWARDS: 0}.items():
        paddle.seed(0)
        net = FCNet(2, 1, NETWORK.layers, NETWORK.width)
        parallel = paddle.DataParallel(net) if ranks > 1 and way != AFTERWARDS else net
        model = GradNorm(parallel, update_every=every) if every else parallel
        ways[way] = (model, paddle.optimizer.Adam(1e-3, parameters=net.parameters()), [])
    for _ in range(repeats + 1):
        for way, (model, optimizer, times) in ways.items():
            start = time.perf_counter()
            for _ in range(steps):
                losses = sample.losses(model)
                if way in ("plain", AFTERWARDS):
                    sum(losses.values()).backward()
                else:
                    model.backward(losses)
                if way == AFTERWARDS and ranks > 1:
                    fused_allreduce_gradients(model.parameters(), None)
                optimizer.step()
                optimizer.clear_grad()
            times.append((time.perf_counter() - start) / steps * 1e3)
    # The first block is a warm-up.
    found: dict[str, Any] = {w: statistics.median(times[1:]) for w, (_, _, times) in ways.items()}
    if ranks > 1:
        found["all_reduce"] = {size: _all_reduce_ms(size, 3 * repeats) for size in SIZES}
    return found


def _all_reduce_ms(size: int, repeats: int) -> float:
    tensor, times = paddle.zeros([size // BYTES]), []
    for _ in range(repeats):
        start = time.perf_counter()
        paddle.distributed.all_reduce(tensor)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def launched(ranks: int, points: int, arguments: list[str], apart: bool = False) -> dict[str, Any]:
    """What the first of this many processes measures, each with so many points.

    Args:
        ranks: How many.
        points: Of each.
        arguments: Of this program.
        apart: Whether they only run side by side, and do not talk to each other.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        program = [__file__, "--points", str(points), *arguments, "--result"]
        launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks)]
        launch += ["--backend", "gloo", "--log_dir", folder]
        commands = [[*launch, *program, str(result)]]
        if apart:
            others = [Path(folder, f"{number}.json") for number in range(1, ranks)]
            commands = [[*program, str(path)] for path in (result, *others)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running = [subprocess.Popen([sys.executable, *command], **quiet) for command in commands]
        codes = [process.wait() for process in running]
        if any(codes):
            raise SystemExit(f"a run in {ranks} processes has failed")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def here(options: argparse.Namespace) -> str:
    """Two tables: the step in several processes, measured and by the model, and the all-reduces."""
    arguments = ["--repeats", str(options.repeats), "--steps", str(options.steps)]
    n = parameters(NETWORK)
    rows, reduced = [], []
    for ranks in HERE:
        apart = launched(ranks, POINTS // ranks, arguments, apart=True)
        many = apart if ranks == 1 else launched(ranks, POINTS // ranks, arguments)
        network = Network(0.0, math.inf)
        if ranks > 1:
            times = {int(size): ms / 1e3 for size, ms in many["all_reduce"].items()}
            network = fitted(times, ranks)
            reduced.append(
                f"| {ranks} | "
                + " | ".join(f"{1e3 * seconds:.2f}" for seconds in times.values())
                + f" | {1e6 * network.latency:.0f} µs, {network.bandwidth / 1e9:.2f} GB/s |"
            )
        one = {way: apart[way] / 1e3 for way in WAYS}
        updating = one["PINN rule, updated in every step"] - one["plain"] + BACKWARD * one["plain"]
        cells = []
        for way, every in WAYS.items():
            by_model = predicted(one["plain"], updating, LOSSES, n, every, ranks, network)
            model = "" if ranks == 1 else f" ({1e3 * by_model:.1f})"
            cells.append(f"{many[way]:.1f}{model}")
        cells.append(f"{many[AFTERWARDS]:.1f}")
        rows.append(f"| {ranks} | {' | '.join(cells)} |")
    sizes = " | ".join(f"{size:,} B" for size in SIZES)
    return "\n".join(
        [
            f"| processes | {' | '.join(WAYS)} | {AFTERWARDS} |",
            "|---" * (len(WAYS) + 2) + "|",
            *rows,
            "",
            f"| processes | {sizes} | the line through them |",
            "|---" * (len(SIZES) + 2) + "|",
            *reduced,
        ]
    )


def on_gpus(flops: float, network: Network) -> str:
    """The table of what the model says of more processes, each with its own points.

    Args:
        flops: FLOP a second of a GPU.
        network: Between the GPUs.
    """
    lines = [
        "| points of a GPU | losses | network | GPUs | computing, ms | gradient, MB | all-reduce, "
        "ms | update, MB | all-reduce, ms | balanced / plain |",
        "|---" * 10 + "|",
    ]
    for case in LARGE:
        n = parameters(case)
        computing = products(case) / flops
        for ranks in GPUS:
            plain, balanced = (
                predicted(computing, BACKWARD * computing, case.losses, n, every, ranks, network)
                for every in (0, WAYS["PINN rule"])
            )
            cells = [
                *(f"{case.points:,}", str(case.losses), f"{case.layers - 1} x {case.width}"),
                str(ranks),
                f"{1e3 * computing:.2f}",
            ]
            for size in (n * BYTES, bytes_of(case.losses, n)):
                cells += [f"{size / 1e6:.2f}", f"{1e3 * network.all_reduce(size, ranks):.2f}"]
            lines.append("| " + " | ".join([*cells, f"{balanced / plain:.2f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="in a block")
    parser.add_argument("--tflops", type=float, default=5.0, help="of a GPU")
    parser.add_argument("--latency", type=float, default=10.0, help="of a message, in µs")
    parser.add_argument("--bandwidth", type=float, default=20.0, help="of a GPU, in GB/s")
    parser.add_argument("--on-paper", action="store_true", help="measure nothing")
    parser.add_argument("--points", type=int, default=POINTS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.result:
        found = measure(options.points, options.repeats, options.steps)
        if paddle.distributed.get_rank() == 0:
            options.result.write_text(json.dumps(found))
        return
    if not options.on_paper:
        print(f"Paddle {paddle.__version__}, {os.cpu_count()} cores, {POINTS} points\n")
        print(f"{here(options)}\n")
    network = Network(options.latency / 1e6, options.bandwidth * 1e9)
    print(on_gpus(options.tflops * 1e12, network))


if __name__ == "__main__":
    main()
