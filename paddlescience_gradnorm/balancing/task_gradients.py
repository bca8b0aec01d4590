"""The gradient of every loss on the shared parameters, and what is measured of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Optional, Union

import paddle

from paddlescience_gradnorm import operators

# The gradient of each task on each shared parameter; None where it does not depend on it.
TaskGradients = list[list[Optional[paddle.Tensor]]]


def backward_by_task(
    losses: Sequence[paddle.Tensor],
    weights: paddle.Tensor,
    shared: Sequence[paddle.Tensor],
    names: Sequence[str],
) -> TaskGradients:
    """Backward pass of sum_i w_i L_i, a loss at a time, with each one's gradient on the way.

    Afterwards the ``.grad`` of every parameter holds what it held before plus the
    gradient of the weighted sum, as after one backward of the sum. Losses at
    different points share no graph but the parameters, so both cost the same.

    Args:
        losses: T scalar tensors, shape [] each.
        weights: Their weights, shape [T], positive.
        shared: The shared parameters W.
        names: T names for the errors.

    Returns:
        d(w_i L_i)/dW.

    Raises:
        ValueError: A loss does not depend on any of the shared parameters. The
            gradients of the losses before it have been added by then.
        RuntimeError: A loss's graph is gone.
    """
    _check_dependence(losses, shared, names)
    by_task: TaskGradients = [[None] * len(shared) for _ in losses]
    repeated = len({id(loss) for loss in losses}) < len(losses)
    # From the last to the first, for the first is usually the PDE's, with the largest
    # graph, and freeing a graph on the way, which only the one that ends it may do,
    # is the cheaper the larger it is.
    i = len(losses)
    first = [True] * len(shared)
    reached = [False] * len(losses)

    def taking(k: int) -> Callable[[paddle.Tensor], None]:
        # Noted as it passes, not differenced from the running sum: the gradients differ by
        # 1e4 and more, where float32 would lose the small ones.
        def take(gradient: paddle.Tensor) -> None:
            # The first one may become .grad itself, and the others are added to that.
            by_task[i][k] = gradient.clone() if first[k] else gradient
            first[k], reached[i] = False, True

        return take

    hooks = [p.register_hook(taking(k)) for k, p in enumerate(shared) if not p.stop_gradient]
    try:
        factors = _factors(weights, losses)
        while i > 0:
            i -= 1
            # Another loss may share this one's graph.
            losses[i].backward(factors[i], retain_graph=i > 0)
            # What no other loss shares of the graph is freed here, as after any backward.
            if not (repeated and any(other is losses[i] for other in losses[:i])):
                losses[i].detach_()
            if not reached[i]:
                raise _no_dependence(names[i], shared)
    except SystemError as error:
        _explain(error, names[i])
        raise
    finally:
        for hook in hooks:
            hook.remove()
    return by_task


def task_gradients(
    losses: Sequence[paddle.Tensor],
    shared: Sequence[paddle.Tensor],
    names: Sequence[str],
) -> TaskGradients:
    """Those of the losses alone, without a backward pass; ``.grad`` stays untouched.

    Args:
        losses: T scalar tensors, shape [] each, whose graphs still exist.
        shared: The shared parameters W.
        names: T names for the errors.

    Returns:
        dL_i/dW.

    Raises:
        ValueError: A loss does not depend on any of the shared parameters.
        RuntimeError: A loss's graph is gone.
    """
    _check_dependence(losses, shared, names)
    by_task: TaskGradients = []
    for loss, name in zip(losses, names):
        with explaining_a_used_graph(name):
            gradients = paddle.grad([loss], list(shared), retain_graph=True, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            raise _no_dependence(name, shared)
        by_task.append(gradients)
    return by_task


def backward_of_sum(
    losses: Sequence[paddle.Tensor],
    weights: paddle.Tensor,
    shared: Sequence[paddle.Tensor],
    names: Sequence[str],
) -> None:
    """Backward pass of sum_i w_i L_i in one go; otherwise as above."""
    _check_dependence(losses, shared, names)
    with explaining_a_used_graph(", ".join(names)):
        paddle.autograd.backward(list(losses), _factors(weights, losses))


def weighed(
    weights: paddle.Tensor, losses: Sequence[paddle.Tensor]
) -> tuple[paddle.Tensor, Union[bool, paddle.Tensor]]:
    """The weighted sum, and what can be told of the losses without their gradients.

    Args:
        weights: The losses' weights, shape [T], contiguous.
        losses: T scalar tensors, shape [] each, unweighted.

    Returns:
        sum_i w_i L_i, shape [], in the dtype of ``weights``; and whether all losses are finite
        and none is negative, as a bool or, where nobody has waited for it, a boolean tensor.
    """
    done = operators.balancing.weigh(weights, losses)
    if done is not None:
        return done
    values = values_of(losses, weights.dtype)
    usable = (paddle.isfinite(values) & (values >= 0)).all()
    return paddle.dot(weights, values), usable


def measured(
    weights: paddle.Tensor,
    factors: paddle.Tensor,
    losses: Sequence[paddle.Tensor],
    gradients: TaskGradients,
    into: tuple[paddle.Tensor, paddle.Tensor],
) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """What a step knows of its losses.

    Args:
        weights: The losses' weights, shape [T].
        factors: What the losses were multiplied by before ``gradients`` were taken, shape [T].
        losses: T scalar tensors, shape [] each, unweighted.
        gradients: As of ``backward_by_task`` or ``task_gradients``.
        into: Two tensors like ``weights`` that may be overwritten with the second and third
            result, and returned. These four are contiguous and of one dtype.

    Returns:
        sum_i w_i L_i, shape []; L_i, shape [T]; and ||dL_i/dW||, of the unweighted losses,
        shape [T], where a parameter that a loss does not depend on counts 0; all in the
        dtype of ``weights``. And the inner products of ``gradients``, which still have the
        factors, float64, shape [T, T].
    """
    done = operators.balancing.measure(weights, factors, losses, gradients, *into)
    if done is not None:
        return done[0], *into, done[1]
    values = values_of(losses, weights.dtype)
    parts = []
    for column in zip(*gradients):  # of all tasks, on one parameter
        some = next((g for g in column if g is not None), None)
        if some is not None:
            stacked = paddle.stack([paddle.zeros_like(some) if g is None else g for g in column])
            parts.append(inner_products(stacked.flatten(1)))
    products = parts[0] if len(parts) == 1 else paddle.add_n(parts)
    norms = products.diagonal().sqrt() / factors.astype("float64")
    return paddle.dot(weights, values), values, norms.astype(weights.dtype), products


def inner_products(rows: paddle.Tensor) -> paddle.Tensor:
    """Those of all rows with all, float64, shape [T, T]."""
    # In float32 the squares of gradients of 1e20 would overflow, and of 1e-23 be zero.
    rows = rows.astype("float64")
    return paddle.matmul(rows, rows, transpose_y=True)


def values_of(losses: Sequence[paddle.Tensor], dtype: paddle.dtype) -> paddle.Tensor:
    """The losses as one tensor of this dtype, shape [T]."""
    return paddle.stack([x if x.dtype == dtype else x.astype(dtype) for x in losses])


def rows(
    factors: paddle.Tensor, gradients: TaskGradients, shared: Sequence[paddle.Tensor]
) -> paddle.Tensor:
    """dL_i/dW of the unweighted losses, for a mean that is taken before the norm.

    Args:
        factors: As for ``measured``.
        gradients: As for ``measured``.
        shared: The shared parameters W.

    Returns:
        Shape [T, number of shared values], one parameter after the other, zeros where a
        loss does not depend on it, in the dtype of ``factors``.
    """
    by_task = [
        paddle.concat(
            [
                (paddle.zeros_like(p) if g is None else g).flatten().astype(factors.dtype)
                for g, p in zip(of_task, shared)
            ]
        )
        for of_task in gradients
    ]
    return paddle.stack(by_task) / factors.unsqueeze(1)


def _factors(weights: paddle.Tensor, losses: Sequence[paddle.Tensor]) -> list[paddle.Tensor]:
    """What backward starts with at each loss: its weight, in its dtype."""
    return [
        factor if factor.dtype == loss.dtype else factor.astype(loss.dtype)
        for factor, loss in zip(paddle.unbind(weights), losses)
    ]


def _check_dependence(
    losses: Sequence[paddle.Tensor],
    shared: Sequence[paddle.Tensor],
    names: Sequence[str],
) -> None:
    """Raise a ``ValueError`` if one of the losses depends on nothing."""
    for loss, name in zip(losses, names):
        if loss.stop_gradient:
            raise _no_dependence(name, shared)


@contextmanager
def explaining_a_used_graph(name: str) -> Iterator[None]:
    try:
        yield
    except SystemError as error:
        _explain(error, name)
        raise


def _explain(error: SystemError, name: str) -> None:
    """Raise the error that a used-up graph is; nothing for any other."""
    if "retain_graph" in str(error):
        raise RuntimeError(
            f"the graph of loss {name!r} is gone: an earlier backward has used it up. "
            "Call that one with retain_graph=True, or let backward(losses) run the "
            "whole backward pass"
        ) from error


def _no_dependence(name: str, shared: Sequence[paddle.Tensor]) -> ValueError:
    described = ", ".join(f"{p.name} {list(p.shape)}" for p in shared)
    return ValueError(
        f"loss {name!r} does not depend on the shared parameters ({described}); "
        "pass as shared= parameters that every loss goes through (a loss also loses its "
        "dependence when backward(losses) has used it once)"
    )
