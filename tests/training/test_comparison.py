import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlescience_gradnorm import FCNet, _operators, _paddle
from paddlescience_gradnorm.balancing import RULES, DualBalance, Fixed, PinnRule, Rule
from paddlescience_gradnorm.point_weights import SelfAdaptiveWeights
from paddlescience_gradnorm.training import _compared, _course, compare
from paddlescience_gradnorm.training._trial import KnownProblem
from paddlescience_gradnorm.training.comparison import compare_problem

ROOT = Path(__file__).parents[2]


# At the top level, because they are sent to other processes.
def build():
    return FCNet(1, 1, 3, 8)


def losses(net):
    x = paddle.linspace(0, 1, 16).reshape([-1, 1])
    u = net(x)
    return {"pde": (u - x.exp()).square().mean(), "bc": 9 * (u[0] - 1).square().sum()}


def error(net):
    x = paddle.linspace(0, 1, 16).reshape([-1, 1])
    return float((net(x) - x.exp()).norm() / x.exp().norm())


def broken(net):
    raise OSError("no such loss")


@pytest.fixture
def make(tmp_path):
    def made(losses=losses, rules=("equal", "pinn"), seeds=(0, 1), **options):
        return compare(
            build,
            losses,
            rules,
            seeds,
            **{"steps": 12, "jobs": 0, "folder": tmp_path, "progress": False, **options},
        )

    return made


def without_times(run):
    run = {name: value for name, value in run.items() if "seconds" not in name}
    return {**run, "curve": [[step, error] for step, _, error in run["curve"]]}


def test_a_comparison_goes_on_by_the_operators_with_which_it_began(make, cpp, monkeypatch):
    monkeypatch.delenv(_operators.CHOICE)
    cpp(False)
    make(rules=["equal"], seeds=[0])
    # They are there by now, so that a process of its own would use them.
    found = make(rules=["equal"], seeds=[0, 1], jobs=1)
    assert [run["operators"] for run in found.runs] == [False, False]


def test_rules_differ_in_nothing_but_the_rule(make):
    found = make(error=error)
    assert [(r["balance"], r["seed"]) for r in found.runs] == [
        *(("equal", 0), ("pinn", 0), ("equal", 1), ("pinn", 1))
    ]
    equal, pinn, other = found.runs[:3]
    # The rule acts after its first update: networks and points are the same at first.
    assert equal["loss_curves"]["pde"][0] == pinn["loss_curves"]["pde"][0]
    assert equal["loss_curves"]["pde"][0] != other["loss_curves"]["pde"][0]
    assert equal["loss_curves"]["pde"][-1] != pinn["loss_curves"]["pde"][-1]
    assert set(equal["weights"]["bc"]) == {1.0} and pinn["weights"]["bc"][-1] > 1
    for run in found.runs:
        steps, seconds, errors = zip(*run["curve"])
        assert steps == tuple(range(1, 13)) and list(seconds) == sorted(seconds)
        assert errors[-1] == run["error"] and run["steps"] == 12
        assert all(-1 <= cosine <= 1 for cosine in run["conflicts"])


def test_the_time_of_a_step_is_that_of_the_cpu_where_that_is_known(make):
    found = make(rules=["equal"])
    run = {**found.runs[0], "seconds": 0.6, "cpu_seconds": 0.3}
    assert "| CPU ms a step |" in _compared.markdown([run], [])
    assert "| 25.0 |" in _compared.markdown([run], [])
    for on_another_device in (None, ...):
        run["cpu_seconds"] = on_another_device
        if on_another_device is ...:  # or of an earlier version
            del run["cpu_seconds"]
        table = _compared.markdown([run], [])
        assert "| ms a step |" in table and "| 50.0 |" in table


