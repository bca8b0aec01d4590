"""The gradient of every loss on the shared parameters, and the norms of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import paddle


def backward_by_task(
    losses: Sequence[paddle.Tensor],
    weights: paddle.Tensor,
    shared: Sequence[paddle.Tensor],
    names: Sequence[str],
) -> paddle.Tensor:
    """Backward pass of sum_i w_i L_i, a loss at a time, with the norms on the way.

    Afterwards the ``.grad`` of every parameter holds what it held before plus the
    gradient of the weighted sum, as after one backward of the sum. Losses at
    different points share no graph but the parameters, so both cost the same.

    Args:
        losses: T scalar tensors, shape [] each.
        weights: Their weights, shape [T], positive.
        shared: The shared parameters W.
        names: T names for the errors.

    Returns:
        ||dL_i/dW||, of the unweighted losses, shape [T], in the dtype of ``weights``.

    Raises:
        ValueError: A loss does not depend on any of the shared parameters. The
            gradients of the losses before it have been added by then.
        RuntimeError: A loss's graph is gone.
    """
    _check_dependence(losses, shared, names)
    factors = paddle.unbind(weights)
    totals = [_take_gradient(parameter) for parameter in shared]
    norms = []
    try:
        for i, (loss, factor, name) in enumerate(zip(losses, factors, names)):
            with _explaining_a_used_graph(name):
                # Other losses may share this one's graph; the last one frees it.
                paddle.autograd.backward(
                    [loss], [factor.astype(loss.dtype)], retain_graph=i + 1 < len(losses)
                )
            # What no other loss shares of the graph is freed here, as after any backward.
            loss.detach_()
            # Taken OUT between the losses, not differenced from a running sum: the
            # gradients differ by 1e4 and more, where float32 would lose the small ones.
            gradients = [_take_gradient(parameter) for parameter in shared]
            if all(gradient is None for gradient in gradients):
                raise _no_dependence(name, shared)
            norms.append(_norm(gradients, weights.dtype))
            totals = [_sum(*pair) for pair in zip(totals, gradients)]
    finally:
        for parameter, total in zip(shared, totals):
            if total is not None:
                parameter.grad = total
    return paddle.stack(norms) / weights


def task_gradient_norms(
    losses: Sequence[paddle.Tensor],
    shared: Sequence[paddle.Tensor],
    names: Sequence[str],
    dtype: paddle.dtype,
) -> paddle.Tensor:
    """The same norms for a caller who runs the backward pass himself; ``.grad`` stays untouched.

    Args:
        losses: T scalar tensors, shape [] each, whose graphs still exist.
        shared: The shared parameters W.
        names: T names for the errors.
        dtype: The dtype of the result.

    Returns:
        ||dL_i/dW||, shape [T].

    Raises:
        ValueError: A loss does not depend on any of the shared parameters.
        RuntimeError: A loss's graph is gone.
    """
    _check_dependence(losses, shared, names)
    norms = []
    for loss, name in zip(losses, names):
        with _explaining_a_used_graph(name):
            gradients = paddle.grad([loss], list(shared), retain_graph=True, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            raise _no_dependence(name, shared)
        norms.append(_norm(gradients, dtype))
    return paddle.stack(norms)


def backward_of_sum(
    losses: Sequence[paddle.Tensor],
    weights: paddle.Tensor,
    shared: Sequence[paddle.Tensor],
    names: Sequence[str],
) -> None:
    """Backward pass of sum_i w_i L_i in one go, without the norms; otherwise as above."""
    _check_dependence(losses, shared, names)
    factors = paddle.unbind(weights)
    with _explaining_a_used_graph(", ".join(names)):
        paddle.autograd.backward(
            list(losses),
            [factor.astype(loss.dtype) for factor, loss in zip(factors, losses)],
        )


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
def _explaining_a_used_graph(name: str) -> Iterator[None]:
    try:
        yield
    except SystemError as error:
        if "retain_graph" not in str(error):
            raise
        raise RuntimeError(
            f"the graph of loss {name!r} is gone: an earlier backward has used it up. "
            "Call that one with retain_graph=True, or let backward(losses) run the "
            "whole backward pass"
        ) from error


def _take_gradient(parameter: paddle.Tensor) -> paddle.Tensor | None:
    gradient = parameter.grad
    if gradient is None:
        return None
    gradient = gradient.clone()  # clear_gradient frees what .grad handed out
    parameter.clear_gradient(False)
    return gradient


def _sum(first: paddle.Tensor | None, second: paddle.Tensor | None) -> paddle.Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _norm(gradients: Sequence[paddle.Tensor | None], dtype: paddle.dtype) -> paddle.Tensor:
    norms = [
        paddle.linalg.norm(gradient.astype(dtype)) for gradient in gradients if gradient is not None
    ]
    return norms[0] if len(norms) == 1 else paddle.linalg.norm(paddle.stack(norms))


def _no_dependence(name: str, shared: Sequence[paddle.Tensor]) -> ValueError:
    described = ", ".join(f"{p.name} {list(p.shape)}" for p in shared)
    return ValueError(
        f"loss {name!r} does not depend on the shared parameters ({described}); "
        "pass as shared= parameters that every loss goes through (a loss also loses its "
        "dependence when backward(losses) has used it once)"
    )
