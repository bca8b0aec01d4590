"""Weights of points, within a loss: residual-based attention, self-adaptive and causal weights.

A balancing rule weighs losses against each other. These layers weigh the points of one loss.
They multiply a residual at its points, so any rule works on top of them::

    loss = layer(residual(net, points)).square().mean()

The weights are functions of the residuals that the layer has seen, and need no gradients. They
are buffers, so checkpoints hold them and optimizers do not see them.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Union

import numpy as np
import paddle

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm._layers import PreciseLayer
from paddlescience_gradnorm.balancing import _ranks

__all__ = ["CausalWeights", "PointWeights", "ResidualAttention", "SelfAdaptiveWeights", "held"]

# Which of the points a micro-batch has, as an index of numpy's.
Rows = Union[slice, np.ndarray, paddle.Tensor, list]

_UNSEEN = -1.0  # in place of the size of a residual
_are_held = False  # see held
_called: list[PointWeights] | None = None  # see called


# If rows are drawn at random, all N points have come after some N log N rows.
_PASSES_OF_ALL = 30


class PointWeights(PreciseLayer):
    """Multiplies a residual at fixed points by a weight for each point.

    The weights are updated as soon as all points have been seen, and act from the next pass on.
    So micro-batches that together have all points give the weights of one batch. Nothing is
    updated in evaluation mode (``layer.eval()``), within ``held``, or where gradients are switched
    off. A pass with a residual that is not finite leaves the weights as they are. So does one
    whose residual is so large that the new weights would not be finite, and it warns.

    With several processes each has the weights of its own points. The processes then have to make
    equally many passes, because some kinds compare the points of all of them.

    A kind of weights of your own overrides ``update``.

    Args:
        n_points: Number of points N, at least 1.
        initial: The weights at first: a number above 0, or N of them.

    Attributes:
        weights: What residuals are multiplied by, shape [N, 1].

    Raises:
        TypeError: ``n_points`` is no integer.
        ValueError: ``n_points`` is below 1, or ``initial`` is not above 0 or not of N numbers.

    Warns:
        RuntimeWarning: The residual is too large for the weights' dtype, or micro-batches do not
            come to all points, so that the weights stay as they are; once for each layer.
    """

    weights: paddle.Tensor
    _seen: paddle.Tensor
    _has_warned = False
    _has_warned_of_rows = False
    _rows_since_a_pass = 0

    def __init__(self, n_points: int, initial: Any = 1.0) -> None:
        super().__init__()
        self.n_points = _arguments.integer("n_points", n_points, at_least=1)
        values = np.array(initial, dtype="float64")
        if values.size not in (1, n_points) or not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(
                f"initial must be finite and above 0, one number or {n_points}, got {initial!r}"
            )
        self.register_buffer("weights", _column(np.broadcast_to(values.reshape(-1), n_points)))
        # Sizes of the residuals of a pass that is not complete yet.
        self.register_buffer("_seen", _column(np.full(n_points, _UNSEEN)))

    def update(self, sizes: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """The buffers after a pass, by name.

        Args:
            sizes: |r| at all points, shape [N, 1]. Of several columns, the root of the sum of
                their squares.
        """
        raise NotImplementedError

    def forward(self, residual: paddle.Tensor, rows: Rows | None = None) -> paddle.Tensor:
        """The residual at each point times the weight of the point.

        Args:
            residual: Shape [N, k]. The k columns of a row share its weight.
            rows: For a micro-batch: which of the N points these are.

        Returns:
            A tensor of the residual's shape.

        Raises:
            TypeError: ``residual`` is no tensor.
            ValueError: There are not as many rows as points, or ``rows`` names a point twice or
                one that there is not.
        """
        if not isinstance(residual, paddle.Tensor):
            raise TypeError(f"residual must be a paddle.Tensor, got {type(residual).__name__}")
        points = None if rows is None else self._points(rows)
        expected = self.n_points if points is None else len(points)
        if residual.ndim != 2 or residual.shape[0] != expected:
            raise ValueError(
                f"residual must have shape [{expected}, k], a row for each point, got "
                f"{list(residual.shape)}; for a micro-batch pass rows, the numbers of its points"
            )
        index = None if points is None else paddle.to_tensor(points, place=residual.place)
        # A copy, because the backward pass needs it after the update.
        weights = self.weights.clone() if index is None else paddle.gather(self.weights, index)
        weighted = residual * weights.astype(residual.dtype)
        if _called is not None and all(layer is not self for layer in _called):
            _called.append(self)
        if self.training and paddle.is_grad_enabled() and not _are_held:
            with paddle.no_grad():
                self._see(residual.detach(), index)
        return weighted

    def _points(self, rows: Rows) -> np.ndarray:
        rows = rows.numpy() if isinstance(rows, paddle.Tensor) else rows
        try:
            points = np.arange(self.n_points)[rows].reshape(-1)
        except IndexError as error:
            raise ValueError(
                f"rows must be whole numbers below {self.n_points}, or a slice, got {rows!r}"
            ) from error
        if len(np.unique(points)) < len(points):
            raise ValueError(f"rows must name each of its points once, got {rows!r}")
        return points

    def _see(self, residual: paddle.Tensor, index: paddle.Tensor | None) -> None:
        sizes = residual.astype(self.weights.dtype)
        # The root of a square would overflow before the residual does.
        sizes = sizes.abs() if sizes.shape[1] == 1 else sizes.norm(axis=1, keepdim=True)
        if index is not None:
            sizes = paddle.scatter(self._seen, index, sizes)
            left = (sizes == _UNSEEN).sum().item()
            if left:
                self._seen.set_value(sizes)
                self._wait_for(left, index.shape[0])
                return
        self._rows_since_a_pass = 0
        # Also after a pass of all points: micro-batches before it may not have had all.
        self._seen.set_value(paddle.full_like(sizes, _UNSEEN))
        updated = self.update(sizes)
        usable = paddle.stack([paddle.isfinite(value).all() for value in updated.values()]).all()
        of_residual = paddle.isfinite(sizes).all()
        finite = paddle.logical_and(of_residual, usable)
        if _ranks.number() > 1:  # or some processes would update and others not
            finite = _ranks.mean(finite.astype("float32")) == 1
        if not finite.item():
            if of_residual.item() and not usable.item() and not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"the residual is up to {sizes.max().item():.3g}, for which the weights of "
                    f"{type(self).__name__} are not finite in {str(sizes.dtype).split('.')[-1]}; "
                    "they stay as they are in such a pass. Write the equation without units, or "
                    "divide its residual by a typical value of its terms",
                    RuntimeWarning,
                    stacklevel=4,
                )
            return
        for name, value in updated.items():
            getattr(self, name).set_value(value)

    def _wait_for(self, left: int, rows: int) -> None:
        """Count rows, and warn once if so many have come that the points left never will."""
        self._rows_since_a_pass += rows
        if self._rows_since_a_pass < _PASSES_OF_ALL * self.n_points or self._has_warned_of_rows:
            return
        self._has_warned_of_rows = True
        warnings.warn(
            f"the weights of {type(self).__name__} have not changed for {self._rows_since_a_pass} "
            f"rows, because {left} of the {self.n_points} points have not come in any micro-batch: "
            "pass rows that come to all points, or build the layer for the points that you use",
            RuntimeWarning,
            stacklevel=5,
        )

    def _stays_on_host(self, buffer: paddle.Tensor) -> bool:
        return False

    def extra_repr(self) -> str:
        return f"n_points={self.n_points}"


class ResidualAttention(PointWeights):
    """Residual-based attention (RBA): points whose residual stays large gain weight.

    After every pass, w_p <- gamma w_p + eta |r_p| / max |r|. The weights stay below
    eta / (1 - gamma), which is 1 by default, and a point loses what its residual does not renew.

    Anagnostopoulos, Toscano, Stergiopulos, Karniadakis, "Residual-based attention in
    physics-informed neural networks", Comput. Methods Appl. Mech. Eng. 421 (2024). Their weights
    begin at 0, which makes the loss small at first. These begin at the bound, so that the first
    loss is the plain one and a rule may compare later ones with it.

    Args:
        n_points: Number of points.
        gamma: How much of a weight a pass keeps, in (0, 1).
        eta: Rate, above 0. With ``gamma`` it sets the bound and the number of passes that count.
        initial: The weights at first, a number or one for each point; the bound by default.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.

    Examples:
        >>> import paddle
        >>> attention = ResidualAttention(3, gamma=0.5, eta=0.5)
        >>> attention(paddle.to_tensor([[4.0], [2.0], [0.0]])).square().mean().item().__round__(4)
        6.6667
        >>> attention.weights.flatten().tolist()
        [1.0, 0.75, 0.5]
    """

    def __init__(
        self, n_points: int, gamma: float = 0.999, eta: float = 0.001, initial: Any = None
    ) -> None:
        self.gamma = _between("gamma", gamma, 0, 1)
        self.eta = _between("eta", eta, 0)
        super().__init__(n_points, eta / (1 - gamma) if initial is None else initial)

    def update(self, sizes: paddle.Tensor) -> dict[str, paddle.Tensor]:
        largest = _ranks.maximum(sizes.max())
        share = paddle.where(largest > 0, sizes / largest, paddle.zeros_like(sizes))
        return {"weights": self.gamma * self.weights + self.eta * share}


class SelfAdaptiveWeights(PointWeights):
    """Self-adaptive weights (SA-PINN): the weights climb the loss that the network descends.

    The loss is mean (w_p r_p)^2. After every pass Adam takes a step of the weights up its gradient,
    2 w_p r_p^2 / N. So weights grow, without a bound, and where residuals are large they grow
    fastest.

    McClenny, Braga-Neto, "Self-adaptive physics-informed neural networks", J. Comput. Phys. 474
    (2023). They begin at random numbers between 0 and 1 for equations, and up to 100 for initial
    values: ``initial=paddle.rand([n])``.

    Args:
        n_points: Number of points.
        rate: Of Adam, above 0; the authors have 0.005 for Allen-Cahn and 0.001 for Helmholtz.
        initial: The weights at first, a number above 0 or one for each point.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.

    Examples:
        >>> import paddle
        >>> adaptive = SelfAdaptiveWeights(3, rate=0.1)
        >>> _ = adaptive(paddle.to_tensor([[4.0], [2.0], [0.0]]))
        >>> [round(w, 3) for w in adaptive.weights.flatten().tolist()]
        [1.1, 1.1, 1.0]
    """

    first: paddle.Tensor
    second: paddle.Tensor
    passes: paddle.Tensor
    _decays = (0.99, 0.999)
    _smallest_root = 1e-8

    def __init__(self, n_points: int, rate: float = 0.005, initial: Any = 1.0) -> None:
        self.rate = _between("rate", rate, 0)
        super().__init__(n_points, initial)
        for name in ("first", "second"):
            self.register_buffer(name, _column(np.zeros(n_points)))
        self.register_buffer("passes", paddle.zeros([1]))

    def update(self, sizes: paddle.Tensor) -> dict[str, paddle.Tensor]:
        keep_first, keep_second = self._decays
        gradient = 2 * self.weights * sizes.square() / (self.n_points * _ranks.number())
        first = keep_first * self.first + (1 - keep_first) * gradient
        second = keep_second * self.second + (1 - keep_second) * gradient.square()
        passes = self.passes + 1
        mean = first / (1 - keep_first**passes)
        root = (second / (1 - keep_second**passes)).sqrt()
        weights = self.weights + self.rate * mean / (root + self._smallest_root)
        return {"weights": weights, "first": first, "second": second, "passes": passes}


class CausalWeights(PointWeights):
    """Causal weights: a time counts when what is before it has been solved.

    Time is cut into chunks of equal length. L_k is the mean of r^2 in chunk k, and the squared
    residuals there are multiplied by exp(-tolerance sum_(j<k) L_j). So the weights of the points,
    which multiply r, are the roots of these. Where all of these exceed 0.99, the tolerance rises
    tenfold, up to ``last``.

    Wang, Sankaran, Perdikaris, "Respecting causality for training physics-informed neural
    networks", Comput. Methods Appl. Mech. Eng. 421 (2024).

    Args:
        times: The time of every point, N numbers.
        tolerance: At first, above 0. A chunk waits while ``tolerance`` times the sum of the L_j
            before it is large. Raise it if the network settles on a wrong solution.
        last: The largest tolerance, at least ``tolerance``.
        chunks: Their number, at least 2.
        span: First and last time; those of the points unless given. Processes that train together
            must have the same.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or times are out of the span.

    Examples:
        >>> import paddle
        >>> causal = CausalWeights([0.0, 0.4, 1.0], tolerance=0.5, last=0.5, chunks=2)
        >>> _ = causal(paddle.to_tensor([[1.0], [1.0], [3.0]]))
        >>> [round(w, 3) for w in causal.weights.square().flatten().tolist()]
        [1.0, 1.0, 0.607]
    """

    tolerance: paddle.Tensor

    def __init__(
        self,
        times: Any,
        tolerance: float = 0.3,
        last: float = 100.0,
        chunks: int = 32,
        span: Sequence[float] | None = None,
    ) -> None:
        values = np.array(times, dtype="float64")
        if values.size != max(values.shape, default=1):
            raise ValueError(
                f"times must have one number for each point, got shape {list(values.shape)}; pass "
                "the column of the time, as in points[:, 1:]"
            )
        values = values.reshape(-1)
        if span is None:
            span = (values.min(initial=np.inf), values.max(initial=-np.inf))
        if not isinstance(span, (list, tuple, np.ndarray)) or len(span) != 2:
            raise TypeError(f"span must be two numbers, first and last time, got {span!r}")
        begin, end = (_arguments.number("span", x) for x in span)
        if not (begin < end and ((begin <= values) & (values <= end)).all()):
            raise ValueError(
                f"times must be finite and lie in a span of time, got {times!r} in {begin} to {end}"
            )
        _arguments.integer("chunks", chunks, at_least=2)
        _between("tolerance", tolerance, 0)
        if not tolerance <= _between("last", last, 0):
            raise ValueError(f"last must be at least the tolerance {tolerance}, got {last}")
        super().__init__(len(values))
        self.last = float(last)
        self.chunks = chunks
        number = ((values - begin) / (end - begin) * chunks).astype("int64")
        self.register_buffer("_chunk", paddle.to_tensor(np.minimum(number, chunks - 1)))
        self.register_buffer("tolerance", paddle.full([1], float(tolerance)))

    def update(self, sizes: paddle.Tensor) -> dict[str, paddle.Tensor]:
        squares_and_ones = paddle.concat([sizes.square(), paddle.ones_like(sizes)], axis=1)
        sums = paddle.zeros([self.chunks, 2], sizes.dtype)
        sums = _ranks.mean(paddle.scatter_nd_add(sums, self._chunk.unsqueeze(1), squares_and_ones))
        losses = sums[:, 0] / (sums[:, 1] + (sums[:, 1] == 0).astype(sizes.dtype))  # 0 if empty
        # Not the sum up to k minus L_k, which would cancel if L_k is large.
        before = paddle.concat([paddle.zeros_like(losses[:1]), paddle.cumsum(losses[:-1])])
        factors = paddle.exp(-self.tolerance * before)
        raised = paddle.clip(self.tolerance * 10, max=self.last)
        tolerance = paddle.where(factors.min() > 0.99, raised, self.tolerance)
        weights = paddle.gather(factors.sqrt().unsqueeze(1), self._chunk)
        return {"weights": weights, "tolerance": tolerance}


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within this, no weights of points move, in whatever layer or function they are.

    Examples:
        >>> import paddle
        >>> attention = ResidualAttention(3, gamma=0.5, eta=0.5)
        >>> with held():
        ...     _ = attention(paddle.to_tensor([[4.0], [2.0], [0.0]]))
        >>> attention.weights.flatten().tolist()
        [1.0, 1.0, 1.0]
    """
    global _are_held
    before, _are_held = _are_held, True
    try:
        yield
    finally:
        _are_held = before


@contextlib.contextmanager
def called() -> Iterator[list[PointWeights]]:
    """The layers of this kind that are called within it, each once, in the order of their calls."""
    global _called
    before, _called = _called, []
    try:
        yield _called
    finally:
        _called = before


def _between(name: str, value: Any, low: float, high: float = math.inf) -> float:
    number = _arguments.number(name, value)
    if not low < number < high:
        limits = f"above {low}" + (f" and below {high}" if high < math.inf else " and finite")
        raise ValueError(f"{name} must be {limits}, got {value}")
    return number


def _column(values: np.ndarray) -> paddle.Tensor:
    return paddle.to_tensor(values[:, None], dtype=paddle.get_default_dtype())
