"""Two steady flows in PaddleScience's Solver, their losses balanced by the PINN rule.

The channel has walls, an inflow and an outflow (conf/channel.yaml). Kovasznay's flow is that behind
a grid (``--config-name kovasznay``). Both solve the Navier-Stokes equations exactly. Modes
(``mode=``): ``train``, ``eval``, ``export`` and ``infer``.
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

from paddlescience_gradnorm.ppsci import build_aggregator, propagate_derivatives
from paddlescience_gradnorm.runtime import tune_cpu


class Flow:
    """A flow through a rectangle from ``low`` to ``high``, with a Reynolds number for the length 1.

    ``u``, ``v`` and ``p`` are the exact solution, as functions of the points. ``given`` has the
    names of the inflow, the sides and the outflow, and the fields that are given there. ``fields``
    are those that are not 0 everywhere, because only these have a relative error.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    given: tuple[tuple[str, tuple[str, ...]], ...]
    fields: tuple[str, ...]

    def __init__(self, reynolds: float, speed: float):
        self.reynolds, self.speed = reynolds, speed
        self.viscosity = speed / reynolds

    def only(self, *names):
        return {name: getattr(self, name) for name in names}

    def box(self):
        return ppsci.geometry.Rectangle(self.low, self.high)

    def grid(self, n: int = 101):
        axes = (np.linspace(a, b, n, dtype="float32") for a, b in zip(self.low, self.high))
        x, y = np.meshgrid(*axes)
        return {"x": x.reshape(-1, 1), "y": y.reshape(-1, 1)}

    def parts(self):
        """Of each part of the boundary: its name, the fields given there, and where it is."""
        (left, bottom), (right, top) = self.low, self.high
        places = (
            lambda x, y: np.isclose(x, left),
            lambda x, y: np.isclose(y, bottom) | np.isclose(y, top),
            lambda x, y: np.isclose(x, right),
        )
        return [(*part, place) for part, place in zip(self.given, places)]


class Channel(Flow):
    """Plane Poiseuille flow between walls at a distance of 1; ``speed`` is that in the middle."""

    low, high = (0.0, 0.0), (2.0, 1.0)
    given = ("inflow", ("u", "v")), ("walls", ("u", "v")), ("outflow", ("p",))
    fields = "u", "p"

    def u(self, points):
        return 4 * self.speed * points["y"] * (1 - points["y"])

    def v(self, points):
        return 0 * points["y"]

    def p(self, points):
        return 8 * self.viscosity * self.speed * (self.high[0] - points["x"])


class Kovasznay(Flow):
    """The flow behind a grid of spacing 1, with the mean velocity ``speed``."""

    low, high = (-0.5, -0.5), (1.0, 0.5)
    given = ("inflow", ("u", "v", "p")), ("sides", ("u", "v")), ("outflow", ("u", "v", "p"))
    fields = "u", "v", "p"

    @property
    def decay(self):
        return self.reynolds / 2 - np.sqrt(self.reynolds**2 / 4 + 4 * np.pi**2)

    def u(self, points):
        wave = np.exp(self.decay * points["x"]) * np.cos(2 * np.pi * points["y"])
        return self.speed * (1 - wave)

    def v(self, points):
        wave = np.exp(self.decay * points["x"]) * np.sin(2 * np.pi * points["y"])
        return self.speed * self.decay / (2 * np.pi) * wave

    def p(self, points):
        return self.speed**2 * (1 - np.exp(2 * self.decay * points["x"])) / 2


def flow_of(cfg: DictConfig) -> Flow:
    return {"channel": Channel, "kovasznay": Kovasznay}[cfg.FLOW](cfg.REYNOLDS, cfg.SPEED)


def outputs(*names):
    return {name: lambda out, name=name: out[name] for name in names}


