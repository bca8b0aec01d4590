"""What a problem is made of: regions, conditions in them, unknown coefficients, a solution."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Callable, Union

import numpy as np
import paddle
import sympy
from sympy.core.function import UndefinedFunction
from sympy.logic.boolalg import Boolean

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.pde.problems.sampled_problem import (
    PointWeightsChoice,
    SampledProblem,
    numerical,
)
from paddlescience_gradnorm.pde.residual import Network, Residual, check_expression
from paddlescience_gradnorm.pde.sampling import sample_interior

KINDS = ("pde", "boundary", "initial", "data")
# For which the numbers of points in regions are given.
INTERIOR_POINTS = 1000
EVALUATION_POINTS = 10_000

Face = Mapping[sympy.Symbol, Union[float, sympy.Expr]]


@dataclass(frozen=True, eq=False)
class Region:
    """Where conditions hold. Those in one region share their points.

    Attributes:
        name: By which the number of points can be chosen.
        n_points: Number of points where the interior has 1,000.
        faces: For each face, the coordinates that are fixed on it and their values. A value is a
            number or an expression in the other coordinates and in parameters, symbols of your
            own that run from 0 to 1: a curve or a curved surface. Points are uniform in these and
            in the free coordinates, and shared out by length or area. No faces: the whole domain.
        periodic: Instead of faces, a coordinate: points are on the box's low face in it, and a
            condition is on what an expression is there minus what it is opposite.

    Examples:
        >>> x, y = sympy.symbols("x y")
        >>> walls = Region("walls", 100, faces=({x: 0.0}, {x: 1.0}))
        >>> s = sympy.Symbol("s")
        >>> circle = {x: sympy.cos(2 * sympy.pi * s), y: sympy.sin(2 * sympy.pi * s)}
        >>> hole = Region("hole", 100, faces=(circle,))
    """

    name: str
    n_points: int
    faces: tuple[Face, ...] = ()
    periodic: sympy.Symbol | None = None


@dataclass(frozen=True, eq=False)
class Condition:
    """A loss: expressions that vanish in a region, or measurements there.

    Attributes:
        name: Of the loss.
        kind: ``"pde"``, ``"boundary"``, ``"initial"`` or ``"data"``.
        region: Where it holds.
        expressions: What vanishes, sympy expressions in coordinates, fields, their derivatives
            and unknown coefficients. For data: what is measured, quantities of the problem.
        noise: Of data, the standard deviation of the normal noise on it.
    """

    name: str
    kind: str
    region: Region
    expressions: tuple[sympy.Expr, ...]
    noise: float = 0.0


@dataclass(frozen=True, eq=False)
class Unknown:
    """A coefficient to be found from data.

    Attributes:
        name: Of the coefficient.
        symbol: The symbol in the conditions, which is the parameter to be trained.
        initial: Where the parameter starts.
        value: The coefficient as an expression in the symbol, such as ``sympy.exp(symbol)``
            for one that has to stay positive and is small.
        true: The coefficient's value in the solution.
    """

    name: str
    symbol: sympy.Symbol
    initial: float
    value: sympy.Expr
    true: float


@dataclass(frozen=True, eq=False)
class Problem:
    """A differential equation with its conditions and its solution.

    Attributes:
        name: In ``PROBLEMS``, or of your own.
        equation: The equation and what matters of the domain, for people.
        coordinates: Sympy symbols, the network's inputs.
        fields: Sympy functions, the network's outputs.
        low: Lower corner of the domain, or of a box around it.
        high: Upper corner.
        conditions: The losses, in their order.
        reference: The solution: a tuple of expressions in the coordinates, or numbers, one for
            each quantity; or a function from points of shape [N, d] to an array of shape
            [N, number of quantities].
        quantities: What is evaluated, by name: expressions in fields and their derivatives. The
            fields, unless given.
        unknowns: Coefficients to be found.
        domain: Where in the box the domain is, a sympy condition on the coordinates such as
            ``x**2 + y**2 >= 1``. All of it, unless given.

    Raises:
        TypeError: The expressions of a condition, or the reference, are no tuple of expressions,
            or a number of points is no integer.
        ValueError: The parts do not fit together.

    Examples:
        >>> x = sympy.Symbol("x")
        >>> u = sympy.Function("u")
        >>> ends = Region("ends", 2, faces=({x: 0.0}, {x: 1.0}))
        >>> bar = Problem(
        ...     "bar", "u'' = 2, u(0) = 0, u(1) = 1", (x,), (u,), (0.0,), (1.0,),
        ...     conditions=(
        ...         Condition("pde", "pde", Region("interior", 1000), (u(x).diff(x, 2) - 2,)),
        ...         Condition("boundary", "boundary", ends, (u(x) - x,)),
        ...     ),
        ...     reference=(x**2,),
        ... )
        >>> bar.solution(np.array([[0.5], [1.0]])).tolist()
        [[0.25], [1.0]]
        >>> bar.relative_errors(lambda points: 1.5 * points**2)["u"].__round__(6)
        0.5
    """

    name: str
    equation: str
    coordinates: tuple[sympy.Symbol, ...]
    fields: tuple[UndefinedFunction, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    conditions: tuple[Condition, ...]
    reference: Union[Sequence[Union[sympy.Expr, float]], Callable[[np.ndarray], np.ndarray]]
    quantities: Mapping[str, sympy.Expr] = field(default_factory=dict)
    unknowns: tuple[Unknown, ...] = ()
    domain: Boolean = sympy.true

    def __post_init__(self) -> None:
        if not self.quantities:
            fields = {str(f): f(*self.coordinates) for f in self.fields}
            object.__setattr__(self, "quantities", fields)
        self._check_parts()
        if not callable(self.reference):
            object.__setattr__(self, "reference", self._reference_expressions())

    def _check_parts(self) -> None:
        for what, names in (
            ("conditions", [condition.name for condition in self.conditions]),
            ("regions", [region.name for region in self.regions]),
            ("unknowns", [unknown.name for unknown in self.unknowns]),
        ):
            if len(set(names)) < len(names) or (what == "conditions" and not names):
                raise ValueError(f"{what} must have names of their own, one at least, got {names}")
        if not len(self.coordinates) == len(self.low) == len(self.high):
            raise ValueError(
                f"low and high must have a number for each of the coordinates {self.coordinates}, "
                f"got {self.low} and {self.high}"
            )
        # To sympy a symbol is a condition too.
        is_condition = isinstance(self.domain, Boolean) and not self.domain.is_symbol
        if not is_condition or self._symbols(self.domain):
            raise ValueError(
                f"domain must be a sympy condition on the coordinates {self.coordinates}, such as "
                f"x**2 + y**2 >= 1, got {self.domain!r}"
            )
        for condition in self.conditions:
            self._check_condition(condition)
        for region in self.regions:
            self._check_region(region)
        for unknown in self.unknowns:
            if not any(e.has(unknown.symbol) for c in self.conditions for e in c.expressions):
                raise ValueError(
                    f"unknown {unknown.name!r} must be in a condition by its symbol "
                    f"{unknown.symbol}, which is in none"
                )

    def _reference_expressions(self) -> tuple[sympy.Expr, ...]:
        given = self.reference
        if not isinstance(given, (list, tuple)) or not all(
            isinstance(value, (sympy.Expr, numbers.Real)) for value in given
        ):
            raise TypeError(
                "reference must be a tuple with an expression of sympy or a number for each of the "
                f"quantities {list(self.quantities)}, such as ({self.coordinates[0]},), or a "
                f"function of points, got {given!r}"
            )
        expressions = tuple(map(sympy.sympify, given))
        if len(expressions) != len(self.quantities) or any(map(self._symbols, expressions)):
            raise ValueError(
                f"reference must have an expression in {self.coordinates} for each of the "
                f"quantities {list(self.quantities)}, got {given}"
            )
        return expressions

    def _check_condition(self, condition: Condition) -> None:
        if not isinstance(condition.expressions, tuple) or not condition.expressions:
            raise TypeError(
                f"expressions of condition {condition.name!r} must be a tuple of at least one, "
                f"got {condition.expressions!r}"
            )
        for expression in condition.expressions:
            check_expression(f"an expression of condition {condition.name!r}", expression)
        known = {*self.coordinates, *(unknown.symbol for unknown in self.unknowns)}
        symbols = set().union(*(e.free_symbols for e in condition.expressions)) - known
        if symbols:
            raise ValueError(
                f"expressions of condition {condition.name!r} have the symbols {symbols}, which "
                f"are neither coordinates {self.coordinates} nor of unknowns (one of the same name "
                "but with other assumptions is another symbol); substitute known coefficients"
            )
        if condition.kind not in KINDS:
            raise ValueError(
                f"kind of condition {condition.name!r} must be one of {KINDS}, "
                f"got {condition.kind!r}"
            )
        unmeasured = set(condition.expressions) - set(self.quantities.values())
        if condition.kind == "data" and unmeasured:
            raise ValueError(
                f"expressions of the data {condition.name!r} must be quantities of the "
                f"problem, {list(self.quantities.values())}, got {unmeasured}"
            )
        if condition.noise < 0 or (condition.noise and condition.kind != "data"):
            raise ValueError(
                f"noise of condition {condition.name!r} must not be negative, and 0 where the "
                f"kind is not 'data', got {condition.noise} for {condition.kind!r}"
            )

    def _check_region(self, region: Region) -> None:
        _arguments.integer(f"n_points of region {region.name!r}", region.n_points, at_least=1)
        fixed = {symbol for face in region.faces for symbol in face}
        fixed |= {region.periodic} - {None}
        if not fixed <= set(self.coordinates) or (region.faces and region.periodic):
            raise ValueError(
                f"region {region.name!r} must have faces or be periodic, in coordinates of "
                f"{self.coordinates}, got faces {region.faces} and periodic {region.periodic}"
            )
        for face in region.faces:
            if any(isinstance(value, str) for value in face.values()):  # sympy would run it
                raise TypeError(
                    f"a face of region {region.name!r} must have numbers and expressions of sympy, "
                    f"got text in {face}"
                )
            if any(sympy.sympify(value).free_symbols & set(face) for value in face.values()):
                raise ValueError(
                    f"a face of region {region.name!r} must have values in parameters and in the "
                    f"coordinates that it leaves free, got {face}"
                )

    def _symbols(self, expression: sympy.Basic) -> set[sympy.Symbol]:
        """Those that are no coordinates."""
        return expression.free_symbols - set(self.coordinates)

    @functools.cached_property
    def regions(self) -> tuple[Region, ...]:
        """The regions of all conditions, in their order."""
        return tuple(dict.fromkeys(condition.region for condition in self.conditions))

    def solution(self, points: np.ndarray) -> np.ndarray:
        """The quantities in the solution.

        Args:
            points: In the domain, shape [N, d].

        Returns:
            Float64, shape [N, number of quantities].

        Raises:
            ValueError: The points have another shape or lie outside the domain.
        """
        points = np.asarray(points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != len(self.low):
            raise ValueError(f"points must have shape [N, {len(self.low)}], got {points.shape}")
        inside = np.clip(points, self.low, self.high)
        # Points on a face may have been rounded to float32.
        if not np.allclose(points, inside, rtol=1e-6, atol=0):
            raise ValueError(
                f"points must lie between {self.low} and {self.high}, got some from "
                f"{points.min(axis=0)} to {points.max(axis=0)}"
            )
        return self._reference_function(inside)

    @functools.cached_property
    def _reference_function(self) -> Callable[[np.ndarray], np.ndarray]:
        if callable(self.reference):
            return self.reference
        return numerical(self.reference, self.coordinates)

    def sample(
        self,
        n_points: int = INTERIOR_POINTS,
        seed: int = 0,
        points: Mapping[str, int] | None = None,
        point_weights: PointWeightsChoice | None = None,
    ) -> SampledProblem:
        """Points in every region, data, and the losses there.

        Args:
            n_points: Number of points in the interior. Regions on the boundary get theirs in
                proportion; the number of measurements is the problem's own.
            seed: Of points and noise.
            points: Numbers for regions by name, instead of those.
            point_weights: Weights of the points of a loss: ``"rba"``, ``"self_adaptive"`` or
                ``"causal"`` for all equations; or a dict condition -> one of these, or -> a
                function that gives a layer for the points, an array of shape [N, d]. None unless
                given.

        Returns:
            The losses as a layer, whose parameters are the unknown coefficients.

        Raises:
            TypeError: A number is no integer.
            ValueError: A number is below 1, ``points`` names no region, or ``point_weights`` no
                kind of weights or no condition.

        Examples:
            >>> from paddlescience_gradnorm import FCNet
            >>> from paddlescience_gradnorm.pde.problems import problem
            >>> training = problem("heat").sample(500, seed=1, points={"data": 50})
            >>> {name: len(p) for name, p in training.points.items()}
            {'interior': 500, 'boundary': 100, 'initial': 50, 'data': 50}
            >>> list(training.losses(FCNet(2, 1, 3, 16)))
            ['pde', 'boundary', 'initial', 'data']
        """
        _arguments.integer("n_points", n_points, at_least=1)
        _arguments.integer("seed", seed, at_least=0)
        measured = {c.region.name for c in self.conditions if c.kind == "data"}
        counts = {
            region.name: region.n_points
            if region.name in measured
            else max(1, round(region.n_points * n_points / INTERIOR_POINTS))
            for region in self.regions
        }
        for name, count in (points or {}).items():
            if name not in counts:
                raise ValueError(
                    f"points has {name!r}, which is no region of {self.name}; its regions are "
                    f"{list(counts)}"
                )
            counts[name] = _arguments.integer(f"points[{name!r}]", count, at_least=1)
        return SampledProblem(self, counts, seed, point_weights)

    def sample_region(self, region: Region, n: int, seed: int) -> np.ndarray:
        """Points of a region, shape [N, d]; of a periodic one those on the low face.

        As many as asked for, but one for each face at least.

        Raises:
            ValueError: A face leaves the domain, or there is hardly any domain in its box.
        """
        faces: Sequence[Face] = region.faces or [{}]
        if region.periodic is not None:
            faces = [{region.periodic: self.low[self.coordinates.index(region.periodic)]}]
        sizes = [self._size(face) for face in faces]
        shares = np.diff(np.round(n * np.cumsum([0.0, *sizes]) / np.sum(sizes))).astype(int)
        seeds = np.random.SeedSequence(seed).generate_state(len(faces))
        points = []
        for face, share, face_seed in zip(faces, shares, seeds):
            count = max(1, int(share))
            if face:
                points.append(self._on_face(face, count, int(face_seed)))
                self._check_face(region, face, points[-1])
            else:
                points.append(self._in_domain(count, int(face_seed)))
        return np.concatenate(points)

    def _in_domain(self, n: int, seed: int) -> np.ndarray:
        drawn = n
        while drawn <= 1000 * n:
            # Sobol's sequence goes on, so that the points of a shorter draw stay.
            points = sample_interior(drawn, self.low, self.high, seed=seed)
            points = points[self.contains(points)]
            if len(points) >= n:
                return points[:n]
            drawn *= 2
        raise ValueError(
            f"domain {self.domain} holds {len(points)} of {drawn // 2} points of the box from "
            f"{self.low} to {self.high}; make low and high a box around it"
        )

    def _on_face(self, face: Face, n: int, seed: int) -> np.ndarray:
        variables, low, high = self._variables(face)
        drawn = sample_interior(n, low, high, seed=seed) if variables else np.empty((n, 0))
        place = [sympy.sympify(face.get(c, c)) for c in self.coordinates]
        points = numerical(place, variables)(drawn)
        for k, value in enumerate(place):
            if value.is_number:  # of which a compiled expression keeps only 15 digits
                points[:, k] = float(value)
        return points

    def _size(self, face: Face) -> float:
        """Length, area or volume: the mean of the root of Gram's determinant, times the range."""
        variables, low, high = self._variables(face)
        if not variables:
            return 1.0
        place = sympy.Matrix([face.get(c, c) for c in self.coordinates])
        tangents = place.jacobian(variables)
        stretch = sympy.sqrt((tangents.T * tangents).det())
        points = sample_interior(1024, low, high, seed=0)
        return float(
            numerical([stretch], variables)(points).mean() * np.prod(np.subtract(high, low))
        )

    def _variables(self, face: Face) -> tuple[list[sympy.Symbol], list[float], list[float]]:
        """What runs on a face, from where to where: its parameters and its free coordinates."""
        values = [sympy.sympify(value) for value in face.values()]
        parameters = sorted(set().union(*map(self._symbols, values)), key=str)
        free = [k for k, c in enumerate(self.coordinates) if c not in face]
        return (
            [*parameters, *(self.coordinates[k] for k in free)],
            [0.0] * len(parameters) + [self.low[k] for k in free],
            [1.0] * len(parameters) + [self.high[k] for k in free],
        )

    def _check_face(
        self,
        region: Region,
        face: Face,
        points: np.ndarray,
    ) -> None:
        inside = np.allclose(points, np.clip(points, self.low, self.high), rtol=1e-6, atol=1e-12)
        # Curves are the domain's own edges, on which rounding decides.
        curved = any(sympy.sympify(value).free_symbols for value in face.values())
        if not inside or not (curved or self.contains(points).all()):
            raise ValueError(
                f"face {dict(face)} of region {region.name!r} leaves the domain, {self.domain} "
                f"in the box from {self.low} to {self.high}; give the part that is in it, with a "
                "parameter s from 0 to 1, such as {x: 2.0, y: s / 2}"
            )

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which points of the box, shape [N, d], lie in the domain: booleans, shape [N]."""
        found = sympy.lambdify(self.coordinates, self.domain, "numpy")(*points.T)
        return np.broadcast_to(found, len(points)).astype(bool)

    def evaluate(self, network: Network, points: np.ndarray) -> np.ndarray:
        """The quantities that a network gives, to be compared with ``solution``.

        Args:
            network: Maps points of shape [N, d] to fields of shape [N, number of fields].
            points: In the domain, shape [N, d].

        Returns:
            Shape [N, number of quantities].
        """
        with paddle.no_grad():
            found = self._quantities(network, points)
        return np.concatenate([f.numpy() for f in found], axis=1)

    def relative_errors(self, network: Network) -> dict[str, float]:
        """Relative L2 error of every quantity, at 10,000 random points, always the same.

        Of a domain that is a part of its box, at those of them that lie in it.

        Args:
            network: Maps points of shape [N, d] to fields of shape [N, number of fields].

        Returns:
            Quantity -> the norm of its error over the norm of the solution.

        Examples:
            >>> from paddlescience_gradnorm.pde.problems import problem
            >>> problem("laplace").relative_errors(lambda points: 0.0 * points[:, :1])
            {'u': 1.0}
        """
        points, truth = self._evaluation
        errors = self.evaluate(network, points) - truth
        norms = np.linalg.norm(errors, axis=0) / np.linalg.norm(truth, axis=0)
        return dict(zip(self.quantities, norms.tolist()))

    @functools.cached_property
    def _evaluation(self) -> tuple[np.ndarray, np.ndarray]:
        uniform = np.random.default_rng(0).random((EVALUATION_POINTS, len(self.low)))
        points = self.low + (np.array(self.high) - self.low) * uniform
        points = points[self.contains(points)]
        return points, self.solution(points)

    @functools.cached_property
    def _quantities(self) -> Residual:
        return Residual(list(self.quantities.values()), self.coordinates, self.fields)
