"""Incompressible flows, most of them in velocity and pressure."""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from sympy import cos, exp, pi, sin

from paddlescience_gradnorm.pde.problems import _reference_solutions as reference_solutions
from paddlescience_gradnorm.pde.problems.formulation import Condition, Problem, Region

x, y, z, t, s = sympy.symbols("x y z t s")
u, v, w, p, psi = (sympy.Function(name) for name in ("u", "v", "w", "p", "psi"))
U, V, P = u(x, y), v(x, y), p(x, y)


def momentum(
    velocity: Sequence[sympy.Expr],
    pressure: sympy.Expr,
    axis: sympy.Symbol,
    reynolds: sympy.Expr,
    axes: Sequence[sympy.Symbol] = (x, y),
) -> sympy.Expr:
    """The Navier-Stokes equations along one axis, as a residual."""
    component = velocity[axes.index(axis)]
    convection = sum(speed * component.diff(other) for speed, other in zip(velocity, axes))
    friction = sum(component.diff(other, 2) for other in axes) / reynolds
    return component.diff(t) + convection + pressure.diff(axis) - friction


def navier_stokes(
    velocity: Sequence[sympy.Expr],
    pressure: sympy.Expr,
    reynolds: sympy.Expr,
    axes: Sequence[sympy.Symbol] = (x, y),
) -> tuple[Condition, ...]:
    """Continuity and the momentum along each axis, at 1,000 points."""
    interior = Region("interior", 1000)
    continuity = sum(component.diff(axis) for component, axis in zip(velocity, axes))
    return (
        Condition("continuity", "pde", interior, (continuity,)),
        *(
            Condition(
                f"momentum_{axis}",
                "pde",
                interior,
                (momentum(velocity, pressure, axis, reynolds, axes),),
            )
            for axis in axes
        ),
    )


def kovasznay() -> Problem:
    """Flow behind a row of cylinders at Reynolds number 20, in velocity and pressure.

    Kovasznay, "Laminar flow behind a two-dimensional grid", Proc. Cambridge Philos. Soc. 44
    (1948). The network has three outputs, u, v and p.
    """
    reynolds = sympy.Integer(20)
    decay = reynolds / 2 - sympy.sqrt(reynolds**2 / 4 + 4 * pi**2)
    wave = sympy.exp(decay * x)
    exact = (
        1 - wave * sympy.cos(2 * pi * y),
        decay / (2 * pi) * wave * sympy.sin(2 * pi * y),
        (1 - wave**2) / 2,
    )
    low, high = (-0.5, -0.5), (1.0, 1.5)
    fields = tuple(field(x, y) for field in (u, v, p))
    velocity, pressure = fields[:2], fields[2]
    sides = ({x: low[0]}, {x: high[0]}, {y: low[1]}, {y: high[1]})
    edge = Region("boundary", 400, faces=sides)
    on_edge = tuple(field - value for field, value in zip(fields, exact))
    return Problem(
        name="kovasznay",
        equation="Navier-Stokes, Re = 20, on [-0.5, 1] x [-0.5, 1.5], u, v, p given on the sides",
        coordinates=(x, y),
        fields=(u, v, p),
        low=low,
        high=high,
        conditions=(
            *navier_stokes(velocity, pressure, reynolds),
            Condition("boundary", "boundary", edge, on_edge),
        ),
        reference=exact,
    )


