"""Laplace's equation in PaddleScience's Solver, its two losses balanced by GradNorm.

u_xx + u_yy = 0 on the unit square with the values of cos(x) cosh(y) on its edge. Modes (``mode=``):
``train``, ``eval``, ``export`` and ``infer``; the settings are in conf/laplace2d.yaml.
"""

from pathlib import Path

import hydra
import numpy as np
import paddle
import ppsci
from omegaconf import DictConfig
from paddle.static import InputSpec
from ppsci.utils import logger

from paddlescience_gradnorm.ppsci import GradNormAggregator
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

    # The lines that GradNorm takes, and loss_aggregator= and log_to below.
    aggregator = GradNormAggregator(model, **cfg.GRADNORM) if cfg.GRADNORM else None
    layers = (model, aggregator.balancer) if aggregator else model
    optimizer = ppsci.optimizer.Adam(cfg.TRAIN.learning_rate)(layers)

    solver = ppsci.solver.Solver(
        model,
        {"EQ": inside, "BC": edge},
        optimizer=optimizer,
        equation=equation,
        validator=validators(cfg),
        visualizer=visualizers(cfg),
        loss_aggregator=aggregator,
        cfg=cfg,
    )
    if aggregator:
        aggregator.log_to(solver)
    solver.train()
    solver.visualize()


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
    tune_cpu()
    {"train": train, "eval": evaluate, "export": export, "infer": infer}[cfg.mode](cfg)


if __name__ == "__main__":
    main()
