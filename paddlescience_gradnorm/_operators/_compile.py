"""Compiles the operators, for whoever holds the lock on their folder.

As a script it does so beside the program that has begun it, in a process that takes only what
others leave of the processor. It needs nothing but the standard library, because Paddle would
take seconds to import here.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

LOCK = "lock"
FAILURE = "failure.txt"
_LAST_LINES = 60  # of what the compiler has printed


@contextlib.contextmanager
def locked(folder: Path, waits: bool) -> Iterator[BinaryIO]:
    """Hold the lock on a folder, which is made if there is none; the file that is locked.

    A process that gets the file as an open descriptor holds the lock too, and the system frees it
    when the last of them has ended, in whatever way.

    Raises:
        BlockingIOError: Another process holds it, and this one does not wait.
        OSError: The folder cannot be written to, or its file system has no locks.
    """
    import fcntl  # only Linux gets here, and Windows has none

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        # It says who, and on a full disk it is an error before anything has begun.
        sign(file)
        yield file


def sign(file: BinaryIO) -> None:
    """Write this process into the locked file."""
    file.truncate(0)
    file.write(_signature(os.getpid()).encode())


def _signature(process: int | str) -> str:
    return f"process {process} on {socket.gethostname()}"


def holder(folder: Path) -> str:
    """The process that holds the lock on a folder, in words; empty if there is none."""
    import fcntl

    try:
        with (folder / LOCK).open("rb", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(200).decode(errors="replace") or "another process"
    except OSError:  # no lock, or none that can be asked for
        pass
    return ""


def end_background(folder: Path) -> bool:
    """End the process that compiles in the background, if it has the lock on the folder.

    Whoever waits for the library compiles faster: on a busy machine a process that takes what
    others leave may get a hundredth of a processor.

    Returns:
        Whether there was one.
    """
    named = re.fullmatch(_signature(r"(\d+)"), holder(folder))
    if named is None:
        return False
    try:
        command = Path("/proc", named[1], "cmdline").read_bytes().split(b"\0")
        if os.path.abspath(__file__).encode() not in command:
            return False
        os.killpg(os.getpgid(int(named[1])), signal.SIGTERM)
    except OSError:  # it has ended, or is another user's
        return False
    return True


def compile_library(library: Path, code: str) -> str:
    """Compile into place, in the folder on which the caller holds the lock.

    Args:
        library: The file. It appears when it is whole, so that nobody loads half a library.
        code: Python that compiles in the folder given as its first argument.

    Returns:
        What the compiler has printed, if it has failed. It is kept in ``FAILURE`` then.
    """
    for left in library.parent.glob("building-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    failure = library.with_name(FAILURE)
    with tempfile.TemporaryDirectory(prefix="building-", dir=library.parent) as folder:
        result = subprocess.run(
            [sys.executable, "-c", code, folder],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        made = Path(folder, library.stem, library.name)
        if not result.returncode and made.exists():
            os.replace(made, library)
            failure.unlink(missing_ok=True)
            return ""
    # Now that the folder is gone, a full disk has room for this.
    lines = (result.stdout + result.stderr).strip().splitlines()[-_LAST_LINES:]
    said = "\n".join(lines) or f"the compiling process ended with exit code {result.returncode}"
    with contextlib.suppress(OSError):
        failure.write_text(said + "\n", encoding="utf-8")
    return said


def _take_what_is_left() -> None:
    """Let every other process go first."""
    os.nice(19)
    # Where Linux shares the processor among sessions first, that is only within this session.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")


def _main(descriptor: str, library: str, code: str) -> None:
    _take_what_is_left()
    with os.fdopen(int(descriptor), "r+b", buffering=0) as file, contextlib.suppress(OSError):
        sign(file)
        compile_library(Path(library), code)


if __name__ == "__main__":
    _main(*sys.argv[1:])
