"""Endurance: whether memory and the time of a step stay the same in a very long run.

    python benchmarks/soak.py [trainer | solver | deepxde] [--steps N] [--output FOLDER]

A small PINN, u' + u = 0 with u(0) = 1, is trained with all that a run may have on: weights that
are learned, callbacks, checkpoints, the history. After every hundredth of the steps a line with
resident memory, processor time of a step and rows of the history goes to FOLDER/soak.jsonl. Run it
with one thread (OMP_NUM_THREADS=1). The processor time is that of this process alone, so other
work on the machine counts little.

``trainer`` (the default, 1,000,000 steps) can be stopped by Ctrl-C; the same command goes on from
the last checkpoint. ``solver`` (PaddleScience's) and ``deepxde`` make 20,000 steps.

The exit code is 1 if, within a process and after its first 10,000 steps, memory has grown by more
than 5 MB, or a step of the last fifth takes more than 1.1 times the time of one of the first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

import paddlescience_gradnorm  # before Paddle: it sees to Paddle's loading

import paddle  # isort: skip

SETTLED = 10_000  # steps after which memory may grow by GROWTH only
GROWTH = 5.0  # MB
SLOWER = 1.1
STEPS = {"trainer": 1_000_000, "solver": 20_000, "deepxde": 20_000}
POINTS, WIDTH = 16, 8


class Watch:
    """Writes a line about the process from time to time.

    Args:
        path: The file, to which lines are added.
        every: Steps from one line to the next.
        rows: Gives the number of rows that a history has.
    """

    def __init__(self, path: Path, every: int, rows: Callable[[], int]) -> None:
        self.path, self.every, self.rows = path, every, rows
        self._made = 0  # steps, in this process
        self._since = time.process_time()

    def look(self, step: int) -> None:
        """Called after every step."""
        self._made += 1
        if step % self.every:
            return
        used = time.process_time() - self._since
        line = {
            "process": os.getpid(),
            "step": step,
            "made": self._made,
            "MB": round(resident(), 2),
            "ms": round(1000 * used / self.every, 4),
            "rows": self.rows(),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        self._since = time.process_time()


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def by_trainer(steps: int, every: int, folder: Path, points: np.ndarray) -> int:
    """The exit code of the signal that has stopped the run, or 0."""
    from paddlescience_gradnorm import FCNet, GradNorm
    from paddlescience_gradnorm.training import Checkpoints, StopOnSignals, Trainer

    net = GradNorm(FCNet(1, 1, 2, WIDTH), n_loss=2)
    inside, start = paddle.to_tensor(points, stop_gradient=False), paddle.zeros([1, 1])

    def losses(net: Any) -> dict[str, paddle.Tensor]:
        u = net(inside)
        (slope,) = paddle.grad(u.sum(), inside, create_graph=True)
        return {"pde": (slope + u).square().mean(), "initial": (net(start) - 1).square().mean()}

    def error(net: Any) -> dict[str, float]:
        return {"error": float((net(inside) - (-inside).exp()).abs().max())}

    class Look(paddle.callbacks.Callback):
        def on_train_batch_end(self, step: int, logs: Any = None) -> None:
            watch.look(self.model.step)

    stops = paddle.callbacks.EarlyStopping(
        "error", patience=steps, verbose=0, save_best_model=False
    )
    adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
    with StopOnSignals() as stop:
        trainer = Trainer(net, losses, adam, callbacks=[Look(), stops, stop])
        watch = Watch(folder / "soak.jsonl", every, lambda: len(trainer.history.steps))
        checkpoints = Checkpoints(folder / "checkpoints", every=max(1, every // 10))
        resume = "latest" if checkpoints.paths() else None
        trainer.fit(
            epochs=steps,
            validate=error,
            validate_every=1000,
            checkpoints=checkpoints,
            resume=resume,
        )
    print(f"at step {trainer.step}: {trainer.history.last()['losses']}", flush=True)
    return stop.exit_code


def by_solver(steps: int, every: int, folder: Path, points: np.ndarray) -> int:
    """With the weights logged, and a checkpoint of the Solver's in every tenth of the steps."""
    import ppsci

    from paddlescience_gradnorm.ppsci import GradNormAggregator

    class Looking(ppsci.arch.MLP):
        """The Solver has no callbacks, but it calls the network twice in every step."""

        calls = 0

        def forward(self, x: Any) -> Any:
            if self.training:
                self.calls += 1
                if self.calls % 2 == 0:
                    watch.look(self.calls // 2)
            return super().forward(x)

    model = Looking(("x",), ("u",), 1, WIDTH)
    loss = ppsci.loss.MSELoss()

    def constraint(name: str, x: np.ndarray, expression: Any, value: float) -> Any:
        dataset = {
            "name": "NamedArrayDataset",
            "input": {"x": x},
            "label": {name: np.full_like(x, value)},
        }
        loader = {"dataset": dataset, "batch_size": len(x), "sampler": {"name": "BatchSampler"}}
        return ppsci.constraint.SupervisedConstraint(loader, loss, {name: expression}, name)

    def residual(out: Any) -> paddle.Tensor:
        return ppsci.autodiff.jacobian(out["u"], out["x"]) + out["u"]

    constraints = {
        "pde": constraint("pde", points, residual, 0.0),
        "initial": constraint("initial", np.zeros((1, 1), "float32"), lambda out: out["u"], 1.0),
    }
    aggregator = GradNormAggregator(model, 2, equations=["pde"])
    solver = ppsci.solver.Solver(
        model,
        constraints,
        str(folder / "solver"),
        ppsci.optimizer.Adam(1e-3)(model),
        epochs=steps // 1000,
        iters_per_epoch=1000,
        save_freq=max(1, steps // 10_000),
        log_freq=1000,
        loss_aggregator=aggregator,
    )
    aggregator.log_to(solver, norms=True)
    watch = Watch(folder / "soak.jsonl", every, lambda: len(aggregator._log.history.steps))
    solver.train()
    solver.plot_loss_history()
    return 0


def by_deepxde(steps: int, every: int, folder: Path, points: np.ndarray) -> int:
    """With the callback that keeps the weights for a plot."""
    import deepxde as dde

    from paddlescience_gradnorm.deepxde import LossWeights, balance

    line = dde.geometry.Interval(0, 1)
    start = dde.icbc.DirichletBC(
        line, lambda x: 1, lambda x, on: on and bool(np.isclose(x[0], 0.0))
    )

    def residual(x: Any, u: Any) -> paddle.Tensor:
        return dde.grad.jacobian(u, x) + u

    data = dde.data.PDE(line, residual, start, 0, 2, anchors=points)
    model = dde.Model(data, dde.nn.FNN([1, WIDTH, 1], "tanh", "Glorot normal"))
    model.compile("adam", lr=1e-3, verbose=0)
    balance(model)

    class Look(dde.callbacks.Callback):
        def on_batch_end(self) -> None:
            watch.look(self.model.train_state.step)

    shown = LossWeights(period=every)
    watch = Watch(folder / "soak.jsonl", every, lambda: len(shown.steps))
    model.train(iterations=steps, display_every=every, callbacks=[Look(), shown])
    return 0


def faults(lines: list[dict[str, Any]]) -> list[str]:
    """What has not stayed the same, in words, and what has been seen of each process."""
    found = []
    for process in dict.fromkeys(line["process"] for line in lines):
        own = [line for line in lines if line["process"] == process]
        settled = [line for line in own if line["made"] >= SETTLED]
        if len(settled) < 10:
            print(f"process {process}: too few steps to judge")
            continue
        growth = max(line["MB"] for line in settled) - settled[0]["MB"]
        fifth = len(settled) // 5
        first, last = (
            float(np.median([line["ms"] for line in part]))
            for part in (settled[:fifth], settled[-fifth:])
        )
        seen = (
            f"process {process}, steps {settled[0]['step']} to {settled[-1]['step']}: memory "
            f"{settled[0]['MB']} MB at first, {growth:+.2f} MB at most since; a step {first:.3f} "
            f"ms at first, {last:.3f} ms at last; {settled[-1]['rows']} rows"
        )
        print(seen)
        if growth > GROWTH or last > SLOWER * first:
            found.append(seen)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("by", nargs="?", choices=list(STEPS), default="trainer")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    steps = options.steps or STEPS[options.by]
    folder = options.output or Path("outputs", f"soak_{options.by}")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"paddlescience_gradnorm {paddlescience_gradnorm.__version__}, {paddle.__version__}")
    paddle.seed(0)
    points = np.random.default_rng(0).random((POINTS, 1), "float32")
    run = {"trainer": by_trainer, "solver": by_solver, "deepxde": by_deepxde}[options.by]
    code = run(steps, max(1, steps // 100), folder, points)
    lines = (folder / "soak.jsonl").read_text(encoding="utf-8").splitlines()
    found = faults([json.loads(line) for line in lines])
    for fault in found:
        print(f"not the same: {fault}", file=sys.stderr)
    return code or bool(found)


if __name__ == "__main__":
    sys.exit(main())
