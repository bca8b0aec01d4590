"""Kovasznay flow by a PINN with a head for each field on one trunk.

    u u_x + v u_y + p_x = (u_xx + u_yy) / Re
    u v_x + v v_y + p_y = (v_xx + v_yy) / Re
    u_x + v_y = 0

on [-0.5, 1] x [-0.5, 1.5] with Re = 20, which has an exact solution. Each head has one
equation and its field's values on the boundary for its loss: momentum in x for u, momentum in y for
v, continuity for p. Run it with --help for the options.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import sympy

import paddlescience_gradnorm
from paddlescience_gradnorm import FCNet, GradNorm, NetworkBase, RotoGradNorm, cached
from paddlescience_gradnorm.command_line import at_least, non_negative, positive
from paddlescience_gradnorm.pde import Residual, sample_boundary, sample_interior
from paddlescience_gradnorm.runtime import tune_cpu
from paddlescience_gradnorm.training import (
    CheckpointError,
    Checkpoints,
    History,
    LiveView,
    StopOnSignals,
    Trainer,
    save_metrics,
)

import paddle  # isort: skip, after the package that sees to its loading

FIELDS = ("u", "v", "p")
LOW, HIGH = (-0.5, -0.5), (1.0, 1.5)
REYNOLDS = 20.0
DECAY = REYNOLDS / 2 - np.sqrt(REYNOLDS**2 / 4 + 4 * np.pi**2)  # of the perturbation along x
WIDTH = 50
# Of the network's rate, for loss weights and rotations.
OWN_RATE = 0.1


def exact(points: np.ndarray) -> np.ndarray:
    """u, v and p at points of shape [N, 2], shape [N, 3]."""
    x, y = points.T
    wave, phase = np.exp(DECAY * x), 2 * np.pi * y
    u = 1 - wave * np.cos(phase)
    v = DECAY / (2 * np.pi) * wave * np.sin(phase)
    return np.stack([u, v, (1 - wave**2) / 2], axis=1)


class Trunk(NetworkBase):
    """The shared representation, together with the derivatives that a residual asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = FCNet(num_ins=2, num_outs=WIDTH, num_layers=4, hidden_size=WIDTH)

    def forward(self, ins: tuple[paddle.Tensor, Sequence[tuple[int, ...]]]) -> paddle.Tensor:
        """Shape [number of derivatives, N, WIDTH], from points and indices of derivatives."""
        return paddle.stack(self.net.partial_derivatives(*ins))


class Weighted(RotoGradNorm):
    """Its weights under the name by which a history looks for them."""

    @property
    def loss_weights(self) -> paddle.Tensor:
        return self.weight


class TrunkAndHeads(NetworkBase):
    """What RotoGradNorm is without rotations: the trunk's output into every head."""

    def __init__(self, trunk: Trunk, heads: list[paddle.nn.Layer]) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, paddle.nn.LayerList(heads)

    def forward(self, ins: tuple[paddle.Tensor, Sequence[tuple[int, ...]]]) -> list[paddle.Tensor]:
        latent = self.trunk(ins)
        return [head(latent) for head in self.heads]

    def get_last_shared_layer(self) -> paddle.Tensor:
        return self.trunk.net.linears[-1].weight


class Flow(NetworkBase):
    """Trunk and heads as one network from points to the three fields, for a residual."""

    def __init__(self, model: paddle.nn.Layer) -> None:
        super().__init__()
        self.model = model

    def partial_derivatives(
        self, ins: paddle.Tensor, indices: Sequence[tuple[int, ...]]
    ) -> list[paddle.Tensor]:
        """A tensor of shape [N, 3] for each index."""
        # The heads are linear maps, which act on a derivative as they do on the value; so does
        # a rotation in front of them. Only so can a head be cut off its trunk.
        return paddle.unbind(paddle.concat(self.model((ins, indices)), axis=-1))

    def nn_func(self, ins: paddle.Tensor) -> paddle.Tensor:
        """u, v and p, shape [N, 3]."""
        return self.partial_derivatives(ins, [()])[0]


