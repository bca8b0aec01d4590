import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet
from paddlescience_gradnorm.balancing import PinnRule
from paddlescience_gradnorm.pde import derivative_path
from paddlescience_gradnorm.pde.problems import PROBLEMS, problem
from paddlescience_gradnorm.training import StopOnSignals

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


def test_a_network_of_waves_knows_its_derivatives(accuracy):
    paddle.set_default_dtype("float64")
    try:
        for name, waves in (
            ("wave", {"number": 4, "x": 0.5, "t": 0.5}),
            ("convection", {"number": 4, "x": 2, "t": 0.5}),
            ("allen_cahn", {"number": 0, "x": 2, "t": 0}),
        ):
            of = problem(name)
            net = accuracy.wave_net(of, waves, 2, 8, seed=0)
            points = paddle.to_tensor(of.sample_region(of.regions[0], 6, 0), stop_gradient=False)
            found = net.partial_derivatives(points, [(), (0,), (1,), (0, 0), (0, 1), (1, 1)])
            first = paddle.grad(found[0], points, create_graph=True)[0]
            second = [paddle.grad(first[:, k].sum(), points, retain_graph=True)[0] for k in (0, 1)]
            expected = [net(points), first[:, :1], first[:, 1:], second[0], second[1][:, 1:]]
            expected = paddle.concat(expected, axis=1).numpy()
            np.testing.assert_allclose(paddle.concat(found, axis=1).numpy(), expected, rtol=1e-9)
            if name != "wave":  # the others are periodic in x
                shifted = points.detach() + paddle.to_tensor([of.high[0] - of.low[0], 0.0])
                np.testing.assert_allclose(net(shifted).numpy(), found[0].numpy(), atol=1e-12)
    finally:
        paddle.set_default_dtype("float32")


@pytest.mark.slow
def test_weights_of_points_and_waves_make_runs_of_their_own(tmp_path):
    """And earlier lines, whose settings have neither, are still known."""
    arguments = ["--problems", "convection", "--balances", "equal", "--seeds", "3", "--steps", "4"]
    for more in ([], ["--points", "rba"], ["--waves"], ["--waves", "--points", "causal"], []):
        found = run(tmp_path, *arguments, *more)
        assert found.returncode == 0, found.stderr
    assert "1 of 1 runs are there already" in found.stdout
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len({line["error"] for line in lines}) == len(lines) == 4
    late = ("waves", "point_weights", "optimizer")
    assert [[name in line["settings"] for name in late] for line in lines] == [
        [False, False, False],
        [False, True, False],
        [True, False, False],
        [True, True, False],
    ]


def test_lbfgs_goes_on_from_adam_with_the_same_weights(tmp_path):
    arguments = ["--problems", "poisson", "--balances", "pinn", "--seeds", "3", "--steps", "60"]
    for more in ([], ["--lbfgs-steps", "40"]):
        found = run(tmp_path, *arguments, *more)
        assert found.returncode == 0, found.stderr
    adam, both = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    # The weights of the last step of Adam, and the ones that it led to, which L-BFGS keeps.
    for name, weight in adam["weights"].items():
        assert both["weights"][name] == pytest.approx(weight, rel=0.11)
    assert both["error"] < 0.5 * adam["error"]
    assert both["settings"]["lbfgs_steps"] == 40


@pytest.mark.skipif(find_spec("ppsci") is None, reason="needs PaddleScience")
def test_soap_makes_runs_of_its_own(tmp_path):
    arguments = ["--problems", "poisson", "--balances", "equal", "--seeds", "3", "--steps", "20"]
    for more in (["--optimizer", "adam"], ["--optimizer", "soap"]):
        found = run(tmp_path, *arguments, *more)
        assert found.returncode == 0, found.stderr
    adam, soap = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert "optimizer" not in adam["settings"] and soap["settings"]["optimizer"] == "soap"
    assert soap["error"] != adam["error"]


def test_another_memory_of_adam_makes_runs_of_its_own(accuracy, tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "tune_cpu", lambda **_: None)
    command = ["accuracy.py", "--problems", "heat", "--beta2", "0.99", "--steps", "20"]
    monkeypatch.setattr(sys, "argv", command)
    shorter = accuracy.told(accuracy.settings_of("heat", accuracy.parse(["heat"], ["equal"])))
    usual = {name: value for name, value in shorter.items() if name != "beta2"}
    assert shorter["beta2"] == 0.99
    assert accuracy.told(accuracy.Settings(**usual)) == usual  # as in lines from before
    errors = {
        accuracy.train(
            {"problem": "heat", "balance": "equal", "options": {}, "seed": 0, "settings": settings},
            tmp_path / str(len(settings)),
            lambda done: None,
            StopOnSignals(),
        )["error"]
        for settings in (usual, shorter)
    }
    assert len(errors) == 2


