"""Problems in time: heat, waves, transport, reaction, solitons, a beam."""

from __future__ import annotations

import math

import sympy
from sympy import pi

from paddlescience_gradnorm.pde.problems import _reference_solutions as reference_solutions
from paddlescience_gradnorm.pde.problems.formulation import Condition, Problem, Region

x, y, t = sympy.symbols("x y t")
u, v = sympy.Function("u"), sympy.Function("v")
U, V = u(x, t), v(x, t)


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


def kdv() -> Problem:
    """The Korteweg-de Vries equation: a hump falls apart into two solitons; third order.

    In closed form, from Drazin, Johnson, "Solitons: an introduction", 1989, section 4.5.
    """
    above = 3 + 4 * sympy.cosh(x - t) + sympy.cosh(2 * x - 8 * t)
    below = 3 * sympy.cosh((x - 7 * t) / 2) + sympy.cosh((3 * x - 9 * t) / 2)
    exact = 3 * above / below**2
    residual = U.diff(t) + 6 * U * U.diff(x) + U.diff(x, 3)
    start = Region("initial", 200, faces=({t: 0.0},))
    ends = Region("boundary", 200, faces=({x: -4.0}, {x: 8.0}))
    right = Region("right", 100, faces=({x: 8.0},))
    return Problem(
        name="kdv",
        equation="u_t + 6 u u_x + u_xxx = 0 for x in [-4, 8], t in [0, 1], u = 1.5 / cosh(x / 2)^2 "
        "at first, u given at the ends, u_x at the right one",
        coordinates=(x, t),
        fields=(u,),
        low=(-4.0, 0.0),
        high=(8.0, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (residual,)),
            Condition("initial", "initial", start, (U - 3 / sympy.cosh(x / 2) ** 2 / 2,)),
            Condition("boundary", "boundary", ends, (U - exact,)),
            Condition("slope", "boundary", right, (U.diff(x) - exact.diff(x),)),
        ),
        reference=(exact,),
    )


def schroedinger() -> Problem:
    """The nonlinear Schroedinger equation: two solitons that breathe; real and imaginary part.

    Satsuma, Yajima, "Initial value problems of one-dimensional self-modulation of nonlinear waves
    in dispersive media", Prog. Theor. Phys. Suppl. 55 (1974); the equation and the initial values
    are those of Raissi, Perdikaris, Karniadakis, J. Comput. Phys. 378 (2019).
    """
    below = sympy.cosh(4 * x) + 4 * sympy.cosh(2 * x) + 3 * sympy.cos(4 * t)
    real, imaginary = (
        4 * (sympy.cosh(3 * x) * part(t / 2) + 3 * sympy.cosh(x) * part(9 * t / 2)) / below
        for part in (sympy.cos, sympy.sin)
    )
    square = U**2 + V**2
    interior = Region("interior", 1000)
    start = Region("initial", 200, faces=({t: 0.0},))
    ends = Region("boundary", 200, faces=({x: -5.0}, {x: 5.0}))
    return Problem(
        name="schroedinger",
        equation="i h_t + h_xx / 2 + |h|^2 h = 0, h = u + i v, for x in [-5, 5], t in [0, pi / 2], "
        "h = 2 / cosh(x) at first, h given at the ends",
        coordinates=(x, t),
        fields=(u, v),
        low=(-5.0, 0.0),
        high=(5.0, math.pi / 2),
        conditions=(
            Condition("pde_u", "pde", interior, (U.diff(t) + V.diff(x, 2) / 2 + square * V,)),
            Condition("pde_v", "pde", interior, (V.diff(t) - U.diff(x, 2) / 2 - square * U,)),
            Condition("initial", "initial", start, (U - 2 / sympy.cosh(x), V)),
            Condition("boundary", "boundary", ends, (U - real, V - imaginary)),
        ),
        reference=(real, imaginary),
    )


