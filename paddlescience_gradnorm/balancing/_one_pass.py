"""Measures the gradient of every loss in the single backward pass of a step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Union

import numpy as np
import paddle

from paddlescience_gradnorm import _paddle

# Gradients of T losses: an array on the host, a tensor on an accelerator.
Rows = Union[np.ndarray, paddle.Tensor]

# Extra cost of a node for each parameter next to it, because it is a matrix product there. Other
# nodes are elementwise and cost 1. This is rough, but the choice is seldom close.
_PRODUCT = 20


def backward_by_loss(
    losses: Sequence[paddle.Tensor],
    factors: paddle.Tensor,
    shared: Sequence[paddle.Tensor],
    names: Sequence[str],
    in_two_passes: bool = False,
) -> Rows:
    """Run the backward pass of sum_i f_i L_i one loss at a time, and keep each loss's gradient.

    The ``.grad`` of every parameter grows by the gradient of the sum, as in one backward pass of
    the sum. Both cost the same for losses at different collocation points, because these share
    only parameters. The losses are detached, which frees their graphs.

    Args:
        losses: T scalar tensors, shape [] each.
        factors: Their factors, shape [T], positive.
        shared: The shared parameters W.
        names: T names for error messages.
        in_two_passes: Whether to take the gradients first and then go backward once from the
            sum: see ``two_passes_are_cheaper``.

    Returns:
        d(f_i L_i)/dW, one parameter after the other, shape [T, values of W], in the dtype of
        ``factors``; 0 where a loss does not depend on a parameter.

    Raises:
        ValueError: A loss does not depend on any shared parameter. By then the gradients of the
            losses after it have been added.
        RuntimeError: A loss's graph has been freed.
    """
    if in_two_passes:
        rows = gradients_alone(losses, factors, shared, names)
        backward_of_sum(losses, factors, shared, names)
        return rows
    starts = _starts(losses, factors, shared, names)
    # Hooks, because differences of the running sum would lose small gradients in float32:
    # the gradients of two losses can differ by 1e4 and more.
    passing: list[list[paddle.Tensor]] = [[] for _ in shared]
    hooks = [
        p.register_hook(kept.append) for p, kept in zip(shared, passing) if not p.stop_gradient
    ]
    by_loss = []
    # From the last loss to the first, because only the final backward frees its graph as it goes.
    # This saves most for the largest graph, usually that of the equation, the first loss.
    i = len(losses)
    try:
        while i > 0:
            i -= 1
            with explaining_a_used_graph(names[i]):
                losses[i].backward(starts[i], retain_graph=i > 0)  # others may share its graph
            if all(other is not losses[i] for other in losses[:i]):
                losses[i].detach_()
            if not any(passing):
                raise _no_dependence(names[i], shared)
            found = [kept.pop() if kept else None for kept in passing]
            # Now, because the first gradient becomes .grad, and the later ones are added to it.
            by_loss.append(_row(found, shared, factors.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    by_loss.reverse()
    return np.array(by_loss) if isinstance(by_loss[0], np.ndarray) else paddle.stack(by_loss)


def backward_of_sum(
    losses: Sequence[paddle.Tensor],
    factors: paddle.Tensor,
    shared: Sequence[paddle.Tensor],
    names: Sequence[str],
) -> None:
    """Run one backward pass of sum_i f_i L_i, without the gradients of single losses."""
    starts = _starts(losses, factors, shared, names)
    with explaining_a_used_graph(", ".join(names)):
        if len({id(loss) for loss in losses}) == len(losses):
            paddle.autograd.backward(list(losses), starts)
        else:  # because Paddle refuses the same tensor twice
            for i in reversed(range(len(losses))):
                losses[i].backward(starts[i], retain_graph=i > 0)
    for loss in losses:
        loss.detach_()


def _starts(
    losses: Sequence[paddle.Tensor],
    factors: paddle.Tensor,
    shared: Sequence[paddle.Tensor],
    names: Sequence[str],
) -> list[paddle.Tensor]:
    """The factors, each in its loss's dtype; raises if a loss has no graph."""
    for loss, name in zip(losses, names):
        if loss.stop_gradient:
            raise _no_dependence(name, shared)
    return [
        factor if loss.dtype == factors.dtype else factor.astype(loss.dtype)
        for factor, loss in zip(paddle.unbind(factors), losses)
    ]


def gradients_alone(
    losses: Sequence[paddle.Tensor],
    factors: paddle.Tensor,
    shared: Sequence[paddle.Tensor],
    names: Sequence[str],
) -> Rows:
    """The gradients without a backward pass; ``.grad`` and the losses' graphs stay untouched.

    Arguments, result and errors are the same as in ``backward_by_loss``.
    """
    rows = []
    for loss, name in zip(losses, names):
        if loss.stop_gradient:
            raise _no_dependence(name, shared)
        with explaining_a_used_graph(name):
            found = paddle.grad([loss], list(shared), retain_graph=True, allow_unused=True)
        if all(gradient is None for gradient in found):
            raise _no_dependence(name, shared)
        with paddle.no_grad():
            rows.append(_row(found, shared, factors.dtype))
    with paddle.no_grad():
        column = factors.unsqueeze(1)
        if isinstance(rows[0], np.ndarray):
            return np.array(rows) * column.numpy()
        return paddle.stack(rows) * column


