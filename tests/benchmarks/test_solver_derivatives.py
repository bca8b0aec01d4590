"""The ways of a Solver's step: the same training, and a row for each equation."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import solver_derivatives


@pytest.mark.parametrize("name", solver_derivatives.EQUATIONS)
def test_both_ways_make_the_same_training(name):
    trained = []
    for propagates in (False, True):
        solver = solver_derivatives.solver_of(name, 20, propagates)
        start = np.concatenate([p.numpy().ravel() for p in solver.model.parameters()])
        solver_derivatives.train(solver, 3)
        assert solver.global_step == 3
        end = np.concatenate([p.numpy().ravel() for p in solver.model.parameters()])
        assert np.abs(end - start).max() == pytest.approx(3e-3, rel=0.05)
        trained.append(end)
    np.testing.assert_allclose(*trained, atol=3e-4)
    assert np.mean(np.abs(trained[0] - trained[1])) < 1e-6


def test_there_is_a_row_for_each_equation(monkeypatch, capsys):
    monkeypatch.setattr(solver_derivatives, "tune_cpu", lambda **_: None)
    arguments = ["--points", "20", "--turns", "1", "--steps", "1"]
    rows = solver_derivatives.main(arguments).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {n}" for n in solver_derivatives.EQUATIONS]
    assert all(float(row.split(" | ")[2]) > 0 for row in rows)
