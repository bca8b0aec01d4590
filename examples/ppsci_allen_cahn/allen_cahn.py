"""The Allen-Cahn equation in PaddleScience's Solver, four losses balanced by the PINN rule.

u_t - eps^2 u_xx + 5 u^3 - 5 u = 0 for t in [0, 1] and x in [-1, 1], with initial values, boundary
values and noisy measurements inside. The solution is a front that travels with constant shape.
Modes (``mode=``): ``train``, ``eval``, ``export`` and ``infer``; the settings are in
conf/allen_cahn.yaml.
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


class Front:
    """The exact solution 1 / (1 + exp(k (x + 1/2 - c t))).

    With s = u (1 - u), u_t = c k s, u_xx = k^2 s (1 - 2 u) and 5 u - 5 u^3 = 5 s (1 + u); so
    the equation holds for all u if 2 eps^2 k^2 = 5 and c k = eps^2 k^2 + 5.
    """

    def __init__(self, eps: float):
        self.steepness = np.sqrt(2.5) / eps
        self.speed = 7.5 / self.steepness

    def __call__(self, points):
        way = self.steepness * (points["x"] + 0.5 - self.speed * points["t"])
        return 1 / (1 + (paddle if paddle.is_tensor(way) else np).exp(way))


def domain():
    times = ppsci.geometry.TimeDomain(0.0, 1.0, timestamps=np.linspace(0, 1, 41))
    return ppsci.geometry.TimeXGeometry(times, ppsci.geometry.Interval(-1.0, 1.0))


def grid(times: int = 41, places: int = 101):
    t, x = np.meshgrid(np.linspace(0, 1, times), np.linspace(-1, 1, places), indexing="ij")
    return {"t": t.reshape(-1, 1).astype("float32"), "x": x.reshape(-1, 1).astype("float32")}


def arrays(points, labels, batch_size):
    dataset = {"name": "NamedArrayDataset", "input": points, "label": labels}
    sampler = {"name": "BatchSampler", "shuffle": False, "drop_last": False}
    return {"dataset": dataset, "batch_size": batch_size, "sampler": sampler}


def validators(cfg: DictConfig):
    points = grid()
    validator = ppsci.validate.SupervisedValidator(
        arrays(points, {"u": Front(cfg.EPS)(points)}, len(points["t"])),
        ppsci.loss.MSELoss(),
        metric={"L2Rel": ppsci.metric.L2Rel()},
        name="front",
    )
    return {validator.name: validator}


def visualizers(cfg: DictConfig):
    points, front = grid(times=3), Front(cfg.EPS)
    fields = {"u": lambda out: out["u"], "exact": lambda out: front(out)}
    plot = ppsci.visualize.VisualizerScatter1D(
        points, ("x",), fields, batch_size=len(points["x"]), num_timestamps=3, prefix="u"
    )
    return {"u": plot}


def constraints(cfg: DictConfig, equation):
    front, geometry = Front(cfg.EPS), domain()
    # 1: the same points in every step. Constraints sample batch_size times this many at once.
    data = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1}
    inside = ppsci.constraint.InteriorConstraint(
        equation["allen_cahn"].equations,
        {"allen_cahn": 0},
        geometry,
        {**data, "batch_size": cfg.POINTS.inside},
        ppsci.loss.MSELoss(),
        random="Halton",
        name="EQ",
    )
    initial = ppsci.constraint.InitialConstraint(
        {"u": lambda out: out["u"]},
        {"u": front},
        geometry,
        {**data, "batch_size": cfg.POINTS.initial},
        ppsci.loss.MSELoss(),
        name="IC",
    )
    boundary = ppsci.constraint.BoundaryConstraint(
        {"u": lambda out: out["u"]},
        {"u": front},
        geometry,
        {**data, "batch_size": cfg.POINTS.boundary},
        ppsci.loss.MSELoss(),
        name="BC",
    )
    rng = np.random.default_rng(cfg.seed)
    measured = {
        "t": rng.uniform(0, 1, (cfg.POINTS.data, 1)).astype("float32"),
        "x": rng.uniform(-1, 1, (cfg.POINTS.data, 1)).astype("float32"),
    }
    noise = rng.normal(0, cfg.NOISE, (cfg.POINTS.data, 1))
    values = {"u": (front(measured) + noise).astype("float32")}
    supervised = ppsci.constraint.SupervisedConstraint(
        arrays(measured, values, cfg.POINTS.data),
        ppsci.loss.MSELoss(),
        name="data",  # a name by which the rule knows measurements
    )
    return {each.name: each for each in (inside, initial, boundary, supervised)}


def train(cfg: DictConfig):
    model = ppsci.arch.MLP(**cfg.MODEL)
    equation = {"allen_cahn": ppsci.equation.AllenCahn(eps=cfg.EPS)}
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
    propagate_derivatives(solver)  # the same up to rounding, but faster
    if aggregator is not None:
        aggregator.log_to(solver)
    solver.train()
    solver.visualize()
    return solver


def compare(cfg: DictConfig):
    """Train with the plain sum and balanced, from the same start, and draw both errors."""
    points = grid(times=101)
    exact = Front(cfg.EPS)(points)
    errors = {}
    for name, gradnorm in (("plain sum", None), ("balanced", cfg.GRADNORM)):
        ppsci.utils.misc.set_random_seed(cfg.seed)
        one = cfg.copy()
        one.GRADNORM, one.output_dir = gradnorm, f"{cfg.output_dir}/{name.replace(' ', '_')}"
        found = train(one).predict(points, batch_size=None, return_numpy=True)["u"]
        errors[name] = np.abs(found - exact).reshape(101, 101)
        relative = np.linalg.norm(errors[name]) / np.linalg.norm(exact)
        logger.message(f"{name}: relative L2 error {relative:.2e}")
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    limit = max(map(np.max, errors.values()))
    style = {"extent": (0, 1, -1, 1), "aspect": "auto", "vmin": 0, "vmax": limit}
    for axis, (name, error) in zip(axes, errors.items()):
        image = axis.imshow(error.T, origin="lower", **style)
        axis.set(title=f"{name}: |error| of u", xlabel="t", ylabel="x")
    figure.colorbar(image, ax=axes)
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
    u = exported(*(paddle.to_tensor(points[key]) for key in cfg.MODEL.input_keys)).numpy()
    exact = Front(cfg.EPS)(points)
    error = np.linalg.norm(u - exact) / np.linalg.norm(exact)
    path = Path(cfg.output_dir) / "u.npz"
    np.savez(path, **points, u=u)
    logger.message(f"Relative L2 error {error:.2e}; the field is in {path}")


@hydra.main(version_base=None, config_path="conf", config_name="allen_cahn.yaml")
def main(cfg: DictConfig):
    tune_cpu()  # before the first matrix product
    modes = {"train": train, "eval": evaluate, "export": export, "infer": infer}
    (compare if cfg.COMPARE else modes[cfg.mode])(cfg)


if __name__ == "__main__":
    main()
