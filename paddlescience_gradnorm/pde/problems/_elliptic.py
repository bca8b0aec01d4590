"""Elliptic problems: Laplace, Poisson, Helmholtz, also with holes and in 3-D; a bending plate."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
from sympy import pi

from paddlescience_gradnorm.pde.problems import _reference_solutions as reference_solutions
from paddlescience_gradnorm.pde.problems.formulation import Condition, Face, Problem, Region

x, y, z, r, s = sympy.symbols("x y z r s")
u, w = sympy.Function("u"), sympy.Function("w")
U, W = u(x, y), w(x, y)

SIDES = ("left", "right", "bottom", "top")
ZERO_ON_SIDES = dict.fromkeys(SIDES, sympy.Integer(0))


def laplacian(field: sympy.Expr) -> sympy.Expr:
    """field_xx + field_yy, and field_zz of a field that has it."""
    return field.diff(x, 2) + field.diff(y, 2) + field.diff(z, 2)


def circle(centre: tuple[float, float], radius: float) -> Face:
    """As a face of a region."""
    turn = 2 * pi * s
    return {x: centre[0] + radius * sympy.cos(turn), y: centre[1] + radius * sympy.sin(turn)}


def outside(*discs: tuple[tuple[float, float], float]) -> sympy.logic.boolalg.Boolean:
    """The domain without these discs, given by centre and radius."""
    return sympy.And(*((x - c[0]) ** 2 + (y - c[1]) ** 2 >= radius**2 for c, radius in discs))


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


def laplace_holes() -> Problem:
    """Laplace's equation in a square with four round holes, 1 on its sides and 0 on the holes.

    From Hao et al., "PINNacle: a comprehensive benchmark of physics-informed neural networks",
    NeurIPS 2024. The solution is ``reference_solutions.laplace_holes``.
    """
    holes, radius = reference_solutions.HOLES, reference_solutions.HOLES_RADIUS
    sides = ({x: -0.5}, {x: 0.5}, {y: -0.5}, {y: 0.5})
    around = tuple(circle(centre, radius) for centre in holes)
    return Problem(
        name="laplace_holes",
        equation="u_xx + u_yy = 0 on [-0.5, 0.5]^2 without the discs of radius 0.1 around "
        "(+-0.3, +-0.3), u = 1 on the sides, u = 0 on the circles",
        coordinates=(x, y),
        fields=(u,),
        low=(-0.5, -0.5),
        high=(0.5, 0.5),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (laplacian(U),)),
            Condition("sides", "boundary", Region("sides", 200, faces=sides), (U - 1,)),
            Condition("holes", "boundary", Region("holes", 200, faces=around), (U,)),
        ),
        reference=reference_solutions.laplace_holes,
        domain=outside(*((centre, radius) for centre in holes)),
    )


def poisson_boltzmann() -> Problem:
    """The linear Poisson-Boltzmann equation in a square with four round holes of several sizes.

    The domain and k = 8 are those of PINNacle (Hao et al., NeurIPS 2024); the source and the
    values on the boundary make sin(pi x) sin(2 pi y) + x y the solution.
    """
    discs = (((0.5, 0.5), 0.2), ((0.4, -0.4), 0.4), ((-0.2, -0.7), 0.1), ((-0.6, 0.5), 0.3))
    exact = sympy.sin(pi * x) * sympy.sin(2 * pi * y) + x * y
    sides = ({x: -1.0}, {x: 1.0}, {y: -1.0}, {y: 1.0})
    around = tuple(circle(*disc) for disc in discs)
    residual = laplacian(U) - 64 * U - (laplacian(exact) - 64 * exact)
    return Problem(
        name="poisson_boltzmann",
        equation="u_xx + u_yy - 64 u = f on [-1, 1]^2 without four discs, u given on the sides and "
        "on the circles",
        coordinates=(x, y),
        fields=(u,),
        low=(-1.0, -1.0),
        high=(1.0, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (residual,)),
            Condition("sides", "boundary", Region("sides", 200, faces=sides), (U - exact,)),
            Condition("holes", "boundary", Region("holes", 200, faces=around), (U - exact,)),
        ),
        reference=(exact,),
        domain=outside(*discs),
    )


def helmholtz_3d() -> Problem:
    """Helmholtz' equation, k = 4, in a cube, with the solution sin(pi x) sin(pi y) sin(2 pi z)."""
    exact = sympy.sin(pi * x) * sympy.sin(pi * y) * sympy.sin(2 * pi * z)
    field = u(x, y, z)
    residual = laplacian(field) + 16 * field - (laplacian(exact) + 16 * exact)
    faces = tuple({axis: end} for axis in (x, y, z) for end in (0.0, 1.0))
    return Problem(
        name="helmholtz_3d",
        equation="u_xx + u_yy + u_zz + 16 u = (16 - 6 pi^2) sin(pi x) sin(pi y) sin(2 pi z) on the "
        "unit cube, u = 0 on its faces",
        coordinates=(x, y, z),
        fields=(u,),
        low=(0.0, 0.0, 0.0),
        high=(1.0, 1.0, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (residual,)),
            Condition("boundary", "boundary", Region("boundary", 600, faces=faces), (field,)),
        ),
        reference=(exact,),
    )


def poisson_3d() -> Problem:
    """Poisson's equation in a cube with a round hole, around which the solution is steep.

    It is 1 / (5 r), r the distance from the hole's centre, plus a product of sines.
    """
    field = u(x, y, z)
    radius = sympy.Rational(1, 5)
    waves = sympy.sin(pi * x) * sympy.sin(pi * y) * sympy.sin(pi * z)
    square = x**2 + y**2 + z**2
    exact = radius / sympy.sqrt(square) + waves
    faces = tuple({axis: end} for axis in (x, y, z) for end in (-1.0, 1.0))
    height, turn = 1 - 2 * r, 2 * pi * s
    across = radius * sympy.sqrt(1 - height**2)
    sphere = {x: across * sympy.cos(turn), y: across * sympy.sin(turn), z: radius * height}
    residual = laplacian(field) - laplacian(waves)
    return Problem(
        name="poisson_3d",
        equation="u_xx + u_yy + u_zz = -3 pi^2 sin(pi x) sin(pi y) sin(pi z) on [-1, 1]^3 without "
        "the ball of radius 0.2 around 0, u given on the faces and on the sphere",
        coordinates=(x, y, z),
        fields=(u,),
        low=(-1.0, -1.0, -1.0),
        high=(1.0, 1.0, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (residual,)),
            Condition("faces", "boundary", Region("faces", 600, faces=faces), (field - exact,)),
            Condition("hole", "boundary", Region("hole", 100, faces=(sphere,)), (field - exact,)),
        ),
        reference=(exact,),
        domain=square >= radius**2,
    )
