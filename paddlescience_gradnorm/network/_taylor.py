"""Derivatives of a network in its inputs by forward (Taylor-mode) propagation.

For a derivative of order n ``paddle.grad`` nests n reverse passes, which build a graph many times
the size of the network's. Here the value and the derivatives go through the layers together. A
linear layer acts on each in the same way. For an activation f the chain rule (Faa di Bruno) gives

    a_i = f'(z) z_i,    a_ij = f'(z) z_ij + f''(z) z_i z_j,    ...

A derivative in the coordinates i, j, ... has one term for each way to divide them into groups:
the derivative of f of as many orders as there are groups, times the derivative of z in each group.
A Laplacian needs no place for each second derivative: the sum goes through a linear layer as each
of them does, and through an activation as f'(z) (z_xx + z_yy) + f''(z) (z_x z_x + z_y z_y) (Li et
al. 2023, arXiv:2307.08214). So a sum of derivatives is carried as one where nothing else needs its
summands.

Where a network multiplies two functions, the product rule gives one term for each way to divide
the coordinates between the two.

All tensors have the same shape [N, width], because Paddle's kernels broadcast slowly: a product
of [1, N, width] with [2, N, width] takes 30 times as long. If the C++ operators have been loaded,
one of them computes all layers but the last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any, Callable, NamedTuple, Union

import paddle

from paddlescience_gradnorm import _operators

HIGHEST_ORDER = 4  # as in taylor_jet.h

Index = tuple  # coordinate numbers: (0, 1) is the second derivative in coordinates 0 and 1


@dataclass(frozen=True)
class Combination:
    """A sum of derivatives of order 2 or higher, each times a whole number, carried as one."""

    summands: tuple[tuple[int, Index], ...]


Part = Union[Index, Combination]


def summands(part: Part) -> tuple[tuple[int, Index], ...]:
    return part.summands if isinstance(part, Combination) else ((1, part),)


def in_each(part: Part, function: Callable[[Index], Index]) -> Part:
    """The part with the function's index in place of each of its own."""
    if isinstance(part, Combination):
        return Combination(tuple((count, function(index)) for count, index in part.summands))
    return function(part)


def singles(parts: Sequence[Part]) -> list[Index]:
    """What the parts are made of."""
    return list(dict.fromkeys(index for part in parts for _, index in summands(part)))


def summed(parts: Sequence[Part], values: Mapping[Index, paddle.Tensor]) -> list[paddle.Tensor]:
    """The parts from the derivatives that they are made of."""
    found = []
    for part in parts:
        terms = [
            values[index] if count == 1 else count * values[index]
            for count, index in summands(part)
        ]
        found.append(sum(terms[1:], terms[0]))
    return found


def order_of(part: Part) -> int:
    return max(len(index) for _, index in summands(part))


def _place(part: Part) -> tuple[int, bool, tuple[tuple[int, Index], ...]]:
    """What parts are sorted by: lower orders first, sums last."""
    return order_of(part), isinstance(part, Combination), summands(part)


class Encoders(NamedTuple):
    """The two encoders of a modified MLP (Wang, Teng and Perdikaris 2021, arXiv:2001.04536).

    U and V are a linear layer and an activation each, and take what layer ``start`` takes. From
    that layer on, a hidden layer that would give Z gives Z U + (1 - Z) V.
    """

    weights: list[paddle.Tensor]
    biases: list[paddle.Tensor]
    activations: list[str]
    start: int


class Layers(NamedTuple):
    """A network of layers linear, activation, ..., linear.

    ``weights`` have shape [ins, outs] and ``biases`` [outs]. Both may be computed from parameters.
    ``activations`` are names in ``ACTIVATIONS``, one fewer than the linear layers.
    ``frequencies``, of shape [], belong to periodic inputs: in place of such an input x the first
    layer takes two columns, cos(frequency x) and sin(frequency x). None is an input that stays.
    """

    weights: list[paddle.Tensor]
    biases: list[paddle.Tensor]
    activations: list[str]
    frequencies: list[paddle.Tensor | None] | None = None
    encoders: Encoders | None = None

    @property
    def num_ins(self) -> int:
        if self.frequencies is not None:
            return len(self.frequencies)
        return int(self.weights[0].shape[0])

    @property
    def num_outs(self) -> int:
        return int(self.weights[-1].shape[1])


class Term(NamedTuple):
    """A summand of the chain rule: ``len(factors)`` is the order of the activation's derivative."""

    coefficient: int
    factors: tuple[int, ...]  # numbers of parts


