"""Kovasznay flow in PaddleScience's Solver, its eleven losses balanced by the PINN rule.

The steady Navier-Stokes equations (``ppsci.equation.NavierStokes``) on [-0.5, 1] x [-0.5, 0.5],
with velocities and pressure on the inflow and the outflow, and the velocities on the sides. Modes
(``mode=``): ``train``, ``eval``, ``export`` and ``infer``; the settings are in conf/kovasznay.yaml.
"""

from pathlib import Path

import hydra
import matplotlib.pyplot as plt
import numpy as np
import paddle
import ppsci
from omegaconf import DictConfig
from paddle.static import InputSpec
from ppsci.utils import logger

from paddlescience_gradnorm.ppsci import GradNormAggregator
from paddlescience_gradnorm.runtime import tune_cpu

LOW, HIGH = (-0.5, -0.5), (1.0, 0.5)


class Flow:
    """The exact solution: u, v and p by name, as functions of the points.

    The grid that the flow comes from has the spacing 1, and the mean velocity is ``speed``.
    """

    def __init__(self, reynolds: float, speed: float):
        self.speed = speed
        self.decay = reynolds / 2 - np.sqrt(reynolds**2 / 4 + 4 * np.pi**2)

    def u(self, points):
        wave = np.exp(self.decay * points["x"]) * np.cos(2 * np.pi * points["y"])
        return self.speed * (1 - wave)

    def v(self, points):
        wave = np.exp(self.decay * points["x"]) * np.sin(2 * np.pi * points["y"])
        return self.speed * self.decay / (2 * np.pi) * wave

    def p(self, points):
        return self.speed**2 * (1 - np.exp(2 * self.decay * points["x"])) / 2

    def only(self, *names):
        return {name: getattr(self, name) for name in names}


def outputs(*names):
    return {name: lambda out, name=name: out[name] for name in names}


def box():
    return ppsci.geometry.Rectangle(LOW, HIGH)


def grid(n: int = 101):
    axes = (np.linspace(low, high, n, dtype="float32") for low, high in zip(LOW, HIGH))
    x, y = np.meshgrid(*axes)
    return {"x": x.reshape(-1, 1), "y": y.reshape(-1, 1)}


def validators(cfg: DictConfig):
    names = cfg.MODEL.output_keys
    validator = ppsci.validate.GeometryValidator(
        outputs(*names),
        Flow(cfg.REYNOLDS, cfg.SPEED).only(*names),
        box(),
        {"dataset": "IterableNamedArrayDataset", "total_size": 2500},
        ppsci.loss.MSELoss(),
        evenly=True,
        metric={"L2Rel": ppsci.metric.L2Rel()},
        name="solution",
    )
    return {validator.name: validator}


def visualizers(cfg: DictConfig):
    fields = outputs(*cfg.MODEL.output_keys)
    return {"flow": ppsci.visualize.VisualizerVtu(grid(), fields, prefix="flow")}


def constraints(cfg: DictConfig, equation):
    flow, geometry = Flow(cfg.REYNOLDS, cfg.SPEED), box()
    # 1: the same points in every step. Constraints sample batch_size times this many at once.
    data = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1}
    inside = ppsci.constraint.InteriorConstraint(
        equation["navier_stokes"].equations,
        {"continuity": 0, "momentum_x": 0, "momentum_y": 0},
        geometry,
        {**data, "batch_size": cfg.POINTS.inside},
        ppsci.loss.MSELoss(),
        random="Halton",
        name="EQ",
    )
    # The fields that are given there, and where it is.
    parts = {
        "inflow": (("u", "v", "p"), lambda x, y: np.isclose(x, LOW[0])),
        "sides": (("u", "v"), lambda x, y: np.isclose(y, LOW[1]) | np.isclose(y, HIGH[1])),
        "outflow": (("u", "v", "p"), lambda x, y: np.isclose(x, HIGH[0])),
    }
    edges = [
        ppsci.constraint.BoundaryConstraint(
            outputs(*names),
            flow.only(*names),
            geometry,
            {**data, "batch_size": cfg.POINTS[part]},
            ppsci.loss.MSELoss(),
            criteria=criteria,
            name=part,
        )
        for part, (names, criteria) in parts.items()
    ]
    return {each.name: each for each in (inside, *edges)}