def test_the_conflict_is_the_cosine_of_the_losses_gradients(make):
    measured = []

    def watched(net):
        gradients = []
        for loss in losses(net).values():
            parts = paddle.grad([loss], net.parameters(), allow_unused=True)
            gradients.append(np.concatenate([p.numpy().ravel() for p in parts if p is not None]))
        g, h = gradients
        measured.append(g @ h / np.linalg.norm(g) / np.linalg.norm(h))
        return 0.0

    found = make(rules=["equal"], seeds=[0], error=watched)
    of_the_run = measured[1:]  # the first error tells the problem from others
    np.testing.assert_allclose(found.runs[0]["conflicts"], of_the_run, rtol=1e-4)


def test_processes_find_what_this_one_finds(make, tmp_path):
    here = make(folder=tmp_path / "here", seeds=[0])
    apart = make(folder=tmp_path / "apart", seeds=[0], jobs=2)
    # The processes are tuned, so Paddle may multiply by other kernels there, to other last digits.
    for one, other in zip(here.runs, apart.runs):
        for name in ("losses", "loss_curves", "weights"):
            assert one[name].keys() == other[name].keys()
            for loss, values in one[name].items():
                assert other[name][loss] == pytest.approx(values, rel=1e-5)
        for name in ("balance", "seed", "steps", "diagnosis", "paddle"):
            assert one[name] == other[name]


def test_runs_are_made_once_and_a_changed_problem_anew(make, tmp_path, capsys):
    make()
    adam = paddle.optimizer.Adam
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    make(rules=["equal", "pinn", "relobralo"], progress=True)
    assert capsys.readouterr().out.startswith("4 of 6 runs are there already\n5/6 relobralo, seed")
    assert (tmp_path / "runs.jsonl").read_text().splitlines()[:4] == lines
    for changed in (
        {"rules": {"pinn": PinnRule(lead=5.0)}},
        {"losses": lambda net: {name: 2 * loss for name, loss in losses(net).items()}},
        {"optimizer": lambda parameters, steps: paddle.optimizer.SGD(0.1, parameters=parameters)},
        {"optimizer": lambda parameters, steps: adam(2e-3, parameters=parameters)},
        {"optimizer": lambda parameters, steps: adam(2e-3, parameters=parameters, beta2=0.9)},
        {"error": error},
        {"error": lambda net: 2 * error(net)},
        {"steps": 5},
    ):
        make(**{"rules": ["pinn"], "seeds": [0], "progress": True, **changed})
        assert "already" not in capsys.readouterr().out, changed


@pytest.mark.parametrize("change", [str, lambda name: {"bc": "data"}.get(name, name)])
def test_a_loss_with_another_name_makes_another_problem(make, change, capsys):
    def renamed(net):
        return {change(name): loss for name, loss in losses(net).items()}

    renamed.__qualname__ = losses.__qualname__  # or that alone would tell them apart
    make(seeds=[0])
    found = make(renamed, ["equal", "pinn", "relobralo"], seeds=[0], progress=True)
    is_same = change is str
    assert ("2 of 3 runs are there already" in capsys.readouterr().out) == is_same
    assert all(list(run["losses"]) == [change("pde"), change("bc")] for run in found.runs)


def test_names_of_losses_and_rules_cannot_break_the_table(make, tmp_path):
    def odd(net):
        return {f"{name} | x\n$y$": loss for name, loss in losses(net).items()}

    make(odd, {"a|b": "equal", "c\nd": "pinn"}, seeds=[0], equations=[0])
    tables = (tmp_path / "comparison.md").read_text().split("\n\n")
    for table in tables[:2]:
        columns = [line.replace("\\|", "").count("|") for line in table.strip().splitlines()]
        assert len(columns) == 4 and len(set(columns)) == 1


