"""Whether losses share so much of their graphs that one pass would repeat too much of it."""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import paddle

# A node next to parameters is a product of matrices, or an operator that has several inside;
# the others work on an element at a time. Rough, but the choice is seldom close.
_PRODUCT = 20


def two_passes_are_cheaper(
    losses: Sequence[paddle.Tensor], shared: Sequence[paddle.Tensor]
) -> bool:
    """Whether to differentiate each loss on W alone and then go backward from their sum.

    One pass, a loss at a time, goes through what k losses share k times instead of once.
    Two passes go once more through what lies between each loss and W, which is little if
    W is the last layer. Losses that share nothing but parameters are cheaper in one pass.

    Args:
        losses: T scalar tensors whose graphs exist.
        shared: The shared parameters W.
    """
    targets = {_node_of(parameter).node_ptr() for parameter in shared}
    visits: Counter[int] = Counter()
    costs: dict[int, int] = {}
    between = 0
    for loss in losses:
        below = _nodes_below(_node_of(loss))
        for pointer, children in below.items():
            leaves = sum(not below[child] for child in children)
            costs[pointer] = 1 + _PRODUCT * leaves if children else 0
        visits.update(below.keys())
        between += sum(costs[pointer] for pointer in _leading_to(targets, below))
    repeated = sum(costs[pointer] * (times - 1) for pointer, times in visits.items())
    return between < repeated


def _node_of(tensor: paddle.Tensor) -> Any:
    """The node that a backward pass from this tensor starts with."""
    node = tensor.grad_fn
    # Paddle (2.6.2 to 3.3.1) hands it out with a reference too many, which would keep the
    # graph of this step, and all tensors in it, for ever.
    if sys.getrefcount(node) > 2:  # this variable's and the call's own
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(node))
    return node


def _nodes_below(root: Any) -> dict[int, list[int]]:
    """The nodes that a backward pass reaches, each with those it hands its gradient to."""
    below: dict[int, list[int]] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        pointer = node.node_ptr()
        if pointer not in below:
            children = [child for child in node.next_functions if child is not None]
            below[pointer] = [child.node_ptr() for child in children]
            waiting.extend(children)
    return below


def _leading_to(targets: set[int], below: dict[int, list[int]]) -> set[int]:
    """The nodes on the ways to the targets."""
    above: dict[int, list[int]] = {}
    for pointer, children in below.items():
        for child in children:
            above.setdefault(child, []).append(pointer)
    found: set[int] = set()
    waiting = [target for target in targets if target in below]
    while waiting:
        pointer = waiting.pop()
        if pointer not in found:
            found.add(pointer)
            waiting.extend(above.get(pointer, ()))
    return found