def build(balance: str, alpha: float) -> paddle.nn.Layer:
    trunk = Trunk()
    # The trunk's last layer has a bias, which serves them all.
    heads = [paddle.nn.Linear(WIDTH, 1, bias_attr=False) for _ in FIELDS]
    if balance == "rotogradnorm":
        return Weighted(trunk, heads, latent_size=WIDTH, alpha=alpha)
    network = TrunkAndHeads(trunk, heads)
    return GradNorm(network, n_loss=len(FIELDS), alpha=alpha) if balance == "gradnorm" else network


class Problem:
    """Everything that the losses are made of, for one seed."""

    def __init__(self, n_points: int, seed: int) -> None:
        x, y = sympy.symbols("x y")
        u, v, p = (sympy.Function(name)(x, y) for name in FIELDS)

        def momentum(field: sympy.Expr, axis: sympy.Symbol) -> sympy.Expr:
            convection = u * field.diff(x) + v * field.diff(y)
            return convection + p.diff(axis) - (field.diff(x, 2) + field.diff(y, 2)) / REYNOLDS

        self.residual = Residual(
            [momentum(u, x), momentum(v, y), u.diff(x) + v.diff(y)],
            inputs=(x, y),
            outputs=[field.func for field in (u, v, p)],
        )
        self.interior = _tensor(sample_interior(n_points, LOW, HIGH, seed=seed))
        edge = sample_boundary(max(4, n_points // 5), LOW, HIGH, seed=seed + 1)
        self.edge, self.edge_values = _tensor(edge), _tensor(exact(edge))

    def losses(self, flow: Flow) -> dict[str, paddle.Tensor]:
        """A loss for each field, by name."""
        with cached():  # the rotations serve interior and boundary
            inside = [residual.square().mean() for residual in self.residual(flow, self.interior)]
            edge = paddle.unbind((flow(self.edge) - self.edge_values).square().mean(0))
        return {name: a + b for name, a, b in zip(FIELDS, inside, edge)}


def train(
    model: paddle.nn.Layer,
    problem: Problem,
    epochs: int,
    learning_rate: float,
    checkpoints: Checkpoints,
    resume: str | None,
    live: bool = False,
) -> Trainer:
    """Train in place, by one step an epoch; the finished run.

    SIGINT and SIGTERM end the program after the step, with a checkpoint.
    """
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(learning_rate, T_max=epochs)
    own: list[paddle.Tensor] = []
    network = model.parameters()
    if isinstance(model, RotoGradNorm):
        network, own = model.model_parameters(), model.mtl_parameters()
    elif isinstance(model, GradNorm):
        network, own = model.net.parameters(), [model.loss_weights]
    groups = [{"params": network}]
    if own:
        groups.append({"params": own, "learning_rate": OWN_RATE})
    optimizer = paddle.optimizer.Adam(schedule, parameters=groups)
    balancer = model if own else None
    with StopOnSignals() as stop:
        callbacks = [*([LiveView(unit="epoch")] if live else []), stop]
        trainer = Trainer(Flow(model), problem.losses, optimizer, balancer, callbacks)
        trainer.fit(epochs=epochs, checkpoints=checkpoints, resume=resume)
    if stop.received:
        print(f"stopped at step {trainer.step}; go on with --resume latest", flush=True)
        raise SystemExit(stop.exit_code)
    return trainer


def evaluate(model: paddle.nn.Layer, n: int = 101) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and exact solution on an n x n grid, shape [3, n, n] each, y along rows."""
    axes = [np.linspace(low, high, n) for low, high in zip(LOW, HIGH)]
    points = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    with paddle.no_grad():
        prediction = Flow(model)(points).numpy()
    return prediction.T.reshape(3, n, n), exact(points).T.reshape(3, n, n)


def relative_errors(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Relative L2 error of every field."""
    return {
        name: float(np.linalg.norm(found - field) / np.linalg.norm(field))
        for name, found, field in zip(FIELDS, prediction, truth)
    }


def plot_solution(path: Path, prediction: np.ndarray, truth: np.ndarray) -> None:
    figure, axes = plt.subplots(3, 3, figsize=(10.5, 10.5), layout="constrained")
    extent = (LOW[0], HIGH[0], LOW[1], HIGH[1])
    for row, name, found, field in zip(axes, FIELDS, prediction, truth):
        limits = {"vmin": field.min(), "vmax": field.max()}
        for axis, title, values, style in (
            (row[0], f"{name}, network", found, limits),
            (row[1], f"{name}, exact", field, limits),
            (row[2], f"{name}, absolute error", np.abs(found - field), {"cmap": "magma"}),
        ):
            image = axis.imshow(values, origin="lower", extent=extent, **style)
            axis.set(title=title, xlabel="x", ylabel="y")
            figure.colorbar(image, cax=axis.inset_axes((1.04, 0, 0.05, 1)))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_training(path: Path, history: History) -> None:
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    history.plot_losses(top).set(xlabel="")
    history.plot_weights(bottom).set(xlabel="epoch", ylim=(0, len(FIELDS)))
    bottom.get_legend().remove()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, object]:
    options = parse(arguments)
    paddle.set_device(options.device)
    if options.device == "cpu":
        tune_cpu()
    paddle.seed(options.seed)
    problem = Problem(options.points, options.seed)
    model = build(options.balance, options.alpha)

    checkpoints = Checkpoints(options.output / "checkpoints", options.checkpoint_every)
    start = time.perf_counter()
    try:
        trainer = train(
            model,
            problem,
            options.epochs,
            options.learning_rate,
            checkpoints,
            options.resume,
            options.live,
        )
    except (CheckpointError, OSError) as error:
        raise SystemExit(f"pinn_kovasznay: {error}") from error
    seconds = time.perf_counter() - start

    history, last = trainer.history, trainer.history.last()
    prediction, truth = evaluate(model)
    errors = relative_errors(prediction, truth)
    metrics = {
        "relative_l2_errors": errors,
        "seconds": seconds,
        "final_losses": last["losses"],
        "final_weights": last["weights"],
        "diagnosis": trainer.diagnose(),
        "settings": {**vars(options), "output": str(options.output)},
        "versions": {
            "paddlescience_gradnorm": paddlescience_gradnorm.__version__,
            "paddle": paddle.__version__,
            "python": platform.python_version(),
        },
    }
    options.output.mkdir(parents=True, exist_ok=True)
    plot_solution(options.output / "solution.png", prediction, truth)
    plot_training(options.output / "training.png", history)
    history.save(options.output / "history.npz")
    paddle.save(model.state_dict(), str(options.output / "model.pdparams"))
    save_metrics(options.output / "metrics.json", metrics)
    described = ", ".join(f"{name} {error:.2e}" for name, error in errors.items())
    print(
        f"relative L2 error {described}, {seconds:.0f} s",
        *(metrics["diagnosis"] or ["Nothing needs attention."]),
        f"figures: {options.output / 'solution.png'}, {options.output / 'training.png'}",
        sep="\n",
    )
    return metrics


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--balance", choices=("rotogradnorm", "gradnorm", "equal"), default="rotogradnorm"
    )
    parser.add_argument("--alpha", type=non_negative, default=0.12, help="GradNorm's alpha")
    parser.add_argument("--epochs", type=at_least(1), default=4000)
    parser.add_argument("--learning-rate", type=positive, default=5e-3)
    parser.add_argument("--points", type=at_least(1), default=500, help="collocation points inside")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--device", default="cpu", help="cpu, gpu, gpu:1, ...")
    parser.add_argument("--output", type=Path, default=Path("outputs/pinn_kovasznay"))
    parser.add_argument(
        "--live", action="store_true", help="draw weights and losses while it runs, by rich"
    )
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


def _tensor(array: np.ndarray) -> paddle.Tensor:
    return paddle.to_tensor(array, dtype="float32")


if __name__ == "__main__":
    main()
