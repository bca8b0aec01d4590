"""Problems with known solutions, for training, for comparisons, and as patterns for others."""

from __future__ import annotations

import functools
from typing import Callable

from paddlescience_gradnorm.pde.problems._elliptic import (
    helmholtz,
    laplace,
    laplace_jump,
    plate,
    poisson,
)
from paddlescience_gradnorm.pde.problems._evolution import (
    allen_cahn,
    burgers,
    convection,
    heat,
    klein_gordon,
    wave,
)
from paddlescience_gradnorm.pde.problems._flow import cavity, kovasznay
from paddlescience_gradnorm.pde.problems._inverse import burgers_inverse, helmholtz_inverse
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
        raise ValueError(f"name must be one of {', '.join(PROBLEMS)}, got {name!r}")
    return PROBLEMS[name]()
