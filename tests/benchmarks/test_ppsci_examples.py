"""benchmarks/ppsci_examples.py: what it runs, and again; its table; runs of the real Solver.

The last ones need PaddleScience. Their example is written here, so they need no snapshot.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
needs_ppsci = pytest.mark.skipif(
    find_spec("ppsci") is None, reason="needs PaddleScience: pip install -e '.[ppsci]'"
)
# A tiny example, which is called as one of PaddleScience's: the Solver trains twice with the same
# constraints, of which two have a loss of the same name.
TINY = """
from types import SimpleNamespace

import hydra
import numpy as np
import ppsci

NPOINT_PDE = 99**2
fdm = SimpleNamespace(solve=lambda count, length: np.zeros([count, count]))


@hydra.main(version_base=None, config_path=".", config_name="tiny.yaml")
def main(cfg):
    ppsci.utils.misc.set_random_seed(cfg.seed)
    model = ppsci.arch.MLP(("x", "y"), ("OUTPUT",), 2, 8)
    equation = {"laplace": ppsci.equation.Laplace(2)}
    equation = {"poisson": ppsci.equation.Poisson(2)} if "OUTPUT" == "p" else equation
    square = ppsci.geometry.Rectangle((0.0, 0.0), (1.0, 1.0))
    loader = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1}
    inside, edge = {**loader, "batch_size": NPOINT_PDE}, {**loader, "batch_size": 8}
    loss = ppsci.loss.MSELoss("mean")
    name = list(next(iter(equation.values())).equations)[0]
    constraint = {
        "EQ": ppsci.constraint.InteriorConstraint(
            next(iter(equation.values())).equations, {name: 0}, square, inside, loss, name="EQ"
        )
    }
    for name, at in ("left", 0.0), ("right", 1.0):
        constraint[name] = ppsci.constraint.BoundaryConstraint(
            {"OUTPUT": lambda out: out["OUTPUT"]},
            {"OUTPUT": lambda point: point["x"]},
            square,
            edge,
            loss,
            criteria=lambda x, y, at=at: np.isclose(x, at),
            weight_dict={"OUTPUT": 0.25},
            name=name,
        )
    for optimizer in (
        ppsci.optimizer.Adam(1e-3)(model),
        ppsci.optimizer.LBFGS(1.0, max_iter=2)(model),
    ):
        solver = ppsci.solver.Solver(
            model,
            constraint,
            cfg.output_dir,
            optimizer,
            epochs=50,
            iters_per_epoch=1,
            equation=equation,
        )
        solver.train()
    raise RuntimeError("what follows the last training is not run")