def validators(cfg: DictConfig):
    flow = flow_of(cfg)
    validator = ppsci.validate.GeometryValidator(
        outputs(*flow.fields),
        flow.only(*flow.fields),
        flow.box(),
        {"dataset": "IterableNamedArrayDataset", "total_size": 2500},
        ppsci.loss.MSELoss(),
        evenly=True,
        metric={"L2Rel": ppsci.metric.L2Rel()},
        name="solution",
    )
    return {validator.name: validator}


def visualizers(cfg: DictConfig):
    fields = outputs(*cfg.MODEL.output_keys)
    return {"flow": ppsci.visualize.VisualizerVtu(flow_of(cfg).grid(), fields, prefix="flow")}


def constraints(cfg: DictConfig, equation):
    flow = flow_of(cfg)
    geometry = flow.box()
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
        for part, names, criteria in flow.parts()
    ]
    return {each.name: each for each in (inside, *edges)}


def train(cfg: DictConfig):
    model = ppsci.arch.MLP(**cfg.MODEL)
    viscosity = flow_of(cfg).viscosity
    equation = {"navier_stokes": ppsci.equation.NavierStokes(viscosity, 1.0, 2, False)}
    constraint = constraints(cfg, equation)

    # The lines that balancing takes, and loss_aggregator= and log_to below.
    aggregator = None
    if cfg.GRADNORM is not None:
        aggregator = build_aggregator(cfg.GRADNORM, model, constraint, equation)

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
    propagate_derivatives(solver)  # the same up to rounding, but faster
    if aggregator is not None:
        aggregator.log_to(solver)
    solver.train()
    solver.visualize()
    return solver


def relative_errors(cfg: DictConfig, found, points):
    """Relative L2 error of every field, in words."""
    errors, flow = [], flow_of(cfg)
    for name, exact in flow.only(*flow.fields).items():
        error = np.linalg.norm(found[name] - exact(points)) / np.linalg.norm(exact(points))
        errors.append(f"{name} {error:.2e}")
    return ", ".join(errors)


def compare(cfg: DictConfig):
    """Train with the plain sum and balanced, from the same start, and draw both errors."""
    flow, found = flow_of(cfg), {}
    points = flow.grid()
    for name, gradnorm in (("plain sum", None), ("balanced", cfg.GRADNORM)):
        ppsci.utils.misc.set_random_seed(cfg.seed)
        one = cfg.copy()
        one.GRADNORM, one.output_dir = gradnorm, f"{cfg.output_dir}/{name.replace(' ', '_')}"
        found[name] = train(one).predict(points, batch_size=None, return_numpy=True)
        logger.message(f"{name}: relative L2 error {relative_errors(cfg, found[name], points)}")
    fields = flow.only(*flow.fields)
    size = (3.5 * len(fields), 5.4)
    figure, axes = plt.subplots(2, len(fields), figsize=size, layout="constrained")
    for column, (field, exact) in zip(axes.T, fields.items()):
        errors = [np.abs(each[field] - exact(points)).reshape(101, 101) for each in found.values()]
        for axis, name, error in zip(column, found, errors):
            limit, extent = np.max(errors), [x for ends in zip(flow.low, flow.high) for x in ends]
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
    points = flow_of(cfg).grid()
    fields = exported(*(paddle.to_tensor(points[key]) for key in cfg.MODEL.input_keys))
    # An exported network returns the values of its dict of outputs, by the order of their names.
    found = {name: field.numpy() for name, field in zip(sorted(cfg.MODEL.output_keys), fields)}
    path = Path(cfg.output_dir) / "flow.vtu"
    ppsci.visualize.save_vtu_from_dict(
        str(path), {**points, **found}, ("x", "y"), tuple(cfg.MODEL.output_keys)
    )
    errors = relative_errors(cfg, found, points)
    logger.message(f"Relative L2 error {errors}; the fields are in {path}")


@hydra.main(version_base=None, config_path="conf", config_name="channel.yaml")
def main(cfg: DictConfig):
    tune_cpu()  # before the first matrix product
    modes = {"train": train, "eval": evaluate, "export": export, "infer": infer}
    (compare if cfg.COMPARE else modes[cfg.mode])(cfg)


if __name__ == "__main__":
    main()
