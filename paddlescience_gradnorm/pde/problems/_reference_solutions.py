"""Solutions that have no closed form: quadrature, a spectral method, finite differences.

Each is a function of points in float64 and computes what it needs once in a process.
"""

from __future__ import annotations

import functools
from typing import Callable

import numpy as np
import scipy.sparse
from scipy.interpolate import RectBivariateSpline
from scipy.sparse.linalg import splu

BURGERS_VISCOSITY = 0.01 / np.pi
ALLEN_CAHN_DIFFUSION = 1e-4
CAVITY_REYNOLDS = 100.0


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
    coarse, fine = (velocity(points) for velocity in _cavity_interpolants())
    u, v = ((4 * fine - coarse) / 3).T
    return np.stack([u, v, np.hypot(u, v)], axis=1)


@functools.lru_cache(maxsize=1)
def _cavity_interpolants() -> list[Callable[[np.ndarray], np.ndarray]]:
    return [interpolate_velocity(*solve_cavity(cells)) for cells in (64, 128)]


def solve_cavity(cells: int, stretching: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method for psi_y (lap psi)_x - psi_x (lap psi)_y = lap^2 psi / Re.

    psi is the stream function, u = psi_y and v = -psi_x. Central differences on a grid that is
    finer near the walls, five times with 0.8; the Laplacian on a wall by Thom's formula, which
    takes in the wall's velocity.

    Args:
        cells: Cells a side.
        stretching: In [0, 1): nodes are at s - stretching sin(2 pi s) / (2 pi), s uniform.

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
    lid = np.zeros((cells + 1, cells + 1))
    lid[1:-1, -1] = 2 / wall  # what u = 1 adds to it
    d_x, d_y = both(first, inner), both(inner, first)
    bilaplacian = both(second, inner) + both(inner, second)
    to_x, to_y, to_bilaplacian = (m @ laplacian for m in (d_x, d_y, bilaplacian))
    from_x, from_y, from_bilaplacian = (m @ lid.ravel() for m in (d_x, d_y, bilaplacian))

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
    spline = RectBivariateSpline(nodes, nodes, stream)

    def velocity(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        return np.stack([spline.ev(x, y, dy=1), -spline.ev(x, y, dx=1)], axis=1)

    return velocity
