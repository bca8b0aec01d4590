"""Problems with known solutions, for training, for comparisons, and as patterns for others."""

from __future__ import annotations

import difflib
import functools
from typing import Callable

from paddlescience_gradnorm.pde.problems._elasticity import elasticity, pipe
from paddlescience_gradnorm.pde.problems._elliptic import (
    helmholtz,
    helmholtz_3d,
    laplace,
    laplace_holes,
    laplace_jump,
    plate,
    poisson,
    poisson_3d,
    poisson_boltzmann,
)
from paddlescience_gradnorm.pde.problems._evolution import (
    allen_cahn,
    burgers,
    convection,
    heat,
    heat_multiscale,
    kdv,
    klein_gordon,
    reaction_diffusion,
    schroedinger,
    vibration,
    wave,
)
from paddlescience_gradnorm.pde.problems._flow import (
    beltrami,
    cavity,
    channel,
    couette,
    kovasznay,
    lid,
    step,
    taylor_green,
)
from paddlescience_gradnorm.pde.problems._inverse import (
    burgers_inverse,
    heat_inverse,
    helmholtz_inverse,
    transport_inverse,
)
from paddlescience_gradnorm.pde.problems._ordinary import beam, first_order, lotka_volterra
from paddlescience_gradnorm.pde.problems.formulation import Condition, Problem, Region, Unknown
from paddlescience_gradnorm.pde.problems.sampled_problem import SampledProblem

__all__ = [
    "PROBLEMS",
    "Condition",
    "Problem",
    "Region",
    "SampledProblem",
    "Unknown",
    "problem",
]

PROBLEMS: dict[str, Callable[[], Problem]] = {
    build.__name__: build
    for build in (
        *(laplace, poisson, helmholtz, heat, wave, burgers, allen_cahn, klein_gordon, plate),
        *(convection, kovasznay, cavity, burgers_inverse, helmholtz_inverse, laplace_jump),
        *(channel, step, taylor_green, lid, couette, beltrami),
        *(laplace_holes, helmholtz_3d, poisson_boltzmann, poisson_3d),
        *(first_order, lotka_volterra, beam, vibration),
        *(kdv, schroedinger, reaction_diffusion, heat_multiscale),
        *(elasticity, pipe, heat_inverse, transport_inverse),
    )
}
"""Name -> a function without arguments that builds the ``Problem``; for one, call ``problem``."""


@functools.cache
def problem(name: str) -> Problem:
    """The problem of that name in ``PROBLEMS``.

    Args:
        name: One of the keys of ``PROBLEMS``.

    Raises:
        ValueError: There is no such problem.

    Examples:
        >>> poisson = problem("poisson")
        >>> [condition.name for condition in poisson.conditions]
        ['pde', 'left', 'right', 'bottom', 'top']
    """
    if name not in PROBLEMS:
        near = difflib.get_close_matches(str(name), PROBLEMS, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]!r}?" if near else f"the names are {', '.join(PROBLEMS)}"
        raise ValueError(f"there is no problem {name!r}; {hint}")
    return PROBLEMS[name]()
