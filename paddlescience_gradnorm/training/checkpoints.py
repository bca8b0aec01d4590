"""Checkpoints: a run's last checkpoints in a folder."""

from __future__ import annotations

import contextlib
import errno
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.balancing import _ranks
from paddlescience_gradnorm.training import _checkpoint_file, _rank_files
from paddlescience_gradnorm.training._checkpoint_file import CheckpointError, PathLike
from paddlescience_gradnorm.training._lock import FolderLock
from paddlescience_gradnorm.training._rank_files import RankFiles


class Checkpoints:
    """A folder with the last checkpoints of one run, by the numbers of their steps.

    In a distributed run all processes share the folder, and every one of them must make the same
    calls. Each writes a file of its own. A checkpoint counts once all its files are there.

    Args:
        folder: The folder, which is made if it is not there. Each run needs its own.
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
        # The last checkpoint that this object has written or loaded.
        self.last: Path | None = None
        self._bad: set[RankFiles] = set()
        self._held: FolderLock | None = None

    def paths(self) -> list[Path]:
        """A file of each checkpoint, in the order of their steps. Some may be damaged.

        In a distributed run it is the file of rank 0.
        """
        return [each.paths[0] for each in _rank_files.complete(self.folder)]

    def begin(self, at_step: int) -> None:
        """Make sure, before a run, that it can write here and overwrites no other run.

        From now on no other process can do this, until ``end`` is called, this object is gone, or
        this process has ended.

        Args:
            at_step: The run's step, 0 or what has been loaded.

        Raises:
            OSError: The folder cannot be made or written to.
            CheckpointError: Another process, which the error names, has its run here; or there
                are checkpoints of later steps, which this run has not loaded; or the processes
                of a distributed run have different folders.
        """
        try:
            with self._in_all_processes():
                self._lock()
                if _ranks.rank() == 0:
                    for left in self.folder.glob(f".step_*{_checkpoint_file.TEMPORARY}"):
                        left.unlink(missing_ok=True)  # a process was killed while it wrote this
            probe = self.folder / _rank_files.name(0)
            with self._in_all_processes(), _checkpoint_file.temporary(probe) as (_, name):
                pass
            with self._in_all_processes():
                files = len(list(self.folder.glob(f".step_*{_checkpoint_file.TEMPORARY}")))
            Path(name).unlink()
            self._check_that_it_is_shared(files)
        except OSError as error:
            raise OSError(
                error.errno,
                f"checkpoints cannot be written ({error.strerror}); choose another folder",
                str(self.folder),
            ) from error
        found = _rank_files.complete(self.folder)
        later = [each for each in found if each.step > at_step and each not in self._bad]
        if later:
            raise CheckpointError(
                f"the run is at step {at_step}, but {self.folder} holds checkpoints of later "
                f"steps, up to {later[-1].paths[0].name}; pass resume='latest' to go on from "
                "there, or choose another folder"
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
            OSError: The file cannot be written, in this process or another. Earlier ones are still
                there.
            CheckpointError: Another process, which the error names, has its run here.
        """
        with self._in_all_processes():
            self._lock()
            state.save(self.folder / _rank_files.name(step), step=step, **position)
        found = [each for each in _rank_files.complete(self.folder) if each.step <= step]
        # The last of a step has just been written, perhaps beside one of other processes.
        of_step = {each.step: each for each in found}
        self._bad.discard(of_step[step])
        self.last = of_step[step].paths[0]
        kept = [each for each in of_step.values() if each not in self._bad][-self.keep :]
        if _ranks.rank() == 0:
            _rank_files.remove(self.folder, [*kept, *self._bad], up_to=step)

    def end(self) -> None:
        """Let other processes use the folder. ``Trainer.fit`` calls this at its end."""
        if self._held is not None:
            self._held.free()
            self._held = None

    def _lock(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._held is None and _ranks.rank() == 0:  # the processes of one run share the folder
            self._held = FolderLock(self.folder)

    def load_latest(self, state: Any) -> dict[str, Any] | None:
        """Load the last checkpoint that is not damaged.

        It may be of another number of processes; see ``RunState.load``.

        Args:
            state: A ``RunState``.

        Returns:
            Its position; ``None`` if there is no checkpoint.

        Raises:
            CheckpointError: All are damaged, or the last one that is not damaged does not fit.

        Warns:
            RuntimeWarning: A later one is damaged and has been passed over.
        """
        below: float = math.inf
        while True:
            found = [each for each in _rank_files.complete(self.folder) if each.step < below]
            # All processes try the same one, even if one of them sees new files late.
            step = -_ranks.largest(-found[-1].step if found else 1)
            if step < 0:
                break
            last = next((each for each in reversed(found) if each.step == step), None)
            states = None if last is None else self._read(last)
            if not _ranks.any_has(states is None) and last is not None and states is not None:
                position: dict[str, Any] = state.take_of(last.paths[0], states)
                self.last = last.paths[0]
                return position
            below = step
        if below < math.inf:
            raise CheckpointError(f"no checkpoint in {self.folder} can be read: all are damaged")
        return None

    def _check_that_it_is_shared(self, files: int) -> None:
        if files != _ranks.number():
            raise CheckpointError(
                f"folder must be the same for all {_ranks.number()} processes, on a file system "
                f"that all of them see, but only {files} of them write to {self.folder}"
            )

    def _read(self, checkpoint: RankFiles) -> list[Any] | None:
        """The states in it from which this process goes on; None with a warning if damaged."""
        try:
            return _rank_files.read(checkpoint.paths[0])
        except (CheckpointError, OSError) as error:
            self._bad.add(checkpoint)
            warnings.warn(
                f"{error}; the checkpoint before it is taken", RuntimeWarning, stacklevel=3
            )
            return None

    @contextlib.contextmanager
    def _in_all_processes(self) -> Iterator[None]:
        """If this fails in one process, raise an error in all of them."""
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        failed = _ranks.largest(-1 if error is None else _ranks.rank())
        if error is not None:
            raise error
        if failed >= 0:
            what = f"rank {failed} could not write its file; its own error says why"
            raise OSError(errno.EIO, what, str(self.folder))
