"""The Laplace example with equal weights and with the PINN rule, side by side, in one picture.

The PINN rule is this package's default. Both runs are made at once, each in a process of its own.
Network, points, noise, optimizer and number of epochs are the same. Run it with --help for the
options.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pinn_laplace
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from tqdm import tqdm

from paddlescience_gradnorm._machine import find_machine
from paddlescience_gradnorm.command_line import at_least
from paddlescience_gradnorm.runtime import tune_cpu
from paddlescience_gradnorm.training import CheckpointError, Checkpoints, History, ProgressBar

TITLES = {"equal": "equal weights", "gradnorm": "PINN rule"}
COLORS = {"equal": "tab:gray", "gradnorm": "tab:blue"}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train both, draw the picture, and say in one sentence what came of it."""
    options = parse(arguments)
    print(
        "Laplace's equation, trained twice side by side: with equal weights and with the PINN rule",
        flush=True,
    )
    # A forked process would share threads with Paddle in this one.
    context = multiprocessing.get_context("spawn")
    lock = context.RLock()  # so that the lines of both bars do not mix
    processes = [
        context.Process(target=_train, args=(balance, options, position, lock))
        for position, balance in enumerate(TITLES)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:  # it has reached both
        for process in processes:
            process.join()
    code = max(abs(process.exitcode or 0) for process in processes)
    if code > 128:  # a signal's
        print("stopped; the same command goes on from here")
    if code:
        raise SystemExit(code)
    runs = {balance: Run(options.output / balance) for balance in TITLES}
    picture = options.output / "demo.png"
    draw(picture, runs)
    print(f"picture: {picture}")
    print(sentence(*(runs[balance].error for balance in TITLES), options.epochs))
    return {balance: run.metrics for balance, run in runs.items()}


class Run:
    """What a run has left in its folder."""

    def __init__(self, folder: Path) -> None:
        self.metrics = json.loads((folder / "metrics.json").read_text())
        self.error: float = self.metrics["relative_l2_error"]
        self.history = History.load(folder / "history.npz")
        with np.load(folder / "solution.npz") as fields:
            self.prediction, self.truth = fields["prediction"], fields["truth"]


def _train(balance: str, options: argparse.Namespace, position: int, lock: Any) -> None:
    """Make one of the runs, in a process of its own."""
    tqdm.set_lock(lock)
    tune_cpu(threads=max(1, find_machine().cores // len(TITLES)))
    output = options.output / balance
    arguments = ["--balance", balance, "--output", str(output)]
    for name in ("epochs", "points", "seed"):
        arguments += [f"--{name}", str(getattr(options, name))]
    if Checkpoints(output / "checkpoints").paths():  # it was stopped
        arguments += ["--resume", "latest"]
    bar = ProgressBar(desc=f"{TITLES[balance]:<13}", position=position, unit="epoch")
    try:
        with contextlib.redirect_stdout(None):  # it would say how to resume this run alone
            pinn_laplace.solve(pinn_laplace.parse(arguments), [bar])
    except (CheckpointError, OSError) as error:
        raise SystemExit(f"demo: {error}") from error
    shutil.rmtree(output / "checkpoints", ignore_errors=True)


def sentence(equal: float, pinn: float, epochs: int) -> str:
    """What came of it, from the errors of both."""
    ratio = equal / pinn
    change = f"{ratio:.2g} times smaller" if ratio >= 1 else f"{1 / ratio:.2g} times larger"
    return (
        f"With the PINN rule the error is {change} than with equal "
        f"weights: {pinn:.1e} instead of {equal:.1e}, after {epochs} epochs each."
    )


def draw(path: Path, runs: dict[str, Run]) -> None:
    """Exact solution and both errors; below, error and weights over the epochs."""
    width, height, side = 8.0, 5.7, 1.85  # inches, for letters that can be read at 800 pixels
    figure = plt.figure(figsize=(width, height))

    def axes(left: float, bottom: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, bottom / height, wide / width, high / height))

    panels = [axes(left, 3.4, side, side) for left in (0.55, 3.0, 5.2)]
    errors = {balance: np.abs(run.prediction - run.truth) for balance, run in runs.items()}
    largest = max(error.max() for error in errors.values())
    # Shared and logarithmic: the errors lie more than a decade apart. A clipped 0 has a color.
    scale = LogNorm(largest / 1e4, largest, clip=True)
    learned = runs["gradnorm"]
    image = pinn_laplace.draw_panel(panels[0], learned.truth, "exact solution")
    pinn_laplace.add_color_bar(panels[0], image)
    for axis, (balance, error) in zip(panels[1:], errors.items()):
        title = f"error, {TITLES[balance]}"
        image = pinn_laplace.draw_panel(axis, error, title, cmap="magma", norm=scale)
        axis.set(ylabel="", yticklabels=[])
    pinn_laplace.add_color_bar(panels[2], image)

    left, right = axes(0.7, 0.5, 3.0, 2.0), axes(4.6, 0.5, 3.2, 2.0)
    for balance, run in runs.items():
        epochs, error = zip(*run.metrics["error_curve"])
        left.plot(epochs, error, color=COLORS[balance], label=TITLES[balance])
    left.set(yscale="log", xlabel="epoch", title="relative error")
    learned.history.plot_weights(right)
    right.set(xlabel="epoch", ylabel="", title="weights that the rule learns")
    for axis in (left, right):
        axis.legend()
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=at_least(1), default=4000)
    parser.add_argument("--points", type=at_least(1), default=500, help="collocation points inside")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
