"""metrics.json: what is to be known of a finished run, for people, programs and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddlescience_gradnorm.training._checkpoint_file import PathLike, replace

_VERSION = 1


def save_metrics(path: PathLike, metrics: Mapping[str, Any]) -> None:
    """Write a run's results as JSON, with ``"version": 1`` before them.

    Args:
        path: The file, ``metrics.json`` in the run's folder.
        metrics: What JSON can hold. docs/checkpoints.md lists the names that have a meaning.

    Raises:
        TypeError: Something is in it that JSON cannot hold.
        OSError: The file cannot be written. What was in it is still there.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "metrics.json")
        >>> save_metrics(path, {"errors": {"u": 1e-3}})
        >>> load_metrics(path)
        {'version': 1, 'errors': {'u': 0.001}}
    """
    text = json.dumps({"version": _VERSION, **metrics}, indent=2)
    replace(Path(path), [text.encode(), b"\n"])


def load_metrics(path: PathLike) -> dict[str, Any]:
    """Read what ``save_metrics`` has written. A file without a version is of version 1.

    Args:
        path: The file.

    Raises:
        ValueError: It is no dict in JSON, or a newer version of this package has written it.
        OSError: It cannot be read.
    """
    try:
        metrics = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        metrics = None
    if not isinstance(metrics, dict):
        raise ValueError(f"{str(path)!r} is no dict in JSON; mend it or take it away")
    version = metrics.get("version", _VERSION)
    if type(version) is not int or not 1 <= version <= _VERSION:
        raise ValueError(
            f"{str(path)!r} has version {str(version)[:20]} of a run's metrics, and this package "
            f"knows versions up to {_VERSION}: update the package, or take the file away"
        )
    return metrics
