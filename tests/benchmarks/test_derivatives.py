"""The ways of a derivative's step: the same step, and a row for each equation."""

import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import derivatives


@pytest.mark.parametrize("equation", derivatives.EQUATIONS)
def test_all_ways_make_the_same_step(equation, monkeypatch):
    nets = []

    def made(*arguments):
        nets.append(net(*arguments))
        return nets[-1]

    net = derivatives.FCNet
    monkeypatch.setattr(derivatives, "FCNet", made)
    for way in derivatives.WAYS:
        derivatives.step_of(derivatives.EQUATIONS[equation], way, "tanh", 30)()
    first, *others = (np.concatenate([p.numpy().ravel() for p in x.parameters()]) for x in nets)
    paddle.seed(0)
    start = net(2, 1, 5, 50, "tanh")
    moved = first - np.concatenate([p.numpy().ravel() for p in start.parameters()])
    assert np.abs(moved).max() == pytest.approx(1e-3, rel=1e-2)
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-4)
        assert np.mean(np.abs(other - first)) < 1e-6


def test_there_is_a_row_for_each_equation(monkeypatch, capsys):
    monkeypatch.setattr(derivatives, "tune_cpu", lambda **_: None)
    rows = derivatives.main(["--points", "20", "--turns", "1", "--steps", "1"]).splitlines()[2:]
    assert [row.split(" | ")[2] for row in rows] == 2 * list(derivatives.EQUATIONS)
    assert all(float(row.split(" | ")[3]) > 0 for row in rows)
    assert rows[0].split(" | ")[4] == "1.00 [1.00, 1.00]"
