"""Time of a balanced step of DeepXDE beside DeepXDE's own, on Paddle.

The wave equation on a line, with five conditions (both ends, values and velocities at the start,
measured points): six losses on one forward graph. The network is an FNN of 4 x 50. Both models
have the same points. Their blocks of steps take turns, and the ratio is the median of the ratios
of neighbours. The default rule updates the weights in every tenth step; a block is a multiple of
ten steps. Seconds are those of the processor, so that other work on the machine counts little: run
it with OMP_NUM_THREADS=1. Needs the package with ``.[cpu,deepxde]``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any, Callable

os.environ["DDE_BACKEND"] = "paddle"

STEPS_A_BLOCK = 20


def problem(n_domain: int) -> Any:
    """The data of DeepXDE, with ``n_domain`` points inside and a tenth of that on each side."""
    import deepxde as dde
    import numpy as np

    def wave(x: Any, u: Any) -> Any:
        return dde.grad.hessian(u, x, i=1, j=1) - dde.grad.hessian(u, x, i=0, j=0)

    def exact(x: Any) -> Any:
        return np.sin(np.pi * x[:, :1]) * np.cos(np.pi * x[:, 1:])

    def velocity(x: Any, u: Any, _: Any) -> Any:
        return dde.grad.jacobian(u, x, i=0, j=1)

    def end(at: float) -> Callable[..., bool]:
        return lambda x, on_boundary: on_boundary and dde.utils.isclose(x[0], at)

    domain = dde.geometry.GeometryXTime(dde.geometry.Interval(0, 1), dde.geometry.TimeDomain(0, 1))
    few = max(n_domain // 10, 10)
    measured = domain.random_points(few)
    conditions = [
        dde.icbc.DirichletBC(domain, lambda x: 0, end(0)),
        dde.icbc.DirichletBC(domain, lambda x: 0, end(1)),
        dde.icbc.IC(domain, exact, lambda _, on_initial: on_initial),
        dde.icbc.OperatorBC(domain, velocity, lambda x, _: dde.utils.isclose(x[1], 0)),
        dde.icbc.PointSetBC(measured, exact(measured)),
    ]
    return dde.data.TimePDE(
        domain, wave, conditions, num_domain=n_domain, num_boundary=2 * few, num_initial=few
    )


def measure(n_domain: int, turns: int, options: dict[str, Any]) -> dict[str, Sequence[float]]:
    """Processor seconds a step in every turn, of both."""
    import deepxde as dde

    from paddlescience_gradnorm.deepxde import balance

    dde.config.set_random_seed(0)
    data = problem(n_domain)
    steps: dict[str, Callable[[], None]] = {}
    for name in ("DeepXDE", "balanced"):
        model = dde.Model(data, dde.nn.FNN([2] + [50] * 4 + [1], "tanh", "Glorot normal"))
        model.compile("adam", lr=1e-3, verbose=0)
        if name == "balanced":
            balance(model, **options)
        points = data.train_next_batch()
        steps[name] = lambda model=model, points=points: model.train_step(*points)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            begin = time.process_time()
            for _ in range(STEPS_A_BLOCK):
                step()
            if turn:  # the first is for warming up
                seconds[name].append((time.process_time() - begin) / STEPS_A_BLOCK)
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--update-every", type=int)
    options = parser.parse_args(arguments)
    balancing = {"update_every": options.update_every} if options.update_every else {}
    print("| points inside | DeepXDE, CPU ms a step | balanced | ratio |\n|---|---|---|---|")
    for n_domain in options.points:
        seconds = measure(n_domain, options.turns, balancing)
        pairs = zip(seconds["balanced"], seconds["DeepXDE"])
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        ms = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
        print(
            f"| {n_domain:,} | {ms['DeepXDE']:.1f} | {ms['balanced']:.1f} | {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