def test_by_default_adam_has_a_short_memory():
    trial = KnownProblem("heat", 1, 4).begin(0)
    optimizer = trial.optimizer(trial.net.parameters(), 10)
    assert isinstance(optimizer, paddle.optimizer.Adam)
    assert _paddle.options_of(optimizer)["beta2"] == 0.99


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(make, tmp_path, monkeypatch):
    monkeypatch.setattr(_course, "CHECKPOINT_EVERY", 5)
    whole = make(folder=tmp_path / "whole")
    calls = iter(range(1000))

    def interrupted(net):
        if next(calls) == 30:  # in the second of the runs
            signal.raise_signal(signal.SIGINT)
        return losses(net)

    interrupted.__qualname__ = losses.__qualname__
    with pytest.raises(KeyboardInterrupt, match=r"1 of 4 runs are done\. The same call goes on"):
        make(interrupted)
    assert list((tmp_path / "checkpoints").glob("*/*.ckpt"))
    parts = make()
    assert not list((tmp_path / "checkpoints").iterdir())
    for one, other in zip(whole.runs, parts.runs):
        assert json.dumps(without_times(one)) == json.dumps(without_times(other))


def test_a_run_that_was_stopped_goes_on_with_the_weights_of_its_points(make, tmp_path, monkeypatch):
    monkeypatch.setattr(_course, "CHECKPOINT_EVERY", 5)
    hidden, calls, stop = [Weighted()], [0], [0]

    def weighted(net):
        calls[0] += 1
        if calls[0] == stop[0]:
            signal.raise_signal(signal.SIGINT)
        return hidden[0].losses(net)

    whole = make(weighted, ["equal"], seeds=[0], folder=tmp_path / "whole")
    stop[0] = calls[0] + calls[0] // 2
    with pytest.raises(KeyboardInterrupt, match="0 of 1 runs are done"):
        make(weighted, ["equal"], seeds=[0])
    parts = make(weighted, ["equal"], seeds=[0])
    one, other = (without_times(found.runs[0]) for found in (whole, parts))
    assert json.dumps(one) == json.dumps(other)


DRAWN = np.random.default_rng().random([16, 1], dtype=np.float32)  # anew in each process


def of_points_that_are_drawn(net):
    u = net(paddle.to_tensor(DRAWN))
    return {"pde": u.square().mean(), "bc": (u - 9 * paddle.to_tensor(DRAWN)).abs().mean()}


def test_points_that_each_process_draws_anew_are_told(make):
    message = r"in a process of its own the losses of seed 0 begin at .* paddle\.seed\(0\)"
    with pytest.raises(RuntimeError, match=message):
        make(of_points_that_are_drawn, ["equal"], seeds=[0], jobs=1)
    assert make(of_points_that_are_drawn, ["equal"], seeds=[0]).runs


GENERATOR = np.random.default_rng(0)


def of_new_points_in_every_call(net):
    points = GENERATOR.random([16, 1], dtype=np.float32)
    return dict(zip("ab", (net(paddle.to_tensor(points)) - points).abs()[:2]))


def test_new_points_in_every_call_are_no_mistake(make):
    assert len(make(of_new_points_in_every_call, ["equal"], seeds=[0, 1], jobs=1).runs) == 2


def test_ctrl_c_stops_all_processes_and_the_same_command_goes_on(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "paddlescience_gradnorm", "compare", "laplace"]
    command += ["--balance", "equal,pinn", "--seeds", "0", "--jobs", "2", "--points", "16"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"cwd": tmp_path, "env": environment, "text": True, "stdout": subprocess.PIPE}
    process = subprocess.Popen([*command, "--steps", "100000"], start_new_session=True, **options)
    folder = tmp_path / "outputs/laplace_comparison"
    while len(list(folder.glob("checkpoints/*"))) < 2 and process.poll() is None:
        time.sleep(0.1)  # until both train
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed, _ = process.communicate()
    assert process.returncode == 130 and "0 of 2 runs are done. The same call goes on" in printed
    # Each process has finished its step and kept it.
    last = [max(f.glob("*.ckpt")).name for f in (folder / "checkpoints").iterdir()]
    assert len(last) == 2 and all("step_00000000" < name < "step_00100000" for name in last)


