"""What balancing adds to a step: every kind of step runs, and the table says what was timed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import step_overhead
from step_cost_paddle import build
from step_cost_worker import Case

from paddlescience_gradnorm import _operators

SMALL = Case("laplace", 40, 4, width=8, layers=2)


@pytest.mark.parametrize("mode", ["plain", *step_overhead.RULE_NAMES])
def test_a_step_of_a_rule_leaves_no_tensors_to_the_garbage_collector(mode, waiting_tensors):
    # Else the memory fills during a turn, in which the collector is off.
    run = build(SMALL, mode)
    assert waiting_tensors(lambda: run(11)) == 0


@pytest.mark.parametrize("mode", list(step_overhead.TITLES))
def test_a_step_on_one_graph_leaves_none_either(mode, waiting_tensors):
    run = build(Case("navier_stokes", 40, 3, width=8, layers=2), mode)
    assert waiting_tensors(lambda: run(31)) == 0


def test_a_row_compares_lower_quartiles_and_neighbours():
    ms = {"plain": np.array([1.0, 2.0, 3.0]), "gradnorm_pinn": np.array([3.0, 3.0, 6.0])}
    row = step_overhead.row(SMALL, "gradnorm_pinn", ms)
    assert row["ms"] == 3.0 and row["to_plain"] == 2.0  # lower quartiles 3 and 1.5
    assert row["paired"] == [1.75, 2.0, 2.5]  # of 3, 1.5 and 2
    assert "| 4, disjoint | 40 | PINN rule | 3.00 | 2.000 | 2.000 [1.750, 2.500] |" in (
        step_overhead.table([row])
    )


def test_turns_are_whole_periods_of_updates(monkeypatch):
    made = {}
    monkeypatch.setattr(
        step_overhead,
        "in_turns",
        lambda runs, turns, steps, clock: made.update(steps=steps, turns=turns),
    )
    step_overhead.timed(SMALL, ["plain", "config"], turns=3)
    assert made["turns"] == 3 and made["steps"] % step_overhead.PERIOD == 0 < made["steps"]


def test_it_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step_overhead, "CASE_OF_RULES", SMALL)
    monkeypatch.setattr(step_overhead, "SECONDS", 1e-9)
    monkeypatch.setenv(_operators.CHOICE, "on")  # main sets it, for its own process
    options = ["--rules", "--turns", "1", "--threads", "1", "--output", str(tmp_path)]
    rows = step_overhead.main(options)
    assert [row["step"] for row in rows] == ["plain step", *map(title, step_overhead.RULE_NAMES)]
    assert all(row["ms"] > 0 for row in rows)
    assert json.loads((tmp_path / "step_overhead.json").read_text())["results"] == rows
    assert (tmp_path / "step_overhead.md").read_text() in capsys.readouterr().out


def title(mode):
    return step_overhead.TITLES.get(mode, mode)
