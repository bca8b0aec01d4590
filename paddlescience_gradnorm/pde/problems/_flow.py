"""Steady, incompressible, two-dimensional flows."""

from __future__ import annotations

import sympy
from sympy import pi

from paddlescience_gradnorm.pde.problems import _reference_solutions as reference_solutions
from paddlescience_gradnorm.pde.problems.formulation import Condition, Problem, Region

x, y = sympy.symbols("x y")
u, v, p, psi = (sympy.Function(name) for name in ("u", "v", "p", "psi"))


def momentum(
    velocity: tuple[sympy.Expr, sympy.Expr],
    pressure: sympy.Expr,
    axis: sympy.Symbol,
    reynolds: sympy.Expr,
) -> sympy.Expr:
    """The Navier-Stokes equations along one axis, as a residual."""
    component = velocity[(x, y).index(axis)]
    convection = velocity[0] * component.diff(x) + velocity[1] * component.diff(y)
    friction = (component.diff(x, 2) + component.diff(y, 2)) / reynolds
    return convection + pressure.diff(axis) - friction


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
    interior = Region("interior", 1000)
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
            Condition("continuity", "pde", interior, (velocity[0].diff(x) + velocity[1].diff(y),)),
            Condition("momentum_x", "pde", interior, (momentum(velocity, pressure, x, reynolds),)),
            Condition("momentum_y", "pde", interior, (momentum(velocity, pressure, y, reynolds),)),
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