class ChainRule(NamedTuple):
    """The parts of a propagation, the value first, and the terms of each part.

    ``products`` has the terms of the product rule: the part is the sum of each coefficient times
    the first part of the one function times the second part of the other.
    """

    parts: tuple[Part, ...]
    terms: tuple[tuple[Term, ...], ...]
    products: tuple[tuple[tuple[int, int, int], ...], ...]
    coordinates: tuple[int, ...]  # of each part, if it is a first derivative, else -1
    order: int
    flat: tuple[int, ...]  # the terms as the operator takes them


def propagate(layers: Layers, ins: paddle.Tensor, indices: Sequence[Part]) -> list[paddle.Tensor]:
    """Derivatives of a network in its inputs.

    Args:
        layers: The network, with at least 2 linear layers.
        ins: Inputs, shape [N, num_ins].
        indices: Which derivatives: () for the value, (i,), (i, j), ... for those of orders up to
            ``HIGHEST_ORDER``, and sums of these.

    Returns:
        One tensor of shape [N, num_outs] for each index, differentiable with respect to the
        parameters, but not with respect to ``ins``. By the C++ operators, which serve no
        frequencies that are learned and no encoders, it is differentiable once only.
    """
    # The order of coordinates does not matter.
    wanted = [in_each(index, lambda one: tuple(sorted(one))) for index in indices]
    rule = chain_rule(tuple(sorted(set(wanted), key=_place)))
    last = layers.weights[-1]
    points, embedded = ins.detach(), None
    if layers.frequencies is not None:
        embedded = _embedded(points, layers.frequencies, rule.parts)
    is_learned = any(not part.stop_gradient for part in embedded or [] if part is not None)
    by_paddle = is_learned or layers.encoders is not None
    if not by_paddle and _operators.apply_to(ins, *layers.weights, *layers.biases):
        if embedded is not None:
            zero = paddle.zeros_like(embedded[0])
            points = paddle.stack([zero if part is None else part for part in embedded])
        outputs = dict(zip(rule.parts, _fused(layers, points, rule)))
    else:
        jet = _layer_by_layer(layers, points, embedded, rule, set(wanted))
        outputs = {k: paddle.matmul(x, last) for k, x in zip(rule.parts, jet) if x is not None}
    if () in wanted:
        outputs[()] = outputs[()] + layers.biases[-1]
    return [outputs[index] for index in wanted]


@cache
def chain_rule(indices: tuple[Part, ...]) -> ChainRule:
    """What has to be propagated for these derivatives: each with all that it is made of."""
    made_of = {
        part
        for wanted in indices
        for _, index in summands(wanted)
        for n in range(len(index))
        for part in combinations(index, n)
    }
    parts = tuple(sorted({(), *made_of, *indices}, key=_place))
    numbers = {part: k for k, part in enumerate(parts)}
    terms, products = [], []
    for part in parts:
        counts, pairs = _terms(part, numbers), _pairs(part, numbers)
        products.append(tuple((count, *pair) for pair, count in pairs.items()))
        # By order, because the terms of an order share a factor.
        in_order = sorted(counts.items(), key=lambda item: (len(item[0]), item[0]))
        terms.append(tuple(Term(count, factors) for factors, count in in_order))
    flat: list[int] = []
    for of_part in terms[1:]:
        flat.append(len(of_part))
        for term in of_part:
            flat += [term.coefficient, len(term.factors), *term.factors]
    coordinates = tuple(
        index[0] if len(index) == 1 else -1 for ((_, index), *_) in map(summands, parts)
    )
    order = order_of(parts[-1])
    return ChainRule(parts, tuple(terms), tuple(products), coordinates, order, tuple(flat))


def _terms(part: Part, numbers: dict[Part, int]) -> Counter[tuple[int, ...]]:
    """The factors of each term of the chain rule, and how often it is there."""
    # Undivided, the summands make the part itself.
    own = (numbers[part],) if order_of(part) else ()
    counts: Counter[tuple[int, ...]] = Counter({own: 1})
    for coefficient, index in summands(part):
        for groups in _partitions(list(range(len(index)))):
            if len(groups) > 1:
                factors = (numbers[tuple(index[i] for i in group)] for group in groups)
                counts[tuple(sorted(factors))] += coefficient
    return counts


def _pairs(part: Part, numbers: dict[Part, int]) -> Counter[tuple[int, int]]:
    """The pairs of factors of the product rule, and how often each is there."""
    own, value = numbers[part], numbers[()]
    counts = Counter({(own, value): 1, (value, own): 1})
    for coefficient, index in summands(part):
        for (one, other), count in halves(index).items():
            if one and other:
                counts[numbers[one], numbers[other]] += coefficient * count
    return counts


def halves(index: Index) -> Counter[tuple[Index, Index]]:
    """All ways to divide the coordinates between two functions."""
    positions = range(len(index))
    return Counter(
        (tuple(index[p] for p in chosen), tuple(index[p] for p in positions if p not in chosen))
        for n in range(len(index) + 1)
        for chosen in combinations(positions, n)
    )


