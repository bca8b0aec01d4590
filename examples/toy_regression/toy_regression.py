"""The toy experiment of the GradNorm paper: regression tasks whose outputs differ in scale.

    f_i(x) = sigma_i tanh((B + eps_i) x),    x in R^250, f_i(x) in R^100

The tasks share B and differ by eps_i; sigma_i sets the scale of their losses (Chen et al.,
ICML 2018, arXiv:1711.02257, section 4). Run it with --help for the options.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import paddlescience_gradnorm
from paddlescience_gradnorm import LossBalancer, RotoGradNorm
from paddlescience_gradnorm.command_line import at_least, non_negative, positive
from paddlescience_gradnorm.runtime import tune_cpu
from paddlescience_gradnorm.training import (
    CheckpointError,
    Checkpoints,
    History,
    LiveView,
    ProgressBar,
    StopOnSignals,
    Trainer,
    save_metrics,
)

import paddle  # isort: skip, after the package that sees to its loading

SIGMAS = {2: (1.0, 100.0), 10: (48.0, 3.0, 54.0, 16.0, 9.0, 30.0, 52.0, 26.0, 47.0, 81.0)}
N_INPUTS, N_OUTPUTS, WIDTH = 250, 100, 100
TRAINING, TEST, BATCH = 10_000, 1_000, 100
PAPER_ALPHA = 0.12
CHECKPOINTS = "checkpoints"  # of an experiment that is not finished, in its output


@dataclass(frozen=True)
class Settings:
    """Settings of a run; the paper names none of these for this experiment but alpha."""

    steps: int = 2000
    learning_rate: float = 1e-3  # of Adam, for the network
    # Of Adam, for GradNorm's weights: about as much they move in a step. The smallest
    # weights end near 0.05, of which this is 2 %.
    weights_rate: float = 1e-3
    warmup: int = 100  # steps over which that rate grows
    alpha: float = PAPER_ALPHA
    floor: float = 1e-5  # of GradNorm's weights, whose ratio may go as the scales' square
    test_every: int = 50


@dataclass(frozen=True)
class Problem:
    """Data, float32: the inputs [N, 250], followed by the outputs of each task [N, 100]."""

    name: str
    seed: int
    sigmas: Sequence[float]
    training: Sequence[np.ndarray]
    test: Sequence[paddle.Tensor]

    @classmethod
    def draw(cls, sigmas: Sequence[float], seed: int, inputs: str = "normal") -> Problem:
        """The problem of this seed; elements of B and eps have deviations of 10 and 3.5.

        The paper does not say how x is distributed: ``"normal"`` has mean 0 and deviation 1,
        ``"uniform"`` lies between 0 and 1, as in other implementations.
        """
        rng = np.random.default_rng(seed)
        shared = rng.normal(0.0, 10.0, (N_INPUTS, N_OUTPUTS))
        maps = [shared + rng.normal(0.0, 3.5, shared.shape) for _ in sigmas]

        def sample(n: int) -> list[np.ndarray]:
            shape = (n, N_INPUTS)
            x = rng.standard_normal(shape) if inputs == "normal" else rng.random(shape)
            outputs = [sigma * np.tanh(x @ a) for sigma, a in zip(sigmas, maps)]
            return [part.astype("float32") for part in (x, *outputs)]

        training, test = sample(TRAINING), [paddle.to_tensor(part) for part in sample(TEST)]
        return cls(f"T = {len(sigmas)}, seed {seed}", seed, sigmas, training, test)

    @property
    def names(self) -> list[str]:
        return [f"{i}: sigma {sigma:g}" for i, sigma in enumerate(self.sigmas, 1)]

    def alone(self, task: int) -> Problem:
        """The same data with one task only."""
        training, test = ([x, outputs[task]] for x, *outputs in (self.training, self.test))
        name = f"{self.name}, task {task + 1} alone"
        return Problem(name, self.seed, [self.sigmas[task]], training, test)

    def losses(
        self, net: paddle.nn.Layer, x: paddle.Tensor, *outputs: paddle.Tensor
    ) -> dict[str, paddle.Tensor]:
        """The mean squared error of every task, by name."""
        return {
            name: (prediction - output).square().mean()
            for name, prediction, output in zip(self.names, net(x), outputs)
        }

    def test_losses(self, net: paddle.nn.Layer) -> np.ndarray:
        """The same on the test data, shape [T]."""
        with paddle.no_grad():
            return np.array([float(loss) for loss in self.losses(net, *self.test).values()])


class Batches(paddle.io.IterableDataset):
    """A run's batches: the training data in one order after another, the same for every method."""

    def __init__(self, problem: Problem, steps: int) -> None:
        super().__init__()
        self._problem, self._steps = problem, steps

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        rng = np.random.default_rng(self._problem.seed)
        for step in range(self._steps):
            first = step * BATCH % TRAINING
            if first == 0:
                order = rng.permutation(TRAINING)
            rows = order[first : first + BATCH]
            yield [part[rows] for part in self._problem.training]


