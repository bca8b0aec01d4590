"""How the cost of a step grows: the model on paper, and a run of the smallest case."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from paddlescience_gradnorm import FCNet
from paddlescience_gradnorm.network import _taylor
from paddlescience_gradnorm.pde.problems import problem

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import cost_growth
from step_cost_worker import Case


@pytest.mark.parametrize("width, layers", [(50, 5), (256, 9)])
def test_the_model_counts_the_parameters_of_the_network(width, layers):
    net = FCNet(2, 1, layers, width)
    held = sum(int(np.prod(p.shape)) for p in net.parameters())
    assert cost_growth.parameters(Case("laplace", 500, 2, width, layers)) == held


def test_the_model_counts_the_products_of_the_hidden_layers():
    # Three products of 50 x 50 for each of 4 x 1000 and 250 rows, forward and twice backward.
    case = Case("laplace", 1000, 2)
    assert cost_growth.products(case) == 3 * 3 * 2 * 50 * 50 * (4 * 1000 + 250)


def test_the_network_carries_as_many_parts_as_the_model_counts(monkeypatch):
    seen = []
    rule = _taylor.chain_rule
    monkeypatch.setattr(_taylor, "chain_rule", lambda parts: seen.append(parts) or rule(parts))
    sample = problem("laplace").sample(20, seed=0)
    sample.losses(FCNet(2, 1, 5, 50))
    assert max(len(rule(parts).parts) for parts in seen) == cost_growth.CHANNELS


def test_the_smallest_case_is_measured(tmp_path, capsys):
    options = ["--turns", "1", "--most-points", "500", "--output", str(tmp_path)]
    (row,) = cost_growth.main(options)
    assert row["points"] == 500 and row["parameters"] == 7851
    assert all(row[mode]["ms"] > 0 for mode in cost_growth.MODES)
    assert json.loads((tmp_path / "cost_growth.json").read_text())["results"] == [row]
    assert "| 500 | 2 | 4 x 50 |" in capsys.readouterr().out