def measured(
    losses: paddle.Tensor, weights: paddle.Tensor, rows: Rows | None, needs: Collection[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What a rule needs, float64, on the host; an accelerator is read in one copy.

    Args:
        losses: The unweighted losses, shape [T].
        weights: Their weights, shape [T].
        rows: Gradients of the weighted losses, shape [T, values of W]; None if ``needs``
            is empty.
        needs: The rule's ``needs``.

    Returns:
        Arguments of ``Measurement`` by name, and the weights, shape [T].
    """
    of_entries = rows is not None and ("largest" in needs or "mean" in needs)
    parts = [losses, weights]
    if rows is not None:
        # In float32 the square of 1e20 overflows and the square of 1e-23 vanishes.
        precise = rows.astype("float64")
        parts.append(precise @ precise.T)
        if of_entries:
            sizes = abs(precise) if isinstance(precise, np.ndarray) else precise.abs()
            parts += [sizes.max(axis=1), sizes.mean(axis=1)]
    if losses.place.is_cpu_place():
        arrays = [x if isinstance(x, np.ndarray) else x.numpy() for x in parts]
        numbers = [array.astype(np.float64).ravel() for array in arrays]
    else:
        joined = paddle.concat([x.astype("float64").flatten() for x in parts]).numpy()
        numbers = np.split(joined, np.cumsum([x.size for x in parts])[:-1])
    found, acted = {"losses": numbers[0]}, numbers[1]
    if rows is not None:
        found["gram"] = numbers[2].reshape(len(acted), -1) / (acted * acted[:, None])
    if of_entries:
        found["largest"], found["mean"] = numbers[3] / acted, numbers[4] / acted
    return found, acted


def _row(
    gradients: Sequence[paddle.Tensor | None],
    shared: Sequence[paddle.Tensor],
    dtype: paddle.dtype,
) -> Rows:
    """One loss's gradients in a row, 0 where there is none, shape [values of W].

    On the host the row is an array, because numpy takes a fifth of the time of Paddle's
    operators. On an accelerator it stays a tensor there.
    """
    if shared[0].place.is_cpu_place():
        parts = [
            np.zeros(math.prod(p.shape), np.float32)
            if g is None
            else (g if g.dtype == dtype else g.astype(dtype)).numpy().ravel()
            for g, p in zip(gradients, shared)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    tensors = [paddle.zeros_like(p) if g is None else g for g, p in zip(gradients, shared)]
    return paddle.concat([tensor.astype(dtype).flatten() for tensor in tensors])


def overwrite(tensor: paddle.Tensor, values: np.ndarray) -> None:
    """Overwrite a float32 or float64 tensor in place, on its own device."""
    if tensor.place.is_cpu_place():
        _paddle.write_on_host(tensor, np.ravel(values).tolist())
    else:
        values = np.asarray(values, np.float32 if tensor.dtype == paddle.float32 else np.float64)
        with paddle.no_grad():
            tensor.copy_(paddle.to_tensor(values, place=tensor.place), False)


def two_passes_are_cheaper(
    losses: Sequence[paddle.Tensor], shared: Sequence[paddle.Tensor]
) -> bool:
    """Whether it is cheaper to take the gradients first and then go backward from the sum.

    One pass, a loss at a time, visits k times what k losses share. Two passes visit once more
    what lies between each loss and W, which is little if W is the last layer. Losses that share
    only parameters are cheaper in one pass.

    Args:
        losses: T scalar tensors with their graphs.
        shared: The shared parameters W.
    """
    targets = {_paddle.graph_node(parameter).node_ptr() for parameter in shared}
    visits: Counter[int] = Counter()
    costs: dict[int, int] = {}
    between = 0
    for loss in losses:
        below = _nodes_below(loss)
        for pointer, children in below.items():
            leaves = sum(not below[child] for child in children)
            costs[pointer] = 1 + _PRODUCT * leaves if children else 0
        visits.update(below.keys())
        between += sum(costs[pointer] for pointer in _leading_to(targets, below))
    repeated = sum(costs[pointer] * (times - 1) for pointer, times in visits.items())
    return between < repeated


def _nodes_below(loss: paddle.Tensor) -> dict[int, list[int]]:
    """The nodes that a backward pass reaches, each with the nodes that receive its gradient."""
    below: dict[int, list[int]] = {}
    waiting = [_paddle.graph_node(loss)]
    while waiting:
        node = waiting.pop()
        pointer = node.node_ptr()
        if pointer not in below:
            children = [child for child in node.next_functions if child is not None]
            below[pointer] = [child.node_ptr() for child in children]
            waiting.extend(children)
    return below


def _leading_to(targets: set[int], below: dict[int, list[int]]) -> set[int]:
    """The nodes on the paths to the targets."""
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


def _no_dependence(name: str, shared: Sequence[paddle.Tensor]) -> ValueError:
    described = ", ".join(f"{p.name} {list(p.shape)}" for p in shared)
    return ValueError(
        f"loss {name!r} does not depend on the shared parameters ({described}); "
        "pass as shared= parameters that every loss goes through (a loss also loses its "
        "dependence when backward(losses) has used it once)"
    )


@contextmanager
def explaining_a_used_graph(name: str) -> Iterator[None]:
    """Turn Paddle's error for a freed graph into one that names the loss."""
    try:
        yield
    except SystemError as error:
        if "retain_graph" in str(error):
            raise RuntimeError(
                f"the graph of loss {name!r} is gone: an earlier backward has used it up. "
                "Call that one with retain_graph=True, or let backward(losses) run the "
                "whole backward pass"
            ) from error
        raise
