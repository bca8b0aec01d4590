"""Which derivatives can be carried through a network as one, such as those of a Laplacian."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import sympy

from paddlescience_gradnorm.network._taylor import Combination, Index, Part

_LARGEST = 2**24  # whole number that is exact in float32


def carried(
    expressions: Sequence[sympy.Expr], derivatives: Mapping[Index, sympy.Expr]
) -> list[Part]:
    """The derivatives, with one part for those that the expressions have in a sum only.

    That is so where the expressions' slope in the one is a whole multiple of that in the other,
    whatever the values are, for every field: all fields are carried through a network together.
    """
    symbols = {derivative: sympy.Dummy(real=True) for derivative in derivatives.values()}
    plain = [expression.xreplace(symbols) for expression in expressions]
    # The slope of a step is 0, so slopes tell everything of sums, products and whole powers alone.
    # A root can be a step: sqrt(a**2) / a.
    within = {
        symbol
        for expression in plain
        for node in sympy.preorder_traversal(expression)
        if node.args and not _is_smooth(node)
        for symbol in node.free_symbols
    }
    fields = sorted({index[0] for index in derivatives})
    coordinates = list(dict.fromkeys(index[1:] for index in derivatives))

    groups: list[tuple[list[sympy.Expr], list[tuple[int, Index]]]] = []
    for index in coordinates:
        of_fields = [symbols.get(derivatives.get((k, *index))) for k in fields]
        # What a higher derivative is made of is carried anyway.
        if (
            len(index) < 2
            or any(_is_within(index, other) for other in coordinates)
            or any(symbol in within for symbol in of_fields)
        ):
            continue
        slopes = [0 if symbol is None else e.diff(symbol) for symbol in of_fields for e in plain]
        for k, (of_first, group) in enumerate(groups):
            count, inverse = _multiple(slopes, of_first), _multiple(of_first, slopes)
            if count is not None:
                group.append((count, index))
                break
            # The product of two numbers may be too large where each is not.
            if inverse is not None and all(abs(inverse * n) <= _LARGEST for n, _ in group):
                groups[k] = slopes, [(1, index), *((inverse * n, of) for n, of in group)]
                break
        else:
            groups.append((slopes, [(1, index)]))
    firsts = {group[0][1]: group for _, group in groups if len(group) > 1}
    others = {index for group in firsts.values() for _, index in group[1:]}
    parts: list[Part] = []
    for k, *rest in derivatives:
        index = tuple(rest)
        if index in firsts:
            parts.append(Combination(tuple((count, (k, *of)) for count, of in firsts[index])))
        elif index not in others:
            parts.append((k, *index))
    return parts


def _is_smooth(node: sympy.Basic) -> bool:
    """Whether it is a sum, a product or a whole power."""
    is_power = isinstance(node, sympy.Pow) and node.exp.is_Integer
    return is_power or isinstance(node, (sympy.Add, sympy.Mul))


def _is_within(index: Index, other: Index) -> bool:
    """Whether it is a derivative that the other one is made of."""
    return len(index) < len(other) and not Counter(index) - Counter(other)


def _multiple(slopes: Sequence[sympy.Expr], of: Sequence[sympy.Expr]) -> int | None:
    """The whole number other than 0 that makes these of those, if there is one."""
    found = None
    for one, other in zip(slopes, of):
        if one == 0 and other == 0:
            continue
        quotient = one / other if one != 0 and other != 0 else None
        if quotient is None or not quotient.is_Number:
            return None
        # A float may be whole too: the slopes of 0.01 * (u_xx + u_yy) are 1.0 times each other.
        number = float(quotient)
        if not number.is_integer() or abs(number) > _LARGEST or found not in (None, int(number)):
            return None
        found = int(number)
    return found
