"""What a step costs beside others: who runs what, the numbers of a row, a process of Paddle's."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import step_cost
import step_cost_paddle
from step_cost_worker import Case

CASE = Case("laplace", 40, 2)
PLAIN, GRADNORM = (kind["paddle"] for kind in (step_cost.PLAIN, step_cost.GRADNORM))
THEIRS, OURS = step_cost.PEERS[0], step_cost.OUR_DIRECTIONS[0]


def test_only_those_that_are_there_are_planned():
    found = step_cost.commands(None)
    assert set(found) == {"paddle", "paddle operators", "paddle as installed"}
    for quick in (True, False):
        cases = step_cost.plan(quick, set(found))
        assert {c.worker for who in cases.values() for c in who} == set(found)
        for who in cases.values():  # each kind of Paddle has a plain step to be compared with
            assert {PLAIN, step_cost.PLAIN["paddle operators"]} <= set(who)
    assert sorted(case.points for case in cases if case.losses == 2) == [500, 2000, 10_000, 50_000]


def test_every_mode_of_paddle_can_be_built():
    for case, who in step_cost.plan(quick=True, available={"paddle"}).items():
        small = Case(case.equation, 40, case.losses)
        for contestant in who:
            step_cost_paddle.build(small, contestant.mode)(2)


def test_a_row_compares_blocks_of_one_round():
    ms = {
        PLAIN: np.array([1.0, 2.0, 4.0]),
        GRADNORM: np.array([2.0, 2.0, 4.0]),
        OURS: np.array([2.0, 3.0, 4.0]),
        THEIRS: np.array([4.0, 4.0, 16.0]),
        step_cost.GRADNORM["paddle operators"]: np.array([1.0, 1.0, 1.0]),
        step_cost.OUR_DIRECTIONS[len(step_cost.DIRECTIONS)]: np.array([1.0, 1.0, 1.0]),
    }
    row = step_cost.row(CASE, GRADNORM, ms, {PLAIN: 10.0, GRADNORM: 15.0})
    assert row["ms"]["median"] == 2.0 and row["to_plain"]["median"] == 1.0  # of 2, 1 and 1
    assert row["megabytes"] == 15.0 and row["megabytes_to_plain"] == 1.5
    theirs = step_cost.row(CASE, THEIRS, ms, {})
    assert theirs["megabytes"] is None and "megabytes_to_plain" not in theirs
    assert theirs["paddle to this"]["median"] == 0.5  # of 0.5, 0.5 and 0.25
    assert theirs["paddle's to this"]["median"] == 0.5  # of 0.5, 0.75 and 0.25
    machine = {"cpu": "x", "cores": 1, "system": "y", "versions": {}, "settings": {}}
    text = step_cost.table([row, theirs], machine)
    assert "| 40 | Paddle, GradNorm | 2.0 [2.0, 3.0] | 1.000 [1.000, 1.500] | 15.0 | 1.50 |" in text
    assert "| 40 | ConFIG | 4.0 [4.0, 10.0] | 0.50 [0.38, 0.62] | 0.25 [0.16, 0.25] |" in text


def test_a_worker_trains_and_measures_its_memory():
    command, environment = step_cost.commands(None)["paddle"]
    worker = step_cost.Worker(command, environment)
    try:
        assert "tune_cpu()" in worker.about["settings"]
        times = step_cost.timed({"paddle": worker}, CASE, [PLAIN, GRADNORM], repeats=1, block=0.01)
        assert {c: ms.shape for c, ms in times.items()} == {PLAIN: (3,), GRADNORM: (3,)}
        assert all((ms > 0).all() for ms in times.values())
        answer = worker.ask("memory", case=vars(CASE), mode="plain")
        if sys.platform == "linux":
            assert 0 < answer["megabytes"] < 500
    finally:
        worker.close()


def test_a_worker_that_cannot_start_says_why():
    broken = [sys.executable, "-c", "raise SystemExit('no such framework')"]
    with pytest.raises(RuntimeError, match="no such framework"):
        step_cost.Worker(broken, {})
    with pytest.raises(RuntimeError, match="no such framework"):
        step_cost.started({"paddle": (broken, {})})


def test_peers_that_cannot_start_are_skipped_by_name(capsys):
    broken = [sys.executable, "-c", "raise SystemExit('no such framework')"]
    assert step_cost.started({"torch": (broken, {})}) == {}
    assert re.search("torch skipped: no such framework", capsys.readouterr().out)
