"""Two tasks whose minima lie apart, on a representation of two numbers.

    f_k(r) = 6 + sum_i |r_i - c_ki| - sin(3 (r_i - c_ki)) / (r_i - c_ki),    c_1 = -c_2 = (1.5, 1.5)

The setting and the function are those of the RotoGrad authors' example, with a minimum of 0;
the second task counts three times. A small network maps eight inputs to representations z. Without
rotations every z has to serve both tasks. With them task k sees R_k z, and one z can be
in both minima. Run it with --help for the options.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import paddlescience_gradnorm
from paddlescience_gradnorm import FCNet, GradNorm, RotoGrad, RotoGradNorm
from paddlescience_gradnorm.command_line import at_least, non_negative, positive
from paddlescience_gradnorm.training import (
    CheckpointError,
    Checkpoints,
    RunState,
    StopOnSignals,
    save_metrics,
)

import paddle  # isort: skip, after the package that sees to its loading

METHODS = ("vanilla", "GradNorm", "RotoGrad", "RotoGradNorm")
COLORS = dict(zip(METHODS, ("tab:gray", "tab:orange", "tab:blue", "tab:red")))
MINIMA = np.array([[1.5, 1.5], [-1.5, -1.5]])
SCALES = (1.0, 3.0)
POINTS = 8
SPREAD = 1.2  # standard deviation of the representation before training


def task_loss(task: int, points: paddle.Tensor) -> paddle.Tensor:
    """The mean loss of a task, shape [N, 2] -> []."""
    distance = points - paddle.to_tensor(MINIMA[task], dtype=points.dtype)
    ones = paddle.ones_like(distance)
    nonzero = paddle.where(distance == 0, ones, distance)
    waves = paddle.where(distance == 0, 3 * ones, paddle.sin(3 * nonzero) / nonzero)
    return SCALES[task] * (6 + (distance.abs() - waves).sum(-1)).mean()


def landscape(task: int, points: np.ndarray) -> np.ndarray:
    """The same on a grid, shape [..., 2] -> [...]."""
    distance = points - MINIMA[task]
    return SCALES[task] * (6 + (np.abs(distance) - 3 * np.sinc(3 * distance / np.pi)).sum(-1))


class Record:
    """What is measured before every step and at the end, arrays of shape [steps + 1, ...]."""

    def __init__(self, steps: int) -> None:
        shapes = {
            "representation": (POINTS, 2),
            "seen": (2, POINTS, 2),
            "losses": (2,),
            "gradients": (2, POINTS, 2),
            "rotations": (2, 2, 2),
        }
        self.arrays = {name: np.full((steps + 1, *shape), np.nan) for name, shape in shapes.items()}

    def state_dict(self) -> dict[str, np.ndarray]:
        """For checkpoints."""
        return self.arrays

    def set_state_dict(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays


class Run:
    """One method on its way down; every method starts from the same network."""

    def __init__(self, method: str, options: argparse.Namespace) -> None:
        paddle.seed(options.seed)
        inputs = np.random.default_rng(options.seed).uniform(-1, 1, (POINTS, 2))
        self.inputs = paddle.to_tensor(inputs, dtype="float32")
        net = FCNet(num_ins=2, num_outs=2, num_layers=2, hidden_size=20)
        with paddle.no_grad():
            latent = net(self.inputs)
            scale = SPREAD / latent.std()
            last = net.linears[-1]
            last.weight.set_value(last.weight * scale)
            last.bias.set_value((last.bias - latent.mean(0)) * scale)
        heads = [paddle.nn.Identity(), paddle.nn.Identity()]
        groups = [{"params": net.parameters()}]
        self.model: paddle.nn.Layer = net
        own = []
        if method == "GradNorm":
            self.model = GradNorm(net, n_loss=2, alpha=options.alpha)
            own = [self.model.loss_weights]
        elif method == "RotoGrad":
            self.model = RotoGrad(net, heads, latent_size=2)
            own = self.model.mtl_parameters()
        elif method == "RotoGradNorm":
            self.model = RotoGradNorm(net, heads, latent_size=2, alpha=options.alpha)
            own = self.model.mtl_parameters()
        if own:
            groups.append({"params": own, "learning_rate": options.own_rate})
        self.schedule = paddle.optimizer.lr.CosineAnnealingDecay(
            options.learning_rate, T_max=options.steps
        )
        self.optimizer = paddle.optimizer.Adam(self.schedule, parameters=groups)
        self.net = net
        self.measured = Record(options.steps)

    def rotations(self) -> paddle.Tensor:
        """What turns z for each task, shape [2, 2, 2]."""
        if isinstance(self.model, (RotoGrad, RotoGradNorm)):
            return self.model.rotation
        return paddle.stack([paddle.eye(2)] * 2)

    def step(self, number: int) -> None:
        self.measure(number)
        outputs = self.model(self.inputs)
        seen = outputs if isinstance(outputs, list) else [outputs, outputs]
        losses = [task_loss(task, point) for task, point in enumerate(seen)]
        if self.model is self.net:
            sum(losses).backward()
        else:
            self.model.backward(losses)
        self.optimizer.step()
        self.optimizer.clear_grad()
        self.schedule.step()

    def measure(self, step: int) -> None:
        """Where the representation is, and the tasks' gradients on it."""
        with paddle.no_grad():
            latent = self.net(self.inputs)
        gradients, seen, values = [], [], []
        rotations = self.rotations()
        for task in range(2):
            point = latent.detach()
            point.stop_gradient = False
            turned = paddle.matmul(point, rotations[task], transpose_y=True)
            loss = task_loss(task, turned)
            gradients.append(paddle.grad([loss], [point])[0].numpy())
            seen.append(turned.numpy())
            values.append(loss.item())
        for name, value in (
            ("representation", latent.numpy()),
            ("seen", np.stack(seen)),
            ("losses", np.array(values)),
            ("gradients", np.stack(gradients)),
            ("rotations", rotations.numpy()),
        ):
            self.measured.arrays[name][step] = value


