"""Solutions without a closed form: quadrature, series, spectral methods, finite differences.

Each is a function of points in float64 and computes what it needs once in a process.
"""

from __future__ import annotations

import functools
from typing import Callable

import numpy as np
import scipy.sparse
from scipy.integrate import solve_ivp
from scipy.interpolate import RectBivariateSpline
from scipy.sparse.linalg import splu

BURGERS_VISCOSITY = 0.01 / np.pi
ALLEN_CAHN_DIFFUSION = 1e-4
CAVITY_REYNOLDS = 100.0
STEP_REYNOLDS, STEP_EDGE, STEP_LENGTH = 50.0, 1.0, 4.0
HOLES_RADIUS = 0.1
HOLES = tuple((x, y) for x in (-0.3, 0.3) for y in (-0.3, 0.3))


def burgers(points: np.ndarray, nodes: int = 100) -> np.ndarray:
    """Solution of u_t + u u_x = (0.01 / pi) u_xx that starts from u = -sin(pi x).

    The Cole-Hopf transform turns the equation into that of heat, whose solution is a Gaussian
    integral; Gauss-Hermite quadrature computes it (Basdevant et al., "Spectral and finite
    difference solutions of the Burgers equation", Computers & Fluids 14, 1986).

    Args:
        points: x and t >= 0, shape [N, 2].
        nodes: Nodes of the quadrature; 100 are exact to rounding for t <= 1.

    Returns:
        u, shape [N, 1].

    Examples:
        >>> burgers(np.array([[0.5, 0.0], [-0.5, 0.0]])).round(12).tolist()
        [[-1.0], [1.0]]
    """
    x, t = points[:, :1], points[:, 1:]
    z, weights = np.polynomial.hermite.hermgauss(nodes)
    origin = np.pi * (x - np.sqrt(4 * BURGERS_VISCOSITY * t) * z)
    exponent = -np.cos(origin) / (2 * np.pi * BURGERS_VISCOSITY)
    # The exponent reaches 50; only ratios count.
    density = weights * np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return -(np.sin(origin) * density).sum(1, keepdims=True) / density.sum(1, keepdims=True)


def allen_cahn(points: np.ndarray) -> np.ndarray:
    """Solution of u_t = 0.0001 u_xx - 5 u^3 + 5 u, periodic, that starts from x^2 cos(pi x).

    Args:
        points: x in [-1, 1] and t in [0, 1], shape [N, 2].

    Returns:
        u, shape [N, 1].

    Examples:
        >>> allen_cahn(np.array([[-1.0, 0.0], [1.0, 0.0]])).round(6).tolist()
        [[-1.0], [-1.0]]
    """
    return _allen_cahn_interpolant()(points)


@functools.lru_cache(maxsize=1)
def _allen_cahn_interpolant() -> Callable[[np.ndarray], np.ndarray]:
    return interpolate_allen_cahn(*solve_allen_cahn())


