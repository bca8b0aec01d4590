"""SampledProblem: the losses of a problem at points that were drawn for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Callable, NamedTuple

import numpy as np
import paddle
import sympy

from paddlescience_gradnorm.balancing._losses import NamedLosses
from paddlescience_gradnorm.pde.residual import Network, Residual

if TYPE_CHECKING:
    from paddlescience_gradnorm.pde.problems.formulation import Condition, Problem, Region


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
    optimizer beside the network's.

    Attributes:
        problem: The problem.
        points: Region -> its points, a tensor of shape [N, d].

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

    def __init__(self, problem: Problem, counts: Mapping[str, int], seed: int) -> None:
        super().__init__()
        self.problem = problem
        self.points: dict[str, paddle.Tensor] = {}
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
                squares = [
                    _mean_square(value, target)
                    for value, target in zip(islice(remaining, len(targets)), targets)
                ]
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
    """A function from points [N, d] to the expressions' values [N, number of expressions]."""
    functions = [sympy.lambdify(coordinates, e, "numpy") for e in expressions]

    def values(points: np.ndarray) -> np.ndarray:
        columns = [np.broadcast_to(f(*points.T), len(points)) for f in functions]
        return np.stack(columns, axis=1).astype(np.float64)

    return values


def _mean_square(value: paddle.Tensor, target: paddle.Tensor | None) -> paddle.Tensor:
    return (value if target is None else value - target).square().mean()


def _tensor(values: np.ndarray) -> paddle.Tensor:
    return paddle.to_tensor(values, dtype=paddle.get_default_dtype())
