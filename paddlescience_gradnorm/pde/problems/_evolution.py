"""Problems in one dimension and time: heat, waves, transport, reaction."""

from __future__ import annotations

import math

import sympy
from sympy import pi

from paddlescience_gradnorm.pde.problems import _reference_solutions as reference_solutions
from paddlescience_gradnorm.pde.problems.formulation import Condition, Problem, Region

x, t = sympy.symbols("x t")
u = sympy.Function("u")
U = u(x, t)


def heat() -> Problem:
    """Heat conduction with 20 measurements: all four kinds of loss."""
    exact = sympy.exp(-(pi**2) * t / 4) * sympy.sin(pi * x)
    ends = Region("boundary", 200, faces=({x: 0.0}, {x: 1.0}))
    start = Region("initial", 100, faces=({t: 0.0},))
    return Problem(
        name="heat",
        equation="u_t = u_xx / 4 for x and t in [0, 1], u = 0 at the ends, u = sin(pi x) at first",
        coordinates=(x, t),
        fields=(u,),
        low=(0.0, 0.0),
        high=(1.0, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (U.diff(t) - U.diff(x, 2) / 4,)),
            Condition("boundary", "boundary", ends, (U,)),
            Condition("initial", "initial", start, (U - sympy.sin(pi * x),)),
            Condition("data", "data", Region("data", 20), (U,)),
        ),
        reference=(exact,),
    )


def wave() -> Problem:
    """A wave in two modes, a hard case for equal weights.

    From Wang, Yu, Perdikaris, "When and why PINNs fail to train: a neural tangent kernel
    perspective", J. Comput. Phys. 449 (2022).
    """
    exact = sympy.sin(pi * x) * sympy.cos(2 * pi * t)
    exact += sympy.sin(4 * pi * x) * sympy.cos(8 * pi * t) / 2
    ends = Region("boundary", 200, faces=({x: 0.0}, {x: 1.0}))
    start = Region("initial", 200, faces=({t: 0.0},))
    return Problem(
        name="wave",
        equation="u_tt = 4 u_xx for x and t in [0, 1], u = 0 at the ends, "
        "u = sin(pi x) + sin(4 pi x) / 2 and u_t = 0 at first",
        coordinates=(x, t),
        fields=(u,),
        low=(0.0, 0.0),
        high=(1.0, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (U.diff(t, 2) - 4 * U.diff(x, 2),)),
            Condition("u0", "initial", start, (U - exact.subs(t, 0),)),
            Condition("ut0", "initial", start, (U.diff(t),)),
            Condition("boundary", "boundary", ends, (U,)),
        ),
        reference=(exact,),
    )


def klein_gordon() -> Problem:
    """The Klein-Gordon equation with a cubic term and the solution x cos(5 pi t) + (x t)^3.

    From Wang, Teng, Perdikaris, "Understanding and mitigating gradient flow pathologies in
    physics-informed neural networks", SIAM J. Sci. Comput. 43 (2021).
    """
    exact = x * sympy.cos(5 * pi * t) + (x * t) ** 3

    def operator(field: sympy.Expr) -> sympy.Expr:
        return field.diff(t, 2) - field.diff(x, 2) + field**3

    ends = Region("boundary", 200, faces=({x: 0.0}, {x: 1.0}))
    start = Region("initial", 200, faces=({t: 0.0},))
    return Problem(
        name="klein_gordon",
        equation="u_tt - u_xx + u^3 = f for x and t in [0, 1], u given at the ends, "
        "u = x and u_t = 0 at first",
        coordinates=(x, t),
        fields=(u,),
        low=(0.0, 0.0),
        high=(1.0, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (operator(U) - operator(exact),)),
            Condition("u0", "initial", start, (U - x,)),
            Condition("ut0", "initial", start, (U.diff(t),)),
            Condition("boundary", "boundary", ends, (U - exact,)),
        ),
        reference=(exact,),
    )


def convection() -> Problem:
    """Transport of a sine wave around a circle, almost five times.

    From Krishnapriyan et al., "Characterizing possible failure modes in physics-informed neural
    networks", NeurIPS 2021.
    """
    speed = 30
    around = Region("boundary", 100, periodic=x)
    start = Region("initial", 200, faces=({t: 0.0},))
    return Problem(
        name="convection",
        equation="u_t + 30 u_x = 0 for x in [0, 2 pi], t in [0, 1], periodic, u = sin(x) at first",
        coordinates=(x, t),
        fields=(u,),
        low=(0.0, 0.0),
        high=(2 * math.pi, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (U.diff(t) + speed * U.diff(x),)),
            Condition("initial", "initial", start, (U - sympy.sin(x),)),
            Condition("boundary", "boundary", around, (U,)),
        ),
        reference=(sympy.sin(x - speed * t),),
    )


def burgers() -> Problem:
    """Burgers' equation, in which a front forms at t = 0.3.

    From Raissi, Perdikaris, Karniadakis, "Physics-informed neural networks", J. Comput. Phys.
    378 (2019). The solution is ``reference_solutions.burgers``.
    """
    viscosity = sympy.Float(reference_solutions.BURGERS_VISCOSITY)
    residual = U.diff(t) + U * U.diff(x) - viscosity * U.diff(x, 2)
    ends = Region("boundary", 100, faces=({x: -1.0}, {x: 1.0}))
    start = Region("initial", 100, faces=({t: 0.0},))
    return Problem(
        name="burgers",
        equation="u_t + u u_x = (0.01 / pi) u_xx for x in [-1, 1], t in [0, 1], u = 0 at the "
        "ends, u = -sin(pi x) at first",
        coordinates=(x, t),
        fields=(u,),
        low=(-1.0, 0.0),
        high=(1.0, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (residual,)),
            Condition("initial", "initial", start, (U + sympy.sin(pi * x),)),
            Condition("boundary", "boundary", ends, (U,)),
        ),
        reference=reference_solutions.burgers,
    )


def allen_cahn() -> Problem:
    """The Allen-Cahn equation, whose solution falls apart into two phases.

    From Raissi, Perdikaris, Karniadakis, "Physics-informed neural networks", J. Comput. Phys.
    378 (2019). The solution is ``reference_solutions.allen_cahn``.
    """
    diffusion = sympy.Float(reference_solutions.ALLEN_CAHN_DIFFUSION)
    residual = U.diff(t) - diffusion * U.diff(x, 2) + 5 * U**3 - 5 * U
    around = Region("boundary", 100, periodic=x)
    start = Region("initial", 200, faces=({t: 0.0},))
    return Problem(
        name="allen_cahn",
        equation="u_t = 0.0001 u_xx - 5 u^3 + 5 u for x in [-1, 1], t in [0, 1], u and u_x "
        "periodic, u = x^2 cos(pi x) at first",
        coordinates=(x, t),
        fields=(u,),
        low=(-1.0, 0.0),
        high=(1.0, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (residual,)),
            Condition("initial", "initial", start, (U - x**2 * sympy.cos(pi * x),)),
            Condition("boundary", "boundary", around, (U,)),
            Condition("boundary_x", "boundary", around, (U.diff(x),)),
        ),
        reference=reference_solutions.allen_cahn,
    )
