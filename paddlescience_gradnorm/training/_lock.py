"""A lock on a folder, because two processes that write to it would spoil each other's files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import warnings
import weakref
from pathlib import Path

from paddlescience_gradnorm.training._checkpoint_file import CheckpointError

NAME = ".lock"


class FolderLock:
    """Locks a folder for this process, until ``free`` is called or this object is gone.

    The system frees it when the process ends, in whatever way. The file that a killed process
    leaves behind locks nothing.

    Args:
        folder: The folder, which must exist.

    Raises:
        CheckpointError: Another process has the folder, which the error names.
        OSError: The folder cannot be written to.

    Warns:
        RuntimeWarning: The file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / NAME
        descriptor = _locked(path)
        self.free = weakref.finalize(self, _free, descriptor, path, os.getpid())
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError:
            self.free()
            raise

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.free()


def _locked(path: Path) -> int:
    """The file, open and locked."""
    while True:
        # A link of that name would lead elsewhere.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            # Not flock, which the workers of a DataLoader would hold for some time after a kill.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise CheckpointError(
                f"{str(path.parent)!r} is in use by {owner or 'another process'}: let that end, or "
                "stop it, before you go on with its run; or choose another folder"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{str(path.parent)!r} cannot be locked ({error.strerror}): see to it that no "
                "other process writes to it",
                RuntimeWarning,
                stacklevel=4,
            )
            return descriptor
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # who had it has removed it between the two calls


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _free(descriptor: int, path: Path, process: int) -> None:
    if os.getpid() != process:  # in a fork
        return
    with contextlib.suppress(OSError):  # what locks is the descriptor
        os.unlink(path)
    os.close(descriptor)
