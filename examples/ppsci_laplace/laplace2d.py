"""Laplace's equation in PaddleScience's Solver, its two losses balanced by the PINN rule.

u_xx + u_yy = 0 on the unit square with the values of cos(x) cosh(y) on its edge. Modes (``mode=``):
``train``, ``eval``, ``export`` and ``infer``; the settings are in conf/laplace2d.yaml.
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

from paddlescience_gradnorm.ppsci import GradNormAggregator, propagate_derivatives
from paddlescience_gradnorm.runtime import tune_cpu


def solution(points):
    return np.cos(points["x"]) * np.cosh(points["y"])


def unit_square():
    return ppsci.geometry.Rectangle((0.0, 0.0), (1.0, 1.0))


def validators(cfg: DictConfig):
    validator = ppsci.validate.GeometryValidator(
        {"u": lambda out: out["u"]},
        {"u": solution},
        unit_square(),
        {"dataset": "IterableNamedArrayDataset", "total_size": cfg.POINTS.inside},
        ppsci.loss.MSELoss(),
        evenly=True,
        metric={"L2Rel": ppsci.metric.L2Rel()},
        name="solution",
    )
    return {validator.name: validator}


def visualizers(cfg: DictConfig):
    points = unit_square().sample_interior(cfg.POINTS.inside, evenly=True)
    fields = {"u": lambda out: out["u"]}
    return {"u": ppsci.visualize.VisualizerVtu(points, fields, prefix="u")}


def train(cfg: DictConfig):
    model = ppsci.arch.MLP(**cfg.MODEL)
    equation = {"laplace": ppsci.equation.Laplace(dim=2)}
    # 1: the same points in every step. Constraints sample batch_size times this many at once.
    data = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1}
    inside = ppsci.constraint.InteriorConstraint(
        equation["laplace"].equations,
        {"laplace": 0},
        unit_square(),
        {**data, "batch_size": cfg.POINTS.inside},
        ppsci.loss.MSELoss(),
        evenly=True,
        name="EQ",
    )
    edge = ppsci.constraint.BoundaryConstraint(
        {"u": lambda out: out["u"]},
        {"u": solution},
        unit_square(),
        {**data, "batch_size": cfg.POINTS.edge},
        ppsci.loss.MSELoss(),
        name="BC",
    )
    constraint = {"EQ": inside, "BC": edge}

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
    propagate_derivatives(solver)  # the same up to rounding, but faster
    if aggregator is not None:
        aggregator.log_to(solver)
    solver.train()
    solver.visualize()
    return solver


def compare(cfg: DictConfig):
    """Train with the plain sum and balanced, from the same start, and draw both errors."""
    x, y = np.meshgrid(*[np.linspace(0, 1, 101, dtype="float32")] * 2)
    points = {"x": x.reshape(-1, 1), "y": y.reshape(-1, 1)}
    exact = solution(points)
    errors = {}
    for name, gradnorm in (("plain sum", None), ("balanced", cfg.GRADNORM)):
        ppsci.utils.misc.set_random_seed(cfg.seed)
        one = cfg.copy()
        one.GRADNORM, one.output_dir = gradnorm, f"{cfg.output_dir}/{name.replace(' ', '_')}"
        found = train(one).predict(points, batch_size=None, return_numpy=True)["u"]
        errors[name] = np.abs(found - exact).reshape(x.shape)
        relative = np.linalg.norm(errors[name]) / np.linalg.norm(exact)
        logger.message(f"{name}: relative L2 error {relative:.2e}")
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    limit = max(map(np.max, errors.values()))
    for axis, (name, error) in zip(axes, errors.items()):
        image = axis.imshow(error, origin="lower", extent=(0, 1, 0, 1), vmin=0, vmax=limit)
        axis.set(title=f"{name}: |error| of u", xlabel="x", ylabel="y")
    figure.colorbar(image, cax=axes[1].inset_axes((1.04, 0, 0.05, 1)))
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
    points = unit_square().sample_interior(cfg.POINTS.inside, evenly=True)
    u = exported(*(paddle.to_tensor(points[key]) for key in cfg.MODEL.input_keys)).numpy()
    error = np.linalg.norm(u - solution(points)) / np.linalg.norm(solution(points))
    path = Path(cfg.output_dir) / "u.vtu"
    ppsci.visualize.save_vtu_from_dict(str(path), {**points, "u": u}, ("x", "y"), ("u",))
    logger.message(f"Relative L2 error {error:.2e}; the field is in {path}")


@hydra.main(version_base=None, config_path="conf", config_name="laplace2d.yaml")
def main(cfg: DictConfig):
    tune_cpu()  # before the first matrix product
    modes = {"train": train, "eval": evaluate, "export": export, "infer": infer}
    (compare if cfg.COMPARE else modes[cfg.mode])(cfg)


if __name__ == "__main__":
    main()
