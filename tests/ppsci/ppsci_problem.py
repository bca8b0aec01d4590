"""Small problems for PaddleScience's Solver, as the tests and the processes they start use them.

That of ``solver``: Laplace's equation on u, and values of u and v on the boundary. These are three
losses by name, from two constraints. All points are given, so that every run sees the same ones,
whole or in batches. ``apart`` has constraints of many kinds, for ``GradNormAggregator.of``.
"""

import zlib  # noqa: F401  before Paddle, see the package

import numpy as np
import paddle
import ppsci

from paddlescience_gradnorm.ppsci import GradNormAggregator, propagate_derivatives

NAMES = ["laplace", "u", "v"]
POINTS = 24


def solver(output, aggregate, adapt=lambda model: model, batch=POINTS, optimizer=None, **settings):
    """A Solver and its aggregator.

    ``aggregate`` makes the aggregator from the model, ``adapt`` the model from the network.
    """
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


def weights_of(rows):
    return np.array([[row[f"train/weight/{name}"] for name in NAMES] for row in rows])


def pinn(**options):
    return gradnorm(**{"alpha": None, "weight_lr": 0.01, **options})


def values_of(model):
    return [parameter.numpy().copy() for parameter in model.parameters()]


LOADER = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1}


def cosh(points):
    return np.cos(points["x"]) * np.cosh(points["y"])


def apart(kinds=("EQ", "left", "right"), loss=None):
    """A model, constraints of these kinds, and equations; both sides are called ``u``."""
    ppsci.utils.misc.set_random_seed(1)
    model = ppsci.arch.MLP(("x", "y"), ("u",), num_layers=2, hidden_size=8)
    square = ppsci.geometry.Rectangle((0.0, 0.0), (1.0, 1.0))
    hessian, jacobian = ppsci.autodiff.hessian, ppsci.autodiff.jacobian
    equation = {"laplace": ppsci.equation.Laplace(2), "slip": ppsci.equation.PDE()}
    equation["slip"].add_equation("item1", lambda out: jacobian(out["u"], out["x"]))
    mse, loader = ppsci.loss.MSELoss, {**LOADER, "batch_size": 16}

    def residual(out):
        return hessian(out["u"], out["x"]) + hessian(out["u"], out["y"])

    def inside(expression, name):
        return ppsci.constraint.InteriorConstraint(
            expression, dict.fromkeys(expression, 0), square, loader, mse(), name=name
        )

    def edge(expression, name, value, loss=None):
        return ppsci.constraint.BoundaryConstraint(
            expression, dict.fromkeys(expression, value), square, loader, loss or mse(), name=name
        )

    def supervised(expression, name):
        points = np.random.default_rng(0).random((16, 2)).astype("float32")
        data = {"name": "NamedArrayDataset", "input": {"x": points[:, :1], "y": points[:, 1:]}}
        data["label"] = dict.fromkeys(expression, 0 * points[:, :1])
        return ppsci.constraint.SupervisedConstraint(
            {"dataset": data, "batch_size": 16}, mse(), expression, name=name
        )

    value = {"u": lambda out: out["u"]}
    makers = {
        "EQ": lambda: inside(equation["laplace"].equations, "EQ"),
        "own": lambda: inside({"anything": residual}, "own"),
        "inner": lambda: inside(value, "inner"),
        "left": lambda: edge(value, "left", cosh, loss),
        "right": lambda: edge(value, "right", lambda points: 9 + 0 * points["x"]),
        "slope": lambda: edge({"q": lambda out: jacobian(out["u"], out["x"])}, "slope", 0),
        "traction": lambda: edge(equation["laplace"].equations, "traction", 0),
        "data": lambda: supervised(value, "data"),
        "EQ_sup": lambda: supervised({"chip": residual}, "interior_sup"),
        "Sup": lambda: supervised({"chip": residual}, "Sup"),
        "sensors": lambda: supervised({"f": residual}, "sensors"),
        "observed": lambda: supervised({"pde": residual}, "observed"),
        "wall": lambda: supervised(equation["laplace"].equations, "wall"),
        "f": lambda: inside({"f": residual}, "f"),
        "PDE_edge": lambda: edge({"f": residual}, "PDE_edge", 0),
        "initial": lambda: inside({"u_y": lambda out: jacobian(out["u"], out["y"])}, "initial"),
        "PDE": lambda: supervised(equation["laplace"].equations, "PDE"),
        "BCI": lambda: supervised(equation["slip"].equations, "BCI"),
    }
    return model, {kind: makers[kind]() for kind in kinds}, equation


def trained(
    model, constraint, equation, aggregator, steps=30, output=None, optimizer=None, **settings
):
    """Trains by a Solver; what it has logged in every step."""
    settings.setdefault("iters_per_epoch", 1)
    solver = ppsci.solver.Solver(
        model,
        constraint,
        None if output is None else str(output),
        optimizer or ppsci.optimizer.Adam(1e-3)(model),
        epochs=steps,
        equation=equation,
        loss_aggregator=aggregator,
        log_freq=1,
        **settings,
    )
    if aggregator is not None:
        aggregator.log_to(solver)
    rows = record(solver)
    solver.train()
    return rows


def equations_found(aggregator):
    flags = aggregator.balancer.last_measurement.equations
    return [name for name, flag in zip(aggregator.names, flags) if flag]


def first_step(prepare=None, kinds=("EQ", "left", "right"), make=None, optimizer=None, **settings):
    """Parameters after one step, plainly and balanced, and the aggregator.

    All weights are 1 in the first step, so both must be the same.
    """
    parameters = []
    for balanced in (False, True):
        model, constraint, equation = apart(kinds)
        if make is not None:
            model = make()
        if prepare is not None:
            prepare(constraint, equation)
        aggregator = GradNormAggregator.of(model, constraint, equation) if balanced else None
        trained(
            *(model, constraint, equation, aggregator, 1),
            optimizer=None if optimizer is None else optimizer(model),
            **settings,
        )
        parameters.append(values_of(model))
    for plain, mine in zip(*parameters):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-6)
    return aggregator


if __name__ == "__main__":  # one rank of several
    import sys

    output, update_freq, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
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
    if way == "propagated":
        paths = propagate_derivatives(solver_)
        assert paths["EQ.laplace"].startswith("Taylor propagation"), paths
    solver_.train()
    # Before each step, and after the last.
    weights = [*weights[update_freq::update_freq], aggregator_.get_weights()]
    np.save(f"{output}/rank_{rank}.npy", weights)
