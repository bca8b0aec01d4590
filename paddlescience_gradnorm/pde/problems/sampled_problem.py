"""SampledProblem: the losses of a problem at points that were drawn for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Callable, NamedTuple, Union

import numpy as np
import paddle
import sympy
from sympy.printing.numpy import SciPyPrinter

from paddlescience_gradnorm.balancing._losses import NamedLosses
from paddlescience_gradnorm.pde._paddle_printer import check_defined_everywhere
from paddlescience_gradnorm.pde.residual import Network, Residual
from paddlescience_gradnorm.point_weights import (
    CausalWeights,
    ResidualAttention,
    SelfAdaptiveWeights,
)

if TYPE_CHECKING:
    from paddlescience_gradnorm.pde.problems.formulation import Condition, Problem, Region

_Kind = Union[str, Callable[[np.ndarray], paddle.nn.Layer]]
PointWeightsChoice = Union[str, Mapping[str, _Kind]]


class _Evaluation(NamedTuple):
    """All conditions of one region: what their residuals are to equal, and where."""

    residual: Residual
    points: paddle.Tensor  # of a periodic region, those opposite follow
    periodic: bool
    targets: list[tuple[str, list[paddle.Tensor | None]]]  # for each condition; None is 0


class SampledProblem(paddle.nn.Layer):
    """What ``Problem.sample`` gives: the losses of a problem at fixed points.

    Every loss is the mean square of its condition's residual over the points of its region;
    the sum of these for a condition with several expressions. Conditions of one region are
    evaluated together. Sources and prescribed values are computed once, in float64.

    Its parameters are the unknown coefficients, if the problem has any: give them to the
    optimizer beside the network's. Its buffers are the weights of points, if there are any.

    Attributes:
        problem: The problem.
        points: Region -> its points, a tensor of shape [N, d].
        point_weights: Condition -> the weights of its points, for those that have any.

    Examples:
        >>> import paddle
        >>> from paddlescience_gradnorm import FCNet, GradNorm
        >>> from paddlescience_gradnorm.pde.problems import problem
        >>> training = problem("burgers_inverse").sample(n_points=100, seed=0)
        >>> net = GradNorm(FCNet(2, 1, 3, 16), n_loss=4, alpha=1.0)
        >>> adam = paddle.optimizer.Adam(parameters=[*net.parameters(), *training.parameters()])
        >>> total = net.backward(training.losses(net))
        >>> adam.step()
        >>> sorted(training.coefficients())
        ['l1', 'l2']
    """

    def __init__(
        self,
        problem: Problem,
        counts: Mapping[str, int],
        seed: int,
        point_weights: PointWeightsChoice | None = None,
    ) -> None:
        super().__init__()
        self.problem = problem
        self.points: dict[str, paddle.Tensor] = {}
        self._drawn: dict[str, np.ndarray] = {}  # the same in float64
        for unknown in problem.unknowns:
            start = paddle.nn.initializer.Constant(float(unknown.initial))
            parameter = self.create_parameter(
                [1], dtype=paddle.get_default_dtype(), default_initializer=start
            )
            self.add_parameter(unknown.symbol.name, parameter)
        self._evaluations = [
            self._evaluation(region, counts[region.name], [seed, k])
            for k, region in enumerate(problem.regions)
        ]
        self.point_weights = {
            name: self._weights_of_points(name, kind)
            for name, kind in self._kinds_of_weights(point_weights).items()
        }
        for name, layer in self.point_weights.items():
            self.add_sublayer(f"weights of {name}", layer)

    def _kinds_of_weights(self, choice: PointWeightsChoice | None) -> Mapping[str, _Kind]:
        conditions = self.problem.conditions
        if choice is None:
            return {}
        if isinstance(choice, str):
            return {c.name: choice for c in conditions if c.kind == "pde"}
        if not isinstance(choice, Mapping):
            raise TypeError(
                "point_weights must be the name of a kind, or a dict condition -> kind, got "
                f"{choice!r}"
            )
        names = [condition.name for condition in conditions]
        for name in choice:
            if name not in names:
                raise ValueError(
                    f"point_weights has {name!r}, which is no condition of {self.problem.name}; "
                    f"its conditions are {names}"
                )
        return choice

    def _weights_of_points(self, name: str, kind: _Kind) -> paddle.nn.Layer:
        problem = self.problem
        region = next(c.region for c in problem.conditions if c.name == name)
        points = self._drawn[region.name]
        if callable(kind):
            layer = kind(points)
            if not isinstance(layer, paddle.nn.Layer):
                raise TypeError(
                    f"point_weights[{name!r}] must give a layer for the points, got {layer!r}"
                )
            return layer
        if kind == "rba":
            return ResidualAttention(len(points))
        if kind == "self_adaptive":
            return SelfAdaptiveWeights(len(points))
        if kind != "causal":
            raise ValueError(
                f"point_weights must be 'rba', 'self_adaptive' or 'causal', or a function of the "
                f"points, got {kind!r} for {name!r}"
            )
        axes = [k for k, c in enumerate(problem.coordinates) if c.name == "t"]
        if not axes:
            raise ValueError(
                f"point_weights is 'causal', but no coordinate of {problem.name} is called t: "
                f"{problem.coordinates}; pass a function that gives CausalWeights(times)"
            )
        span = problem.low[axes[0]], problem.high[axes[0]]
        return CausalWeights(points[:, axes[0]], span=span)

    def _evaluation(self, region: Region, n: int, seed: list[int]) -> _Evaluation:
        problem = self.problem
        points_seed, noise_seed = np.random.SeedSequence(seed).generate_state(2)
        points = problem.sample_region(region, n, int(points_seed))
        noise = np.random.default_rng(noise_seed)
        conditions = [c for c in problem.conditions if c.region is region]
        where = points
        if region.periodic is not None:
            axis = problem.coordinates.index(region.periodic)
            opposite = points.copy()
            opposite[:, axis] = problem.high[axis]
            where = np.concatenate([points, opposite])
        operators, targets = [], []
        for condition in conditions:
            parts, values = self._operators_and_targets(condition, where)
            if region.periodic is not None:
                values = values[: len(points)] - values[len(points) :]
            values = values + condition.noise * noise.standard_normal(values.shape)
            operators += parts
            columns = [_tensor(c[:, None]) if c.any() else None for c in values.T]
            targets.append((condition.name, columns))
        self._drawn[region.name] = points
        self.points[region.name] = _tensor(points)
        symbols = set().union(*(operator.free_symbols for operator in operators))
        unknowns = {
            unknown.symbol: getattr(self, unknown.symbol.name)
            for unknown in problem.unknowns
            if unknown.symbol in symbols
        }
        residual = Residual(operators, problem.coordinates, problem.fields, unknowns)
        return _Evaluation(residual, _tensor(where), region.periodic is not None, targets)

    def _operators_and_targets(
        self, condition: Condition, points: np.ndarray
    ) -> tuple[list[sympy.Expr], np.ndarray]:
        """What of the expressions depends on the network, and what that has to be, [N, n]."""
        problem = self.problem
        if condition.kind == "data":
            quantities = list(problem.quantities.values())
            columns = [quantities.index(expression) for expression in condition.expressions]
            return list(condition.expressions), problem.solution(points)[:, columns]
        fields = [field(*problem.coordinates) for field in problem.fields]
        unknowns = [unknown.symbol for unknown in problem.unknowns]
        split = [
            expression.doit().as_independent(*fields, *unknowns, as_Add=True)
            for expression in condition.expressions
        ]
        sources = [-source for source, _ in split]
        return [operator for _, operator in split], numerical(sources, problem.coordinates)(points)

    def losses(self, network: Network) -> dict[str, paddle.Tensor]:
        """The losses by name, in the order of the problem's conditions.

        Args:
            network: Maps points of shape [N, d] to fields of shape [N, number of fields].

        Returns:
            Condition -> loss, a scalar. The dict tells a balancer which losses are equations.
        """
        losses = {}
        for evaluation in self._evaluations:
            values = evaluation.residual(network, evaluation.points)
            if evaluation.periodic:
                low_and_high = (paddle.split(value, 2) for value in values)
                values = [low - high for low, high in low_and_high]
            remaining = iter(values)
            for name, targets in evaluation.targets:
                residuals = [
                    value if target is None else value - target
                    for value, target in zip(islice(remaining, len(targets)), targets)
                ]
                if name in self.point_weights:
                    weighted = self.point_weights[name](paddle.concat(residuals, axis=1))
                    residuals = paddle.split(weighted, len(targets), axis=1)
                squares = [residual.square().mean() for residual in residuals]
                losses[name] = sum(squares[1:], squares[0])
        conditions = self.problem.conditions
        in_order = {condition.name: losses[condition.name] for condition in conditions}
        return NamedLosses(in_order, [c.name for c in conditions if c.kind == "pde"])

    def forward(self, network: Network) -> dict[str, paddle.Tensor]:
        """Same as ``losses``."""
        return self.losses(network)

    def coefficients(self) -> dict[str, float]:
        """The unknown coefficients as they are now, by name."""
        return {
            unknown.name: float(
                unknown.value.subs(unknown.symbol, getattr(self, unknown.symbol.name).item())
            )
            for unknown in self.problem.unknowns
        }

    def coefficient_errors(self) -> dict[str, float]:
        """The relative errors of the unknown coefficients, by name."""
        found = self.coefficients()
        return {
            unknown.name: abs(found[unknown.name] - unknown.true) / abs(unknown.true)
            for unknown in self.problem.unknowns
        }


def numerical(
    expressions: Sequence[sympy.Expr], coordinates: Sequence[sympy.Symbol]
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from points [N, d] to the expressions' values [N, number of expressions].

    Raises:
        ValueError: An expression has no value somewhere. The function raises it too, if an
            expression has a function that neither numpy nor scipy.special has.
    """
    for expression in expressions:
        for piecewise in expression.atoms(sympy.Piecewise):
            check_defined_everywhere(piecewise)
    # By the printer, because the module "scipy" of lambdify would import all of scipy: Paddle
    # 2.6.2 may crash where that comes after its first matrix product.
    options = {"fully_qualified_modules": False, "inline": True, "allow_unknown_functions": True}
    functions = [
        sympy.lambdify(coordinates, e, "numpy", printer=SciPyPrinter(options)) for e in expressions
    ]

    def values(points: np.ndarray) -> np.ndarray:
        columns = []
        for expression, function in zip(expressions, functions):
            try:
                column = function(*points.T)
            except NameError as error:
                raise ValueError(
                    f"expression {expression} has a function that neither numpy nor scipy.special "
                    f"has ({error}); write it in others"
                ) from error
            columns.append(np.broadcast_to(column, len(points)))
        return np.stack(columns, axis=1).astype(np.float64)

    return values


def _tensor(values: np.ndarray) -> paddle.Tensor:
    return paddle.to_tensor(values, dtype=paddle.get_default_dtype())