def reaction_diffusion() -> Problem:
    """Two substances that react and diffuse, one ten times as fast; the Brusselator with sources.

    The reaction is that of Prigogine, Lefever, "Symmetry breaking instabilities in dissipative
    systems II", J. Chem. Phys. 48 (1968), with A = 1 and B = 3. The sources make waves the
    solution, and nothing leaves through the ends.
    """
    exact = (
        1 + sympy.cos(2 * pi * x) * sympy.cos(3 * t) / 2,
        3 + sympy.cos(pi * x) * sympy.sin(3 * t) / 2,
    )

    def operators(a: sympy.Expr, b: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
        in_a = a.diff(t) - a.diff(x, 2) / 100 - (1 - 4 * a + a**2 * b)
        return in_a, b.diff(t) - b.diff(x, 2) / 10 - (3 * a - a**2 * b)

    in_u, in_v = (left - right for left, right in zip(operators(U, V), operators(*exact)))
    interior = Region("interior", 1000)
    start = Region("initial", 200, faces=({t: 0.0},))
    ends = Region("boundary", 200, faces=({x: 0.0}, {x: 1.0}))
    return Problem(
        name="reaction_diffusion",
        equation="u_t = u_xx / 100 + 1 - 4 u + u^2 v + f, v_t = v_xx / 10 + 3 u - u^2 v + g for x "
        "in [0, 1], t in [0, 2], u and v given at first, u_x = v_x = 0 at the ends",
        coordinates=(x, t),
        fields=(u, v),
        low=(0.0, 0.0),
        high=(1.0, 2.0),
        conditions=(
            Condition("pde_u", "pde", interior, (in_u,)),
            Condition("pde_v", "pde", interior, (in_v,)),
            Condition(
                "initial",
                "initial",
                start,
                tuple(field - value.subs(t, 0) for field, value in zip((U, V), exact)),
            ),
            Condition("boundary", "boundary", ends, (U.diff(x), V.diff(x))),
        ),
        reference=exact,
    )


def heat_multiscale() -> Problem:
    """Heat that spreads in a plane, fast along y and slowly along x, where it varies fast.

    As in PINNacle (Hao et al., NeurIPS 2024), with waves that are not as short.
    """
    slow, fast = 1 / (50 * pi) ** 2, 1 / pi**2
    field = u(x, y, t)
    rate = sympy.Rational(4**2, 50**2) + 1
    exact = sympy.sin(4 * pi * x) * sympy.sin(pi * y) * sympy.exp(-rate * t)
    residual = field.diff(t) - slow * field.diff(x, 2) - fast * field.diff(y, 2)
    sides = Region("boundary", 400, faces=({x: 0.0}, {x: 1.0}, {y: 0.0}, {y: 1.0}))
    start = Region("initial", 200, faces=({t: 0.0},))
    return Problem(
        name="heat_multiscale",
        equation="u_t = u_xx / (50 pi)^2 + u_yy / pi^2 for x and y in [0, 1], t in [0, 5], u = 0 "
        "on the sides, u = sin(4 pi x) sin(pi y) at first",
        coordinates=(x, y, t),
        fields=(u,),
        low=(0.0, 0.0, 0.0),
        high=(1.0, 1.0, 5.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (residual,)),
            Condition("initial", "initial", start, (field - exact.subs(t, 0),)),
            Condition("boundary", "boundary", sides, (field,)),
        ),
        reference=(exact,),
    )


def vibration() -> Problem:
    """A beam that vibrates on two supports, one and a half times to and fro; fourth order."""
    exact = sympy.sin(pi * x) * sympy.cos(pi**2 * t)
    ends = Region("boundary", 100, faces=({x: 0.0}, {x: 1.0}))
    start = Region("initial", 100, faces=({t: 0.0},))
    return Problem(
        name="vibration",
        equation="u_tt + u_xxxx = 0 for x and t in [0, 1], u = u_xx = 0 at the ends, u = sin(pi x) "
        "and u_t = 0 at first",
        coordinates=(x, t),
        fields=(u,),
        low=(0.0, 0.0),
        high=(1.0, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (U.diff(t, 2) + U.diff(x, 4),)),
            Condition("u0", "initial", start, (U - sympy.sin(pi * x),)),
            Condition("ut0", "initial", start, (U.diff(t),)),
            Condition("deflection", "boundary", ends, (U,)),
            Condition("moment", "boundary", ends, (U.diff(x, 2),)),
        ),
        reference=(exact,),
    )
