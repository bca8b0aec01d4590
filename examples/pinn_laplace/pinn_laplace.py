"""Laplace's equation on the unit square by a PINN, its three losses balanced by GradNorm.

    u_xx + u_yy = 0,    exact solution u = cos(x) cosh(y)

The network sees the equation inside, the exact values on the boundary, and a few noisy
measurements inside. Run it with --help for the options. demo.py trains it twice, side by side.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import sympy
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

import paddlescience_gradnorm
from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm._machine import find_machine
from paddlescience_gradnorm.command_line import at_least, non_negative, positive
from paddlescience_gradnorm.pde import Residual, sample_boundary, sample_interior
from paddlescience_gradnorm.runtime import tune_cpu
from paddlescience_gradnorm.training import (
    CheckpointError,
    Checkpoints,
    History,
    LiveView,
    StopOnSignals,
    TensorBoard,
    Trainer,
    VisualDL,
    save_metrics,
)

import paddle  # isort: skip, after the package that sees to its loading

LOSSES = ("pde", "boundary", "data")
LOW, HIGH = (0.0, 0.0), (1.0, 1.0)
MEASUREMENTS = 20
# By the published rule Adam moves the weights by about the rate a step, whatever the size of
# their gradient. At the network's own rate they would be at their bounds before it has settled.
WEIGHTS_RATE = 0.1  # of the network's
NOISE = 0.01  # standard deviation of a measurement; u lies between 0.54 and 1.54


def exact(points: np.ndarray) -> np.ndarray:
    """The solution at points of shape [N, 2], shape [N, 1]."""
    return np.cos(points[:, :1]) * np.cosh(points[:, 1:])


class ErrorCurve(paddle.callbacks.Callback):
    """Keeps the error of every validation.

    Attributes:
        points: ``[epoch, error]`` for each of them. It belongs to the run's checkpoints.
    """

    def __init__(self) -> None:
        super().__init__()
        self.points: list[list[float]] = []

    def on_eval_end(self, logs: dict[str, float]) -> None:
        self.points.append([self.model.epoch, logs["error"]])

    def state_dict(self) -> dict[str, str]:
        return {"points": json.dumps(self.points)}

    def set_state_dict(self, state: dict[str, str]) -> None:
        self.points = json.loads(state["points"])


class Problem:
    """Everything that the losses are made of, for one seed."""

    def __init__(self, n_points: int, seed: int) -> None:
        x, y = sympy.symbols("x y")
        u = sympy.Function("u")
        laplace = u(x, y).diff(x, 2) + u(x, y).diff(y, 2)
        self.residual = Residual(laplace, inputs=(x, y), outputs=(u,))

        edge = sample_boundary(max(1, n_points // 4), LOW, HIGH, seed=seed + 1)
        sensors = sample_interior(MEASUREMENTS, LOW, HIGH, seed=seed + 2)
        noise = NOISE * np.random.default_rng(seed).standard_normal((MEASUREMENTS, 1))
        self.interior = _tensor(sample_interior(n_points, LOW, HIGH, seed=seed))
        self.edge, self.edge_values = _tensor(edge), _tensor(exact(edge))
        self.sensors, self.measured = _tensor(sensors), _tensor(exact(sensors) + noise)

    def losses(self, net: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
        """The three losses, by name."""
        return {
            "pde": self.residual(net, self.interior).square().mean(),
            "boundary": (net(self.edge) - self.edge_values).square().mean(),
            "data": (net(self.sensors) - self.measured).square().mean(),
        }


def train(
    net: paddle.nn.Layer,
    problem: Problem,
    epochs: int,
    learning_rate: float,
    checkpoints: Checkpoints,
    resume: str | None,
    callbacks: Sequence[paddle.callbacks.Callback],
) -> Trainer:
    """Train in place, by one step an epoch; the finished run.

    SIGINT and SIGTERM end the program after the step, with a checkpoint.
    """
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(learning_rate, T_max=epochs)
    groups = net.parameters()
    if isinstance(net, GradNorm) and net.balancer.weight_lr is None:
        # The optimizer steps the weights.
        groups = [
            {"params": net.net.parameters()},
            {"params": [net.loss_weights], "learning_rate": WEIGHTS_RATE},
        ]
    # With the usual 0.999 Adam remembers large gradients for too long, with and without balancing.
    optimizer = paddle.optimizer.Adam(schedule, beta2=0.99, parameters=groups)
    with StopOnSignals() as stop:
        trainer = Trainer(net, problem.losses, optimizer, callbacks=[*callbacks, stop])
        trainer.fit(
            epochs=epochs,
            validate=lambda net: {"error": relative_error(*errors(net))},
            validate_every=max(1, epochs // 100),
            checkpoints=checkpoints,
            resume=resume,
        )
    if stop.received:
        print(f"stopped at step {trainer.step}; go on with --resume latest", flush=True)
        raise SystemExit(stop.exit_code)
    return trainer


def errors(net: paddle.nn.Layer, n: int = 101) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and exact solution on an n x n grid, shape [n, n] each, y along rows."""
    axis = np.linspace(0.0, 1.0, n)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    with paddle.no_grad():
        prediction = net(points).numpy()
    return prediction.reshape(n, n), exact(points).reshape(n, n)