main()
"""


@pytest.fixture
def cases(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ppsci_examples_cases

    return ppsci_examples_cases


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ppsci_examples

    return ppsci_examples


def row(example, balance, seed, error=None, fails=None, seconds=1.0):
    return {
        "example": example,
        "balance": balance,
        "seed": seed,
        "full": False,
        "error": error,
        "fails": fails,
        "cpu_seconds": seconds,
    }


def write(path, rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))


def test_the_plan_goes_seed_by_seed_and_leaves_out_runs_that_are_another_balances(examples):
    balances = ["original", "of", "of_bare", "by_name"]
    runs = examples.planned(["laplace2d", "biharmonic2d"], balances, [0, 1], False)
    assert [(r.seed, r.example, r.balance) for r in runs] == [
        (seed, example, balance)
        for seed in (0, 1)
        for example, balance in (
            ("laplace2d", "original"),
            ("laplace2d", "of"),  # finds its equation, and no two losses have one name
            ("biharmonic2d", "original"),
            ("biharmonic2d", "of"),
            ("biharmonic2d", "of_bare"),  # its equation has a weight by hand
            ("biharmonic2d", "by_name"),
        )
    ]


def test_finished_runs_are_skipped_and_failed_ones_repeated_only_if_asked(examples, tmp_path):
    path = tmp_path / "runs.jsonl"
    runs = examples.planned(["laplace2d"], ["original", "of"], [0, 1], False)
    assert examples.still_to_do(runs, examples.read(path), False) == runs
    write(path, [row("laplace2d", "original", 0, 0.1), row("laplace2d", "of", 0, fails="E: x")])
    finished = examples.read(path)
    assert examples.still_to_do(runs, finished, False) == runs[2:]
    assert examples.still_to_do(runs, finished, True) == runs[1:]
    # Another length is another run.
    full = examples.planned(["laplace2d"], ["original"], [0], True)
    assert examples.still_to_do(full, finished, False) == full


def test_a_line_that_was_cut_off_is_run_again_and_does_not_spoil_the_next_one(examples, tmp_path):
    path = tmp_path / "runs.jsonl"
    runs = examples.planned(["laplace2d"], ["original", "of"], [0], False)
    path.write_text(json.dumps(row("laplace2d", "original", 0, 0.1))[:-5])
    assert examples.still_to_do(runs, examples.read(path), False) == runs
    examples.append(path, row("laplace2d", "of", 0, 0.2))
    examples.append(path, row("laplace2d", "original", 0, 0.3))
    assert {r.balance: each["error"] for r, each in examples.read(path).items()} == {
        "of": 0.2,
        "original": 0.3,
    }


def test_a_repeated_run_replaces_the_failed_one(examples, tmp_path):
    path = tmp_path / "runs.jsonl"
    write(path, [row("laplace2d", "of", 0, fails="E: x"), row("laplace2d", "of", 0, 0.2)])
    (found,) = examples.read(path).values()
    assert found["error"] == 0.2


@pytest.mark.parametrize(
    ("original", "ours", "expected"),
    [
        ([1.0, 2.0, 3.0], [3.1, 3.1, 0.0], "worse"),
        ([1.0, 2.0, 3.0], [3.0, 9.0, 0.0], "as good"),  # the median is not above the largest
        ([1.0, 2.0, 3.0], [0.9, 0.5, 9.0], "better"),
        ([1.0, 2.0, 3.0], [5.0], "too few seeds"),
        ([], [5.0, 5.0], "too few seeds"),
        ([1.0, 1.0, 1.0], [math.inf, math.inf, 0.5], "worse"),
        ([1.0, math.inf], [2.0, 2.0], "as good"),
        ([math.inf, math.inf], [2.0, 2.0], "the original fails"),
    ],
)
def test_verdict(examples, original, ours, expected):
    assert examples.verdict(original, ours) == expected


def test_the_table_has_medians_spread_seconds_failures_and_a_verdict(examples):
    rows = [
        *(row("laplace2d", "original", seed, 0.1 * (seed + 1), seconds=10) for seed in range(3)),
        *(row("laplace2d", "of", seed, 0.01 * (seed + 1), seconds=12) for seed in range(3)),
        row("laplace2d", "NTK", 0, fails="ValueError: no\nluck"),
        row("laplace2d", "Relobralo", 0, 0.5),
        row("laplace2d", "Relobralo", 1, fails="ValueError: no\nluck"),
        row("darcy2d", "original", 0, 0.25),
    ]
    assert examples.table(rows).splitlines() == [
        "| example | `of` | original | its Relobralo | its NTK | seconds | `of` against original |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| laplace2d | 0.02 (0.01..0.03) | 0.2 (0.1..0.3) | 0.5, 1 of 2 fail | fails "
        "| 10 / 12 | better |",
        "| darcy2d |  | 0.25 |  |  | 1 / - | too few seeds |",
        "",
        "Fails in laplace2d. its Relobralo: ValueError: no luck",
        "",
        "Fails in laplace2d. its NTK: ValueError: no luck",
    ]


def test_the_summary_compares_medians_where_nothing_fails(examples):
    rows = [
        *(row("laplace2d", "original", seed, error) for seed, error in enumerate((0.1, 0.4, 0.9))),
        *(row("laplace2d", "of", seed, error) for seed, error in enumerate((0.01, 0.1, 0.2))),
        *(row("laplace2d", "NTK", seed, error) for seed, error in enumerate((0.3, 0.8, 0.9))),
        row("viv", "original", 0, 0.02),
        row("viv", "of", 0, 0.02),
        row("viv", "NTK", 0, 0.01),
        row("darcy2d", "original", 0, 0.104),
        row("darcy2d", "of", 0, 0.1),
        row("darcy2d", "NTK", 0, fails="a loss is NaN"),
        row("euler_beam", "of", 0, 0.1),  # nothing to compare it with
    ]
    assert examples.summary(rows).splitlines() == [
        "| balance | error / original, on 2 examples | best, or within 5 % of it, of 3 |",
        "|---|---|---|",
        "| `of` | 0.50 | 2 |",
        "| original | 1.00 | 1 |",
        "| its NTK | 1.00 | 1 |",
    ]
    assert examples.summary(rows[-1:]) == examples.summary(rows[:3]) == ""


def command(snapshot, work, *options):
    text = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import ppsci_examples as driver
sys.argv = ["ppsci_examples.py", {str(snapshot)!r}, "--work", {str(work)!r}, *{list(options)!r}]
driver.main()
"""
    return [sys.executable, "-c", text]


