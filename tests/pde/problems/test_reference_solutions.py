import numpy as np
import pytest

from paddlescience_gradnorm.pde.problems import _reference_solutions as reference_solutions
from paddlescience_gradnorm.pde.problems._reference_solutions import (
    allen_cahn,
    burgers,
    cavity,
    interpolate_allen_cahn,
    interpolate_step,
    interpolate_velocity,
    laplace_holes,
    lid,
    lotka_volterra,
    regularised,
    solve_allen_cahn,
    solve_cavity,
    solve_step,
    step,
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


def test_lid_grids_converge_with_second_order():
    limit = lid(UNIFORM)[:, :2]
    coarse, middle, fine = (
        interpolate_velocity(*solve_cavity(cells, lid=regularised))(UNIFORM)
        for cells in (24, 48, 80)
    )
    assert 3 < relative(coarse, limit) / relative(middle, limit) < 5
    assert relative(fine, limit) < 4e-3
    assert relative((4 * middle - coarse) / 3, limit) < 1e-3  # from other grids


def test_lid_moves_as_it_is_said():
    x = np.linspace(0, 1, 41)
    found = lid(np.stack([x, np.ones_like(x)], axis=1))
    np.testing.assert_allclose(found[:, 0], 16 * x**2 * (1 - x) ** 2, atol=1e-3)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-3)


def behind_the_step():
    points = UNIFORM * [4, 1]
    return points[(points[:, 0] > 1) | (points[:, 1] > 0.5)]


def test_step_grids_converge():
    points = behind_the_step()
    limit = step(points)[:, :2]
    coarse, fine = (interpolate_step(*solve_step(cells))(points) for cells in (24, 48))
    assert relative((4 * fine - coarse) / 3, limit) < 2e-3  # from other grids
    assert 2 < relative(coarse, limit) / relative(fine, limit) < 4


def test_step_hardly_feels_where_the_channel_ends():
    points = behind_the_step()
    usual, long = (interpolate_step(*solve_step(32, length))(points) for length in (4, 6))
    assert relative(usual, long) < 5e-4


def test_step_lets_through_what_comes_in_and_turns_round_behind_the_edge():
    y = (np.arange(400) + 0.5) / 400
    for x in (1.05, 1.5, 2.5, 3.9):
        u = step(np.stack([np.full_like(y, x), y], axis=1))[:, 0]
        assert u.mean() == pytest.approx(1 / 3, rel=2e-3)
    near_the_floor = np.stack([np.linspace(1.05, 3.9, 200), np.full(200, 0.02)], axis=1)
    u = step(near_the_floor)[:, 0]
    back = near_the_floor[u < 0, 0]
    assert 1.3 < back.max() < 2.5 and u[-1] > 0  # it ends at x = 2 or so
    walls = np.array([[0.5, 1], [2, 1], [0.5, 0.5], [1.0, 0.25], [3, 0]])
    np.testing.assert_allclose(step(walls), 0, atol=2e-2)


def test_step_that_does_not_converge_is_an_error(monkeypatch):
    monkeypatch.setattr(reference_solutions, "STEP_REYNOLDS", 1e7)
    with pytest.raises(RuntimeError, match="did not converge on 8 cells"):
        solve_step(8)


def test_laplace_series_is_exact_to_seven_digits():
    """By the maximum principle: it is harmonic, and on the boundary what it is to be."""
    s, turn = np.linspace(-0.5, 0.5, 333), np.linspace(0, 2 * np.pi, 555)
    for side in (np.stack([s, np.full_like(s, 0.5)], 1), np.stack([np.full_like(s, -0.5), s], 1)):
        np.testing.assert_allclose(laplace_holes(side), 1, atol=1e-9)
    circle = 0.1 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    for centre in ([0.3, 0.3], [-0.3, 0.3], [0.3, -0.3]):
        np.testing.assert_allclose(laplace_holes(circle + centre), 0, atol=1e-7)
    points = UNIFORM * 0.3 - 0.15
    h = 1e-3
    around = sum(
        laplace_holes(points + h * np.array(d)) for d in ((1, 0), (-1, 0), (0, 1), (0, -1))
    )
    assert np.abs(around - 4 * laplace_holes(points)).max() / h**2 < 1e-3


def test_lotka_volterra_keeps_its_invariant_and_its_equations():
    t = np.linspace(0.001, 7.999, 500)[:, None]
    u, v = lotka_volterra(t).T
    invariant = u - np.log(u) + (4 * v - 2 * np.log(v)) / 3
    np.testing.assert_allclose(invariant, 1 + 4 / 3, atol=1e-10)
    h = 1e-4
    rates = (lotka_volterra(t + h) - lotka_volterra(t - h)) / (2 * h)
    expected = np.stack([(2 * u - 4 * u * v) / 3, u * v - v], axis=1)
    np.testing.assert_allclose(rates, expected, atol=1e-7)
    np.testing.assert_array_equal(lotka_volterra(np.zeros((1, 1))), [[1, 1]])