def relative_error(prediction: np.ndarray, truth: np.ndarray) -> float:
    """The relative L2 error."""
    return float(np.linalg.norm(prediction - truth) / np.linalg.norm(truth))


def draw_panel(axis: Axes, values: np.ndarray, title: str, **style: object) -> AxesImage:
    """Draw values on a grid over the unit square."""
    image = axis.imshow(values, origin="lower", extent=(0, 1, 0, 1), **style)
    ticks = (0, 0.5, 1)
    axis.set(title=title, xlabel="x", ylabel="y", xticks=ticks, yticks=ticks)
    return image


def add_color_bar(axis: Axes, image: AxesImage) -> None:
    """Draw a color bar to the right, as tall as the axes."""
    axis.figure.colorbar(image, cax=axis.inset_axes((1.04, 0, 0.05, 1)))


def plot_solution(
    path: Path, prediction: np.ndarray, truth: np.ndarray, narrow: bool = False
) -> None:
    """Network, exact solution and error, side by side or, for a narrow screen, in a column."""
    shape, size = ((3, 1), (4.2, 10.5)) if narrow else ((1, 3), (12, 3.6))
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained")
    limits = {"vmin": truth.min(), "vmax": truth.max()}
    for axis, title, values, style in (
        (axes[0], "network", prediction, limits),
        (axes[1], "exact: cos(x) cosh(y)", truth, limits),
        (axes[2], "absolute error", np.abs(prediction - truth), {"cmap": "magma"}),
    ):
        add_color_bar(axis, draw_panel(axis, values, title, **style))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_training(path: Path, history: History) -> None:
    _, bottom = history.plot()
    bottom.set(xlabel="epoch")
    figure = bottom.figure
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, object]:
    """Run the program, and print what came of it."""
    options = parse(arguments)
    paddle.set_device(options.device)
    if options.device == "cpu":
        tune_cpu()
    callbacks: list[paddle.callbacks.Callback]
    try:
        callbacks = [LiveView(unit="epoch")] if options.live else []
        if options.visualdl:
            callbacks.append(VisualDL(options.output / "visualdl"))
            print(f"curves: visualdl --logdir {options.output}")
        if options.tensorboard:
            callbacks.append(TensorBoard(options.output / "tensorboard"))
            print(f"curves: tensorboard --logdir {options.output}")
        metrics = solve(options, callbacks)
    except (CheckpointError, OSError, ImportError) as error:
        raise SystemExit(f"pinn_laplace: {error}") from error
    print(
        f"relative L2 error {metrics['relative_l2_error']:.2e}, "
        f"max error {metrics['max_error']:.2e}, {metrics['seconds']:.0f} s",
        *(metrics["diagnosis"] or ["Nothing needs attention."]),
        f"figures: {options.output / 'solution.png'}, {options.output / 'training.png'}\n"
        f"as a page: python -m paddlescience_gradnorm report {options.output}",
        sep="\n",
    )
    return metrics


