"""Laplace's equation in as many processes as the launcher starts, each with its own points.

See README.md for the command; without the launcher it is one process.
"""

from __future__ import annotations

import argparse

import numpy as np

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.pde.problems import problem
from paddlescience_gradnorm.runtime import tune_cpu

import paddle  # isort: skip, after the package that sees to its loading


def main(steps: int = 200, n_points: int = 256) -> np.ndarray:
    """Train, and return the loss weights, which are the same in every process."""
    distributed = paddle.distributed
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    if ranks > 1:
        distributed.init_parallel_env()
    paddle.seed(0)
    laplace = problem("laplace")
    points = laplace.sample(n_points=n_points // ranks, seed=rank)
    net = FCNet(2, 1, 4, 32)
    parallel = paddle.DataParallel(net) if ranks > 1 else net  # the same start everywhere
    model = GradNorm(parallel)
    optimizer = paddle.optimizer.Adam(1e-3, parameters=model.parameters())
    for _ in range(steps):
        model.backward(points.losses(model))
        optimizer.step()
        optimizer.clear_grad()
    weights = model.get_weights()
    print(f"rank {rank} of {ranks}: weights {weights}, errors {laplace.relative_errors(net)}")
    return weights


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    tune_cpu(threads=1)  # of each process
    main(options.steps)