def cavity() -> Problem:
    """Flow in a square whose lid moves, at Reynolds number 100, by its stream function.

    The network has two outputs, psi and p; the velocity is u = psi_y, v = -psi_x, so that
    continuity holds by itself. Only gradients of p count; it and psi stay free up to a constant.
    Evaluated are u, v and the speed. The solution is ``reference_solutions.cavity``.
    """
    reynolds = sympy.Float(reference_solutions.CAVITY_REYNOLDS)
    stream, pressure = psi(x, y), p(x, y)
    velocity = (stream.diff(y), -stream.diff(x))
    interior = Region("interior", 1000)
    lid = Region("lid", 100, faces=({y: 1.0},))
    walls = Region("walls", 300, faces=({x: 0.0}, {x: 1.0}, {y: 0.0}))
    return Problem(
        name="cavity",
        equation="Navier-Stokes, Re = 100, on the unit square, u = 1, v = 0 on the lid y = 1, "
        "u = v = 0 on the walls",
        coordinates=(x, y),
        fields=(psi, p),
        low=(0.0, 0.0),
        high=(1.0, 1.0),
        conditions=(
            Condition("momentum_x", "pde", interior, (momentum(velocity, pressure, x, reynolds),)),
            Condition("momentum_y", "pde", interior, (momentum(velocity, pressure, y, reynolds),)),
            Condition("lid", "boundary", lid, (velocity[0] - 1, velocity[1])),
            Condition("walls", "boundary", walls, velocity),
        ),
        reference=reference_solutions.cavity,
        quantities={
            "u": velocity[0],
            "v": velocity[1],
            "speed": sympy.sqrt(velocity[0] ** 2 + velocity[1] ** 2),
        },
    )


def channel() -> Problem:
    """Flow through a channel whose walls let fluid in and out, at Reynolds number 100.

    What comes in through the lower wall goes out through the upper one, so that convection
    counts and the profile leans (Berman, "Laminar flow in channels with porous walls", J. Appl.
    Phys. 24, 1953, and textbooks). The pressure is fixed at the outflow.
    """
    reynolds, through = sympy.Integer(100), sympy.Rational(1, 20)
    lean = reynolds * through
    profile = 2 * (y - (exp(lean * y) - 1) / (exp(lean) - 1))
    walls = Region("walls", 200, faces=({y: 0.0}, {y: 1.0}))
    inflow = Region("inflow", 100, faces=({x: 0.0},))
    outflow = Region("outflow", 100, faces=({x: 2.0},))
    return Problem(
        name="channel",
        equation="Navier-Stokes, Re = 100, on [0, 2] x [0, 1], u = 0 and v = 0.05 on the walls, "
        "u and v given at the inflow x = 0, v = 0.05 and p = 0 at the outflow x = 2",
        coordinates=(x, y),
        fields=(u, v, p),
        low=(0.0, 0.0),
        high=(2.0, 1.0),
        conditions=(
            *navier_stokes((U, V), P, reynolds),
            Condition("inflow", "boundary", inflow, (U - profile, V - through)),
            Condition("outflow", "boundary", outflow, (V - through, P)),
            Condition("walls", "boundary", walls, (U, V - through)),
        ),
        reference=(profile, through, 2 * through * (2 - x)),
    )


def step() -> Problem:
    """Flow over a backward-facing step, at Reynolds number 50.

    The solution is ``reference_solutions.step``, in which the flow leaves as a parabola; in a
    channel half as long again it differs by 0.03 %. Evaluated are u, v and the speed.
    """
    reynolds = sympy.Float(reference_solutions.STEP_REYNOLDS)
    edge, length = reference_solutions.STEP_EDGE, reference_solutions.STEP_LENGTH
    half = sympy.Rational(1, 2)
    inflow = Region("inflow", 50, faces=({x: 0.0, y: half + s / 2},))
    outflow = Region("outflow", 100, faces=({x: length},))
    below = ({x: edge * s, y: half}, {x: edge, y: s / 2}, {x: edge + (length - edge) * s, y: 0.0})
    walls = Region("walls", 400, faces=({y: 1.0}, *below))
    return Problem(
        name="step",
        equation="Navier-Stokes, Re = 50, in the channel [0, 4] x [0, 1] without the step "
        "[0, 1] x [0, 0.5], u = 16 (y - 0.5) (1 - y), v = 0 at the inflow x = 0, v = 0 and p = 0 "
        "at the outflow x = 4, u = v = 0 on the walls",
        coordinates=(x, y),
        fields=(u, v, p),
        low=(0.0, 0.0),
        high=(length, 1.0),
        conditions=(
            *navier_stokes((U, V), P, reynolds),
            Condition("inflow", "boundary", inflow, (U - 16 * (y - half) * (1 - y), V)),
            Condition("outflow", "boundary", outflow, (V, P)),
            Condition("walls", "boundary", walls, (U, V)),
        ),
        reference=reference_solutions.step,
        quantities={"u": U, "v": V, "speed": sympy.sqrt(U**2 + V**2)},
        domain=(x >= edge) | (y >= half),
    )


