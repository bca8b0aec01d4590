"""What a checkpoint costs: bytes on the disk and milliseconds of a save.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_cost.py [--folder FOLDER]

A run of 20,000 steps on three losses, Adam and the PINN rule: once with networks of 4 hidden layers
of 50 and of 8 of 256, and with a history that is empty or full. Milliseconds are medians of 20
saves, with the flush to the disk; those of the processor are of this process alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.training import Trainer

import paddle  # isort: skip, after the package that sees to its loading

SIZES = ((4, 50), (8, 256))
STEPS = 20_000
SAVES = 20


def trainer_of(layers: int, width: int) -> Trainer:
    """A run that has made one step, so that Adam has its moments."""
    net = GradNorm(FCNet(2, 1, layers + 1, width), n_loss=3)
    x = paddle.rand([16, 2])

    def losses(net: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
        u = net(x)
        return {
            "pde": u.square().mean(),
            "boundary": (u - 1).square().mean(),
            "data": u.exp().mean(),
        }

    adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
    trainer = Trainer(net, losses, adam, progress=False)
    trainer.fit(epochs=1)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    options = parser.parse_args()
    print("| network | parameters | steps in the history | kB | ms | ms of the processor |")
    print("| --- | --- | --- | --- | --- | --- |")
    for layers, width in SIZES:
        trainer = trainer_of(layers, width)
        parameters = sum(int(p.size) for p in trainer.net.net.parameters())
        for steps in (1, STEPS):
            rng = np.random.default_rng(0)
            while len(trainer.history) < steps:
                trainer.history.record(trainer.history.names, *rng.random((4, 3)))
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                path, wall, used = Path(folder, "step.ckpt"), [], []
                for _ in range(SAVES):
                    start = time.perf_counter(), time.process_time()
                    trainer.save(path)
                    wall.append(1000 * (time.perf_counter() - start[0]))
                    used.append(1000 * (time.process_time() - start[1]))
                size = path.stat().st_size / 1000
            numbers = f"{size:.0f} | {statistics.median(wall):.1f} | {statistics.median(used):.1f}"
            print(f"| {layers} x {width} | {parameters:,} | {steps:,} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
