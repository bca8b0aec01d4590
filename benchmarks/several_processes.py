"""What several processes cost: time of a step, plain and balanced, and bytes of its all-reduce.

    OMP_NUM_THREADS=1 python benchmarks/several_processes.py

The table's first part is measured here, with gloo on this machine's cores, 2,000 points shared out
over the processes; the second is computed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.pde.problems import problem

import paddle  # isort: skip, after the package that sees to its loading

POINTS = 2000
COMPUTED_RANKS = (2, 8, 64, 512)


def bytes_of(n_loss: int, n_shared: int, value_size: int = 4) -> int:
    """What the all-reduce of an update is over: T losses and their gradients on W."""
    return n_loss * (n_shared + 1) * value_size


def ring_traffic(size: int, ranks: int) -> float:
    """Bytes that a process sends in an all-reduce around a ring."""
    return 2 * size * (ranks - 1) / ranks


def measure(repeats: int, steps: int) -> dict[str, float]:
    """Median milliseconds of a step, the ways in turns so that a slow minute meets all."""
    ranks = paddle.distributed.get_world_size()
    if ranks > 1:
        paddle.distributed.init_parallel_env()
    sample = problem("laplace").sample(POINTS // ranks, seed=paddle.distributed.get_rank())
    ways = {}
    for way in ("plain", "GradNorm", "GradNorm, update_every=10"):
        paddle.seed(0)
        net = FCNet(2, 1, 4, 50)
        parallel = paddle.DataParallel(net) if ranks > 1 else net
        every = 10 if "10" in way else 1
        model = parallel if way == "plain" else GradNorm(parallel, update_every=every)
        ways[way] = (model, paddle.optimizer.Adam(1e-3, parameters=net.parameters()), [])
    for _ in range(repeats + 1):
        for way, (model, optimizer, times) in ways.items():
            start = time.perf_counter()
            for _ in range(steps):
                losses = sample.losses(model)
                if way == "plain":
                    sum(losses.values()).backward()
                else:
                    model.backward(losses)
                optimizer.step()
                optimizer.clear_grad()
            times.append((time.perf_counter() - start) / steps * 1e3)
    # The first block is a warm-up.
    return {way: statistics.median(times[1:]) for way, (_, _, times) in ways.items()}


def launched(ranks: int, arguments: list[str]) -> dict[str, float]:
    """What the first of this many processes measures."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks)]
        launch += ["--backend", "gloo", "--log_dir", folder]
        command = [sys.executable, *launch, __file__, "--result", str(result), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="in a block")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.result:
        found = measure(arguments.repeats, arguments.steps)
        if paddle.distributed.get_rank() == 0:
            arguments.result.write_text(json.dumps(found))
        return
    options = ["--repeats", str(arguments.repeats), "--steps", str(arguments.steps)]
    measured = {ranks: launched(ranks, options) for ranks in (1, 2)}
    print(f"Paddle {paddle.__version__}, {os.cpu_count()} cores, {POINTS} points\n")
    print("| ms per step | " + " | ".join(measured[1]) + " |\n|---|" + "---|" * len(measured[1]))
    for ranks, of in measured.items():
        print(f"| {ranks} process{'es' * (ranks > 1)} | ", end="")
        print(" | ".join(f"{milliseconds:.2f}" for milliseconds in of.values()) + " |")
    heads = " | ".join(f"{ranks} ranks" for ranks in COMPUTED_RANKS)
    print(f"\n| T | n | bytes of the all-reduce | {heads} |\n|---|---|---|" + "---|" * 4)
    for n_loss, n_shared in ((2, 50), (5, 50), (5, 2500), (64, 10_000)):
        size = bytes_of(n_loss, n_shared)
        sent = " | ".join(f"{ring_traffic(size, ranks):,.0f}" for ranks in COMPUTED_RANKS)
        print(f"| {n_loss} | {n_shared:,} | {size:,} | {sent} |")


if __name__ == "__main__":
    main()