def lid() -> Problem:
    """Flow in a square whose lid moves, slower towards its ends, at Reynolds number 100.

    In velocity and pressure, which is fixed in one corner. The lid's speed falls to 0 with its
    slope, so that nothing jumps in the corners. The solution is ``reference_solutions.lid``.
    Evaluated are u, v and the speed.
    """
    reynolds = sympy.Float(reference_solutions.CAVITY_REYNOLDS)
    walls = Region("walls", 300, faces=({x: 0.0}, {x: 1.0}, {y: 0.0}))
    moving = Region("lid", 100, faces=({y: 1.0},))
    corner = Region("corner", 1, faces=({x: 0.0, y: 0.0},))
    return Problem(
        name="lid",
        equation="Navier-Stokes, Re = 100, on the unit square, u = 16 x^2 (1 - x)^2, v = 0 on the "
        "lid y = 1, u = v = 0 on the walls, p = 0 in the corner (0, 0)",
        coordinates=(x, y),
        fields=(u, v, p),
        low=(0.0, 0.0),
        high=(1.0, 1.0),
        conditions=(
            *navier_stokes((U, V), P, reynolds),
            Condition("lid", "boundary", moving, (U - 16 * x**2 * (1 - x) ** 2, V)),
            Condition("walls", "boundary", walls, (U, V)),
            Condition("pressure", "boundary", corner, (P,)),
        ),
        reference=reference_solutions.lid,
        quantities={"u": U, "v": V, "speed": sympy.sqrt(U**2 + V**2)},
    )


def couette() -> Problem:
    """Flow between a cylinder that turns and one that rests, at Reynolds number 50.

    Couette's flow, from Landau, Lifshitz, "Fluid Mechanics", 1987, section 18. The pressure is
    fixed at a point of the outer cylinder.
    """
    reynolds, inner = sympy.Integer(50), sympy.Rational(2, 5)
    square = x**2 + y**2
    rigid = inner / (inner**2 - 1)  # the speed at r is rigid (r - 1 / r)
    turning = rigid * (1 - 1 / square)
    exact = (
        -y * turning,
        x * turning,
        rigid**2 * (square - 2 * sympy.log(square) - 1 / square) / 2,
    )
    turn = 2 * pi * s
    at_inner = Region("inner", 200, faces=({x: inner * cos(turn), y: inner * sin(turn)},))
    at_outer = Region("outer", 400, faces=({x: cos(turn), y: sin(turn)},))
    return Problem(
        name="couette",
        equation="Navier-Stokes, Re = 50, between the circles r = 0.4, which turns with speed 1, "
        "and r = 1, which rests, p = 0 at (1, 0)",
        coordinates=(x, y),
        fields=(u, v, p),
        low=(-1.0, -1.0),
        high=(1.0, 1.0),
        conditions=(
            *navier_stokes((U, V), P, reynolds),
            Condition("inner", "boundary", at_inner, (U + y / inner, V - x / inner)),
            Condition("outer", "boundary", at_outer, (U, V)),
            Condition("pressure", "boundary", Region("point", 1, faces=({x: 1.0, y: 0.0},)), (P,)),
        ),
        reference=exact,
        domain=(square >= inner**2) & (square <= 1),
    )