class Network(paddle.nn.Layer):
    """Four shared layers of 100 with ReLU, and an affine head for each task."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        sizes = (N_INPUTS, WIDTH, WIDTH, WIDTH, WIDTH)
        self.trunk = paddle.nn.Sequential(
            *(
                part
                for n, m in zip(sizes, sizes[1:])
                for part in (paddle.nn.Linear(n, m), paddle.nn.ReLU())
            )
        )
        self.heads = paddle.nn.LayerList(
            [paddle.nn.Linear(WIDTH, N_OUTPUTS) for _ in range(n_tasks)]
        )

    def forward(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        shared = self.trunk(x)
        return [head(shared) for head in self.heads]


class UncertaintyWeighting(paddle.nn.Layer):
    """Learns a variance for each task: sum_i L_i / (2 s_i^2) + log s_i is minimised.

    Source: Kendall et al., CVPR 2018, arXiv:1705.07115, equation 7.
    """

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        zeros = paddle.nn.initializer.Constant(0.0)
        self.log_variances = self.create_parameter([n_tasks], default_initializer=zeros)

    @property
    def loss_weights(self) -> paddle.Tensor:
        return (-self.log_variances).exp() / 2

    def backward(self, losses: dict[str, paddle.Tensor]) -> paddle.Tensor:
        weighted = paddle.dot(self.loss_weights, paddle.stack(list(losses.values())))
        total = weighted + self.log_variances.sum() / 2
        total.backward()
        return total


# What a method makes of a network: a run that is ready to start.


def equal_weights(net: Network, problem: Problem, settings: Settings) -> Trainer:
    return Trainer(net, problem.losses, adam(settings.learning_rate, net))


def uncertainty_weighting(net: Network, problem: Problem, settings: Settings) -> Trainer:
    balancer = UncertaintyWeighting(len(net.heads))
    return Trainer(net, problem.losses, adam(settings.learning_rate, net, balancer), balancer)


def gradnorm(net: Network, problem: Problem, settings: Settings) -> Trainer:
    balancer = LossBalancer(
        net.trunk[-2].weight, len(net.heads), settings.alpha, weight_lr=None, floor=settings.floor
    )
    optimizers = [adam(settings.learning_rate, net), adam(warmed_up(settings), balancer)]
    return Trainer(net, problem.losses, optimizers, balancer)


def rotogradnorm(net: Network, problem: Problem, settings: Settings) -> Trainer:
    model = RotoGradNorm(net.trunk, list(net.heads), WIDTH, settings.alpha)
    optimizers = [
        paddle.optimizer.Adam(rate, parameters=parameters)
        for rate, parameters in (
            (settings.learning_rate, model.model_parameters()),
            (warmed_up(settings), model.mtl_parameters()),  # rotations and weights
        )
    ]
    return Trainer(model, problem.losses, optimizers, model)


METHODS: dict[str, Callable[[Network, Problem, Settings], Trainer]] = {
    "equal weights": equal_weights,
    "uncertainty weighting": uncertainty_weighting,
    "GradNorm": gradnorm,
    "RotoGradNorm": rotogradnorm,
}
SINGLE = "single tasks"  # a network for each, which no method shares


def warmed_up(settings: Settings) -> paddle.optimizer.lr.LRScheduler:
    """The rate of the weights."""
    rate = settings.weights_rate
    return paddle.optimizer.lr.LinearWarmup(rate, settings.warmup, 0.0, rate)


def adam(rate: Any, *layers: paddle.nn.Layer) -> paddle.optimizer.Adam:
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    return paddle.optimizer.Adam(rate, parameters=parameters)


class TestLosses(paddle.callbacks.Callback):
    """Test losses at the start and after every ``every`` of the steps, shape [times, T]."""

    def __init__(self, problem: Problem, every: int, steps: int) -> None:
        super().__init__()
        self._problem, self._every = problem, every
        self.values = np.full((1 + steps // every, len(problem.sigmas)), np.nan)

    def on_train_begin(self, logs: Any = None) -> None:
        self.values[0] = self._problem.test_losses(self.model.net)

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        time, rest = divmod(self.model.step, self._every)
        if rest == 0:
            self.values[time] = self._problem.test_losses(self.model.net)

    def state_dict(self) -> dict[str, list[list[float]]]:
        """For checkpoints."""
        return {"values": self.values.tolist()}

    def set_state_dict(self, state: dict[str, list[list[float]]]) -> None:
        self.values = np.array(state["values"])


def train(
    method: str,
    problem: Problem,
    settings: Settings,
    folder: Path | None = None,
    every: int | None = None,
    stop: StopOnSignals | None = None,
    view: paddle.callbacks.Callback | None = None,
) -> tuple[np.ndarray, History]:
    """Test losses relative to those at the start, shape [times, T], and the history.

    With a folder there is a checkpoint in it at the end, and after ``every`` so many steps. A
    training that has one goes on from there, or is finished at once. ``stop`` ends the program
    after a step, with a checkpoint. ``view`` shows how far it is.
    """
    paddle.seed(problem.seed)  # every method's network starts alike
    title = f"{problem.name}, {method}, alpha {settings.alpha:g}"
    trainer = METHODS[method](Network(len(problem.sigmas)), problem, settings)
    test = TestLosses(problem, settings.test_every, settings.steps)
    trainer.callbacks += [view or ProgressBar(desc=title, leave=False, disable=None), test]
    trainer.callbacks += [] if stop is None else [stop]
    checkpoints = resume = None
    if folder is not None:
        checkpoints = Checkpoints(folder / title, every or settings.steps, keep=1)
        resume = "latest" if checkpoints.paths() else None
    loader = paddle.io.DataLoader(Batches(problem, settings.steps), batch_size=None)
    history = trainer.fit(loader, checkpoints=checkpoints, resume=resume)
    if stop is not None and stop.received:
        print(f"{title}: stopped at step {trainer.step}; go on with --resume latest", flush=True)
        raise SystemExit(stop.exit_code)
    return test.values / test.values[0], history


def train_alone(problem: Problem, settings: Settings, **options: Any) -> np.ndarray:
    """As ``train``, for a network of its own for each task."""
    runs = [
        train("equal weights", problem.alone(task), settings, **options)[0]
        for task in range(len(problem.sigmas))
    ]
    return np.concatenate(runs, axis=1)


def largest_change(history: History) -> float:
    """The largest change of a weight from one step to the next, as a part of the weight."""
    weights = history.to_numpy()["weights"]
    return float(np.abs(np.diff(weights, axis=0) / weights[:-1]).max())


def experiment(
    n_tasks: int, options: argparse.Namespace, settings: Settings, stop: StopOnSignals
) -> dict[str, Any]:
    """All methods and all alphas on all seeds of one number of tasks.

    Returns:
        ``curves``: method -> test losses, summed over tasks, shape [seeds, times];
        ``alphas``: alpha -> their ends, shape [seeds]; ``tasks``: method -> the ends of
        every task, shape [seeds, T]; ``histories``: GradNorm's, one for each seed.
    """
    curves: dict[str, list[np.ndarray]] = {name: [] for name in (SINGLE, *METHODS)}
    alphas: dict[float, list[float]] = {alpha: [] for alpha in options.alphas}
    histories = []
    stoppable = {
        "folder": options.output / CHECKPOINTS,
        "every": options.checkpoint_every,
        "stop": stop,
        "view": LiveView() if options.live else None,
    }
    for seed in options.seeds:
        problem = Problem.draw(SIGMAS[n_tasks], seed, options.inputs)
        curves[SINGLE].append(train_alone(problem, settings, **stoppable))
        for method in METHODS:
            curve, history = train(method, problem, settings, **stoppable)
            curves[method].append(curve)
            if method == "GradNorm":
                histories.append(history)
        for alpha, ends in alphas.items():
            curve = curves["GradNorm"][-1]
            if alpha != settings.alpha:
                changed = replace(settings, alpha=alpha)
                curve, _ = train("GradNorm", problem, changed, **stoppable)
            ends.append(float(curve[-1].sum()))
    return {
        "curves": {name: np.array(runs).sum(axis=2) for name, runs in curves.items()},
        "tasks": {name: np.array(runs)[:, -1] for name, runs in curves.items()},
        "alphas": alphas,
        "histories": histories,
    }


def plot_weights(path: Path, results: dict[int, dict[str, Any]]) -> None:
    figure, axes = _panels(len(results))
    for panel, (n_tasks, result) in zip(axes, results.items()):
        result["histories"][0].plot_weights(panel)
        panel.set(title=f"T = {n_tasks}")
        _legend_below(panel, ncols=1 + n_tasks // 2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_test_losses(path: Path, results: dict[int, dict[str, Any]], settings: Settings) -> None:
    figure, axes = _panels(len(results))
    for panel, (n_tasks, result) in zip(axes, results.items()):
        for name, runs in result["curves"].items():
            times = settings.test_every * np.arange(runs.shape[1])
            (line,) = panel.plot(times, runs.mean(axis=0), label=name)
            panel.fill_between(
                times, runs.min(axis=0), runs.max(axis=0), color=line.get_color(), alpha=0.2
            )
        late = np.concatenate([runs[:, 2:] for runs in result["curves"].values()])
        panel.set(
            title=f"T = {n_tasks}", xlabel="step", ylim=(0.95 * late.min(), 1.02 * late.max())
        )
        _legend_below(panel)
    axes[0].set(ylabel="task-normalised test loss")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_alphas(path: Path, results: dict[int, dict[str, Any]]) -> None:
    figure, axes = _panels(len(results))
    for panel, (n_tasks, result) in zip(axes, results.items()):
        alphas = list(result["alphas"])
        ends = np.array(list(result["alphas"].values()))
        panel.plot(alphas, ends.mean(axis=1), "o-", label="GradNorm")
        panel.fill_between(alphas, ends.min(axis=1), ends.max(axis=1), alpha=0.2)
        for k, name in enumerate(("equal weights", "uncertainty weighting"), 1):
            panel.axhline(
                result["curves"][name][:, -1].mean(), color=f"C{k}", linestyle="--", label=name
            )
        panel.set(title=f"T = {n_tasks}", xlabel="alpha")
        _legend_below(panel)
    axes[0].set(ylabel="task-normalised test loss at the end")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panels(number: int) -> Any:
    figure, axes = plt.subplots(
        1, number, figsize=(5.5 * number, 4.4), layout="constrained", squeeze=False
    )
    return figure, axes[0]


def _legend_below(axes: Any, ncols: int = 3) -> None:
    """Where it covers no curve."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        fontsize="small",
        ncols=min(ncols, 5),
        frameon=False,
    )


