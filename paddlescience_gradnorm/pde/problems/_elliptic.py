"""Elliptic problems: Laplace, Poisson, Helmholtz, a bending plate."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
from sympy import pi

from paddlescience_gradnorm.pde.problems.formulation import Condition, Problem, Region

x, y = sympy.symbols("x y")
u, w = sympy.Function("u"), sympy.Function("w")
U, W = u(x, y), w(x, y)

SIDES = ("left", "right", "bottom", "top")
ZERO_ON_SIDES = dict.fromkeys(SIDES, sympy.Integer(0))


def laplacian(field: sympy.Expr) -> sympy.Expr:
    """field_xx + field_yy."""
    return field.diff(x, 2) + field.diff(y, 2)


def on_rectangle(
    name: str,
    equation: str,
    residual: sympy.Expr,
    values: Mapping[str, sympy.Expr],
    exact: sympy.Expr,
    low: tuple[float, float] = (0.0, 0.0),
    high: tuple[float, float] = (1.0, 1.0),
) -> Problem:
    """A problem for u inside of a rectangle, by default the unit square, and on each of its sides.

    Five losses: the residual at 1,000 points, and on 100 of each side u minus its value there.
    """
    sides = {"left": {x: low[0]}, "right": {x: high[0]}, "bottom": {y: low[1]}, "top": {y: high[1]}}
    pde = Condition("pde", "pde", Region("interior", 1000), (residual,))
    on_sides = tuple(
        Condition(side, "boundary", Region(side, 100, faces=(face,)), (U - values[side],))
        for side, face in sides.items()
    )
    return Problem(
        name=name,
        equation=equation,
        coordinates=(x, y),
        fields=(u,),
        low=low,
        high=high,
        conditions=(pde, *on_sides),
        reference=(exact,),
    )


def laplace() -> Problem:
    """Laplace's equation with the solution cos(x) cosh(y); five losses."""
    exact = sympy.cos(x) * sympy.cosh(y)
    equation = "u_xx + u_yy = 0 on the unit square, u given on its sides"
    return on_rectangle("laplace", equation, laplacian(U), dict.fromkeys(SIDES, exact), exact)


def laplace_jump() -> Problem:
    """Laplace's equation with boundary values that jump in two corners; five losses.

    No network is 1 on one side and 0 on the next, so that conditions contradict each other. The
    solution is that of the half-infinite strip below the upper side, in closed form, and what the
    lower side changes, a series of which the next term is below 1e-17: Carslaw, Jaeger,
    "Conduction of Heat in Solids", 1959, chapter 5.
    """
    strip = 2 / pi * sympy.atan2(sympy.sin(pi * x), sympy.sinh(pi * (1 - y)))
    lower_side = sum(
        4
        / (n * pi)
        * sympy.sin(n * pi * x)
        * (sympy.exp(n * pi * (y - 2)) - sympy.exp(-n * pi * y))
        / (2 * sympy.sinh(n * pi))
        for n in range(1, 13, 2)
    )
    equation = "u_xx + u_yy = 0 on the unit square, u = 1 on its upper side and 0 on the others"
    values = {**ZERO_ON_SIDES, "top": sympy.Integer(1)}
    return on_rectangle("laplace_jump", equation, laplacian(U), values, strip + lower_side)


def poisson() -> Problem:
    """Poisson's equation with the solution sin(pi x) sin(pi y); five losses."""
    exact = sympy.sin(pi * x) * sympy.sin(pi * y)
    equation = "u_xx + u_yy = -2 pi^2 sin(pi x) sin(pi y) on the unit square, u = 0 on its sides"
    residual = laplacian(U) - laplacian(exact)
    return on_rectangle("poisson", equation, residual, ZERO_ON_SIDES, exact)


def helmholtz() -> Problem:
    """Helmholtz' equation, k = 1, with the solution sin(pi x) sin(4 pi y); five losses.

    From Wang, Teng, Perdikaris, "Understanding and mitigating gradient flow pathologies in
    physics-informed neural networks", SIAM J. Sci. Comput. 43 (2021).
    """
    exact = sympy.sin(pi * x) * sympy.sin(4 * pi * y)
    equation = (
        "u_xx + u_yy + u = (1 - 17 pi^2) sin(pi x) sin(4 pi y) on [-1, 1]^2, u = 0 on its sides"
    )
    residual = laplacian(U) + U - (laplacian(exact) + exact)
    low, high = (-1.0, -1.0), (1.0, 1.0)
    return on_rectangle("helmholtz", equation, residual, ZERO_ON_SIDES, exact, low, high)


def plate() -> Problem:
    """Kirchhoff's plate, simply supported, under a sinusoidal load; fourth order.

    Navier's solution (Timoshenko, Woinowsky-Krieger, "Theory of Plates and Shells", 1959,
    section 27), in units of the side, of the bending stiffness and of the largest deflection.
    """
    poisson_ratio = sympy.Rational(3, 10)
    exact = sympy.sin(pi * x) * sympy.sin(pi * y)
    load = 4 * pi**4 * exact
    across_x, across_y = ({x: 0.0}, {x: 1.0}), ({y: 0.0}, {y: 1.0})
    edges_x = Region("edges_x", 200, faces=across_x)
    edges_y = Region("edges_y", 200, faces=across_y)
    edges = Region("edges", 400, faces=across_x + across_y)
    moment_x = W.diff(x, 2) + poisson_ratio * W.diff(y, 2)
    moment_y = W.diff(y, 2) + poisson_ratio * W.diff(x, 2)
    return Problem(
        name="plate",
        equation="w_xxxx + 2 w_xxyy + w_yyyy = 4 pi^4 sin(pi x) sin(pi y) on the unit square, "
        "w = 0 and no bending moment, w_nn + 0.3 w_tt = 0, on its edges",
        coordinates=(x, y),
        fields=(w,),
        low=(0.0, 0.0),
        high=(1.0, 1.0),
        conditions=(
            Condition(
                "pde", "pde", Region("interior", 1000), (laplacian(laplacian(W)).doit() - load,)
            ),
            Condition("deflection", "boundary", edges, (W,)),
            Condition("moment_x", "boundary", edges_x, (moment_x,)),
            Condition("moment_y", "boundary", edges_y, (moment_y,)),
        ),
        reference=(exact,),
    )
