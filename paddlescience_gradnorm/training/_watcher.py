"""The process beside each process of a distributed run, which sees when one of them fails.

A process of its own, because a failing collective of gloo aborts the process that waits in it, and
a stopped process does nothing at all. It imports the standard library alone and starts at once:

    python _watcher.py FOLDER TOKEN RANK RANKS SECONDS PID

Its rank writes a line of JSON to its standard input at every mark. It writes what it knows about
its rank to FOLDER/rank_RANK.json and reads there what the others say.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

_LOOK = 0.2  # seconds from one look to the next
_BEAT = 1.0  # seconds after which it says that it is there
# Seconds from the first sign of a failure to the verdict. The others fail soon after the one that
# is the cause, and may be seen first.
_GATHER = 1.5
# How a process ends that was waiting for another: gloo aborts it, a launcher terminates it.
_FOLLOWS = ("SIGABRT", "SIGTERM", "gloo", "Connection")


class Watcher:
    """What one rank's watcher knows."""

    def __init__(self, folder: str, token: str, rank: int, ranks: int, seconds: float, pid: int):
        self.folder, self.token, self.rank, self.ranks = Path(folder), token, rank, ranks
        self.seconds, self.pid = seconds, pid
        self.own: dict[str, Any] = {
            "token": token, "beat": 0, "step": 0, "count": 0, "checkpoint": None,
            "state": "running", "why": "", "at": 0.0,
        }  # fmt: skip
        now = time.monotonic()
        self.moved = self.written = now
        self.others = {r: dict(self.own) for r in range(ranks) if r != rank}
        self.heard = dict.fromkeys(self.others, now)
        # What the rank has said of a line that is not over; None once it can say no more.
        self.rest: bytes | None = b""
        self.death: int | None = None  # a descriptor that is ready once the rank has died
        with contextlib.suppress(OSError, AttributeError):  # by the kernel; by the system
            self.death = os.pidfd_open(pid)

    def watch(self) -> int:
        """Watch until its rank has ended or one has failed; the exit code."""
        first_sign = None
        self.write()
        while True:
            self.listen()
            self.write()
            if self.own["state"] == "ended":
                return 0
            self.read()
            now = time.monotonic()
            if first_sign is None and self.failures():
                first_sign = now
            if first_sign is not None and now - first_sign >= _GATHER:
                return self.end()

    def listen(self) -> None:
        """Take what the rank says, and find out whether it is there."""
        waiting = [] if self.rest is None else [0]
        waiting += [] if self.death is None else [self.death]
        ready, _, _ = select.select(waiting, [], [], _LOOK)
        if 0 in ready:
            self.take(os.read(0, 65536))
        if os.getppid() != self.pid and self.own["state"] == "running":
            self.fail("gone", _how(self.pid))
        if self.death in ready:  # once, or no select would wait any more
            self.death = None

    def take(self, said: bytes) -> None:
        """Take lines of the rank, or the end of them."""
        if not said:
            self.rest = None
            return
        *lines, self.rest = ((self.rest or b"") + said).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if told.get("count") != self.own["count"]:
                self.moved = time.monotonic()
            if self.own["state"] == "running":
                self.own.update(told, at=time.monotonic())

    def fail(self, state: str, why: str) -> None:
        """Note that the rank has failed."""
        self.own.update(state=state, why=why, at=time.monotonic())

    def write(self) -> None:
        """Tell the others how the rank is."""
        now = time.monotonic()
        if now - self.written < _BEAT and self.own["state"] == "running" and self.own["beat"]:
            return
        self.written = now
        self.own["beat"] += 1
        path = self.folder / f"rank_{self.rank}.json"
        new = path.with_suffix(".tmp")
        new.write_text(json.dumps(self.own))
        os.replace(new, path)

    def read(self) -> None:
        """Take what the others tell."""
        for rank, known in self.others.items():
            try:
                told = json.loads((self.folder / f"rank_{rank}.json").read_text())
            except (OSError, ValueError):
                continue
            if told.get("token") == self.token and told["beat"] != known["beat"]:
                self.others[rank] = told
                self.heard[rank] = time.monotonic()

    def failures(self) -> list[tuple[Any, ...]]:
        """The ranks that have failed, each with what is to be said; the cause comes first."""
        now, found = time.monotonic(), []
        told = {**self.others, self.rank: self.own}
        for rank, of in sorted(told.items()):
            # The moments come last: clocks of different machines have nothing in common.
            if of["state"] in ("gone", "failed"):
                found.append((_follows(of), of["count"], of["at"], rank, of["why"]))
            elif rank != self.rank and of["state"] == "running":
                silent = now - self.heard[rank]
                if silent > self.seconds:
                    why = f"has not been heard of for {silent:.0f} s"
                    found.append((False, of["count"], now, rank, why))
        if not found and now - self.moved > self.seconds:
            running = {r: of["count"] for r, of in told.items() if of["state"] == "running"}
            least, most = min(running.values()), max(running.values())
            why = f"has made no progress for {self.seconds:g} s, while others wait for it,"
            if least == most:
                why = f"and all others have made no progress for {self.seconds:g} s"
            if len(running) > 1:  # nobody waits for the last one
                found += [(False, least, now, r, why) for r in running if running[r] == least]
        return sorted(found)

    def end(self) -> int:
        """Say which rank has failed, and end this rank."""
        found = self.failures()
        if not found:  # it has gone on
            return self.watch()
        *_, rank, why = found[0]
        if self.own["state"] == "failed" and (rank == self.rank or not _follows(self.own)):
            self.leave()  # its own error says it
            return 1
        of = self.own if rank == self.rank else self.others[rank]
        checkpoint = self.own["checkpoint"] or of["checkpoint"]
        print(
            f"paddlescience_gradnorm: rank {rank} of {self.ranks} {why} in step {of['step'] + 1}, "
            f"so all processes end; this is rank {self.rank}. " + go_on(checkpoint),
            file=sys.stderr,
            flush=True,
        )
        self.kill()
        return 1

    def leave(self) -> None:
        """Let the rank end by itself, but not hang in that."""
        until = time.monotonic() + self.seconds / 2
        while os.getppid() == self.pid and time.monotonic() < until:
            time.sleep(_LOOK)
        self.kill()

    def kill(self) -> None:
        """End the rank and its own processes, such as workers of a DataLoader."""
        if os.getppid() != self.pid:
            return
        children = []
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in [self.pid, *map(int, children)]:
            if pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def go_on(checkpoint: str | None) -> str:
    """What to do, as the end of a message."""
    if checkpoint is None:
        return "There is no checkpoint yet: start the same command again, which begins anew."
    return (
        f"The last good checkpoint is {checkpoint}: start the same command again, which goes on "
        "from there."
    )


def _follows(told: dict[str, Any]) -> bool:
    """Whether a rank has failed because another has."""
    return any(x in told["why"] for x in _FOLLOWS)


def _how(pid: int) -> str:
    """How a process has died, as long as nobody has asked for its exit code."""
    try:
        code = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[-1])
    except (OSError, ValueError, IndexError):
        return "has died"
    number = code & 0x7F
    if number:
        return f"has died by {signal.Signals(number).name}"
    return f"has ended with exit code {code >> 8}"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal's Ctrl-C only its rank is told
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder, token, *numbers = sys.argv[1:]
    rank, ranks, seconds, pid = (float(x) for x in numbers)
    sys.exit(Watcher(folder, token, int(rank), int(ranks), seconds, int(pid)).watch())