def test_without_an_error_losses_are_compared(make, tmp_path):
    found = make()
    assert all(run["error"] is None for run in found.runs)
    table = found.table()
    assert table.startswith("| rule | CPU ms a step | conflict | loss pde | loss bc |\n")
    assert "error" not in table and "| equal | 1 | 1 |" in table
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "<h2>Losses</h2>" in page and page.count("<img") == 2


def test_table_figure_and_page_show_the_runs(make, tmp_path):
    found = make(error=error, rules={"equal": "equal", "by hand": Fixed([1, 50])})
    errors = {
        label: [run["error"] for run in found.runs if run["balance"] == label]
        for label in ("equal", "by hand")
    }
    medians = {label: np.median(values) for label, values in errors.items()}
    table = (tmp_path / "comparison.md").read_text()
    assert table == found.table()
    low, high = sorted(errors["by hand"])
    assert f"{medians['by hand']:.2g} [{low:.2g}, {high:.2g}]" in table
    assert f"| {medians['by hand'] / medians['equal']:.2f} |" in table
    assert "| by hand | 1 | 50 |" in table
    pixels = np.asarray(Image.open(tmp_path / "comparison.png").convert("L"))
    assert pixels.shape[0] > 300 and pixels.std() > 10  # not an empty sheet
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "<h1>losses</h1>" in page and page.count("<img") == 2
    assert f"{medians['by hand']:.2g} [" in page and "by hand" in page and "**" not in page
    assert 'src="http' not in page and "<script" not in page


def test_a_rule_that_fails_is_named_and_the_others_go_on(make, tmp_path, capsys):
    found = make(rules=["equal", Fixed([1, 2, 3])], seeds=[0], progress=True)
    assert [run["balance"] for run in found.runs] == ["equal"]
    assert found.failed[0]["failed"].startswith("ValueError: weights has 3 entries")
    assert "seed 0 failed: ValueError: weights has 3 entries" in capsys.readouterr().out
    assert "1 run failed, the first with ValueError" in found.table()
    assert (tmp_path / "runs.jsonl").read_text().count("\n") == 1  # so it is tried again
    with pytest.raises(RuntimeError, match="all runs have failed, the first with ValueError: weig"):
        make(rules=[Fixed([1, 2, 3])])


def test_a_process_that_dies_is_a_run_that_failed(make):
    with pytest.raises(RuntimeError, match=r"all runs have failed, .* ended with exit code 7"):
        make(dying, ["equal"], seeds=[0], jobs=1)


def dying(net):
    if __import__("multiprocessing").parent_process() is not None:
        os._exit(7)
    return losses(net)


@pytest.mark.parametrize("name", [name for name in RULES if name != "fixed"])
def test_a_known_problem_has_its_error_by_every_rule(tmp_path, name):
    task = KnownProblem("burgers_inverse", 2, 8, 32, {"data": 8})
    found = compare_problem(task, [name], [0], 4, 0, tmp_path, "an equation")
    (run,) = found.runs
    assert run["error"] == pytest.approx(np.mean(list(run["errors"].values())))
    assert set(run["coefficient_errors"]) == {"l1", "l2"}


def test_runs_with_weights_of_points_are_other_runs(tmp_path):
    for kind in (None, "rba", "causal"):
        task = KnownProblem("heat", 2, 8, 32, point_weights=kind)
        compare_problem(task, ["equal"], [0], 8, 0, tmp_path, "an equation")
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [run["settings"].get("point_weights") for run in lines] == [None, "rba", "causal"]
    assert len({run["error"] for run in lines}) == 3


