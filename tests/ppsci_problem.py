"""A small problem for PaddleScience's Solver, as the tests and the processes they start use it.

Laplace's equation on u, and values of u and v on the boundary: three losses by name, from two
constraints. All points are given, so that every run sees the same ones, whole or in batches.
"""

import zlib  # noqa: F401  before Paddle, see the package

import numpy as np
import paddle
import ppsci
from ppsci.utils import logger

from paddlescience_gradnorm.ppsci import GradNormAggregator

NAMES = ["laplace", "u", "v"]
POINTS = 24


def solver(output, aggregate, adapt=lambda model: model, batch=POINTS, optimizer=None, **settings):
    """A Solver and its aggregator.

    ``aggregate`` makes the aggregator from the model, ``adapt`` the model from the network.
    """
    logger.init_logger("ppsci", None, "error")
    ppsci.utils.misc.set_random_seed(1)
    model = adapt(ppsci.arch.MLP(("x", "y"), ("u", "v"), num_layers=2, hidden_size=8))
    aggregator = aggregate(model)
    if optimizer is None:
        steps_weights = aggregator is not None and aggregator.balancer.weight_lr is None
        layers = (model, aggregator.balancer) if steps_weights else model
        optimizer = ppsci.optimizer.Adam(1e-2)(layers)
    else:
        optimizer = optimizer(model)
    inside, edge = np.random.default_rng(0).random((2, POINTS, 2)).astype("float32")
    edge[:, 0] = edge[:, 0].round()
    on_edge = {"u": np.cos(edge[:, :1]) * np.cosh(edge[:, 1:]), "v": 9 * edge[:, 1:]}
    equation = {"laplace": ppsci.equation.Laplace(dim=2)}
    constraints = [
        _constraint("EQ", inside, {"laplace": 0 * inside[:, :1]}, batch, equation),
        _constraint("BC", edge, on_edge, batch),
    ]
    validator = ppsci.validate.SupervisedValidator(
        {**_data(edge, on_edge), "batch_size": POINTS},
        ppsci.loss.MSELoss(),
        metric={"MSE": ppsci.metric.MSE()},
        name="edge",
    )
    settings.setdefault("iters_per_epoch", 1)
    made = ppsci.solver.Solver(
        model,
        {constraint.name: constraint for constraint in constraints},
        str(output),
        optimizer,
        equation=equation,
        validator={"edge": validator},
        log_freq=1,
        loss_aggregator=aggregator,
        **settings,
    )
    if aggregator is not None:
        aggregator.log_to(made, norms=True)
    return made, aggregator


def gradnorm(**options):
    """What makes an aggregator from a model."""
    return lambda model: GradNormAggregator(
        model, n_loss=3, **{"alpha": 1.0, "weight_lr": 1e-3, **options}
    )


def record(solver):
    """Losses and weights of every step that is still to come, as the Solver logs them."""
    rows = []

    class Writer:
        def add_scalar(self, name, value, step):
            if name == "train/lr":
                rows.append({})
            rows[-1][name] = value

    solver.vdl_writer = Writer()
    return rows


def _data(points, labels):
    dataset = {
        "name": "NamedArrayDataset",
        "input": {"x": points[:, :1], "y": points[:, 1:]},
        "label": labels,
    }
    return {"dataset": dataset, "sampler": {"name": "BatchSampler", "shuffle": False}}


def _constraint(name, points, labels, batch, equation=None):
    return ppsci.constraint.SupervisedConstraint(
        {**_data(points, labels), "batch_size": batch},
        ppsci.loss.MSELoss("mean"),
        equation["laplace"].equations if equation else None,
        name=name,
    )


if __name__ == "__main__":  # one rank of several
    import sys

    output, update_freq = sys.argv[1], int(sys.argv[2])
    paddle.set_device("cpu")
    rank, ranks = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    weights = []

    def aggregate(model):
        aggregator = gradnorm()(model)
        aggregator.register_forward_pre_hook(
            lambda layer, inputs: weights.append(aggregator.get_weights())
        )
        return aggregator

    solver_, aggregator_ = solver(
        f"{output}/run_{rank}",
        aggregate,
        batch=POINTS // ranks // update_freq,
        epochs=6,
        iters_per_epoch=update_freq,
        update_freq=update_freq,
    )
    solver_.train()
    # Before each step, and after the last.
    weights = [*weights[update_freq::update_freq], aggregator_.get_weights()]
    np.save(f"{output}/rank_{rank}.npy", weights)
