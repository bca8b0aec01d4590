"""Linear elasticity in the plane, in displacements: equilibrium of the stresses."""

from __future__ import annotations

import sympy
from sympy import cos, pi, sin

from paddlescience_gradnorm.pde.problems.formulation import Condition, Problem, Region

x, y, s = sympy.symbols("x y s")
u, v = sympy.Function("u"), sympy.Function("v")
DISPLACEMENT = u(x, y), v(x, y)
FIRST_LAME, SHEAR_MODULUS = sympy.Integer(1), sympy.Rational(1, 2)


def stresses(in_x: sympy.Expr, in_y: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr, sympy.Expr]:
    """sigma_xx, sigma_yy and sigma_xy of a displacement."""
    volume = FIRST_LAME * (in_x.diff(x) + in_y.diff(y))
    shear = SHEAR_MODULUS * (in_x.diff(y) + in_y.diff(x))
    return (
        volume + 2 * SHEAR_MODULUS * in_x.diff(x),
        volume + 2 * SHEAR_MODULUS * in_y.diff(y),
        shear,
    )


def forces(in_x: sympy.Expr, in_y: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """What the stresses exert on a piece of the body, along x and y."""
    xx, yy, xy = stresses(in_x, in_y)
    return (xx.diff(x) + xy.diff(y)).doit(), (xy.diff(x) + yy.diff(y)).doit()


def elasticity() -> Problem:
    """A square body under forces, held on some sides and pulled on others.

    From Haghighat et al., "A physics-informed deep learning framework for inversion and
    surrogate modeling in solid mechanics", Comput. Methods Appl. Mech. Eng. 379 (2021), with
    lambda = 1, mu = 1/2, Q = 4.
    """
    exact = cos(2 * pi * x) * sin(pi * y), y**4 * sin(pi * x)
    interior = Region("interior", 1000)
    bottom = Region("bottom", 100, faces=({y: 0.0},))
    top = Region("top", 100, faces=({y: 1.0},))
    sides = Region("sides", 200, faces=({x: 0.0}, {x: 1.0}))
    in_x, in_y = (inner - force for inner, force in zip(forces(*DISPLACEMENT), forces(*exact)))
    xx, yy, _ = stresses(*DISPLACEMENT)
    pull = stresses(*exact)[1].subs(y, 1)
    return Problem(
        name="elasticity",
        equation="equilibrium of a plane elastic body, lambda = 1, mu = 0.5, under forces on the "
        "unit square, u = v = 0 at the bottom, u = 0, sigma_yy = 8 sin(pi x) at the top, v = 0, "
        "sigma_xx = 0 on the sides",
        coordinates=(x, y),
        fields=(u, v),
        low=(0.0, 0.0),
        high=(1.0, 1.0),
        conditions=(
            Condition("equilibrium_x", "pde", interior, (in_x,)),
            Condition("equilibrium_y", "pde", interior, (in_y,)),
            Condition("bottom", "boundary", bottom, DISPLACEMENT),
            Condition("top", "boundary", top, (DISPLACEMENT[0],)),
            Condition("top_stress", "boundary", top, (yy - pull,)),
            Condition("sides", "boundary", sides, (DISPLACEMENT[1],)),
            Condition("sides_stress", "boundary", sides, (xx,)),
        ),
        reference=exact,
    )


def pipe() -> Problem:
    """A quarter of a thick pipe under a pressure inside, with a free surface.

    Lame's solution (Timoshenko, Goodier, "Theory of Elasticity", 1970, section 28), plane
    strain, lambda = 1, mu = 1/2.
    """
    inner = sympy.Rational(2, 5)
    square = x**2 + y**2
    stiffness = FIRST_LAME + SHEAR_MODULUS
    widening = inner**2 / (1 - inner**2) * (1 / stiffness + 1 / (SHEAR_MODULUS * square)) / 2
    exact = x * widening, y * widening
    xx, yy, xy = stresses(*DISPLACEMENT)
    turn = pi * s / 2
    at_inner = Region("inner", 100, faces=({x: inner * cos(turn), y: inner * sin(turn)},))
    at_outer = Region("outer", 200, faces=({x: cos(turn), y: sin(turn)},))
    along = inner + (1 - inner) * s
    on_x = Region("bottom", 100, faces=({x: along, y: 0.0},))
    on_y = Region("left", 100, faces=({x: 0.0, y: along},))
    # Along the normal (x, y) / r.
    traction = x * xx + y * xy, x * xy + y * yy
    pressed = tuple(pull / inner + c / inner for pull, c in zip(traction, (x, y)))
    interior = Region("interior", 1000)
    in_x, in_y = forces(*DISPLACEMENT)
    return Problem(
        name="pipe",
        equation="equilibrium of an elastic pipe in plane strain, lambda = 1, mu = 0.5, in a "
        "quarter of the ring between r = 0.4, with pressure 1, and r = 1, which is free, by "
        "symmetry v = sigma_xy = 0 on y = 0 and u = sigma_xy = 0 on x = 0",
        coordinates=(x, y),
        fields=(u, v),
        low=(0.0, 0.0),
        high=(1.0, 1.0),
        conditions=(
            Condition("equilibrium_x", "pde", interior, (in_x,)),
            Condition("equilibrium_y", "pde", interior, (in_y,)),
            Condition("inner", "boundary", at_inner, pressed),
            Condition("outer", "boundary", at_outer, traction),
            Condition("bottom", "boundary", on_x, (DISPLACEMENT[1], xy)),
            Condition("left", "boundary", on_y, (DISPLACEMENT[0], xy)),
        ),
        reference=exact,
        domain=(square >= inner**2) & (square <= 1),
    )
