"""The watchers, beside processes that import no Paddle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paddlescience_gradnorm.training import _watcher
from paddlescience_gradnorm.training._watcher import Watcher

# A rank: told to begin, passes a mark every 20 ms up to the last one, and then waits or ends.
RANK = """
import json, os, subprocess, sys, time

watcher, folder, rank, last, at_end = sys.argv[1:]
command = [sys.executable, "-I", "-S", watcher, folder, "token", rank, "4", "6", str(os.getpid())]
process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
say = lambda **told: os.write(process.stdin.fileno(), (json.dumps(told) + "\\n").encode())
input()
for count in range(int(last)):
    say(step=count // 2, count=count, checkpoint="step_4")
    time.sleep(0.02)
print("there", flush=True)
if at_end == "wait":
    time.sleep(100)
if at_end == "fail":
    say(state="failed", why="has ended by KeyError: 'u'", checkpoint="step_4")
    sys.exit(1)
say(state="ended")
"""


def start(folder, lasts=(40, 40, 40, 40), at_ends=("wait",) * 4):
    """Four ranks, once all have passed their last marks."""
    processes = []
    for rank, (last, at_end) in enumerate(zip(lasts, at_ends)):
        arguments = [_watcher.__file__, str(folder), str(rank), str(last), at_end]
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", RANK, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
    while len(list(folder.glob("rank_?.json"))) < 4:  # all watchers are there
        time.sleep(0.02)
    for process in processes:
        print(file=process.stdin, flush=True)
    for process in processes:
        assert process.stdout.readline() == "there\n"
    return processes


def end(processes):
    """What each has printed and its exit code; their watchers have ended, and so closed it."""
    found = []
    for process in processes:
        _, errors = process.communicate(timeout=100)
        found.append((errors, process.returncode))
    return found


def test_if_one_is_killed_the_others_end_and_say_so(tmp_path):
    processes = start(tmp_path)
    processes[2].kill()
    for rank, (errors, code) in enumerate(end(processes)):
        assert code == -signal.SIGKILL
        what = "rank 2 of 4 has died by SIGKILL in step 20, so all processes end"
        assert f"{what}; this is rank {rank}. " in errors
        assert "The last good checkpoint is step_4: start the same command again" in errors


def test_the_one_that_hangs_is_the_one_that_others_wait_for(tmp_path):
    for errors, code in end(start(tmp_path, lasts=[31, 30, 31, 31])):
        assert "rank 1 of 4 has made no progress for 6 s, while others wait for it, in" in errors
        assert code == -signal.SIGKILL


def test_one_that_is_stopped_is_ended_too(tmp_path):
    processes = start(tmp_path)
    processes[3].send_signal(signal.SIGSTOP)
    for errors, code in end(processes):
        assert "and all others have made no progress for 6 s in step 20" in errors
        assert code == -signal.SIGKILL


def test_an_error_of_one_ends_the_others(tmp_path):
    (errors, code), *others = end(start(tmp_path, at_ends=["fail", "wait", "wait", "wait"]))
    assert code == 1 and errors == ""  # its own error says it
    for errors, code in others:
        assert code == -signal.SIGKILL
        assert "rank 0 of 4 has ended by KeyError: 'u' in step 20, so all" in errors


def test_one_may_end_after_the_others(tmp_path):
    # By 8 s, while the others are not waited for.
    for errors, code in end(start(tmp_path, [40, 40, 40, 400], ["end"] * 4)):
        assert (errors, code) == ("", 0)


# What a watcher concludes.


@pytest.fixture
def watcher(tmp_path):
    return Watcher(str(tmp_path), "token", 0, 3, 20.0, os.getpid())


def set_(watcher, rank, **told):
    of = watcher.own if rank == watcher.rank else watcher.others[rank]
    of.update(told)


def test_what_died_of_anothers_death_is_not_the_cause(watcher):
    assert watcher.failures() == []
    set_(watcher, 0, count=9, state="gone", why="has died by SIGABRT", at=1.0)
    set_(watcher, 1, count=9, state="gone", why="has died by SIGTERM", at=2.0)
    set_(watcher, 2, count=9, state="gone", why="has died by SIGKILL", at=3.0)
    assert [rank for *_, rank, _ in watcher.failures()] == [2, 0, 1]
    # Of several causes it is the one that others waited for, and then the first.
    set_(watcher, 1, count=8, why="has ended with exit code 1")
    assert [rank for *_, rank, _ in watcher.failures()] == [1, 2, 0]
    set_(watcher, 1, count=9)
    assert [rank for *_, rank, _ in watcher.failures()] == [1, 2, 0]


def test_who_is_silent_has_failed_and_who_has_ended_has_not(watcher, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(_watcher.time, "monotonic", lambda: now + 21)
    watcher.heard[1] += 21
    watcher.moved += 21
    assert [(rank, why) for *_, rank, why in watcher.failures()] == [
        (2, "has not been heard of for 21 s")
    ]
    set_(watcher, 2, state="ended")
    assert watcher.failures() == []


def test_nobody_waits_for_the_last_one(watcher):
    watcher.moved -= 100
    assert [rank for *_, rank, _ in watcher.failures()] == [0, 1, 2]
    set_(watcher, 1, state="ended", count=5)
    set_(watcher, 2, count=3)
    assert [rank for *_, rank, _ in watcher.failures()] == [0]
    set_(watcher, 2, state="ended")
    assert watcher.failures() == []


def test_files_of_an_earlier_run_tell_nothing(watcher, tmp_path):
    (tmp_path / "rank_1.json").write_text('{"token": "old", "beat": 7, "state": "gone"}')
    (tmp_path / "rank_2.json").write_text('{"token": "tok')
    watcher.read()
    assert watcher.failures() == []


@pytest.mark.parametrize(
    "program, how",
    [
        ("import os; os.kill(os.getpid(), 9)", "has died by SIGKILL"),
        ("raise SystemExit(3)", "has ended with exit code 3"),
    ],
)
def test_how_a_process_has_died(program, how):
    process = subprocess.Popen([sys.executable, "-S", "-c", program])
    state = Path(f"/proc/{process.pid}/stat")
    while state.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert _watcher._how(process.pid) == how
    process.wait()
    assert _watcher._how(process.pid) == "has died"
