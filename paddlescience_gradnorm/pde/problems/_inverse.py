"""Inverse problems: coefficients from measurements of the solution."""

from __future__ import annotations

from dataclasses import replace

import sympy
from sympy import pi

from paddlescience_gradnorm.pde.problems._elliptic import laplacian
from paddlescience_gradnorm.pde.problems._evolution import burgers, heat
from paddlescience_gradnorm.pde.problems._reference_solutions import BURGERS_VISCOSITY
from paddlescience_gradnorm.pde.problems.formulation import Condition, Problem, Region, Unknown

x, y, t = sympy.symbols("x y t")
u = sympy.Function("u")


def burgers_inverse() -> Problem:
    """Burgers' equation with unknown coefficients and 300 measurements.

    As in Raissi, Perdikaris, Karniadakis, "Physics-informed neural networks", J. Comput. Phys.
    378 (2019), the trained parameter behind l2 is its logarithm, which starts from -6: l2 stays
    positive, and a step changes it in proportion. l1 is trained itself and starts from 0.
    """
    field = u(x, t)
    l1, log_l2 = sympy.symbols("l1 log_l2")
    residual = field.diff(t) + l1 * field * field.diff(x) - sympy.exp(log_l2) * field.diff(x, 2)
    known = burgers()
    equation, *conditions = known.conditions
    return replace(
        known,
        name="burgers_inverse",
        equation="u_t + l1 u u_x = l2 u_xx for x in [-1, 1], t in [0, 1], u = 0 at the ends, "
        "u = -sin(pi x) at first, u measured; l1 = 1, l2 = 0.01 / pi",
        conditions=(
            replace(equation, expressions=(residual,)),
            *conditions,
            Condition("data", "data", Region("data", 300), (field,)),
        ),
        unknowns=(
            Unknown("l1", l1, 0.0, l1, 1.0),
            Unknown("l2", log_l2, -6.0, sympy.exp(log_l2), float(BURGERS_VISCOSITY)),
        ),
    )


def helmholtz_inverse() -> Problem:
    """Helmholtz' equation with an unknown wavenumber and 100 measurements.

    k is 3 and starts from 1. With sin(pi x) sin(pi y) for its solution the term with k is
    about half of the Laplacian, and k can be told. (With k = 1 and sin(pi x) sin(4 pi y), the
    field of ``helmholtz``, it is less than a hundredth.)
    """
    field = u(x, y)
    k = sympy.Symbol("k")
    exact = sympy.sin(pi * x) * sympy.sin(pi * y)
    residual = laplacian(field) + k**2 * field - (laplacian(exact) + 9 * exact)
    sides = ({x: -1.0}, {x: 1.0}, {y: -1.0}, {y: 1.0})
    return Problem(
        name="helmholtz_inverse",
        equation="u_xx + u_yy + k^2 u = (9 - 2 pi^2) sin(pi x) sin(pi y) on [-1, 1]^2, u = 0 "
        "on its sides, u measured; k = 3",
        coordinates=(x, y),
        fields=(u,),
        low=(-1.0, -1.0),
        high=(1.0, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (residual,)),
            Condition("boundary", "boundary", Region("boundary", 400, faces=sides), (field,)),
            Condition("data", "data", Region("data", 100), (field,)),
        ),
        reference=(exact,),
        unknowns=(Unknown("k", k, 1.0, k, 3.0),),
    )


def heat_inverse() -> Problem:
    """Heat conduction with an unknown conductivity and 100 measurements with noise of 0.05."""
    field = u(x, t)
    k = sympy.Symbol("k")
    known = heat()
    equation, boundary, initial, _ = known.conditions
    return replace(
        known,
        name="heat_inverse",
        equation="u_t = k u_xx for x and t in [0, 1], u = 0 at the ends, u = sin(pi x) at first, u "
        "measured with noise; k = 0.25",
        conditions=(
            replace(equation, expressions=(field.diff(t) - k * field.diff(x, 2),)),
            boundary,
            initial,
            Condition("data", "data", Region("data", 100), (field,), noise=0.05),
        ),
        unknowns=(Unknown("k", k, 1.0, k, 0.25),),
    )


def transport_inverse() -> Problem:
    """A cloud that drifts and spreads, at 400 points and times, with noise of 0.02.

    Nothing else is known: no initial values and no boundary. The trained parameter behind d is
    its logarithm, which starts from -3.
    """
    field = u(x, t)
    c, log_d = sympy.symbols("c log_d")
    spread = 1 + 4 * t / 5
    exact = sympy.exp(-((x - t) ** 2) * 5 / spread) / sympy.sqrt(spread)
    residual = field.diff(t) + c * field.diff(x) - sympy.exp(log_d) * field.diff(x, 2)
    return Problem(
        name="transport_inverse",
        equation="u_t + c u_x = d u_xx for x in [-1, 2], t in [0, 1], u measured with noise; "
        "c = 1, d = 0.04",
        coordinates=(x, t),
        fields=(u,),
        low=(-1.0, 0.0),
        high=(2.0, 1.0),
        conditions=(
            Condition("pde", "pde", Region("interior", 1000), (residual,)),
            Condition("data", "data", Region("data", 400), (field,), noise=0.02),
        ),
        reference=(exact,),
        unknowns=(
            Unknown("c", c, 0.0, c, 1.0),
            Unknown("d", log_d, -3.0, sympy.exp(log_d), 0.04),
        ),
    )
