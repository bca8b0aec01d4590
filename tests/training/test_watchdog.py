"""Ranks that die, hang or compute NaN, in real processes that a launcher starts."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.training import Checkpoints, Watchdog

ROOT = Path(__file__).parents[2]
RUN = Path(__file__).parent / "watched_run.py"
LONGEST = 30  # seconds from a failure to the end of all


class Launched:
    """A run in so many processes."""

    launchers: ClassVar[set] = set()  # their process numbers

    def __init__(self, folder, epochs, every, *fault, ranks=2):
        folder.mkdir(exist_ok=True)
        self.folder, self.ranks = folder, ranks
        self.logs = folder / f"log_{len(self.launchers)}"
        launch = ["-m", "paddle.distributed.launch", "--backend", "gloo"]
        launch += ["--nproc_per_node", str(ranks), "--log_dir", str(self.logs)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        arguments = [str(x) for x in (folder, epochs, every, *fault)]
        with open(folder / "launch.txt", "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *launch, str(RUN), *arguments],
                stdout=output,
                stderr=output,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        self.launchers.add(self.process.pid)

    def log(self, rank):
        log = self.logs / f"workerlog.{rank}"
        return log.read_text(errors="replace") if log.exists() else ""

    def all_logs(self):
        return "\n".join(self.log(rank) for rank in range(self.ranks))

    def wait_for(self, rank, text, number=1):
        while self.log(rank).count(text) < number:
            assert self.process.poll() is None, self.all_logs()
            time.sleep(0.02)

    def numbers_of_processes(self):
        return [int(re.search(r"process (\d+)", self.log(r))[1]) for r in range(self.ranks)]

    def fail(self):
        """Wait for the end of a run that has failed just now."""
        until = time.monotonic() + LONGEST
        while set(left(self.folder)) & set(self.numbers_of_processes()):
            assert time.monotonic() < until, self.all_logs()
            time.sleep(0.05)
        self.wait_for_watchers()

    def end(self):
        """The exit code, once nothing is left of the run."""
        code = self.process.wait(300)  # a launcher takes some seconds to see the end of a process
        self.wait_for_watchers()
        return code

    def wait_for_watchers(self):
        until = time.monotonic() + 10  # in which they gather and say what they know
        while set(left(self.folder)) - self.launchers:
            assert time.monotonic() < until, self.all_logs()
            time.sleep(0.1)


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path):
    yield
    for number in left(tmp_path):  # by a test that has failed
        os.kill(number, signal.SIGKILL)


def left(folder):
    """The processes that name this folder in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            is_over = (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if str(folder).encode() in command and not is_over:
            found.append(int(path.name))
    return found


def finished(folder, epochs, every):
    """The numbers at the end, of each process."""
    run = Launched(folder, epochs, every)
    assert run.end() == 0, run.all_logs()
    arrays = [np.load(folder / f"{rank}.npz") for rank in range(2)]
    return [{name: file[name] for name in file.files} for file in arrays]


def assert_same_bits(one, other):
    for a, b in zip(one, other):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("whole"), 12, 4)


FAULTS = {
    "die": r"rank 1 of 2 has died( by SIGKILL)?",
    "nan": "rank 1 has a loss that is NaN or infinite",
    "nan gradient": "has a parameter that is NaN or infinite",
    "raise": "rank 1 of 2 has ended by KeyError: 'of a program'",
    "stop": "rank 1 of 2 has made no progress for 6 s, while others wait for it,",
    "hang": "rank 1 of 2 has made no progress for 6 s, while others wait for it,",
}
FAST = ("die", "nan")


@pytest.mark.parametrize(
    "fault", [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in FAULTS]
)
def test_if_one_fails_all_end_and_name_it_and_go_on_from_the_last_checkpoint(
    tmp_path, whole, fault
):
    folder = tmp_path / "run"
    run = Launched(folder, 12, 4, fault, 1, 7)
    run.wait_for(1, "\nfault\n")
    run.fail()
    assert run.end() != 0
    # What the other process says, the one that has not failed.
    what = rf"{FAULTS[fault]} in step 7, so all processes end"
    where = r"last good checkpoint is .*step_00000004\.rank_0_of_2\.ckpt: start the same command"
    assert re.search(rf"{what}.*{where}", run.log(0)), run.all_logs()
    assert_same_bits(finished(folder, 12, 4), whole)


# It takes minutes, and nothing of it depends on the version.
@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="done with the newest Paddle")
@pytest.mark.slow
def test_random_ranks_killed_at_ten_random_moments_end_with_the_same_bits(tmp_path):
    folder, rng, runs = tmp_path / "killed", random.Random(0), []
    every = 2
    for _ in range(10):
        run = Launched(folder, 100_000, every)  # more than a fast machine has done before a kill
        for rank in range(2):
            run.wait_for(rank, "\nprocess ")
        rank = rng.randrange(2)
        run.wait_for(rank, "\nstep ", rng.randrange(1, 15))
        time.sleep(0.05 * rng.random())
        os.kill(run.numbers_of_processes()[rank], signal.SIGKILL)
        run.fail()
        runs.append(run)
        what = rf"rank {rank} of 2 has died.* in step \d+, .* (last good|no) checkpoint"
        assert re.search(what, run.log(1 - rank)), run.all_logs()
    assert all(run.end() != 0 for run in runs)
    epochs = int(Checkpoints(folder).paths()[-1].name[5:13]) + 5
    assert_same_bits(finished(folder, epochs, every), finished(tmp_path / "whole", epochs, every))


def test_in_one_process_it_looks_for_nan(tmp_path):
    with Watchdog(Checkpoints(tmp_path)) as watchdog:
        watchdog.step(1, paddle.to_tensor(1.0), [paddle.ones([2])])
        for total, parameter, what in ((np.inf, 1.0, "a loss"), (1.0, np.nan, "a parameter")):
            match = f"rank 0 has {what} that is NaN or infinite in step 2, .* no checkpoint yet"
            with pytest.raises(FloatingPointError, match=match):
                watchdog.step(2, paddle.to_tensor(total), [paddle.to_tensor([1.0, parameter])])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds, error", [(0.5, ValueError), ("1", TypeError)])
def test_bad_seconds(tmp_path, seconds, error):
    with pytest.raises(error, match="seconds must be"):
        Watchdog(Checkpoints(tmp_path), seconds)