def solve_allen_cahn(
    modes: int = 1024, steps: int = 2000, slices: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Fourier modes in x, exponential time differencing in t.

    ETDRK4 of Cox and Matthews with the coefficients as means over a circle (Kassam and
    Trefethen, "Fourth-order time-stepping for stiff PDEs", SIAM J. Sci. Comput. 26, 2005).

    Args:
        modes: Number of equidistant x, from -1 on.
        steps: Number of steps from t = 0 to t = 1, a multiple of ``slices``.
        slices: Number of intervals between the times that are returned.

    Returns:
        The times, shape [slices + 1], and u, shape [slices + 1, modes].
    """
    x = -1 + 2 * np.arange(modes) / modes
    wavenumbers = np.pi * np.arange(modes // 2 + 1)
    step = 1 / steps
    linear = step * (5 - ALLEN_CAHN_DIFFUSION * wavenumbers**2)
    whole, half = np.exp(linear), np.exp(linear / 2)
    # The formulas cancel near 0, but not on a circle around it.
    z = linear[:, None] + np.exp(1j * np.pi * (np.arange(32) + 0.5) / 32)

    def coefficient(formula: np.ndarray) -> np.ndarray:
        return step * formula.mean(axis=1).real

    into_stage = coefficient((np.exp(z / 2) - 1) / z)
    first = coefficient((-4 - z + np.exp(z) * (4 - 3 * z + z**2)) / z**3)
    middle = coefficient((2 + z + np.exp(z) * (z - 2)) / z**3)
    last = coefficient((-4 - 3 * z - z**2 + np.exp(z) * (4 - z)) / z**3)

    def reaction(spectrum: np.ndarray) -> np.ndarray:
        return np.fft.rfft(-5 * np.fft.irfft(spectrum, modes) ** 3)

    u = x**2 * np.cos(np.pi * x)
    spectrum, solution = np.fft.rfft(u), [u]
    for k in range(1, steps + 1):
        start = reaction(spectrum)
        a = half * spectrum + into_stage * start
        at_a = reaction(a)
        at_b = reaction(half * spectrum + into_stage * at_a)
        at_c = reaction(half * a + into_stage * (2 * at_b - start))
        spectrum = whole * spectrum + first * start + 2 * middle * (at_a + at_b) + last * at_c
        if k % (steps // slices) == 0:
            solution.append(np.fft.irfft(spectrum, modes))
    return np.linspace(0, 1, slices + 1), np.array(solution)


def interpolate_allen_cahn(
    times: np.ndarray, solution: np.ndarray, refine: int = 4
) -> Callable[[np.ndarray], np.ndarray]:
    """A function of points [N, 2] from what ``solve_allen_cahn`` returns.

    Trigonometric interpolation makes the grid ``refine`` times finer in x, a cubic spline
    goes through that.
    """
    modes = solution.shape[1]
    spectrum = np.fft.rfft(solution)
    spectrum[:, -1] /= 2  # the highest mode stands for two, of which the finer grid has both
    finer = np.fft.irfft(spectrum, refine * modes) * refine
    finer = np.concatenate([finer, finer[:, :1]], axis=1)
    spline = RectBivariateSpline(times, np.linspace(-1, 1, refine * modes + 1), finer)
    return lambda points: spline.ev(points[:, 1], points[:, 0])[:, None]


def cavity(points: np.ndarray) -> np.ndarray:
    """Velocity in the unit square whose lid y = 1 moves with u = 1, Reynolds number 100.

    Extrapolated from two grids, of 64 and 128 cells a side, whose error is of second order
    (Richardson); along the centre lines it agrees with the spectral solution of Botella and
    Peyret (Computers & Fluids 27, 1998) to five digits. In the upper corners the velocity
    jumps, and there it is no better than the grids.

    Args:
        points: x and y in [0, 1], shape [N, 2].

    Returns:
        u, v and the speed sqrt(u^2 + v^2), shape [N, 3].

    Examples:
        >>> cavity(np.array([[0.5, 1.0], [0.5, 0.4581]])).round(3).tolist()
        [[1.0, 0.0, 1.0], [-0.214, 0.042, 0.218]]
    """
    return _with_speed(_extrapolated((64, 128), _full_speed, points))


def lid(points: np.ndarray) -> np.ndarray:
    """As ``cavity``, but the lid moves with u = 16 x^2 (1 - x)^2.

    Nothing jumps in the corners, and two grids of 40 and 80 cells a side are enough.

    Args:
        points: x and y in [0, 1], shape [N, 2].

    Returns:
        u, v and the speed sqrt(u^2 + v^2), shape [N, 3].

    Examples:
        >>> lid(np.array([[0.5, 1.0], [0.5, 0.5]])).round(3).tolist()
        [[1.0, 0.0, 1.0], [-0.161, 0.05, 0.169]]
    """
    return _with_speed(_extrapolated((40, 80), regularised, points))


def _with_speed(velocity: np.ndarray) -> np.ndarray:
    return np.column_stack([velocity, np.hypot(*velocity.T)])


def _extrapolated(
    cells: tuple[int, int], lid: Callable[[np.ndarray], np.ndarray], points: np.ndarray
) -> np.ndarray:
    coarse, fine = (_cavity_interpolant(n, lid)(points) for n in cells)
    return (4 * fine - coarse) / 3


@functools.cache
def _cavity_interpolant(
    cells: int, lid: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    return interpolate_velocity(*solve_cavity(cells, lid=lid))


def _full_speed(x: np.ndarray) -> np.ndarray:
    return np.ones_like(x)


def regularised(x: np.ndarray) -> np.ndarray:
    """The speed of a lid that is 0 at both ends, with its slope."""
    return 16 * x**2 * (1 - x) ** 2


def solve_cavity(
    cells: int,
    stretching: float = 0.8,
    lid: Callable[[np.ndarray], np.ndarray] = _full_speed,
) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method for psi_y (lap psi)_x - psi_x (lap psi)_y = lap^2 psi / Re.

    psi is the stream function, u = psi_y and v = -psi_x. Central differences on a grid that is
    finer near the walls, five times with 0.8; the Laplacian on a wall by Thom's formula, which
    takes in the wall's velocity.

    Args:
        cells: Cells a side.
        stretching: In [0, 1): nodes are at s - stretching sin(2 pi s) / (2 pi), s uniform.
        lid: The lid's speed at x, of arrays.

    Returns:
        The nodes along either side, shape [cells + 1], and psi with x along rows,
        shape [cells + 1, cells + 1].

    Raises:
        RuntimeError: Newton's method does not converge.
    """
    uniform = np.linspace(0, 1, cells + 1)
    nodes = uniform - stretching * np.sin(2 * np.pi * uniform) / (2 * np.pi)
    left, right = np.diff(nodes)[:-1], np.diff(nodes)[1:]
    wall = np.diff(nodes)[0]  # the same at every wall

    def stencil(*diagonals: np.ndarray) -> scipy.sparse.spmatrix:
        """From all nodes of a line to its inner ones."""
        return scipy.sparse.diags(diagonals, [0, 1, 2], shape=(cells - 1, cells + 1), format="csr")

    span = left + right
    first = stencil(-right / (left * span), (right - left) / (left * right), left / (right * span))
    second = stencil(2 / (left * span), -2 / (left * right), 2 / (right * span))
    inner = scipy.sparse.eye(cells + 1, format="csr")[1:-1]
    outer = inner.T.tocsr()  # inner nodes among all, 0 on the walls
    at_walls = scipy.sparse.lil_matrix((cells + 1, cells - 1))
    at_walls[0, 0] = at_walls[-1, -1] = 2 / wall**2
    bend = outer @ second @ outer + at_walls

    def both(in_x: scipy.sparse.spmatrix, in_y: scipy.sparse.spmatrix) -> scipy.sparse.spmatrix:
        return scipy.sparse.kron(in_x, in_y, format="csr")

    identity = scipy.sparse.eye(cells - 1)
    psi_x, psi_y = both(first @ outer, identity), both(identity, first @ outer)
    laplacian = both(bend, outer) + both(outer, bend)  # of inner psi, at all nodes
    moved = np.zeros((cells + 1, cells + 1))
    moved[1:-1, -1] = 2 / wall * lid(nodes[1:-1])  # what the lid's u adds to it
    d_x, d_y = both(first, inner), both(inner, first)
    bilaplacian = both(second, inner) + both(inner, second)
    to_x, to_y, to_bilaplacian = (m @ laplacian for m in (d_x, d_y, bilaplacian))
    from_x, from_y, from_bilaplacian = (m @ moved.ravel() for m in (d_x, d_y, bilaplacian))

    psi = np.zeros((cells - 1) ** 2)
    for _ in range(20):
        u, minus_v = psi_y @ psi, psi_x @ psi
        l_x, l_y = to_x @ psi + from_x, to_y @ psi + from_y
        viscous = (to_bilaplacian @ psi + from_bilaplacian) / CAVITY_REYNOLDS
        jacobian = (
            scipy.sparse.diags(l_x) @ psi_y
            + scipy.sparse.diags(u) @ to_x
            - scipy.sparse.diags(l_y) @ psi_x
            - scipy.sparse.diags(minus_v) @ to_y
            - to_bilaplacian / CAVITY_REYNOLDS
        )
        step = splu(jacobian.tocsc()).solve(u * l_x - minus_v * l_y - viscous)
        psi -= step
        if np.abs(step).max() < 1e-11:
            return nodes, np.pad(psi.reshape(cells - 1, cells - 1), 1)
    raise RuntimeError(f"Newton's method did not converge on {cells} cells a side")


def interpolate_velocity(
    nodes: np.ndarray, stream: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """The velocity, shape [N, 2], at points [N, 2], from what ``solve_cavity`` returns."""
    return _interpolate_stream(nodes, nodes, stream)


def _interpolate_stream(
    x_nodes: np.ndarray, y_nodes: np.ndarray, stream: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    spline = RectBivariateSpline(x_nodes, y_nodes, stream)

    def velocity(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        return np.stack([spline.ev(x, y, dy=1), -spline.ev(x, y, dx=1)], axis=1)

    return velocity


def step(points: np.ndarray) -> np.ndarray:
    """Velocity behind a step in a channel, Reynolds number 50.

    Extrapolated from grids of 32 and 64 cells over the channel's height. At the step's edge the
    shear is infinite, and the grids converge with less than second order: the error is about
    0.1 % of the velocity.

    Args:
        points: x in [0, 4] and y in [0, 1], above the step, shape [N, 2].

    Returns:
        u, v and the speed sqrt(u^2 + v^2), shape [N, 3].

    Examples:
        >>> step(np.array([[2.0, 0.75]])).round(2).tolist()
        [[0.42, -0.03, 0.43]]
    """
    coarse, fine = (velocity(points) for velocity in _step_interpolants())
    return _with_speed((4 * fine - coarse) / 3)


@functools.lru_cache(maxsize=1)
def _step_interpolants() -> list[Callable[[np.ndarray], np.ndarray]]:
    return [interpolate_step(*solve_step(cells)) for cells in (32, 64)]


def solve_step(
    cells: int, length: float = STEP_LENGTH
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Newton's method for the stream function of the flow over a step, as in ``solve_cavity``.

    The step is [0, 1] x [0, 0.5]. Central differences on a uniform grid; u is a parabola at both
    ends, v = 0 there and on the walls, which Thom's formula takes in: psi beyond an edge is what
    it is on this side.

    Args:
        cells: Over the height of the channel, even.
        length: Of the channel.

    Returns:
        The nodes along x and y, and psi with x along rows, 0 in the step.

    Raises:
        RuntimeError: Newton's method does not converge.
    """
    h = 1 / cells
    shape = round(length * cells) + 1, cells + 1
    x, y = np.arange(shape[0]) * h, np.arange(shape[1]) * h
    column, row = (index.ravel() for index in np.indices(shape))
    edge, half = round(STEP_EDGE * cells), cells // 2
    solid = (column < edge) & (row < half)
    ends = (column == 0) | (column == shape[0] - 1) | (row == 0) | (row == shape[1] - 1)
    step = ((column == edge) & (row <= half)) | ((column <= edge) & (row == half))
    inner = ~(solid | ends | step)
    number = np.arange(column.size)

    def shifted(along_x: int, along_y: int) -> scipy.sparse.spmatrix:
        """The neighbours on one side of all nodes; beyond an edge, at those on the other."""
        place = np.clip(column + along_x, 0, shape[0] - 1) * shape[1]
        place = place + np.clip(row + along_y, 0, shape[1] - 1)
        back = number - along_x * shape[1] - along_y
        beyond = (place == number) | solid[place]
        place = np.where(beyond & ~solid, back, place)
        ones = np.ones(column.size)
        return scipy.sparse.csr_matrix((ones, (number, place)), shape=(column.size,) * 2)

    right, left, up, down = (shifted(*to) for to in ((1, 0), (-1, 0), (0, 1), (0, -1)))
    identity = scipy.sparse.eye(column.size, format="csr")
    laplacian = (right + left + up + down - 4 * identity) / h**2
    d_x, d_y = (right - left)[inner] / (2 * h), (up - down)[inner] / (2 * h)
    bend = laplacian[inner]

    # Of the parabolas: from the step or the floor, 0, to the ceiling, 1.
    height = np.where(column <= edge, np.clip(2 * y[row] - 1, 0, None), y[row])
    psi = height**2 * (3 - 2 * height) / 3
    for k in range(20):
        inertia = float(k > 0)  # first without, because the flow it starts from has a jump
        vorticity = laplacian @ psi
        u, minus_v = inertia * (d_y @ psi), inertia * (d_x @ psi)
        l_x, l_y = inertia * (d_x @ vorticity), inertia * (d_y @ vorticity)
        viscous = bend @ vorticity / STEP_REYNOLDS
        jacobian = (
            scipy.sparse.diags(l_x) @ d_y
            + scipy.sparse.diags(u) @ d_x @ laplacian
            - scipy.sparse.diags(l_y) @ d_x
            - scipy.sparse.diags(minus_v) @ d_y @ laplacian
            - bend @ laplacian / STEP_REYNOLDS
        )[:, inner]
        change = splu(jacobian.tocsc()).solve(u * l_x - minus_v * l_y - viscous)
        psi[inner] -= change
        if np.abs(change).max() < 1e-8:
            return x, y, psi.reshape(shape)
    raise RuntimeError(f"Newton's method did not converge on {cells} cells over the height")


def interpolate_step(
    x: np.ndarray, y: np.ndarray, stream: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """The velocity, shape [N, 2], at points [N, 2], from what ``solve_step`` returns.

    A spline for the part above the step and one for that behind it, for psi has a kink at it.
    """
    edge, half = np.searchsorted(x, STEP_EDGE - 1e-9), len(y) // 2
    above = _interpolate_stream(x, y[half:], stream[:, half:])
    behind = _interpolate_stream(x[edge:], y, stream[edge:])

    def velocity(points: np.ndarray) -> np.ndarray:
        return np.where(points[:, :1] < STEP_EDGE, above(points), behind(points))

    return velocity


def laplace_holes(points: np.ndarray, terms: int = 12) -> np.ndarray:
    """Solution of Laplace's equation that is 1 on the square's sides and 0 on its holes.

    By least squares on the boundary: a polynomial and, around each hole and its mirror images
    beyond the sides, a logarithm and negative powers (Trefethen, "Series solution of Laplace
    problems", ANZIAM J. 60, 2018). By the maximum principle the error is nowhere larger than on
    the boundary.

    Args:
        points: x and y in [-0.5, 0.5], outside of the holes, shape [N, 2].
        terms: Powers around each hole.

    Returns:
        u, shape [N, 1].

    Examples:
        >>> laplace_holes(np.array([[0.5, 0.2], [0.3, 0.2]])).round(6).tolist()
        [[1.0], [0.0]]
    """
    return _harmonic(points, terms) @ _holes_coefficients(terms)


@functools.cache
def _holes_coefficients(terms: int) -> np.ndarray:
    s = np.linspace(-0.5, 0.5, 201)[:, None]
    side = np.full_like(s, 0.5)
    sides = np.concatenate(
        [np.hstack(pair) for pair in ((s, side), (s, -side), (side, s), (-side, s))]
    )
    turn = 2 * np.pi * np.arange(100)[:, None] / 100
    circle = HOLES_RADIUS * np.hstack([np.cos(turn), np.sin(turn)])
    circles = np.concatenate([circle + hole for hole in HOLES])
    values = np.concatenate([np.ones(len(sides)), np.zeros(len(circles))])
    basis = _harmonic(np.concatenate([sides, circles]), terms)
    return np.linalg.lstsq(basis, values[:, None], rcond=None)[0]


def _harmonic(points: np.ndarray, terms: int) -> np.ndarray:
    """The functions of the series at points, one a column."""
    z = points[:, 0] + 1j * points[:, 1]
    columns = [np.ones_like(z)]
    columns += [(2 * z) ** k * unit for k in range(1, 2 * terms) for unit in (1, 1j)]
    places = (-0.7, -0.3, 0.3, 0.7)
    for centre in (x + 1j * y for x in places for y in places):
        from_centre = (z - centre) / HOLES_RADIUS
        columns.append(np.log(np.abs(from_centre)).astype(complex))
        columns += [from_centre**-k * unit for k in range(1, terms) for unit in (1, 1j)]
    return np.stack(columns, axis=1).real


def lotka_volterra(points: np.ndarray) -> np.ndarray:
    """Solution of u' = (2 u - 4 u v) / 3, v' = u v - v that starts from u = v = 1.

    Args:
        points: t in [0, 8], shape [N, 1].

    Returns:
        u and v, shape [N, 2].

    Examples:
        >>> lotka_volterra(np.array([[0.0], [8.0]])).round(4).tolist()
        [[1.0, 1.0], [1.0179, 0.9998]]
    """
    return _lotka_volterra()(points[:, 0]).T


@functools.lru_cache(maxsize=1)
def _lotka_volterra() -> Callable[[np.ndarray], np.ndarray]:
    def change(_: float, populations: np.ndarray) -> list[float]:
        u, v = populations
        return [(2 * u - 4 * u * v) / 3, u * v - v]

    # As dense output: interpolation of seventh order between the steps.
    found = solve_ivp(
        change, (0, 8), [1, 1], method="DOP853", rtol=1e-12, atol=1e-12, dense_output=True
    )
    return found.sol