def train(
    options: argparse.Namespace, checkpoints: Checkpoints
) -> dict[str, dict[str, np.ndarray]]:
    """All methods, one after the other; by method what was measured.

    SIGINT and SIGTERM end the program after the step, with a checkpoint.
    """
    runs = {method: Run(method, options) for method in METHODS}
    state = RunState(
        models=[run.model for run in runs.values()],
        optimizers=[run.optimizer for run in runs.values()],
        measured=[run.measured for run in runs.values()],
    )
    position = None
    if options.resume == "latest":
        position = checkpoints.load_latest(state)
        if position is None:
            warnings.warn(
                f"there is no checkpoint in {checkpoints.folder}; the run starts anew", stacklevel=2
            )
    elif options.resume is not None:
        position = state.load(options.resume)
    first = 0 if position is None else position["step"]
    checkpoints.begin(first)
    total = len(METHODS) * options.steps
    with StopOnSignals() as stop, tqdm(total=total, initial=first, dynamic_ncols=True) as progress:
        for step in range(first, total):
            method, number = METHODS[step // options.steps], step % options.steps
            progress.set_description(method, refresh=False)
            runs[method].step(number)
            progress.update()
            checkpoints.step(state, step + 1)
            if stop.received:
                checkpoints.save(state, step + 1)
                break
    if stop.received:
        print(f"stopped at step {step + 1}; go on with --resume latest", flush=True)
        raise SystemExit(stop.exit_code)
    for run in runs.values():
        run.measure(options.steps)
    return {method: run.measured.arrays for method, run in runs.items()}


def cosines(gradients: np.ndarray) -> np.ndarray:
    """Of the angle between the tasks' gradients, shape [steps, 2, N, 2] -> [steps]."""
    first, second = gradients.reshape(len(gradients), 2, -1).transpose(1, 0, 2)
    products = (first * second).sum(-1)
    return products / (np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1))