@pytest.mark.slow
def test_runs_are_made_once_and_end_in_a_table_and_a_figure(tmp_path):
    arguments = ["--problems", "heat,burgers_inverse", "--seeds", "3", "--steps", "4"]
    first = run(tmp_path, *arguments, "--balances", "equal")
    assert first.returncode == 0, first.stderr
    second = run(tmp_path, *arguments, "--balances", "equal,pinn")
    assert second.returncode == 0, second.stderr
    assert "2 of 4 runs are there already" in second.stdout
    assert "4/4 " in second.stdout and second.stdout.count(", pinn, seed 3") == 2
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [r["balance"] for r in lines] == ["equal"] * 2 + ["pinn"] * 2
    # Of two that run at the same time, either may be done first.
    runs = {(r["problem"], r["balance"]): r for r in lines}
    assert {problem for problem, _ in runs} == {"heat", "burgers_inverse"} and len(runs) == 4
    assert all(math.isfinite(r["error"]) and r["steps"] == 4 for r in lines)
    assert set(runs["burgers_inverse", "pinn"]["coefficient_errors"]) == {"l1", "l2"}
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


@pytest.mark.parametrize("name", ["equal", "fixed", "pinn", "published", "dual_balance"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(accuracy, name, tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "tune_cpu", lambda **_: None)
    points = {"interior": 32, "boundary": 8, "initial": 8, "data": 8}
    settings = asdict(accuracy.Settings(2, 8, points, steps=20, lbfgs_steps=2))
    asked = {"problem": "heat", "balance": name, "options": {}, "seed": 0, "settings": settings}

    def run(folder, stop_at=2.0):
        stop = StopOnSignals()

        def say(done):
            if done >= stop_at:
                stop.received = signal.SIGTERM

        return accuracy.train(asked, tmp_path / folder, say, stop)

    whole = run("whole")
    assert run("parts", stop_at=0.65) is None
    parts = run("parts")
    assert parts["seconds"] > 0 and parts["steps"] == whole["steps"]
    for result in (whole, parts):
        del result["seconds"], result["cpu_seconds"]
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


ERRORS = {
    "equal": {"heat": 1.0, "wave": 0.5, "poisson": 0.1},
    "worse": {"heat": 2.0, "wave": 0.5, "poisson": 0.1},
    "mixed": {"heat": 0.01, "wave": 1.0},
    "better": {"heat": 0.1, "wave": 0.46, "poisson": 0.01},
    "alone": {"burgers": 1.0},
}


def runs_of(errors):
    return [
        {"problem": problem, "balance": balance, "seed": 0, "error": error}
        for balance, of in errors.items()
        for problem, error in of.items()
    ]


def test_the_table_of_balances_has_the_best_first(accuracy):
    text = accuracy.table_of_balances(runs_of(ERRORS), {"better": "ours"})
    assert text.splitlines()[2:] == [
        "| mixed | 0.14 | 2.00 | 1 of 2 | 1 of 2 | 1 |",
        "| ours | 0.21 | 0.92 | 2 of 3 | 2 of 3 | 0 |",
        "| equal | 1.00 | 1.00 | 0 of 3 | 1 of 3 | 0 |",
        "| worse | 1.26 | 2.00 | 0 of 3 | 1 of 3 | 1 |",
    ]


def test_a_balance_that_diverged_comes_last(accuracy):
    errors = {"lost": {"heat": math.nan, "wave": 0.1, "poisson": 0.1}, **ERRORS}
    rows = accuracy.table_of_balances(runs_of(errors), {}).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [
        *("| mixed", "| better", "| equal", "| worse", "| lost")
    ]
    assert rows[1].endswith("| 2 of 3 | 1 of 3 | 0 |")  # on the wave the lost one is better


def test_many_balances_have_a_line_each_in_the_figure(accuracy, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[0]))
    errors = {name: of for name, of in ERRORS.items() if name != "alone"}
    titles = {"better": "ours"}
    accuracy.plot(tmp_path / "few.png", runs_of(errors), titles)
    accuracy.plot(tmp_path / "many.png", runs_of({**errors, "fourth": errors["equal"]}), titles)
    few, many = ([label.get_text() for label in axes.get_yticklabels()] for axes in drawn)
    assert set(few) == {"heat", "wave", "poisson"}
    assert many == ["mixed", "ours", "fourth", "worse"]
    dots = drawn[1].lines[1]  # after the line at 1
    assert dots.get_xdata() == pytest.approx([0.01, 2.0]) and list(dots.get_ydata()) == [0, 0]


def test_a_table_of_the_runs_that_are_there(accuracy, monkeypatch, tmp_path, capsys):
    rows = [("heat", "equal", 0, 0.4), ("heat", "pinn", 0, 0.1), ("heat", "pinn", 1, 0.1)]
    settings = accuracy.told(accuracy.Settings())
    lines = [
        json.dumps(
            {**dict(zip(("problem", "balance", "seed", "error"), row)), "settings": settings}
        )
        for row in rows
    ]
    (tmp_path / "runs.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ["--output", str(tmp_path), "--table", "--seeds", "0", "--problems", "heat,burgers"]
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *arguments])
    accuracy.main()
    printed = capsys.readouterr().out
    assert "| heat | 0.4 | **0.1**, 0.25 |" in printed
    assert "| GradNorm, PINN rule | 0.25 | 0.25 | 1 of 1 | 1 of 1 | 0 |" in printed
    assert "burgers" not in printed and len((tmp_path / "runs.jsonl").read_text().split("\n")) == 4


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


