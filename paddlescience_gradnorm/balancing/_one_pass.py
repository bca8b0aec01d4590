"""Measures the gradient of every loss in the single backward pass of a step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Union

import numpy as np
import paddle

from paddlescience_gradnorm import _paddle
from paddlescience_gradnorm.balancing import _ranks
from paddlescience_gradnorm.balancing.measurement import STATISTICS

# Gradients of T losses: an array on the host, a tensor on an accelerator.
Rows = Union[np.ndarray, paddle.Tensor]

# Extra cost of a node for each parameter that it takes, because such a node is usually a matrix
# product. Other nodes are elementwise and cost 1. This is rough, but the choice is seldom close.
_PRODUCT = 20
# The nodes of static programs, by Paddle's names in 3.3 and in 2.6.
_STATIC_PROGRAMS = ("Dy2StGradNode", "GradNodeBase")
_PYTHON_FUNCTIONS = ("GradNodePyLayer",)


def backward_by_loss(
    losses: Sequence[paddle.Tensor],
    factors: paddle.Tensor,
    shared: Sequence[paddle.Tensor],
    names: Sequence[str],
    in_two_passes: bool = False,
) -> Rows:
    """Run the backward pass of sum_i f_i L_i one loss at a time, and keep each loss's gradient.

    The ``.grad`` of every parameter grows by the gradient of the sum, as in one backward pass of
    the sum. For losses at different collocation points both cost the same, because such losses
    share only parameters. The losses are detached, which frees their graphs. A loss without a
    graph adds nothing.

    Args:
        losses: T scalar tensors, shape [] each.
        factors: Their factors, shape [T].
        shared: The shared parameters W. Those that are frozen get no gradient.
        names: T names for error messages.
        in_two_passes: Whether to take the gradients first and then go backward once from the
            sum: see ``two_passes_are_cheaper``.

    Returns:
        d(f_i L_i)/dW, one parameter after the other, shape [T, values of W], in the dtype of
        ``factors``; 0 where a loss does not depend on a parameter.

    Raises:
        ValueError: No loss depends on any shared parameter. By then the gradients of the
            losses have been added.
        RuntimeError: A loss's graph has been freed.
    """
    if in_two_passes:
        rows = gradients_alone(losses, factors, shared, names)
        backward_of_sum(losses, factors, names)
        return rows
    starts = _starts(losses, factors, names)
    # Hooks, because differences of the running sum would lose small gradients in float32:
    # the gradients of two losses can differ by 1e4 and more.
    passing: list[list[paddle.Tensor]] = [[] for _ in shared]
    hooks = [
        p.register_hook(kept.append) for p, kept in zip(shared, passing) if not p.stop_gradient
    ]
    by_loss, reached = [], False
    # From the last loss to the first, because only the final backward frees its graph as it goes.
    # That saves most if the first loss has the largest graph, as an equation usually has.
    i = len(losses)
    try:
        while i > 0:
            i -= 1
            start = starts[i]
            if start is not None:
                with explaining_a_used_graph(names[i]):
                    losses[i].backward(start, retain_graph=i > 0)  # others may share its graph
                if all(other is not losses[i] for other in losses[:i]):
                    losses[i].detach_()
                reached = reached or any(passing)
            found = [kept.pop() if kept else None for kept in passing]
            # Copied now, because the first gradient becomes .grad, and later ones are added to it.
            by_loss.append(_row(found, shared, factors.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    if hooks and not reached:
        raise _no_dependence(names, shared)
    by_loss.reverse()
    return np.array(by_loss) if isinstance(by_loss[0], np.ndarray) else paddle.stack(by_loss)


def backward_of_sum(
    losses: Sequence[paddle.Tensor],
    factors: paddle.Tensor,
    names: Sequence[str],
    one_by_one: bool = False,
) -> None:
    """Run the backward pass of sum_i f_i L_i, without the gradients of single losses.

    Args:
        losses: As for ``backward_by_loss``.
        factors: As for ``backward_by_loss``.
        names: As for ``backward_by_loss``.
        one_by_one: Whether each loss gets a pass of its own. Then an error about a graph names
            only the loss that has it.
    """
    starts = _starts(losses, factors, names)
    with_graph = [i for i, start in enumerate(starts) if start is not None]
    if one_by_one or len({id(losses[i]) for i in with_graph}) < len(with_graph):
        # Paddle refuses the same tensor twice in one pass.
        for i in reversed(with_graph):
            with explaining_a_used_graph(names[i]):
                losses[i].backward(starts[i], retain_graph=i > with_graph[0])
    else:
        with explaining_a_used_graph(*(names[i] for i in with_graph)):
            paddle.autograd.backward(
                [losses[i] for i in with_graph], [starts[i] for i in with_graph]
            )
    for i in with_graph:
        losses[i].detach_()


def _starts(
    losses: Sequence[paddle.Tensor], factors: paddle.Tensor, names: Sequence[str]
) -> list[paddle.Tensor | None]:
    """The factors, each in its loss's dtype; None for a loss without a graph."""
    if all(loss.stop_gradient for loss in losses):
        raise ValueError(
            f"no loss has a graph to go backward through: {', '.join(map(repr, names))}. They "
            "were computed without gradients (no_grad, detached, or all parameters frozen), or "
            "backward(losses) has used them before"
        )
    return [
        None
        if loss.stop_gradient
        else (factor if loss.dtype == factors.dtype else factor.astype(loss.dtype))
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
    rows, reached = [], False
    trained = [parameter for parameter in shared if not parameter.stop_gradient]
    for loss, name in zip(losses, names):
        found: dict[int, paddle.Tensor | None] = {}
        if trained and not loss.stop_gradient:
            with explaining_a_used_graph(name):
                gradients = _asked(loss, trained, name)
            found = {id(parameter): g for parameter, g in zip(trained, gradients)}
            reached = reached or any(gradient is not None for gradient in gradients)
        with paddle.no_grad():
            rows.append(_row([found.get(id(p)) for p in shared], shared, factors.dtype))
    if trained and not reached:
        raise _no_dependence(names, shared)
    with paddle.no_grad():
        column = factors.unsqueeze(1)
        if isinstance(rows[0], np.ndarray):
            return np.array(rows) * column.numpy()
        return paddle.stack(rows) * column


def _asked(loss: paddle.Tensor, trained: Sequence[paddle.Tensor], name: str) -> Any:
    try:
        return paddle.grad([loss], list(trained), retain_graph=True, allow_unused=True)
    except (RuntimeError, OSError) as error:
        raise RuntimeError(
            f"paddle.grad cannot differentiate loss {name!r} with respect to the shared "
            "parameters, and only a backward pass can: call backward(losses), which runs the whole "
            "pass, or write the loss in other operations, such as x * x in place of x ** 2"
        ) from error


def can_ask_for_gradients(losses: Sequence[paddle.Tensor], shared: Sequence[paddle.Tensor]) -> bool:
    """Whether ``paddle.grad`` works on these graphs.

    For some graphs it fails, although a backward pass works. One is the second derivative of
    ``x ** 2`` times a network's output.
    """
    trained = [parameter for parameter in shared if not parameter.stop_gradient]
    try:
        for loss in losses:
            _asked(loss, trained, "")
    except RuntimeError:
        return False
    return True


def gradients_of(shared: Sequence[paddle.Tensor], dtype: paddle.dtype) -> Rows:
    """A copy of the parameters' ``.grad``, shape [values of W]; 0 where there is none."""
    with paddle.no_grad():
        return _row([parameter.grad for parameter in shared], shared, dtype)


def overwrite_gradients(shared: Sequence[paddle.Tensor], values: Rows) -> None:
    """Overwrite the ``.grad`` of the parameters that have one.

    A sparse one stays sparse. Frozen parameters keep theirs.

    Args:
        shared: The shared parameters W.
        values: Their gradients, one parameter after the other, shape [values of W].
    """
    if isinstance(values, paddle.Tensor) and values.place.is_cpu_place():
        values = values.numpy()
    end = 0
    for parameter in shared:
        start, end = end, end + math.prod(parameter.shape) * (1 + parameter.is_complex())
        grad = parameter.grad
        if grad is None or parameter.stop_gradient:
            continue
        part = values[start:end]
        if grad.is_selected_rows():
            whole = part if isinstance(part, np.ndarray) else part.numpy()
            _paddle.overwrite_sparse(grad, whole.reshape(parameter.shape))
            continue
        usual = grad.dtype in (paddle.float32, paddle.float64) and grad.is_dense()
        if usual and isinstance(part, np.ndarray) and grad.is_contiguous():
            _paddle.write_on_host(grad, part)
            continue
        with paddle.no_grad():
            if isinstance(part, np.ndarray):
                part = paddle.to_tensor(part, place=parameter.place)
            if parameter.is_complex():
                part = paddle.as_complex(part.reshape([*parameter.shape, 2]))
            parameter.grad = part.reshape(parameter.shape).astype(grad.dtype)


def combination(rows: Rows, coefficients: np.ndarray) -> Rows:
    """sum_i c_i g_i in float64, shape [values of W].

    Args:
        rows: The gradients g_i, shape [T, values of W].
        coefficients: c, shape [T].
    """
    # In float64, because a direction may be 1e6 times shorter than the gradients it is made of.
    with np.errstate(invalid="ignore", over="ignore"):  # gradients need not be finite
        if isinstance(rows, np.ndarray):
            return coefficients @ rows.astype(np.float64)
        precise = paddle.to_tensor(coefficients, "float64", rows.place)
        total: paddle.Tensor = precise @ rows.astype("float64")
        return total


def measured(
    losses: paddle.Tensor,
    weights: paddle.Tensor,
    rows: Rows | None,
    needs: Collection[str],
    weighted: bool = True,
) -> tuple[dict[str, Any], np.ndarray]:
    """What a rule needs, float64, on the host; an accelerator is read in one copy.

    Args:
        losses: The unweighted losses, shape [T].
        weights: Their weights, shape [T].
        rows: Gradients of the weighted losses, shape [T, values of W]; None if ``needs``
            is empty.
        needs: The rule's ``needs``.
        weighted: Whether they are gradients of the weighted losses, and not of the losses.

    Returns:
        Arguments of ``Measurement`` by name, arrays, and the weights, shape [T].
    """
    parts = {"losses": losses, "weights": weights}
    if rows is not None:
        # In float32 the square of 1e20 overflows and the square of 1e-23 vanishes.
        precise = rows.astype("float64")
        parts["gram"] = precise @ precise.T
        parts.update(_statistics(precise, [name for name in STATISTICS if name in needs]))
    if losses.place.is_cpu_place():
        arrays = [x if isinstance(x, np.ndarray) else x.numpy() for x in parts.values()]
        numbers = [array.astype(np.float64).ravel() for array in arrays]
    else:
        joined = paddle.concat([x.astype("float64").flatten() for x in parts.values()]).numpy()
        numbers = np.split(joined, np.cumsum([x.size for x in parts.values()])[:-1])
    found = dict(zip(parts, numbers))
    acted = found.pop("weights")
    if not weighted:
        return {**found, "gram": found["gram"].reshape(len(acted), -1)}, acted
    factors = np.where(acted == 0, 1.0, acted) if 0.0 in acted.tolist() else acted
    if rows is not None:
        found["gram"] = found["gram"].reshape(len(acted), -1) / (factors * factors[:, None])
    for name in found.keys() & {"largest", "mean", "std"}:  # the kurtosis has no unit
        found[name] = found[name] / abs(factors)
    return found, acted


def _statistics(rows: Rows, names: Sequence[str]) -> dict[str, Rows]:
    """Statistics of the entries of each row by name, shape [T] each; rows are float64."""
    found: dict[str, Rows] = {}
    if "largest" in names or "mean" in names:
        sizes = abs(rows) if isinstance(rows, np.ndarray) else rows.abs()
        found = {"largest": sizes.max(axis=1), "mean": sizes.mean(axis=1)}
    if "std" in names or "kurtosis" in names:
        # NaN where a gradient is not finite; the kurtosis also where all entries are equal.
        with np.errstate(over="ignore", invalid="ignore"):
            distances = rows - rows.mean(axis=1)[:, None]
            found["std"] = (distances * distances).mean(axis=1) ** 0.5
            if "kurtosis" in names:
                squares = (distances / found["std"][:, None]) ** 2
                found["kurtosis"] = (squares * squares).mean(axis=1)
    return {name: found[name] for name in names}


def _row(
    gradients: Sequence[paddle.Tensor | None],
    shared: Sequence[paddle.Tensor],
    dtype: paddle.dtype,
) -> Rows:
    """One loss's gradients in a row, 0 where there is none, shape [values of W].

    A complex gradient gives two values for each entry, so that its norm is the true one. On the
    host the row is an array, because numpy takes a fifth of the time of Paddle's operators. On an
    accelerator it stays a tensor there.
    """
    if shared[0].place.is_cpu_place():
        parts = [_entries(g, p, dtype) for g, p in zip(gradients, shared)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    tensors = [
        paddle.zeros_like(p) if g is None else _paddle.dense(g, p)
        for g, p in zip(gradients, shared)
    ]
    real = [paddle.as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors]
    return paddle.concat([tensor.astype(dtype).flatten() for tensor in real])


def _entries(
    gradient: paddle.Tensor | None, parameter: paddle.Tensor, dtype: paddle.dtype
) -> np.ndarray:
    """The entries of a gradient on the host, real, in one row."""
    if gradient is None:
        size = math.prod(parameter.shape) * (1 + parameter.is_complex())
        return np.zeros(size, np.float32)
    if gradient.dtype == dtype and gradient.is_dense():
        return gradient.numpy().ravel()
    gradient = _paddle.dense(gradient, parameter)
    if gradient.is_complex():
        gradient = paddle.as_real(gradient)
    return gradient.astype(dtype).numpy().ravel()


def overwrite(tensor: paddle.Tensor, values: np.ndarray) -> None:
    """Overwrite a float32, float64 or int64 tensor in place, on its own device."""
    if tensor.place.is_cpu_place():
        _paddle.write_on_host(tensor, values)
    else:
        values = np.asarray(values, np.float32 if tensor.dtype == paddle.float32 else np.float64)
        with paddle.no_grad():
            tensor.copy_(paddle.to_tensor(values, place=tensor.place), False)


def two_passes_are_better(
    losses: Sequence[paddle.Tensor], shared: Sequence[paddle.Tensor]
) -> bool | None:
    """Whether to take two passes; None if a loss without a graph hides that in this step."""
    # With several processes there must be only one backward pass, because
    # paddle.DataParallel averages gradients only in the first pass that reaches them.
    if _ranks.number() > 1 or share_a_python_function(losses):
        return True
    if any(loss.stop_gradient for loss in losses):
        return None
    return two_passes_are_cheaper(losses, shared) and can_ask_for_gradients(losses, shared)


def two_passes_are_cheaper(
    losses: Sequence[paddle.Tensor], shared: Sequence[paddle.Tensor]
) -> bool:
    """Whether it is cheaper to take the gradients first and then go backward from the sum.

    One pass goes from each loss in turn, so it visits k times what k losses share. Two passes
    visit the nodes between each loss and W once more, which are few if W is the last layer. Losses
    that share only parameters are cheaper in one pass.

    Args:
        losses: T scalar tensors with their graphs.
        shared: The shared parameters W.
    """
    targets = {_paddle.graph_node(p).node_ptr() for p in shared if not p.stop_gradient}
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


def refuse_a_static_program(losses: Sequence[paddle.Tensor], names: Sequence[str]) -> None:
    """Raise a ``ValueError`` if several losses come from one run of a static program.

    Paddle can go backward through such a run only once, so it cannot separate the losses.
    """
    for together in _sharing(losses, _STATIC_PROGRAMS):
        raise ValueError(
            f"the losses {', '.join(repr(names[i]) for i in together)} come from one run of a "
            "static program (paddle.jit.to_static), which Paddle cannot differentiate loss by "
            "loss: train the network as it was before to_static, or call it once for each loss"
        )


def share_a_python_function(losses: Sequence[paddle.Tensor]) -> bool:
    """Whether losses share a ``PyLayer``, which ends the process in a second ``backward``."""
    return bool(_sharing(losses, _PYTHON_FUNCTIONS))


def _sharing(losses: Sequence[paddle.Tensor], kinds: tuple[str, ...]) -> list[list[int]]:
    """For each node of these kinds that several losses share, the numbers of these losses."""
    of_node: dict[int, list[int]] = {}
    for i, loss in enumerate(losses):
        for node in graph_nodes(loss):
            if node.name().startswith(kinds):
                of_node.setdefault(node.node_ptr(), []).append(i)
    return [together for together in of_node.values() if len(together) > 1]


def graph_nodes(loss: paddle.Tensor) -> Iterator[Any]:
    """The nodes that a backward pass reaches, each once; none for a loss without a graph."""
    waiting, seen = [] if loss.stop_gradient else [_paddle.graph_node(loss)], set()
    while waiting:
        node = waiting.pop()
        if node.node_ptr() not in seen:
            seen.add(node.node_ptr())
            yield node
            waiting.extend(_children(node))


def _children(node: Any) -> list[Any]:
    """The nodes to which a node passes gradients."""
    return [child for child in node.next_functions if child is not None]


def _nodes_below(loss: paddle.Tensor) -> dict[int, list[int]]:
    """The nodes that a backward pass reaches, each with the nodes to which it passes gradients."""
    return {
        node.node_ptr(): [child.node_ptr() for child in _children(node)]
        for node in graph_nodes(loss)
    }


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


def _no_dependence(names: Sequence[str], shared: Sequence[paddle.Tensor]) -> ValueError:
    described = ", ".join(f"{p.name} {list(p.shape)}" for p in shared)
    return ValueError(
        f"none of the losses {', '.join(map(repr, names))} depends on the shared parameters "
        f"({described}); pass as shared= parameters that the losses go through"
    )


@contextmanager
def explaining_a_used_graph(*names: str) -> Iterator[None]:
    """Turn Paddle's error for a freed graph into one that names the losses it may be about."""
    try:
        yield
    except SystemError as error:
        if "retain_graph" in str(error):
            which = f"loss {names[0]!r}" if len(names) == 1 else f"one of the losses {names}"
            raise RuntimeError(
                f"the graph of {which} is gone, because an earlier backward pass has used it "
                "up. Either something in it was computed once, before the loop: compute it in "
                "every step, or detach it. Or the loss itself was differentiated before: call "
                "that backward with retain_graph=True, or let backward(losses) run the whole pass"
            ) from error
        raise