def _partitions(positions: list[int]) -> Iterator[list[list[int]]]:
    """All ways to divide them into groups."""
    if not positions:
        yield []
        return
    first, *rest = positions
    for groups in _partitions(rest):
        yield [[first], *groups]
        for k, group in enumerate(groups):
            yield [*groups[:k], [first, *group], *groups[k + 1 :]]


def _fused(layers: Layers, points: paddle.Tensor, rule: ChainRule) -> list[paddle.Tensor]:
    """All parts without the last bias, shape [N, num_outs] each.

    Points are those of the inputs, shape [N, num_ins], or all parts of what the first layer takes.
    Paddle computes the last layer, so that GradNorm can differentiate a loss with respect to
    that layer only, without going back through the others.
    """
    *weights, last = layers.weights
    jet = _operators.taylor_jet(
        points, weights, layers.biases[:-1], layers.activations, rule.coordinates, rule.flat
    )
    parts = paddle.matmul(last, jet, transpose_x=True)  # [num_outs, S * N]
    n_outs, n_parts = last.shape[1], len(rule.parts)
    if n_outs > 1:
        parts = parts.reshape([n_outs, n_parts, -1]).transpose([1, 2, 0])
    return paddle.unbind(parts.reshape([n_parts, -1, n_outs]))


def _embedded(
    ins: paddle.Tensor, frequencies: Sequence[paddle.Tensor | None], parts: Sequence[Part]
) -> list[paddle.Tensor | None]:
    """The parts of what the first layer takes, shape [N, columns] each; ``None`` is 0."""
    columns = paddle.split(ins, len(frequencies), axis=1)
    # Of each input: itself, or its cosine and its sine.
    of_inputs = [
        [x] if w is None else [paddle.cos(w * x), paddle.sin(w * x)]
        for x, w in zip(columns, frequencies)
    ]
    found: list[paddle.Tensor | None] = [_side_by_side(of_inputs)]
    zero, one = paddle.zeros_like(columns[0]), paddle.ones_like(columns[0])
    for part in parts[1:]:
        blocks = [[zero] * len(block) for block in of_inputs]
        is_zero = True
        for count, index in summands(part):
            order, w = len(index), frequencies[index[0]]
            if len(set(index)) > 1 or (w is None and order > 1):
                continue
            is_zero = False
            if w is None:
                blocks[index[0]] = [one]
            else:  # a derivative turns the cosine and the sine by a quarter
                cosine, sine = of_inputs[index[0]]
                turned = ((cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine))
                before = blocks[index[0]]
                blocks[index[0]] = [
                    b + count * w**order * x for b, x in zip(before, turned[order % 4])
                ]
        found.append(None if is_zero else _side_by_side(blocks))
    return found


def _side_by_side(blocks: Sequence[Sequence[paddle.Tensor]]) -> paddle.Tensor:
    return paddle.concat([column for block in blocks for column in block], axis=1)


def _layer_by_layer(
    layers: Layers,
    ins: paddle.Tensor,
    embedded: Sequence[paddle.Tensor | None] | None,
    rule: ChainRule,
    wanted: set[Part],
) -> list[paddle.Tensor | None]:
    """The same before the last layer, with Paddle's operators, shape [N, width] each.

    A part that is not wanted is ``None``.
    """
    parts = [] if embedded is None else list(embedded)

    def layer(
        weight: paddle.Tensor, bias: paddle.Tensor, activation: str, of_wanted: Sequence[bool]
    ) -> list[Any]:
        if parts:
            linear = [x if x is None else paddle.matmul(x, weight) for x in parts]
        else:
            # The first derivatives of a linear function are the same at all points, the others 0.
            of_derivatives = [None if k < 0 else weight[k] for k in rule.coordinates[1:]]
            linear = [paddle.matmul(ins, weight), *of_derivatives]
        derivatives = ACTIVATIONS[activation](linear[0] + bias, rule.order)
        return _compose(rule.terms, derivatives, linear, of_wanted)

    every = [True] * len(rule.parts)
    encoders = layers.encoders
    last = len(layers.activations) - 1
    for k, own in enumerate(zip(layers.weights, layers.biases, layers.activations)):
        of_wanted = every if k < last else [part in wanted for part in rule.parts]
        if encoders is None or k < encoders.start:
            parts = layer(*own, of_wanted)
            continue
        if k == encoders.start:
            of_u, of_v = (layer(*one, every) for one in zip(*encoders[:3]))
            difference = [u - v for u, v in zip(of_u, of_v)]
        product = _multiply(rule.products, layer(*own, every), difference, of_wanted)
        parts = [x if x is None else x + v for x, v in zip(product, of_v)]
    return parts