def plot_landscape(path: Path, results: dict[str, dict[str, np.ndarray]]) -> None:
    """A row for each method: z on the sum as the method sees it, and what each task sees."""
    axis = np.linspace(-3.8, 3.8, 161)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    figure, axes = plt.subplots(
        len(METHODS), 3, figsize=(9.5, 12.5), sharex=True, sharey=True, layout="constrained"
    )
    for row, (method, result) in zip(axes, results.items()):
        rotations = result["rotations"][-1]
        # Where z would have to be for each task, and where its own point has to.
        panels = [
            (
                sum(landscape(task, grid @ rotations[task].T) for task in range(2)),
                result["representation"],
                np.stack([minimum @ rotation for minimum, rotation in zip(MINIMA, rotations)]),
            ),
            *((landscape(k, grid), result["seen"][:, k], MINIMA[k : k + 1]) for k in range(2)),
        ]
        for panel, (surface, paths, stars) in zip(row, panels):
            panel.contourf(axis, axis, surface, levels=24, cmap="Greys", alpha=0.6)
            panel.plot(paths[..., 0], paths[..., 1], color=COLORS[method], linewidth=1.2)
            panel.plot(*paths[0].T, "s", color=COLORS[method], markersize=5)
            panel.plot(*stars.T, "*", color="gold", markersize=17, markeredgecolor="k")
            panel.plot(*paths[-1].T, "o", color=COLORS[method], markersize=6, markeredgecolor="k")
            panel.set(aspect="equal", xlim=axis[[0, -1]], ylim=axis[[0, -1]])
        row[0].set_ylabel(method, fontsize=13)
    titles = ("z, on the sum of both losses", "task 1, at $R_1 z$", "task 2, at $R_2 z$")
    for panel, title in zip(axes[0], titles):
        panel.set_title(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_gradients(path: Path, results: dict[str, dict[str, np.ndarray]]) -> None:
    """Where the tasks want z to go, before and after some training, and how well they agree."""
    figure, axes = plt.subplots(3, len(METHODS), figsize=(12, 8.6), layout="constrained")
    for column, (method, result) in zip(axes.T, results.items()):
        gradients = result["gradients"]
        for panel, step in zip(column, (0, len(gradients) // 6)):
            size = np.linalg.norm(gradients[step], axis=-1, keepdims=True)
            arrows = -1.5 * gradients[step] / size.max(axis=1, keepdims=True)
            for task, color in enumerate(("tab:purple", "tab:green")):
                panel.quiver(
                    *result["representation"][step].T,
                    *arrows[task].T,
                    angles="xy",
                    scale_units="xy",
                    scale=1,
                    width=0.014,
                    color=color,
                    label=f"task {task + 1}",
                )
            panel.set(xlim=(-3.8, 3.8), ylim=(-3.8, 3.8), aspect="equal")
            panel.set_title(f"{method}, step {step}")
        column[2].plot(cosines(gradients), color=COLORS[method])
        column[2].set(ylim=(-1.08, 1.08), xlabel="step")
        column[2].axhline(0, color="k", linewidth=0.4)
    axes[0, 0].legend(loc="lower left", fontsize="small")
    for row in (0, 1):
        axes[row, 0].set_ylabel("z, and its descent directions")
    axes[2, 0].set_ylabel("cosine of the gradients")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, object]:
    options = parse(arguments)
    paddle.set_device("cpu")
    start = time.perf_counter()
    checkpoints = Checkpoints(options.output / "checkpoints", options.checkpoint_every)
    try:
        results = train(options, checkpoints)
    except (CheckpointError, OSError) as error:
        raise SystemExit(f"rotograd_toy: {error}") from error

    metrics: dict[str, object] = {
        "final_losses": {m: (r["losses"][-1] / SCALES).tolist() for m, r in results.items()},
        "first_cosine": float(cosines(results["vanilla"]["gradients"])[0]),
        "mean_cosine": {m: float(cosines(r["gradients"]).mean()) for m, r in results.items()},
        "seconds": time.perf_counter() - start,
        "settings": {**vars(options), "output": str(options.output)},
        "versions": {
            "paddlescience_gradnorm": paddlescience_gradnorm.__version__,
            "paddle": paddle.__version__,
            "python": platform.python_version(),
        },
    }
    options.output.mkdir(parents=True, exist_ok=True)
    plot_landscape(options.output / "landscape.png", results)
    plot_gradients(options.output / "gradients.png", results)
    save_metrics(options.output / "metrics.json", metrics)
    for method, result in results.items():
        first, second = result["losses"][-1] / SCALES
        print(f"{method:13s} losses {first:6.3f} {second:6.3f}, without their scales")
    print(f"figures: {options.output / 'landscape.png'}, {options.output / 'gradients.png'}")
    return metrics


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=at_least(1), default=600)
    parser.add_argument("--learning-rate", type=positive, default=2e-3, help="of the network")
    parser.add_argument(
        "--own-rate",
        type=positive,
        default=10.0,
        help="of rotations and weights, times the network's",
    )
    parser.add_argument("--alpha", type=non_negative, default=0.5, help="GradNorm's alpha")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/rotograd_toy"))
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
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
