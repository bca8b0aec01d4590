"""Ordinary differential equations: of first order, a system, a beam."""

from __future__ import annotations

import math

import sympy

from paddlescience_gradnorm.pde.problems import _reference_solutions as reference_solutions
from paddlescience_gradnorm.pde.problems.formulation import Condition, Problem, Region

x, t = sympy.symbols("x t")
u, v = sympy.Function("u"), sympy.Function("v")
U = u(x)


def first_order() -> Problem:
    """An equation of first order with the solution sin(x) + 2."""
    start = Region("start", 1, faces=({x: -math.pi},))
    return Problem(
        name="first_order",
        equation="u_x = cos(x) for x in [-pi, pi], u(-pi) = 2",
        coordinates=(x,),
        fields=(u,),
        low=(-math.pi,),
        high=(math.pi,),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (U.diff(x) - sympy.cos(x),)),
            Condition("boundary", "boundary", start, (U - 2,)),
        ),
        reference=(sympy.sin(x) + 2,),
    )


def lotka_volterra() -> Problem:
    """Prey and predators over almost a whole cycle; two fields.

    The solution is ``reference_solutions.lotka_volterra``.
    """
    prey, predators = u(t), v(t)
    start = Region("initial", 1, faces=({t: 0.0},))
    interior = Region("interior", 1000)
    grow = prey.diff(t) - (2 * prey - 4 * prey * predators) / 3
    shrink = predators.diff(t) - (prey * predators - predators)
    return Problem(
        name="lotka_volterra",
        equation="u_t = (2 u - 4 u v) / 3, v_t = u v - v for t in [0, 8], u = v = 1 at first",
        coordinates=(t,),
        fields=(u, v),
        low=(0.0,),
        high=(8.0,),
        conditions=(
            Condition("prey", "pde", interior, (grow,)),
            Condition("predators", "pde", interior, (shrink,)),
            Condition("initial", "initial", start, (prey - 1, predators - 1)),
        ),
        reference=reference_solutions.lotka_volterra,
    )


def beam() -> Problem:
    """Euler's beam under an even load, clamped at one end and free at the other; fourth order."""
    clamped = Region("clamped", 1, faces=({x: 0.0},))
    free = Region("free", 1, faces=({x: 1.0},))
    return Problem(
        name="beam",
        equation="u_xxxx = -1 for x in [0, 1], u(0) = u_x(0) = 0, u_xx(1) = u_xxx(1) = 0",
        coordinates=(x,),
        fields=(u,),
        low=(0.0,),
        high=(1.0,),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (U.diff(x, 4) + 1,)),
            Condition("deflection", "boundary", clamped, (U,)),
            Condition("slope", "boundary", clamped, (U.diff(x),)),
            Condition("moment", "boundary", free, (U.diff(x, 2),)),
            Condition("shear", "boundary", free, (U.diff(x, 3),)),
        ),
        reference=(-(x**4) / 24 + x**3 / 6 - x**2 / 4,),
    )
