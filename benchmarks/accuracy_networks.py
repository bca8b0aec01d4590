"""Networks of accuracy.py beside FCNet: of waves before a tanh network, and as DB-PINN's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import paddle

from paddlescience_gradnorm import FCNet, NetworkBase
from paddlescience_gradnorm.network import Scaling
from paddlescience_gradnorm.pde.problems import Problem


class WaveNet(NetworkBase):
    """A tanh network of sin(B x + c) and of the coordinates, scaled to [-1, 1].

    Derivatives up to the second go through the layers with the value, as in FCNet.

    Args:
        waves: Frequencies B and phases c: shapes [d, K] and [K].
        linear: Which coordinates the network gets as they are, besides.
        low: Lower corner of the domain, d numbers.
        high: Upper corner.
        hidden_layers: Of the tanh network.
        width: Of each.
    """

    def __init__(
        self,
        waves: tuple[np.ndarray, np.ndarray],
        linear: Sequence[int],
        low: Sequence[float],
        high: Sequence[float],
        hidden_layers: int,
        width: int,
    ) -> None:
        super().__init__()
        frequencies, phases = waves
        scale = 2 / np.subtract(high, low)
        centre = np.add(high, low) / 2
        chosen = np.eye(len(low))[:, list(linear)]
        for name, values in (
            ("frequencies", frequencies),
            ("phases", phases),
            ("slopes", scale[:, None] * chosen),
            ("shifts", -(scale * centre) @ chosen),
        ):
            self.register_buffer(name, paddle.to_tensor(values, dtype=paddle.get_default_dtype()))
        self.tanh = FCNet(len(phases) + len(linear), 1, hidden_layers + 1, width)

    def nn_func(self, ins: paddle.Tensor) -> paddle.Tensor:
        return self.partial_derivatives(ins, [()])[0]

    def partial_derivatives(
        self, ins: paddle.Tensor, indices: Sequence[tuple[int, ...]]
    ) -> list[paddle.Tensor]:
        """As ``FCNet.partial_derivatives``, for orders up to 2."""
        wanted = [tuple(sorted(index)) for index in indices]
        seconds = sorted({index for index in wanted if len(index) == 2})
        firsts = sorted({i for index in wanted for i in index})
        pairs = [(firsts.index(i), firsts.index(j)) for i, j in seconds]
        keys = [(), *((i,) for i in firsts), *seconds]
        jet = self._waves(ins, firsts, seconds)
        *hidden, last = self.tanh.linears
        for linear in hidden:
            before, *derivatives = (paddle.matmul(part, linear.weight) for part in jet)
            value = paddle.tanh(before + linear.bias)
            slope, doubled = 1 - value * value, value * 2
            of_first, of_second = derivatives[: len(firsts)], derivatives[len(firsts) :]
            jet = [
                value,
                *(slope * first for first in of_first),
                *(
                    slope * (second - doubled * of_first[i] * of_first[j])
                    for (i, j), second in zip(pairs, of_second)
                ),
            ]
        found = {k: paddle.matmul(x, last.weight) for k, x in zip(keys, jet) if k in wanted}
        if () in found:
            found[()] = found[()] + last.bias
        return [found[index] for index in wanted]

    def _waves(
        self, ins: paddle.Tensor, firsts: Sequence[int], seconds: Sequence[tuple[int, ...]]
    ) -> list[paddle.Tensor]:
        """What the tanh network gets, and its derivatives, shape [N, K + number of linear]."""
        phases = paddle.matmul(ins, self.frequencies) + self.phases
        sines, cosines = paddle.sin(phases), paddle.cos(phases)
        coordinates = paddle.matmul(ins, self.slopes) + self.shifts
        zeros = paddle.zeros_like(coordinates)
        parts = [(sines, coordinates)]
        parts += [(cosines * self.frequencies[i], zeros + self.slopes[i]) for i in firsts]
        parts += [(-sines * self.frequencies[i] * self.frequencies[j], zeros) for i, j in seconds]
        return [paddle.concat(part, axis=1) for part in parts]

    def get_last_shared_layer(self) -> paddle.Tensor:
        return self.tanh.get_last_shared_layer()


def wave_net(
    problem: Problem, waves: Mapping[str, float], hidden_layers: int, width: int, seed: int
) -> WaveNet:
    """A network with sine and cosine of waves that are drawn for a problem in x and t.

    Args:
        problem: The problem; one that is periodic in x gets waves that are.
        waves: ``number`` of frequencies; ``x`` and ``t``, the size of those in x and t, in periods
            over the domain: standard deviations, or in a periodic x the largest. With ``t`` 0,
            each harmonic up to ``x`` once.
        hidden_layers: Of the tanh network.
        width: Of each.
        seed: Of the frequencies.
    """
    random = np.random.default_rng(seed)
    of_a_period = 2 * np.pi / np.subtract(problem.high, problem.low)
    periodic = any(c.region.periodic is not None for c in problem.conditions)
    number, in_x, in_t = (waves[name] for name in ("number", "x", "t"))
    if periodic and not in_t:
        drawn = np.stack([np.arange(1, int(in_x) + 1), np.zeros(int(in_x))])
    else:
        size = int(number)
        x = random.integers(0, int(in_x) + 1, size) if periodic else in_x * random.normal(size=size)
        drawn = np.stack([x, in_t * random.normal(size=size)])
    frequencies = np.repeat(drawn * of_a_period[:, None], 2, axis=1)
    phases = np.tile([0.0, np.pi / 2], drawn.shape[1])
    linear = [1] if periodic else [0, 1]
    return WaveNet((frequencies, phases), linear, problem.low, problem.high, hidden_layers, width)


def standardised_net(
    problem: Problem, hidden_layers: int, width: int, seed: int
) -> paddle.nn.Sequential:
    """The tanh network of Zhou et al., IJCAI 2025.

    Its inputs have mean 0 and standard deviation 1 if they are uniform in the domain. Its weights
    are drawn from Xavier's normal distribution times 5/3.
    """
    low, high = np.asarray(problem.low, float), np.asarray(problem.high, float)
    factor = np.sqrt(12) / (high - low)
    tanh = FCNet(len(problem.coordinates), len(problem.fields), hidden_layers + 1, width)
    random = np.random.default_rng(seed)
    for linear in tanh.linears:
        shape = linear.weight.shape
        deviation = 5 / 3 * np.sqrt(2 / sum(shape))
        linear.weight.set_value((deviation * random.normal(size=shape)).astype(np.float32))
    return paddle.nn.Sequential(Scaling(factor, -factor * (low + high) / 2), tanh)
