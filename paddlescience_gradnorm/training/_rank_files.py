"""The files of a checkpoint: one, or one for each process of a distributed run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from paddlescience_gradnorm.balancing import _ranks
from paddlescience_gradnorm.training import _checkpoint_file
from paddlescience_gradnorm.training._checkpoint_file import PathLike

_NAME = re.compile(r"step_(\d+)(?:\.rank_(\d+)_of_(\d+))?\.ckpt")


class RankFiles(NamedTuple):
    """A checkpoint: its step, and its files by the ranks of the processes that wrote them."""

    step: int
    paths: tuple[Path, ...]


def name(step: int) -> str:
    """The name of this process's file.

    Examples:
        >>> name(30)  # a single process
        'step_00000030.ckpt'
    """
    ranks = _ranks.number()
    of_rank = f".rank_{_ranks.rank()}_of_{ranks}" if ranks > 1 else ""
    return f"step_{step:08d}{of_rank}.ckpt"


def complete(folder: Path) -> list[RankFiles]:
    """The checkpoints in a folder of which all files are there, by step.

    Of several with one step, the last is that of as many processes as there are now.
    """
    found: dict[tuple[int, int], dict[int, Path]] = {}
    for path, step, rank, ranks in _files(folder):
        found.setdefault((step, ranks), {})[rank] = path
    return [
        RankFiles(step, tuple(paths[rank] for rank in range(ranks)))
        for (step, ranks), paths in sorted(found.items(), key=lambda x: (x[0][0], _fit(x[0][1])))
        if set(paths) == set(range(ranks))
    ]


def remove(folder: Path, kept: list[RankFiles], up_to: int) -> None:
    """Remove the files up to a step that belong to none of these checkpoints."""
    stays = {path for each in kept for path in each.paths}
    for path, step, _, _ in _files(folder):
        if step <= up_to and path not in stays:
            path.unlink(missing_ok=True)


def read(path: PathLike) -> list[Any]:
    """The states from which this process goes on: its own, or all if their number was another.

    Args:
        path: Any file of the checkpoint.

    Raises:
        CheckpointError: A file is damaged.
        OSError: One cannot be opened.
    """
    path = Path(path)
    match = _NAME.fullmatch(path.name)
    if match is None or match[3] is None:
        return [_checkpoint_file.read(path)]
    ranks = int(match[3])
    wanted = [_ranks.rank()] if ranks == _ranks.number() else range(ranks)
    start = path.name[: match.start(2)]
    return [_checkpoint_file.read(path.with_name(f"{start}{r}_of_{ranks}.ckpt")) for r in wanted]


def _files(folder: Path) -> list[tuple[Path, int, int, int]]:
    """The files, each with its step, rank, and number of ranks."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((path, int(match[1]), int(match[2] or 0), int(match[3] or 1)))
    return found


def _fit(ranks: int) -> tuple[bool, int]:
    return ranks == _ranks.number(), ranks