def begin(options: argparse.Namespace, settings: Settings) -> None:
    """Make the folder of the checkpoints; what is in it already has to be this experiment's."""
    folder = options.output / CHECKPOINTS
    path = folder / "settings.json"
    described = {**asdict(settings), "inputs": options.inputs}
    found = json.loads(path.read_text()) if path.exists() else None
    if found is None and options.resume:
        warnings.warn(f"there is no checkpoint in {folder}; it starts anew", stacklevel=2)
    if found is not None and not options.resume:
        raise CheckpointError(
            f"{folder} holds an experiment that is not finished; pass --resume latest to go on "
            "with it, or choose another --output"
        )
    if found not in (None, described):
        raise CheckpointError(f"the experiment in {folder} has other settings: {found}")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(described) + "\n")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parse(arguments)
    paddle.set_device(options.device)
    if options.device == "cpu":
        tune_cpu()
    settings = Settings(
        steps=options.steps,
        learning_rate=options.learning_rate,
        weights_rate=options.weights_rate,
        test_every=max(1, options.steps // 50),
    )
    start = time.perf_counter()
    try:
        begin(options, settings)
        with StopOnSignals() as stop:
            results = {n: experiment(n, options, settings, stop) for n in options.tasks}
    except (CheckpointError, OSError) as error:
        raise SystemExit(f"toy_regression: {error}") from error
    seconds = time.perf_counter() - start

    plot_weights(options.output / "weights.png", results)
    plot_test_losses(options.output / "test_loss.png", results, settings)
    plot_alphas(options.output / "alpha.png", results)
    metrics: dict[str, Any] = {
        "seconds": seconds,
        "settings": asdict(settings),
        "seeds": options.seeds,
        "inputs": options.inputs,
        "versions": {
            "paddlescience_gradnorm": paddlescience_gradnorm.__version__,
            "paddle": paddle.__version__,
            "python": platform.python_version(),
        },
    }
    for n_tasks, result in results.items():
        for seed, history in zip(options.seeds, result["histories"]):
            history.save(options.output / f"gradnorm_T{n_tasks}_seed{seed}.npz")
        ends = {name: runs[:, -1].tolist() for name, runs in result["curves"].items()}
        metrics[f"T = {n_tasks}"] = {
            "test_loss": ends,
            "lowest_test_loss": {n: r.min(axis=1).tolist() for n, r in result["curves"].items()},
            "test_loss_by_task": {n: r.tolist() for n, r in result["tasks"].items()},
            "test_loss_by_alpha": {f"{a:g}": ends for a, ends in result["alphas"].items()},
            "final_weights": [history.last()["weights"] for history in result["histories"]],
            "largest_weight_change": [largest_change(h) for h in result["histories"]],
        }
        print(f"\nT = {n_tasks}: task-normalised test loss after {settings.steps} steps, by seed")
        for name, values in ends.items():
            print(f"  {name:22}", *(f"{value:8.3f}" for value in values))
    save_metrics(options.output / "metrics.json", metrics)
    shutil.rmtree(options.output / CHECKPOINTS)
    print(f"\n{seconds:.0f} s; figures and metrics.json: {options.output}")
    return metrics


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, nargs="+", choices=list(SIGMAS), default=[*SIGMAS])
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--inputs", choices=("normal", "uniform"), default="normal")
    parser.add_argument("--steps", type=at_least(1), default=Settings.steps)
    parser.add_argument("--learning-rate", type=positive, default=Settings.learning_rate)
    parser.add_argument(
        "--weights-rate", type=positive, default=Settings.weights_rate, help="of GradNorm's weights"
    )
    parser.add_argument(
        "--alphas", type=non_negative, nargs="+", default=[0.0, PAPER_ALPHA, 0.5, 1.0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="one seed, 250 steps, two alphas: under a minute"
    )
    parser.add_argument("--device", default="cpu", help="cpu, gpu, gpu:1, ...")
    parser.add_argument("--output", type=Path, default=Path("outputs/toy_regression"))
    parser.add_argument(
        "--live", action="store_true", help="draw weights and losses while it runs, by rich"
    )
    parser.add_argument(
        "--checkpoint-every",
        type=at_least(1),
        metavar="N",
        help="steps from one checkpoint to the next; without it there is one at the end of each "
        "training, and if a signal stops one",
    )
    parser.add_argument(
        "--resume",
        choices=["latest"],
        help="go on with the training that was stopped; finished ones are not made again",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.steps, options.alphas = [0], 250, [PAPER_ALPHA, 1.0]
    return options


if __name__ == "__main__":
    main()