def environment():
    return {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}


def run(*arguments):
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(), timeout=300
    )


@pytest.mark.parametrize("option", ["--examples", "--balances"])
def test_an_unknown_name_is_refused_with_those_there_are(tmp_path, option):
    done = run(tmp_path, tmp_path / "work", option, "nonesuch")
    assert done.returncode == 1
    assert f"{option}: there is no nonesuch; there are " in done.stderr


def test_a_folder_without_examples_is_refused(tmp_path):
    done = run(tmp_path, tmp_path / "work", "--examples", "laplace2d")
    assert done.returncode == 1
    assert "has no folder examples: name a snapshot" in done.stderr


@pytest.fixture
def snapshot(tmp_path):
    """A snapshot with two examples, of which one trains twice."""
    examples = tmp_path / "snapshot" / "examples"
    for folder, script, output in ("darcy", "darcy2d", "p"), ("heat_pinn", "heat_pinn", "u"):
        (examples / folder).mkdir(parents=True)
        text = TINY if script == "heat_pinn" else TINY.replace("99**2", "16")
        (examples / folder / f"{script}.py").write_text(text.replace("OUTPUT", output))
        (examples / folder / "tiny.yaml").write_text(
            "seed: 42\noutput_dir: nowhere\nNPOINT_PDE: 1\nNPOINT_BC: 1\nTRAIN: {epochs: 1, "
            "save_freq: 1, eval_during_train: true, lbfgs: {max_iter: 1}}\n"
        )
    return tmp_path / "snapshot"


@needs_ppsci
@pytest.mark.slow
def test_every_balance_trains_and_is_measured(snapshot, tmp_path, examples):
    work = tmp_path / "work"
    options = ["--seeds", "3", "--jobs", "2"]
    done = run(snapshot, work, "--examples", "heat_pinn", *options)
    assert done.returncode == 0, done.stderr
    done = run(snapshot, work, "--examples", "darcy2d", "--balances", "of,of_bare", *options)
    assert done.returncode == 0, done.stderr
    rows = {(r.example, r.balance): x for r, x in examples.read(work / "runs.jsonl").items()}
    assert [key for key, x in rows.items() if x["fails"]] == []
    theirs, ours = ["original", "GradNorm", "Relobralo", "NTK"], ["of", "of_early"]
    balances = [*theirs, *ours, "by_name", "original_beta2", "of_beta2"]
    faster = ["of_tuned", "of_propagated"]  # the same training, but for rounding
    expected = {("heat_pinn", name) for name in [*balances, *faster]}
    assert set(rows) == {("darcy2d", "of"), ("darcy2d", "of_bare"), *expected}
    # Both trainings, with the same aggregator, and the error of the last.
    adam, lbfgs = rows["darcy2d", "of"]["trainings"]
    assert (adam["optimizer"], lbfgs["optimizer"]) == ("Adam", "LBFGS")
    assert adam["losses"] == lbfgs["losses"] == ["EQ.poisson", "left.p", "right.p"]
    assert adam["equations"] == ["EQ.poisson"]
    assert lbfgs["weights"] != [1.0, 1.0, 1.0]
    assert rows["darcy2d", "of"]["error"] == lbfgs["error"]
    # The weights are frozen before L-BFGS.
    first, second = rows["darcy2d", "of_bare"]["trainings"]
    assert first["weights"] == second["weights"] and lbfgs["weights"] != adam["weights"]
    # At five moments.
    assert len(adam["errors"]) == 5
    assert rows["heat_pinn", "by_name"]["trainings"][0]["losses"] == ["laplace", "u"]
    # Each balance is a training of its own. By name, our weights still move at the limit that they
    # have for each loss of its own too.
    errors = {name: rows["heat_pinn", name]["error"] for name in balances if name != "by_name"}
    assert len(set(errors.values())) == len(errors), errors
    for name in faster:
        assert rows["heat_pinn", name]["error"] == pytest.approx(errors["of"], rel=1e-2)
    paths = rows["heat_pinn", "of_propagated"]["trainings"][0]["derivatives"]
    assert paths["EQ.laplace"].startswith("Taylor propagation"), paths
    # Nothing is run again, and nothing is left of what has succeeded.
    again = run(snapshot, work, "--examples", "heat_pinn", *options)
    assert again.stdout.startswith("| example | `of` |")
    assert list((work / "runs").iterdir()) == []


