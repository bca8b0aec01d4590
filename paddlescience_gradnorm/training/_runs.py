"""A plan of runs: each is made once, in a process of its own, and can be interrupted."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Callable, NamedTuple

from paddlescience_gradnorm.training._lock import FolderLock
from paddlescience_gradnorm.training.signals import StopOnSignals

# What a run is, and later also what came of it.
Run = dict[str, Any]
# Makes a run, with checkpoints in the folder, and calls the function with how much of it is done,
# from 0 to 1. The result is None if the signals have stopped the run.
Work = Callable[[Run, Path, Callable[[float], None], StopOnSignals], "Run | None"]

RUNS = "runs.jsonl"
FAILED = "failed"  # the entry of a run that has an error in place of a result
_SECONDS = 0.5  # between two looks at the signals


class Interrupted(KeyboardInterrupt):
    """A signal has stopped the runs; ``exit_code`` is the signal's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_all(
    plan: Sequence[Run],
    known: Sequence[Run],
    folder: Path,
    work: Work,
    jobs: int,
    describe: Callable[[Run], str],
    progress: bool = True,
) -> list[Run]:
    """Make the runs of the plan that have not been made.

    Args:
        plan: The runs, one at least: dicts that JSON can hold, all with the same keys.
        known: Those that have been made, as ``read_runs`` reads them from the folder.
        folder: It gets a line in ``runs.jsonl`` for each run that is done, and the checkpoints of
            those that are not.
        work: Makes a run. It is pickled, unless jobs is 0.
        jobs: How many runs are made at once, each in a process of its own. With 0 they are made
            in this process, one after the other.
        describe: A run that is done or has failed, in words.
        progress: Whether to print a line for each such run and, in a terminal, how far others are.

    Returns:
        The runs of the plan, in its order. One that has failed has the entry ``FAILED``. It is not
        in the file, so the next call makes it again.

    Raises:
        Interrupted: By SIGINT or SIGTERM. The next call goes on from the last step.
        TypeError: ``work`` cannot be pickled.
        ValueError: Another process, which the error names, makes its runs in the folder.
        OSError: The folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise FileExistsError(
            f"folder is {str(folder)!r}, which is a file; choose another folder"
        ) from None
    parts = list(plan[0])
    results = {_key(run, parts): run for run in known}
    missing = [
        _Missing(run, folder / "checkpoints" / hashlib.sha256(key.encode()).hexdigest()[:16])
        for run, key in ((run, _key(run, parts)) for run in plan)
        if key not in results
    ]
    shown = _Shown(len(plan), len(missing), progress)
    file = folder / RUNS
    with StopOnSignals() as stop, FolderLock(folder), file.open("ab", buffering=0) as lines:
        if jobs:
            made = _apart(missing, work, jobs, shown, stop)
        else:
            made = _here(missing, work, shown, stop)
        for each, result in made:
            run = {**each.run, **result}
            results[_key(run, parts)] = run
            if FAILED not in run:
                _add(lines, run)
                shutil.rmtree(each.checkpoints, ignore_errors=True)  # there is none of a short run
            shown.ended(each, describe(run))
    shown.clear()
    if stop.received:
        done = sum(FAILED not in results.get(_key(run, parts), {FAILED: ""}) for run in plan)
        raise Interrupted(
            f"stopped; {done} of {len(plan)} runs are done. The same call goes on with the "
            f"others, because {str(folder)!r} holds their last steps",
            stop.exit_code,
        )
    return [results[_key(run, parts)] for run in plan]


def read_runs(folder: Path) -> list[Run]:
    """The runs in the folder's ``runs.jsonl``.

    Raises:
        ValueError: The file is damaged.
    """
    path, runs = folder / RUNS, []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            runs.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number} of {str(path)!r} is damaged; delete it") from error
    return runs


def _add(lines: io.FileIO, run: Run) -> None:
    """Add a line, all of it or nothing."""
    line = (json.dumps(run) + "\n").encode()
    before = os.fstat(lines.fileno()).st_size
    try:
        while line:  # a disk that is almost full takes a part
            line = line[lines.write(line) :]
    except OSError as error:
        lines.truncate(before)
        raise OSError(error.errno, error.strerror, str(lines.name)) from error


class _Missing(NamedTuple):
    """A run that has to be made."""

    run: Run
    checkpoints: Path


def _key(run: Run, parts: Sequence[str]) -> str:
    """What says that two runs are the same."""
    return json.dumps([run.get(part) for part in parts], sort_keys=True)


def _here(
    missing: Sequence[_Missing], work: Work, shown: _Shown, stop: StopOnSignals
) -> Iterator[tuple[_Missing, Run]]:
    """What came of the runs, which are made in this process."""
    for each in missing:
        result = _made(work, each, functools.partial(shown.at, each), stop)
        if result is None:
            return
        yield each, result


def _apart(
    missing: Sequence[_Missing], work: Work, jobs: int, shown: _Shown, stop: StopOnSignals
) -> Iterator[tuple[_Missing, Run]]:
    """What came of the runs, in the order in which they end."""
    # A forked process would share threads and devices with Paddle in this one.
    context = multiprocessing.get_context("spawn")
    waiting = list(missing)
    running: dict[Connection, tuple[_Missing, Any]] = {}
    stopped = False
    try:
        while running or (waiting and not stopped):
            while waiting and len(running) < jobs and not stopped:
                each = waiting.pop(0)
                receiving, sending = context.Pipe(duplex=False)
                process = context.Process(target=_begin, args=(sending, work, each))
                try:
                    process.start()
                except (AttributeError, TypeError, pickle.PicklingError) as error:
                    raise TypeError(
                        f"what is compared cannot be sent to another process ({error}); define "
                        "its functions at the top level of a module, or pass jobs=0, which trains "
                        "in this process"
                    ) from error
                sending.close()
                running[receiving] = each, process
                shown.at(each, 0.0)
            for ready in wait(list(running), timeout=_SECONDS):
                assert isinstance(ready, Connection)
                each, process = running[ready]
                try:
                    told = ready.recv()
                except EOFError:
                    process.join()
                    what = f"its process ended with exit code {process.exitcode}"
                    told = None if stopped else {FAILED: f"{what}; see what it printed above"}
                if isinstance(told, float):
                    shown.at(each, told)
                    continue
                process.join()
                del running[ready]
                if told is not None:
                    yield each, told
            if stop.received and not stopped:
                stopped = True
                for _, process in running.values():
                    process.terminate()
    finally:
        for _, process in running.values():
            process.kill()


def _begin(sending: Connection, work: Work, each: _Missing) -> None:
    """Make a run in this process, and tell what came of it."""
    # Ctrl-C reaches all processes of a terminal. The one that began this one passes it on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopOnSignals(signal.SIGTERM) as stop:
        sending.send(_made(work, each, sending.send, stop))


def _made(
    work: Work, each: _Missing, say: Callable[[float], None], stop: StopOnSignals
) -> Run | None:
    try:
        return work(each.run, each.checkpoints, say, stop)
    except Exception as error:  # the other runs go on
        return {FAILED: f"{type(error).__name__}: {error}"}


class _Shown:
    """A line for each run that has ended; in a terminal also one for those that go on."""

    def __init__(self, total: int, missing: int, progress: bool) -> None:
        self._total, self._missing, self._ended = total, missing, 0
        self._running: dict[str, float] = {}
        self._start = time.monotonic()
        self._prints = progress
        self._lives = progress and sys.stderr is not None and sys.stderr.isatty()
        if progress and missing < total:
            print(f"{total - missing} of {total} runs are there already", flush=True)

    def at(self, each: _Missing, done: float) -> None:
        """Tell how much of the run is done, from 0 to 1."""
        self._running[each.checkpoints.name] = done
        if self._lives:
            made = self._ended + sum(self._running.values())
            seconds = (time.monotonic() - self._start) * (self._missing / (made or 1) - 1)
            left = f"; {seconds:.0f} s left" if made else ""
            parts = ", ".join(f"{part:.0%}" for part in self._running.values())
            total = self._total
            count = total - self._missing + self._ended
            line = f"{count} of {total} runs done, those running at {parts}{left}"
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    def ended(self, each: _Missing, text: str) -> None:
        """Print the line of a run."""
        self._running.pop(each.checkpoints.name, None)
        self._ended += 1
        self.clear()
        if self._prints:
            print(f"{self._total - self._missing + self._ended}/{self._total} {text}", flush=True)

    def clear(self) -> None:
        """Take away the line of those that go on."""
        if self._lives:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
