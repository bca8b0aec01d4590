import numpy as np
import pytest

from paddlescience_gradnorm.pde.problems import _reference_solutions as reference_solutions
from paddlescience_gradnorm.pde.problems._reference_solutions import (
    allen_cahn,
    burgers,
    cavity,
    interpolate_allen_cahn,
    interpolate_velocity,
    solve_allen_cahn,
    solve_cavity,
)

UNIFORM = np.random.default_rng(7).random((2000, 2))
IN_TIME = UNIFORM * [2, 1] - [1, 0]  # x in [-1, 1], t in [0, 1]

# Ghia, Ghia, Shin, "High-Re solutions for incompressible flow using the Navier-Stokes equations
# and a multigrid method", J. Comput. Phys. 48 (1982), tables I and II, Re = 100.
GHIA_Y = "0.9766 0.9688 0.9609 0.9531 0.8516 0.7344 0.6172 0.5 0.4531 0.2813 0.1719 0.1016 0.0703"
GHIA_U = (
    "0.84123 0.78871 0.73722 0.68717 0.23151 0.00332 -0.13641 -0.20581 -0.21090 -0.15662 "
    "-0.10150 -0.06434 -0.04775"
)
GHIA_X = "0.9688 0.9609 0.9531 0.9453 0.9063 0.8594 0.8047 0.5 0.2344 0.2266 0.1563 0.0938 0.0781"
GHIA_V = (
    "-0.05906 -0.07391 -0.08864 -0.10313 -0.16914 -0.22445 -0.24533 0.05454 0.17527 0.17507 "
    "0.16077 0.12317 0.10890"
)


def numbers(text):
    return np.array(text.split(), dtype=float)


def relative(found, truth):
    return np.linalg.norm(found - truth) / np.linalg.norm(truth)


def test_burgers_quadrature_has_converged():
    np.testing.assert_allclose(burgers(IN_TIME), burgers(IN_TIME, nodes=140), atol=1e-13)


def test_burgers_starts_from_a_sine_and_is_odd():
    x = np.linspace(-1, 1, 41)[:, None]
    start = burgers(np.hstack([x, np.zeros_like(x)]))
    np.testing.assert_allclose(start, -np.sin(np.pi * x), atol=1e-15)
    np.testing.assert_allclose(burgers(IN_TIME), -burgers(IN_TIME * [-1, 1]), atol=1e-13)


def test_burgers_steepest_slope_is_the_published_one():
    """Basdevant et al. (1986): u_x = -152.00516 at x = 0, t = 1.6037 / pi, the steepest."""
    h = 1e-5
    x = h * np.array([-2, -1, 1, 2])
    values = burgers(np.stack([x, np.full(4, 1.6037 / np.pi)], axis=1))[:, 0]
    slope = values @ [1, -8, 8, -1] / (12 * h)
    assert slope == pytest.approx(-152.00516, abs=1e-5)


@pytest.mark.parametrize(
    "coarser, error", [({"modes": 512}, 5e-5), ({"steps": 1000}, 1e-9), ({"slices": 100}, 1e-6)]
)
def test_allen_cahn_has_converged(coarser, error):
    found = interpolate_allen_cahn(*solve_allen_cahn(**coarser))(IN_TIME)
    assert relative(found, allen_cahn(IN_TIME)) < error


def test_allen_cahn_time_stepping_is_of_fourth_order():
    def last(steps):
        return solve_allen_cahn(modes=256, steps=steps, slices=1)[1][-1]

    exact = last(2560)
    errors = [np.abs(last(steps) - exact).max() for steps in (40, 80, 160)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (orders > 3.7).all() and (orders < 4.6).all()


def test_allen_cahn_starts_right_and_is_even():
    x = np.linspace(-1, 1, 401)[:, None]
    start = allen_cahn(np.hstack([x, np.zeros_like(x)]))
    expected = x**2 * np.cos(np.pi * x)
    np.testing.assert_allclose(start, expected, rtol=0, atol=1e-3)  # a kink at the ends
    np.testing.assert_allclose(start[40:-40], expected[40:-40], rtol=0, atol=1e-5)
    mirrored = allen_cahn(IN_TIME * [-1, 1])
    np.testing.assert_allclose(allen_cahn(IN_TIME), mirrored, rtol=0, atol=1e-6)


def test_cavity_agrees_with_ghia():
    """To the accuracy of that table, of second order on 129 x 129 points."""
    y, x = numbers(GHIA_Y), numbers(GHIA_X)
    u = cavity(np.stack([np.full_like(y, 0.5), y], axis=1))[:, 0]
    v = cavity(np.stack([x, np.full_like(x, 0.5)], axis=1))[:, 1]
    assert np.abs(u - numbers(GHIA_U)).max() < 6e-3
    assert np.abs(v - numbers(GHIA_V)).max() < 1e-2


def test_cavity_agrees_with_a_spectral_solution():
    """Extrema on the centre lines from Botella and Peyret, Computers & Fluids 27 (1998)."""
    s = np.linspace(0, 1, 20001)
    half = np.full_like(s, 0.5)
    u = cavity(np.stack([half, s], axis=1))[:, 0]
    v = cavity(np.stack([s, half], axis=1))[:, 1]
    found = [u.min(), s[u.argmin()], v.max(), s[v.argmax()], v.min(), s[v.argmin()]]
    expected = [-0.2140424, 0.4581, 0.1795728, 0.2370, -0.2538030, 0.8104]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(found[::2], expected[::2], atol=2e-5)


def test_cavity_grids_converge_with_second_order():
    limit = cavity(UNIFORM)[:, :2]
    coarse, middle, fine = (
        relative(interpolate_velocity(*solve_cavity(cells))(UNIFORM), limit)
        for cells in (32, 64, 128)
    )
    assert 3 < coarse / middle < 6 and 3 < middle / fine < 6
    # From grids that are not those of the reference.
    a, b = (interpolate_velocity(*solve_cavity(cells))(UNIFORM) for cells in (48, 96))
    assert relative((4 * b - a) / 3, limit) < 1e-3


def test_cavity_speed_and_lid():
    found = cavity(UNIFORM)
    np.testing.assert_allclose(found[:, 2], np.hypot(found[:, 0], found[:, 1]))
    x = np.linspace(0.02, 0.98, 49)
    lid = cavity(np.stack([x, np.ones_like(x)], axis=1))
    np.testing.assert_allclose(lid[:, :2], np.stack([np.ones(49), np.zeros(49)], axis=1), atol=1e-3)


def test_newton_that_does_not_converge_is_an_error(monkeypatch):
    monkeypatch.setattr(reference_solutions, "CAVITY_REYNOLDS", 1e7)
    with pytest.raises(RuntimeError, match="did not converge on 16 cells"):
        solve_cavity(16)