def test_what_a_run_has_started_ends_with_it(examples):
    command = ["sh", "-c", "sleep 1000 & echo $!; exit 0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    child = int(process.stdout.readline())
    process.wait()
    os.kill(child, 0)  # it has outlived the run
    examples._end(process)
    state = Path(f"/proc/{child}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        raise AssertionError("it still runs")


@needs_ppsci
@pytest.mark.slow
def test_a_failure_is_a_line_with_its_reason_and_keeps_its_log(snapshot, tmp_path, examples):
    script = snapshot / "examples" / "heat_pinn" / "heat_pinn.py"
    text = script.read_text()
    script.write_text(text.replace("99**2", "7"))
    work, options = tmp_path / "work", ["--examples", "heat_pinn", "--seeds", "3"]
    done = run(snapshot, work, *options, "--balances", "original")
    assert "Fails in heat_pinn. original: ValueError: the script does not have" in done.stdout
    assert "Traceback" in (work / "runs" / "heat_pinn.original.3" / "log.txt").read_text()
    script.write_text(text)
    skipped = run(snapshot, work, *options, "--balances", "original")
    assert "Fails in heat_pinn" in skipped.stdout
    repeated = run(snapshot, work, *options, "--balances", "original", "--failed-again")
    assert "Fails" not in repeated.stdout
    # The script itself: an error in the middle of the training, and one that takes too long.
    script.write_text(text.replace("solver.train()", "raise OSError('no disk')"))
    broken = run(snapshot, work, *options, "--balances", "of")
    assert "`of`: OSError: no disk" in broken.stdout
    late = run(snapshot, work, *options, "--balances", "NTK", "--timeout", "0.5")
    assert "its NTK: not done after 0.5 s" in late.stdout


@needs_ppsci
@pytest.mark.slow
def test_an_interrupted_run_ends_leaves_no_line_and_is_made_next_time(snapshot, tmp_path, examples):
    script = snapshot / "examples" / "heat_pinn" / "heat_pinn.py"
    text = script.read_text()
    script.write_text(text.replace("solver.train()", "import time; time.sleep(600)"))
    work = tmp_path / "work"
    options = ["--examples", "heat_pinn", "--seeds", "3", "--balances", "original"]
    driver = subprocess.Popen(
        command(snapshot, work, *options), stderr=subprocess.PIPE, text=True, env=environment()
    )
    log = work / "runs" / "heat_pinn.original.3" / "log.txt"
    limit = time.monotonic() + 120
    while not log.exists() and time.monotonic() < limit:
        time.sleep(0.1)
    driver.send_signal(signal.SIGINT)
    _, message = driver.communicate(timeout=300)
    assert driver.returncode == 1
    assert "stopped; the same command goes on from here" in message
    assert examples.read(work / "runs.jsonl") == {}
    script.write_text(text)
    assert run(snapshot, work, *options).returncode == 0
    assert len(examples.read(work / "runs.jsonl")) == 1