def test_runs_of_a_known_problem_with_another_memory_of_adam_are_other_runs(tmp_path):
    task, path = KnownProblem("heat", 2, 8, 32), tmp_path / "runs.jsonl"
    compare_problem(task, ["equal"], [0], 4, 0, tmp_path, "an equation")
    run = json.loads(path.read_text())
    assert run["settings"].pop("beta2") == 0.99
    path.write_text(json.dumps(run) + "\n")  # as it was written before
    compare_problem(task, ["equal"], [0], 4, 0, tmp_path, "an equation")
    assert len(path.read_text().splitlines()) == 2


class Weighted(paddle.nn.Layer):
    """Losses with weights of points; it keeps those with which each call began."""

    def __init__(self):
        super().__init__()
        self.weights_of_points = SelfAdaptiveWeights(16, rate=0.1)
        self.began = []

    def losses(self, net):
        self.began.append(self.weights_of_points.weights.mean().item())
        x = paddle.linspace(0, 1, 16).reshape([-1, 1])
        weighted = self.weights_of_points(net(x) - x.exp()).square().mean()
        return {"weighted": weighted, **losses(net)}


@pytest.mark.parametrize("closed_over", [False, True])
def test_every_run_begins_with_the_same_weights_of_points(make, closed_over, capsys):
    weighted = Weighted()

    def by_closure(net):
        return weighted.losses(net)

    of = by_closure if closed_over else weighted.losses
    found = make(of, {"one": "equal", "other": "equal"}, seeds=[0], error=error)
    one, other = map(without_times, found.runs)
    assert one["loss_curves"] == other["loss_curves"] and one["error"] == other["error"]
    assert weighted.began[-1] > 1  # they have moved
    make(of, {"one": "equal", "other": "equal"}, seeds=[0], error=error, progress=True)
    assert "2 of 2 runs are there already" in capsys.readouterr().out


def test_so_it_does_if_its_code_does_not_name_the_layer(make):
    hidden = {"pde": Weighted()}

    def by_dict(net):
        return hidden["pde"].losses(net)

    found = make(by_dict, {"one": "equal", "other": "equal"}, seeds=[0], error=error)
    one, other = map(without_times, found.runs)
    assert one["loss_curves"] == other["loss_curves"] and one["error"] == other["error"]
    assert hidden["pde"].began[-1] > 1


def test_an_error_function_that_calls_the_losses_moves_no_weights_of_points(make, tmp_path):
    hidden = {"pde": Weighted()}

    def by_dict(net):
        return hidden["pde"].losses(net)

    def watched(net):
        return float(by_dict(net)["pde"])

    one = make(by_dict, ["equal"], seeds=[0], folder=tmp_path / "one")
    other = make(by_dict, ["equal"], seeds=[0], folder=tmp_path / "other", error=watched)
    assert one.runs[0]["loss_curves"] == other.runs[0]["loss_curves"]


def test_no_weights_of_points_move_before_the_first_step(make):
    hidden = [Weighted()]  # so that nobody can put them back
    make(lambda net: hidden[0].losses(net), ["equal"], seeds=[0])
    assert hidden[0].began[:3] == [1, 1, 1] and hidden[0].began[-1] > 1


def test_a_network_that_is_no_new_one_is_refused(tmp_path):
    shared = build()
    for same in (lambda: shared, lambda: paddle.nn.Sequential(shared)):
        with pytest.raises(ValueError, match=r"build must make a new network .* within build"):
            compare(same, losses, folder=tmp_path, jobs=0)
    for parameter in shared.parameters():  # such as of an embedding that nobody trains
        parameter.stop_gradient = True
    found = compare(
        lambda: paddle.nn.Sequential(shared, paddle.nn.Linear(1, 1)),
        losses,
        ["equal"],
        [0],
        steps=2,
        folder=tmp_path,
        jobs=0,
        progress=False,
    )
    assert len(found.runs) == 1


