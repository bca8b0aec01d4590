import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.pde.problems import PROBLEMS, problem

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def balances(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import accuracy_balances

    return accuracy_balances


@pytest.fixture
def accuracy(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import accuracy

    return accuracy


def run(folder, *arguments):
    command = [sys.executable, str(BENCHMARKS / "accuracy.py"), "--output", str(folder), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
    )


@pytest.mark.slow
def test_runs_are_made_once_and_end_in_a_table_and_a_figure(tmp_path):
    arguments = ["--problems", "heat,burgers_inverse", "--seeds", "3", "--steps", "4"]
    first = run(tmp_path, *arguments, "--balances", "equal")
    assert first.returncode == 0, first.stderr
    second = run(tmp_path, *arguments, "--balances", "equal,pinn")
    assert second.returncode == 0, second.stderr
    assert "2/2 burgers_inverse, pinn, seed 3" in second.stdout  # and no more than these two
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [(r["problem"], r["balance"]) for r in runs] == [
        (problem, balance)
        for balance in ("equal", "pinn")
        for problem in ("heat", "burgers_inverse")
    ]
    assert all(math.isfinite(r["error"]) and r["steps"] == 4 for r in runs)
    assert set(runs[1]["coefficient_errors"]) == {"l1", "l2"}
    assert "| heat | " in (tmp_path / "accuracy.md").read_text()
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


def test_a_budget_in_seconds_ends_a_run(tmp_path):
    result = run(
        tmp_path, "--problems", "heat", "--seeds", "0", "--balances", "equal", "--seconds", "1.5"
    )
    assert result.returncode == 0, result.stderr
    line = json.loads((tmp_path / "runs.jsonl").read_text())
    assert 1.5 <= line["seconds"] < 30
    assert line["steps"] > 1


@pytest.mark.parametrize("name", ["equal", "pinn", "published", "max_mean", "db_pinn"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    accuracy, balances, name, tmp_path, monkeypatch
):
    monkeypatch.setattr("paddlescience_gradnorm.runtime.tune_cpu", lambda **_: None)
    monkeypatch.setattr(accuracy, "CHECKPOINT_EVERY", 5)
    points = {"interior": 32, "boundary": 8, "initial": 8, "data": 8}
    settings = accuracy.Settings(2, 8, points, steps=20, lbfgs_steps=2)
    title, build = balances.BALANCES[name]

    def run(folder, last_step=None):
        def built(*arguments):
            balance = build(*arguments)
            backward, steps = balance.backward, iter(range(10**6))

            def interrupted(losses):
                if next(steps) == last_step:
                    raise KeyboardInterrupt
                return backward(losses)

            balance.backward = interrupted
            return balance

        monkeypatch.setitem(balances.BALANCES, name, (title, built))
        return accuracy.train("heat", name, {}, 0, settings, str(tmp_path / folder))

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", last_step=13)
    parts = run("parts")
    assert parts["seconds"] > 0 and parts["steps"] == whole["steps"]
    for result in (whole, parts):
        del result["seconds"]
        result["curve"] = [[step, error] for step, _, error in result["curve"]]
    assert json.dumps(parts) == json.dumps(whole)  # where weights may be NaN


def test_the_table_has_medians_and_what_they_are_to_equal_weights(accuracy):
    errors = {"equal": [0.4, 0.2, 0.3], "pinn": [0.1, 0.2, 0.15]}
    runs = [
        {"problem": "heat", "balance": balance, "error": error}
        for balance, values in errors.items()
        for error in values
    ]
    text = accuracy.table(runs, {"equal": "equal weights", "pinn": "ours"})
    assert "| heat | 0.3 [0.2, 0.4] | **0.15 [0.1, 0.2]**, 0.50 |" in text
    assert "ours: geometric mean of the ratios to equal weights 0.50" in text


def test_a_name_that_is_not_known_is_one_line(tmp_path):
    result = run(tmp_path, "--problems", "heta")
    assert result.returncode == 2
    assert "heta is not in" in result.stderr.splitlines()[-1]


def test_the_new_problems_are_halved_by_kind(accuracy):
    search, confirmation = accuracy.SEARCH, accuracy.CONFIRMATION
    assert len(set(search)) == len(set(confirmation)) == 11
    assert not set(search) & set(confirmation)
    first = set(PROBLEMS) - {*search, *confirmation}
    assert len(first) == 15 and first > {"laplace", "cavity", "helmholtz_inverse"}
    assert {*search, *confirmation, *accuracy.SUITE} <= set(PROBLEMS)

    def kinds(half):
        names = [{c.name for c in problem(name).conditions} for name in half]
        known = ("continuity", "moment", "data")  # flows, beams, inverse problems
        return [sum(kind in of_problem for of_problem in names) for kind in known]

    assert kinds(search) == kinds(confirmation) == [3, 1, 1]


@pytest.mark.parametrize("text, number", [("first", 15), ("search,heat", 12), ("confirmation", 11)])
def test_sets_of_problems_have_names(accuracy, monkeypatch, text, number):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--problems", text])
    options = accuracy.parse(list(PROBLEMS), ["equal"])
    assert len(options.problems) == number


def test_without_a_choice_the_first_fifteen_are_run(accuracy, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["accuracy.py"])
    assert accuracy.parse(list(PROBLEMS), ["equal"]).problems == list(PROBLEMS)[:15]


def linear(balances, balance):
    """A weight of two numbers, an equation with gradient (4, 0), conditions with (1, 1), (0, 3)."""
    net = paddle.nn.Linear(2, 1, bias_attr=False)

    def losses():
        w = net.weight.flatten()
        return {"pde": 4 * w[0], "a": w[0] + w[1] + 2, "b": 3 * w[1] + 5}

    with paddle.no_grad():
        net.weight.set_value(paddle.zeros_like(net.weight))
    return net, losses, balance(net, ["pde"], ["a", "b"])


def test_max_over_mean_is_wangs_rule(balances):
    net, losses, balance = linear(balances, balances.MaxOverMean)
    balance.backward(losses())
    # max |(4, 0)| = 4 over the means 1 and 1.5
    expected = 0.9 + 0.1 * np.array([4 / 1, 4 / 1.5])
    np.testing.assert_allclose(balance.weights.numpy(), expected, rtol=1e-6)
    gradient = np.array([4, 0]) + expected[0] * np.array([1, 1]) + expected[1] * np.array([0, 3])
    np.testing.assert_allclose(net.weight.grad.numpy().ravel(), gradient, rtol=1e-6)
    before = balance.weights.numpy()
    balance.backward(losses())
    assert (balance.weights.numpy() == before).all()  # until the tenth step


def test_dual_balancing_shares_one_weight_by_difficulty(balances):
    _, losses, balance = linear(balances, balances.DualBalanced)
    balance.backward(losses())
    first = 0.5 * (4 / 1 + 4 / 1.5)  # both are as difficult as they have been so far
    np.testing.assert_allclose(balance.weights.numpy(), [first, first], rtol=1e-6)
    balance.backward(losses())
    aggregated = 4 / (first * 1) + 4 / (first * 1.5)
    expected = first + (aggregated / 2 - first) / 2
    np.testing.assert_allclose(balance.weights.numpy(), [expected, expected], rtol=1e-6)


@pytest.mark.parametrize("name", ["equal", "fixed", "max_mean", "db_pinn", "pinn"])
def test_a_balance_leaves_lbfgs_the_weights_that_acted(balances, name):
    _, losses, balance = linear(balances, balances.BALANCES[name][1])
    values = losses()
    total = balance.backward(dict(values))
    acted = paddle.ones([3]) if name == "pinn" else balance.loss_weights  # which steps afterwards
    stacked = paddle.stack([loss.detach() for loss in losses().values()])
    np.testing.assert_allclose(total.item(), paddle.dot(acted, stacked).item(), rtol=1e-6)
    assert balance.loss_weights.shape == [3]
