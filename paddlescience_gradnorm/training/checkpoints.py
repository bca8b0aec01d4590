"""Checkpoints: a run's last checkpoints in a folder."""

from __future__ import annotations

import errno
import re
import warnings
from pathlib import Path
from typing import Any

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.training import _checkpoint_file
from paddlescience_gradnorm.training._checkpoint_file import CheckpointError, PathLike
from paddlescience_gradnorm.training._lock import FolderLock

_NAME = re.compile(r"step_(\d+)\.ckpt")


class Checkpoints:
    """A folder with the last checkpoints of one run, by the numbers of their steps.

    Args:
        folder: The folder, which is made if it is not there. Each run, and each process of a
            distributed run, needs its own.
        every: Steps from one checkpoint to the next, at least 1. With ``None`` there is one only
            when a run is stopped before its end.
        keep: How many stay, at least 1. An older one is removed once the new one is on the disk.

    Raises:
        TypeError: ``every`` or ``keep`` is no integer.
        ValueError: One of them is below 1.

    Examples:
        >>> import tempfile
        >>> import paddle
        >>> from paddlescience_gradnorm.training import RunState
        >>> net = paddle.nn.Linear(2, 1)
        >>> state = RunState(net=net)
        >>> checkpoints = Checkpoints(tempfile.mkdtemp(), every=10, keep=2)
        >>> for step in range(1, 31):
        ...     checkpoints.step(state, step)
        >>> [path.name for path in checkpoints.paths()]
        ['step_00000020.ckpt', 'step_00000030.ckpt']
        >>> checkpoints.load_latest(state)
        {'step': 30}
    """

    def __init__(self, folder: PathLike, every: int | None = 1000, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.every = None if every is None else _arguments.integer("every", every, at_least=1)
        self.keep = _arguments.integer("keep", keep, at_least=1)
        self._bad: set[Path] = set()
        self._held: FolderLock | None = None

    def paths(self) -> list[Path]:
        """The files, in the order of their steps. Some may be damaged."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=_step)

    def begin(self, at_step: int) -> None:
        """Make sure, before a run, that it can write here and overwrites no other run.

        From now on no other process can do this, until ``end`` is called, this object is gone, or
        this process has ended.

        Args:
            at_step: The run's step, 0 or what has been loaded.

        Raises:
            OSError: The folder cannot be made or written to.
            CheckpointError: Another process, which the error names, has its run here; or there
                are checkpoints of later steps, which this run has not loaded.
        """
        try:
            self._lock()
            for left in self.folder.glob(f".step_*{_checkpoint_file.TEMPORARY}"):
                left.unlink(missing_ok=True)  # a process was killed while it wrote this
            with _checkpoint_file.temporary(self.folder / "step_0.ckpt") as (_, name):
                pass
            Path(name).unlink()
        except OSError as error:
            raise OSError(
                error.errno,
                f"checkpoints cannot be written ({error.strerror}); choose another folder",
                str(self.folder),
            ) from error
        later = [p for p in self.paths() if _step(p) > at_step and p not in self._bad]
        if later:
            raise CheckpointError(
                f"the run is at step {at_step}, but {self.folder} holds checkpoints of later "
                f"steps, up to {later[-1].name}; pass resume='latest' to go on from there, or "
                "choose another folder"
            )

    def step(self, state: Any, step: int, **position: Any) -> None:
        """Call ``save`` if it is time for a checkpoint. Call this at the end of every step."""
        if self.every is not None and step % self.every == 0:
            self.save(state, step, **position)

    def save(self, state: Any, step: int, **position: Any) -> None:
        """Write a checkpoint now.

        Args:
            state: A ``RunState``.
            step: How many steps the run has made.
            **position: As of ``RunState.save``.

        Raises:
            OSError: The file cannot be written. Earlier ones are still there.
            CheckpointError: Another process, which the error names, has its run here.
        """
        path = self.folder / f"step_{step:08d}.ckpt"
        self._lock()
        state.save(path, step=step, **position)
        self._bad.discard(path)
        kept = [p for p in self.paths() if _step(p) <= step and p not in self._bad]
        for old in kept[: -self.keep]:
            old.unlink(missing_ok=True)

    def end(self) -> None:
        """Let other processes use the folder. ``Trainer.fit`` calls this at its end."""
        if self._held is not None:
            self._held.free()
            self._held = None

    def _lock(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._held is None:
            self._held = FolderLock(self.folder)

    def load_latest(self, state: Any) -> dict[str, Any] | None:
        """Load the last checkpoint that is not damaged.

        Args:
            state: A ``RunState``.

        Returns:
            Its position; ``None`` if there is no checkpoint.

        Raises:
            CheckpointError: All are damaged, or the last one that is not damaged does not fit.

        Warns:
            RuntimeWarning: A later one is damaged and has been passed over.
        """
        found = self.read_latest()
        return None if found is None else state.take(*found)

    def read_latest(self) -> tuple[Path, Any] | None:
        """The last file that is not damaged, and the state in it, as for ``load_latest``."""
        paths = self.paths()
        for path in reversed(paths):
            try:
                content = _checkpoint_file.read(path)
            except (CheckpointError, OSError) as error:
                self._bad.add(path)
                warnings.warn(
                    f"{error}; the checkpoint before it is taken", RuntimeWarning, stacklevel=2
                )
            else:
                return path, content
        if paths:
            raise CheckpointError(f"no checkpoint in {self.folder} can be read: all are damaged")
        return None


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise OSError(errno.EINVAL, "no name of a checkpoint", str(path))
    return int(match[1])