class Alike(Rule):
    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return "Alike"

    def weigh(self, weights, state, measurement):
        return weights * 0 + self.value, state


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"rules": "pinn"}, TypeError, r"rules must be a list or a dict.*pass \['pinn'\]"),
        ({"rules": ["magic"]}, ValueError, "rule must be one of 'published', .*, got 'magic'"),
        ({"rules": None}, TypeError, "rules must be a list or a dict of rules, got None"),
        ({"rules": {1: "equal"}}, TypeError, "rules must have strings as names, got 1"),
        ({"rules": [Alike(1.0), Alike(9.0)]}, ValueError, "two rules .* printed as Alike; give"),
        ({"rules": []}, ValueError, r"rules and seeds must have one at least, got \[\]"),
        ({"seeds": []}, ValueError, r"rules and seeds must have one at least, got"),
        ({"seeds": [0.5]}, TypeError, "seeds must be an integer"),
        ({"seeds": [2**40]}, ValueError, r"seeds must be below 2\*\*32, .* got 1099511627776"),
        ({"seeds": 3}, TypeError, r"seeds must be a list of integers, got 3; pass .* range\(3\)"),
        ({"losses": 3}, TypeError, "losses must be a function, got 3"),
        ({"error": 0.1}, TypeError, "error must be a function, got 0.1"),
        ({"error": lambda net: {"u": 1}}, TypeError, "error must give a number, got {'u': 1}"),
        (
            {"error": lambda net: paddle.ones([2])},
            TypeError,
            "error must give a number, got T",
        ),
        ({"optimizer": lambda parameters, steps: []}, TypeError, r"optimizer must be .*, got \[\]"),
        ({"folder": __file__}, FileExistsError, "folder is .* a file; choose another folder"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be a function, got 'adam'"),
        ({"steps": 0}, ValueError, "steps must be .* 1"),
        ({"jobs": -1}, ValueError, "jobs must be .* 0"),
        ({"losses": broken}, OSError, "no such loss"),
        ({"losses": lambda net: losses(net), "jobs": 2}, TypeError, "top level of a module, or"),
    ],
)
def test_mistakes_are_named_before_any_run(make, tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        make(**options)
    assert not list(tmp_path.glob("*.html"))


def test_what_is_no_network_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"build must give a paddle\.nn\.Layer, got int 3"):
        compare(lambda: 3, losses, folder=tmp_path)
    with pytest.raises(TypeError, match=r"build must be .* got the network FCNet; construct it"):
        compare(build(), losses, folder=tmp_path)


def test_a_damaged_file_of_runs_is_named(make, tmp_path):
    make(seeds=[0])
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"problem": "lo')
    with pytest.raises(ValueError, match=r"line 3 of .*runs\.jsonl' is damaged; delete it"):
        make()


def test_a_rule_may_have_options_of_the_balancer(make):
    rules = {
        "every 1000": "inverse_norm",
        "every 2": {"rule": "inverse_norm", "update_every": 2},
        "of std": {"rule": DualBalance("std"), "update_every": 5, "floor": 0.1},
    }
    found = make(rules=rules, seeds=[0])
    rare, often, of_std = found.runs
    assert often["options"] == "InverseNorm(memory=0.9, eps=1e-05), update_every=2"
    assert of_std["options"] == "DualBalance(by='std'), update_every=5, floor=0.1"
    moved = [len({tuple(x) for x in zip(*run["weights"].values())}) for run in (rare, often)]
    assert moved[0] < moved[1]


@pytest.mark.parametrize(
    "rule, message",
    [
        ({"update_every": 2}, r"rules\['mine'\] is .*, and has no 'rule'; name it"),
        ({"rule": "pinn", "lead": 3}, r"rules\['mine'\] has 'lead', and may have update_every, "),
        ({"rule": "pinn", "update_evry": 3}, "did you mean 'update_every'"),
        ({"rule": "pinn", "update_every": "3"}, "update_every must be an integer, got '3'"),
    ],
)
def test_bad_options_are_named(make, rule, message):
    with pytest.raises(TypeError, match=message):
        make(rules={"mine": rule}, seeds=[0])