def taylor_green() -> Problem:
    """Vortices that friction slows down, at Reynolds number 20.

    Taylor, Green, "Mechanism of the production of small eddies from large ones", Proc. R. Soc.
    A 158 (1937), in two dimensions. The pressure is fixed at the centre.
    """
    reynolds = sympy.Integer(20)
    decay = exp(-2 * pi**2 * t / reynolds)
    exact = (
        -cos(pi * x) * sin(pi * y) * decay,
        sin(pi * x) * cos(pi * y) * decay,
        (2 - cos(2 * pi * x) - cos(2 * pi * y)) * decay**2 / 4,
    )
    velocity, pressure = (u(x, y, t), v(x, y, t)), p(x, y, t)
    off = tuple(field - value for field, value in zip(velocity, exact))
    sides = Region("sides", 400, faces=({x: -1.0}, {x: 1.0}, {y: -1.0}, {y: 1.0}))
    centre = Region("centre", 20, faces=({x: 0.0, y: 0.0},))
    return Problem(
        name="taylor_green",
        equation="unsteady Navier-Stokes, Re = 20, for x and y in [-1, 1], t in [0, 1], u and v "
        "given at first and on the sides, p = 0 at the centre",
        coordinates=(x, y, t),
        fields=(u, v, p),
        low=(-1.0, -1.0, 0.0),
        high=(1.0, 1.0, 1.0),
        conditions=(
            *navier_stokes(velocity, pressure, reynolds),
            Condition("boundary", "boundary", sides, off),
            Condition("initial", "initial", Region("initial", 200, faces=({t: 0.0},)), off),
            Condition("pressure", "boundary", centre, (pressure,)),
        ),
        reference=exact,
    )


def beltrami() -> Problem:
    """Beltrami's flow in a cube, unsteady, at Reynolds number 1: four coordinates, four fields.

    From Ethier, Steinman, "Exact fully 3D Navier-Stokes solutions for benchmarking", Int. J.
    Numer. Methods Fluids 19 (1994), with a = d = 1. The pressure is given at the centre.
    """
    axes = (x, y, z)

    def component(i: sympy.Symbol, j: sympy.Symbol, k: sympy.Symbol) -> sympy.Expr:
        return -(exp(i) * sin(j + k) + exp(k) * cos(i + j)) * exp(-t)

    def pressure_of(i: sympy.Symbol, j: sympy.Symbol, k: sympy.Symbol) -> sympy.Expr:
        return -(exp(2 * i) + 2 * sin(i + j) * cos(k + i) * exp(j + k)) * exp(-2 * t) / 2

    turned = ((x, y, z), (y, z, x), (z, x, y))
    exact = (*(component(*ijk) for ijk in turned), sum(pressure_of(*ijk) for ijk in turned))
    velocity = tuple(field(x, y, z, t) for field in (u, v, w))
    pressure = p(x, y, z, t)
    off = tuple(field - value for field, value in zip(velocity, exact))
    sides = Region("sides", 600, faces=tuple({axis: end} for axis in axes for end in (-1.0, 1.0)))
    centre = Region("centre", 20, faces=({x: 0.0, y: 0.0, z: 0.0},))
    at_centre = pressure - exact[3].subs({x: 0, y: 0, z: 0})
    return Problem(
        name="beltrami",
        equation="unsteady Navier-Stokes, Re = 1, for x, y and z in [-1, 1], t in [0, 1], u, v and "
        "w given at first and on the sides, p at the centre",
        coordinates=(x, y, z, t),
        fields=(u, v, w, p),
        low=(-1.0, -1.0, -1.0, 0.0),
        high=(1.0, 1.0, 1.0, 1.0),
        conditions=(
            *navier_stokes(velocity, pressure, sympy.Integer(1), axes),
            Condition("boundary", "boundary", sides, off),
            Condition("initial", "initial", Region("initial", 300, faces=({t: 0.0},)), off),
            Condition("pressure", "boundary", centre, (at_centre,)),
        ),
        reference=exact,
    )