def solve(
    options: argparse.Namespace, callbacks: Sequence[paddle.callbacks.Callback]
) -> dict[str, Any]:
    """Train with these options, and write everything to the output folder; the metrics."""
    paddle.seed(options.seed)
    problem = Problem(options.points, options.seed)
    net: paddle.nn.Layer = FCNet(num_ins=2, num_outs=1, num_layers=5, hidden_size=50)
    if options.balance == "gradnorm":
        # The measurements are noisy: only the boundary's values make the solution the right one.
        without_lead = ["pde", "data"]
        net = GradNorm(net, len(LOSSES), options.alpha, rule=options.rule, equations=without_lead)
    checkpoints = Checkpoints(options.output / "checkpoints", options.checkpoint_every)
    curve = ErrorCurve()
    start = time.perf_counter()
    trainer = train(
        net,
        problem,
        options.epochs,
        options.learning_rate,
        checkpoints,
        options.resume,
        [*callbacks, curve],
    )
    seconds = time.perf_counter() - start

    history, last = trainer.history, trainer.history.last()
    prediction, truth = errors(net)
    metrics = {
        "equation": "u_xx + u_yy = 0 on the unit square, u given on its sides, noisy measurements",
        "relative_l2_error": relative_error(prediction, truth),
        "max_error": float(np.abs(prediction - truth).max()),
        "seconds": seconds,
        "error_curve": curve.points,
        "final_losses": last["losses"],
        "final_weights": last["weights"],
        "diagnosis": trainer.diagnose(),
        "settings": {"problem": "laplace", **vars(options), "output": str(options.output)},
        "versions": {
            "paddlescience_gradnorm": paddlescience_gradnorm.__version__,
            "paddle": paddle.__version__,
            "python": platform.python_version(),
        },
        "machine": str(find_machine()),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    plot_solution(options.output / "solution.png", prediction, truth)
    plot_solution(options.output / "solution_narrow.png", prediction, truth, narrow=True)
    plot_training(options.output / "training.png", history)
    paddle.save(net.state_dict(), str(options.output / "net.pdparams"))
    np.savez(options.output / "solution.npz", prediction=prediction, truth=truth)
    history.save(options.output / "history.npz")
    save_metrics(options.output / "metrics.json", metrics)
    return metrics


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--balance", choices=("gradnorm", "equal"), default="gradnorm")
    parser.add_argument(
        "--rule", choices=("pinn", "published"), default="pinn", help="GradNorm's (default: pinn)"
    )
    parser.add_argument(
        "--alpha", type=non_negative, help="GradNorm's (default: the rule's; 0.12 if published)"
    )
    parser.add_argument("--epochs", type=at_least(1), default=4000)
    parser.add_argument("--learning-rate", type=positive, default=1e-2)
    parser.add_argument("--points", type=at_least(1), default=500, help="collocation points inside")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--device", default="cpu", help="cpu, gpu, gpu:1, ...")
    parser.add_argument("--output", type=Path, default=Path("outputs/pinn_laplace"))
    parser.add_argument(
        "--live", action="store_true", help="draw weights and losses while it runs, by rich"
    )
    parser.add_argument("--visualdl", action="store_true", help="log the curves for VisualDL")
    parser.add_argument("--tensorboard", action="store_true", help="the same for TensorBoard")
    parser.add_argument(
        "--checkpoint-every",
        type=at_least(1),
        metavar="N",
        help="steps from one checkpoint to the next; without it there is one only if a signal "
        "stops the run",
    )
    parser.add_argument(
        "--resume", metavar="PATH", help="'latest', or a checkpoint's file, to go on from"
    )
    options = parser.parse_args(arguments)
    if options.alpha is None and options.rule == "published":
        options.alpha = 0.12
    return options


def _tensor(array: np.ndarray) -> paddle.Tensor:
    return paddle.to_tensor(array, dtype="float32")


if __name__ == "__main__":
    main()
