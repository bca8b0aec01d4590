"""Which Solver is training with an aggregator, and how many steps that training will have."""

from __future__ import annotations

import inspect
import math
from typing import Any

from ppsci.solver import Solver
from ppsci.utils import misc

from paddlescience_gradnorm import _paddle
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


def is_lbfgs(solver: Solver) -> bool:
    """Whether the Solver trains by L-BFGS, which may be of ``paddle.incubate``."""
    return misc.typename(solver.optimizer) == "LBFGS"


def held_by(optimizer: Any) -> set[int]:
    """The id of each parameter that an optimizer, or an ``OptimizerList``, steps."""
    optimizers = getattr(optimizer, "_opt_list", [optimizer])
    return {id(p) for each in optimizers for group in _paddle.parameter_groups(each) for p in group}


def expect_the_steps_of(solver: Solver, balancer: LossBalancer) -> None:
    """Tell the balancer how many steps it will count in the rest of this training.

    L-BFGS evaluates the losses many times in a step, and each evaluation counts towards the next
    update. After another optimizer it changes nothing of what was planned.
    """
    epochs = solver.epochs - solver.global_step // solver.iters_per_epoch
    if not is_lbfgs(solver):
        balancer._expect_steps(epochs * math.ceil(solver.iters_per_epoch / solver.update_freq))
    elif not balancer.step_count.item():
        balancer._expect_steps(epochs * solver.iters_per_epoch * balancer.update_every)