@pytest.mark.parametrize(
    "text, number",
    [("first", 15), ("solvable", 12), ("unsolved", 3), ("search,heat", 12), ("confirmation", 11)],
)
def test_sets_of_problems_have_names(accuracy, monkeypatch, text, number):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--problems", text])
    options = accuracy.parse(list(PROBLEMS), ["equal"])
    assert len(options.problems) == number


def test_the_network_of_db_pinn_is_standardised(accuracy):
    of = problem("burgers_inverse")
    net = accuracy.standardised_net(of, 3, 400, seed=0)
    scaled = net[0](paddle.to_tensor(of.sample_region(of.regions[0], 20_000, 0), "float32"))
    np.testing.assert_allclose(scaled.mean(axis=0).numpy(), [0, 0], atol=0.03)
    np.testing.assert_allclose(scaled.std(axis=0).numpy(), [1, 1], rtol=0.02)
    of_hidden_layer = net[1].linears[1].weight  # [400, 400]
    assert of_hidden_layer.std().item() == pytest.approx(5 / 3 * np.sqrt(2 / 800), rel=0.01)
    assert derivative_path(net).startswith("Taylor propagation")


def test_what_is_published_trains_at_a_constant_rate(accuracy, tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "tune_cpu", lambda **_: None)
    command = ["accuracy.py", "--db-pinn", "--steps", "3", "--interior", "50"]
    monkeypatch.setattr(sys, "argv", [*command, "--problems", "cavity"])
    settings = accuracy.told(accuracy.settings_of("cavity", accuracy.parse(["cavity"], ["equal"])))
    assert settings["published"] and settings["points"] == {
        "interior": 50,
        "lid": 100,
        "walls": 300,
    }
    rates = []

    class Adam(paddle.optimizer.Adam):
        def step(self):
            rates.append(self.get_lr())
            super().step()

    monkeypatch.setitem(accuracy.OPTIMIZERS, "adam", Adam)
    run = {"problem": "cavity", "balance": "equal", "options": {}, "seed": 0, "settings": settings}
    accuracy.train(run, tmp_path, lambda done: None, StopOnSignals())
    assert rates == [1e-3] * 3


def test_without_a_choice_the_first_fifteen_are_run(accuracy, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["accuracy.py"])
    assert accuracy.parse(list(PROBLEMS), ["equal"]).problems == list(PROBLEMS)[:15]


@pytest.mark.parametrize(
    "options, rule, rate",
    [({}, PinnRule(), 0.01), ({"lead": 5.0, "lr": 0.03}, PinnRule(lead=5.0), 0.03)],
)
def test_a_balance_is_the_rule_of_this_name_with_its_options(balances, options, rule, rate):
    kinds = {"a": "pde", "b": "data"}
    net, other = balances.balanced("pinn", options, FCNet(1, 1, 2, 4), kinds, "heat")
    assert other is None and net.balancer.rule == rule and net.balancer.weight_lr == rate
    assert net.balancer.equations == ("a",)


@pytest.mark.parametrize("options, every", [({"lr": 0.01}, 10), ({"update_every": 30}, 30)])
def test_so_is_its_interval(balances, options, every):
    kinds = {"a": "pde", "b": "data"}
    net, _ = balances.balanced("mine", options, FCNet(1, 1, 2, 4), kinds, "heat")
    assert net.balancer.update_every == every


@pytest.mark.parametrize("problem, every", [("heat", 10), ("wave", 50), ("allen_cahn", 100)])
@pytest.mark.parametrize("name", ["mean", "std", "kurtosis"])
def test_db_pinn_has_the_intervals_of_its_authors(balances, name, problem, every):
    balance = "dual_balance" if name == "mean" else f"dual_balance_{name}"
    kinds = {"a": "pde", "b": "data"}
    net, _ = balances.balanced(balance, {}, FCNet(1, 1, 2, 4), kinds, problem)
    assert net.balancer.update_every == every and net.balancer.rule.by == name


def test_fixed_weights_act_from_the_first_step_on(balances):
    kinds = {"pde": "pde", "edge": "boundary"}
    net, _ = balances.balanced("fixed", {}, FCNet(1, 1, 2, 4), kinds, "heat")
    u = net(paddle.ones([3, 1])).square().mean()
    total = net.backward({"pde": u, "edge": 2 * u})
    assert total.item() == pytest.approx((1 + 2 * balances.FIXED) * u.item())