def _multiply(
    products: Sequence[Sequence[tuple[int, int, int]]],
    first: Sequence[paddle.Tensor],
    second: Sequence[paddle.Tensor],
    wanted: Sequence[bool],
) -> list[paddle.Tensor | None]:
    """The parts of a product of two functions."""
    found: list[paddle.Tensor | None] = []
    for of_part, is_wanted in zip(products, wanted):
        terms = []
        for coefficient, one, other in of_part if is_wanted else ():
            term = first[one] * second[other]
            terms.append(term if coefficient == 1 else coefficient * term)
        found.append(sum(terms[1:], terms[0]) if terms else None)
    return found


def _compose(
    terms: Sequence[Sequence[Term]],
    derivatives: Sequence[paddle.Tensor],
    parts: Sequence[paddle.Tensor | None],
    wanted: Sequence[bool],
) -> list[paddle.Tensor | None]:
    """The parts after an activation with these derivatives; a part that is ``None`` is 0."""
    products: dict[tuple[int, ...], paddle.Tensor] = {(k,): part for k, part in enumerate(parts)}
    composed = [derivatives[0] if wanted[0] else None]
    for of_part, is_wanted in zip(terms[1:], wanted[1:]):
        by_order: dict[int, paddle.Tensor] = {}
        for coefficient, factors in of_part if is_wanted else ():
            if any(parts[k] is None for k in factors):
                continue
            term, order = _product(factors, products), len(factors)
            term = term if coefficient == 1 else coefficient * term
            by_order[order] = by_order[order] + term if order in by_order else term
        summands = [derivatives[order] * factor for order, factor in by_order.items()]
        composed.append(sum(summands[1:], summands[0]) if summands else None)
    return composed


# Not within the function that calls it: a function that refers to itself by a closure, and its
# products with it, would wait for the garbage collector, and so would the graph of the step.
def _product(
    factors: tuple[int, ...], products: dict[tuple[int, ...], paddle.Tensor]
) -> paddle.Tensor:
    """The product of these parts, which is kept among ``products``."""
    if factors not in products:
        products[factors] = _product(factors[:-1], products) * products[factors[-1:]]
    return products[factors]


def _tanh(z: paddle.Tensor, order: int) -> list[paddle.Tensor]:
    value = paddle.tanh(z)
    square = value * value
    slope = 1 - square
    found = [value, slope]
    if order > 1:
        found.append(value * slope * -2)
    if order > 2:
        found.append(slope * (6 * square - 2))
    if order > 3:
        found.append(value * slope * (16 - 24 * square))
    return found


def _sin(z: paddle.Tensor, order: int) -> list[paddle.Tensor]:
    sine, cosine = paddle.sin(z), paddle.cos(z)
    found = [sine, cosine]
    if order > 1:
        found.append(-sine)
    if order > 2:
        found += [-cosine, sine]
    return found


def _sigmoid(z: paddle.Tensor, order: int) -> list[paddle.Tensor]:
    value = paddle.nn.functional.sigmoid(z)
    slope = value * (1 - value)
    found = [value, slope]
    if order > 1:
        bend = slope * (1 - 2 * value)
        found.append(bend)
    if order > 2:
        found.append(slope * (1 - 6 * slope))
    if order > 3:
        found.append(bend * (1 - 12 * slope))
    return found


def _silu(z: paddle.Tensor, order: int) -> list[paddle.Tensor]:
    of_sigmoid = _sigmoid(z, order)
    found = [z * of_sigmoid[0], z * of_sigmoid[1] + of_sigmoid[0]]
    return found + [z * of_sigmoid[k] + k * of_sigmoid[k - 1] for k in range(2, order + 1)]


def _gelu(z: paddle.Tensor, order: int) -> list[paddle.Tensor]:
    square = z * z
    distribution = 0.5 + 0.5 * paddle.erf(z * math.sqrt(0.5))
    density = paddle.exp(-0.5 * square) / math.sqrt(2 * math.pi)
    found = [z * distribution, distribution + z * density]
    if order > 1:
        found.append(density * (2 - square))
    if order > 2:
        found.append(density * z * (square - 4))
    if order > 3:
        found.append(density * (square * (7 - square) - 4))
    return found


def _softplus(z: paddle.Tensor, order: int) -> list[paddle.Tensor]:
    return [paddle.nn.functional.softplus(z), *_sigmoid(z, max(1, order - 1))]


# For each activation f: f(z), f'(z) and so on up to the order, at least the first.
ACTIVATIONS: dict[str, Callable[[paddle.Tensor, int], list[paddle.Tensor]]] = {
    "tanh": _tanh,
    "sin": _sin,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "gelu": _gelu,
    "softplus": _softplus,
}
