"""Which Solver is training with an aggregator, and how many steps that training will have."""

from __future__ import annotations

import inspect
import math
from typing import Any

from ppsci.solver import Solver
from ppsci.utils import misc

from paddlescience_gradnorm.balancing.balancer import LossBalancer


def training_solver(aggregator: Any) -> Solver | None:
    """The Solver whose training is calling the aggregator; None in a loop of the user's own.

    A Solver gives its aggregator the losses and the number of the step, and nothing else. So it is
    looked for among the callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        # To ask a frame for its variables keeps them alive, and those of Solver.train are few.
        if frame.f_code.co_name == Solver.train.__name__:
            solver = frame.f_locals.get("self")
            if isinstance(solver, Solver) and solver.loss_aggregator is aggregator:
                return solver
        frame = frame.f_back
    return None


def planned_steps(solver: Solver, balancer: LossBalancer) -> int | None:
    """How many steps the balancer will have counted at the end of this training.

    L-BFGS evaluates the losses many times in a step, and each evaluation counts towards the next
    update. After another optimizer it changes nothing of what was planned.
    """
    counted: int = balancer.step_count.item()
    epochs = solver.epochs - solver.global_step // solver.iters_per_epoch
    if misc.typename(solver.optimizer) != "LBFGS":  # which may be of paddle.incubate
        return counted + epochs * math.ceil(solver.iters_per_epoch / solver.update_freq)
    if counted:
        return balancer.total_steps
    return epochs * solver.iters_per_epoch * balancer.update_every