def train(cfg: DictConfig):
    model = ppsci.arch.MLP(**cfg.MODEL)
    viscosity = cfg.SPEED / cfg.REYNOLDS
    equation = {"navier_stokes": ppsci.equation.NavierStokes(viscosity, 1.0, 2, False)}
    constraint = constraints(cfg, equation)

    # The lines that balancing takes, and loss_aggregator= and log_to below.
    aggregator = None
    if cfg.GRADNORM is not None:
        aggregator = GradNormAggregator.of(model, constraint, equation, **cfg.GRADNORM)

    # The rate falls to 0, because the last step at a constant rate says little.
    rate = ppsci.optimizer.lr_scheduler.Cosine(
        cfg.TRAIN.epochs, cfg.TRAIN.iters_per_epoch, cfg.TRAIN.learning_rate
    )
    solver = ppsci.solver.Solver(
        model,
        constraint,
        optimizer=ppsci.optimizer.Adam(rate())(model),
        equation=equation,
        validator=validators(cfg),
        visualizer=visualizers(cfg),
        loss_aggregator=aggregator,
        cfg=cfg,
    )
    if aggregator is not None:
        aggregator.log_to(solver)
    solver.train()
    solver.visualize()
    return solver


def relative_errors(cfg: DictConfig, found, points):
    """Relative L2 error of every field, in words."""
    errors = []
    for name, exact in Flow(cfg.REYNOLDS, cfg.SPEED).only(*cfg.MODEL.output_keys).items():
        error = np.linalg.norm(found[name] - exact(points)) / np.linalg.norm(exact(points))
        errors.append(f"{name} {error:.2e}")
    return ", ".join(errors)


def compare(cfg: DictConfig):
    """Train with the plain sum and balanced, from the same start, and draw both errors."""
    points = grid()
    found = {}
    for name, gradnorm in (("plain sum", None), ("balanced", cfg.GRADNORM)):
        ppsci.utils.misc.set_random_seed(cfg.seed)
        one = cfg.copy()
        one.GRADNORM, one.output_dir = gradnorm, f"{cfg.output_dir}/{name.replace(' ', '_')}"
        found[name] = train(one).predict(points, batch_size=None, return_numpy=True)
        logger.message(f"{name}: relative L2 error {relative_errors(cfg, found[name], points)}")
    fields = Flow(cfg.REYNOLDS, cfg.SPEED).only(*cfg.MODEL.output_keys)
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.4), layout="constrained")
    for column, (field, exact) in zip(axes.T, fields.items()):
        errors = [np.abs(each[field] - exact(points)).reshape(101, 101) for each in found.values()]
        for axis, name, error in zip(column, found, errors):
            limit, extent = np.max(errors), (LOW[0], HIGH[0], LOW[1], HIGH[1])
            image = axis.imshow(error, origin="lower", extent=extent, vmin=0, vmax=limit)
            axis.set(title=f"{field}: |error|, {name}", xlabel="x", ylabel="y")
        figure.colorbar(image, ax=column, location="bottom")
    figure.savefig(Path(cfg.output_dir) / "compare.png", dpi=100)


def evaluate(cfg: DictConfig):
    solver = ppsci.solver.Solver(
        ppsci.arch.MLP(**cfg.MODEL),
        validator=validators(cfg),
        visualizer=visualizers(cfg),
        cfg=cfg,
    )
    solver.eval()
    solver.visualize()


def export(cfg: DictConfig):
    solver = ppsci.solver.Solver(ppsci.arch.MLP(**cfg.MODEL), cfg=cfg)
    spec = {key: InputSpec([None, 1], "float32", name=key) for key in cfg.MODEL.input_keys}
    solver.export([spec], cfg.INFER.export_path)


def infer(cfg: DictConfig):
    # PaddleScience's predictor asks for a memory pass that Paddle 3.3 does not have.
    exported = paddle.jit.load(cfg.INFER.export_path)
    points = grid()
    fields = exported(*(paddle.to_tensor(points[key]) for key in cfg.MODEL.input_keys))
    # An exported network returns the values of its dict of outputs, by the order of their names.
    found = {name: field.numpy() for name, field in zip(sorted(cfg.MODEL.output_keys), fields)}
    path = Path(cfg.output_dir) / "flow.vtu"
    ppsci.visualize.save_vtu_from_dict(
        str(path), {**points, **found}, ("x", "y"), tuple(cfg.MODEL.output_keys)
    )
    errors = relative_errors(cfg, found, points)
    logger.message(f"Relative L2 error {errors}; the fields are in {path}")


@hydra.main(version_base=None, config_path="conf", config_name="kovasznay.yaml")
def main(cfg: DictConfig):
    tune_cpu()
    modes = {"train": train, "eval": evaluate, "export": export, "infer": infer}
    (compare if cfg.COMPARE else modes[cfg.mode])(cfg)


if __name__ == "__main__":
    main()
