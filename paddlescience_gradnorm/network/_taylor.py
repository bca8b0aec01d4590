"""Derivatives of a tanh network in its inputs by forward (Taylor-mode) propagation.

For a second derivative ``paddle.grad`` nests reverse passes, which build a graph several times
the size of the network's. Here the value, the first and the second derivatives go through the
layers together. A linear layer acts on each in the same way. For tanh the chain rule gives, with
a = tanh(z) and s = 1 - a^2,

    a_i = s z_i,    a_ij = s (z_ij - 2 a z_i z_j).

All tensors have the same shape [N, width], because Paddle's kernels broadcast slowly: a product
of [1, N, width] with [2, N, width] takes 30 times as long. If the C++ operators have been loaded,
one of them computes all layers but the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle

from paddlescience_gradnorm import _operators

Index = tuple  # coordinate numbers: (0, 1) is the second derivative in coordinates 0 and 1


def propagate(
    linears: Sequence[paddle.nn.Linear], ins: paddle.Tensor, indices: Sequence[Index]
) -> list[paddle.Tensor]:
    """Derivatives of a network of layers linear, tanh, ..., tanh, linear.

    Args:
        linears: The linear layers, at least 2, with biases.
        ins: Inputs, shape [N, num_ins].
        indices: Which derivatives: () for the value, (i,) and (i, j) for the first and second.

    Returns:
        One tensor of shape [N, num_outs] for each index, differentiable with respect to
        the parameters (only once if the C++ operators are used), but not with respect to
        ``ins``.
    """
    wanted = [tuple(sorted(index)) for index in indices]  # their order does not matter
    seconds = sorted({index for index in wanted if len(index) == 2})
    firsts = sorted({i for index in wanted for i in index})
    pairs = [(firsts.index(i), firsts.index(j)) for i, j in seconds]
    keys: list[Index] = [(), *((i,) for i in firsts), *seconds]
    parameters = [p for linear in linears for p in (linear.weight, linear.bias)]
    last = linears[-1]
    if len(firsts) <= _operators.MOST_FIRSTS and _operators.apply_to(ins, *parameters):
        outputs = dict(zip(keys, _fused(linears, ins.detach(), firsts, pairs)))
    else:
        jet = _layer_by_layer(linears[:-1], ins.detach(), firsts, pairs)
        outputs = {k: paddle.matmul(x, last.weight) for k, x in zip(keys, jet) if k in wanted}
    if () in wanted:
        outputs[()] = outputs[()] + last.bias
    return [outputs[index] for index in wanted]


def _fused(
    linears: Sequence[paddle.nn.Linear],
    ins: paddle.Tensor,
    firsts: Sequence[int],
    pairs: Sequence[tuple[int, int]],
) -> list[paddle.Tensor]:
    """Value, first and second derivatives without the last bias, shape [N, num_outs] each.

    Paddle computes the last layer, so that GradNorm can differentiate a loss with respect to
    that layer only, without going back through the others.
    """
    hidden, last = linears[:-1], linears[-1].weight
    weights, biases = [x.weight for x in hidden], [x.bias for x in hidden]
    jet = _operators.tanh_jet(ins, weights, biases, firsts, pairs)
    parts = paddle.matmul(last, jet, transpose_x=True)  # [num_outs, S * N]
    n_outs, n_parts = last.shape[1], 1 + len(firsts) + len(pairs)
    if n_outs > 1:
        parts = parts.reshape([n_outs, n_parts, -1]).transpose([1, 2, 0])
    return paddle.unbind(parts.reshape([n_parts, -1, n_outs]))


def _layer_by_layer(
    linears: Sequence[paddle.nn.Linear],
    ins: paddle.Tensor,
    firsts: Sequence[int],
    pairs: Sequence[tuple[int, int]],
) -> list[paddle.Tensor]:
    """The same before the last layer, with Paddle's operators, shape [N, width] each."""
    columns = [linears[0].weight[i] for i in firsts]  # z_i, the same at all points; z_ij = 0
    value, slope = _tanh(linears[0](ins))
    bend = value * slope * -2
    jet = [
        value,
        *(slope * column for column in columns),
        *(bend * (columns[i] * columns[j]) for i, j in pairs),
    ]
    for linear in linears[1:]:
        before, *derivatives = (paddle.matmul(part, linear.weight) for part in jet)
        value, slope = _tanh(before + linear.bias)
        doubled = value * 2
        firsts_before, seconds_before = derivatives[: len(firsts)], derivatives[len(firsts) :]
        jet = [
            value,
            *(slope * first for first in firsts_before),
            *(
                slope * (second - doubled * firsts_before[i] * firsts_before[j])
                for (i, j), second in zip(pairs, seconds_before)
            ),
        ]
    return jet


def _tanh(value: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """The value a = tanh(z) and the slope s."""
    value = paddle.tanh(value)
    return value, 1 - value * value
