"""The report of a finished run: one HTML page that needs no network and no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paddlescience_gradnorm.training._checkpoint_file import PathLike, replace
from paddlescience_gradnorm.training._page import (
    escaped,
    figure_of,
    findings_of,
    grid,
    key,
    page,
    png,
    section,
    subsection,
    table,
    text,
)
from paddlescience_gradnorm.training.history import QUANTITIES, History
from paddlescience_gradnorm.training.metrics import load_metrics

HISTORY, METRICS, PAGE = "history.npz", "metrics.json", "report.html"
# This figure shows the same curves as the page itself.
_TRAINING = "training.png"
# FIGURE_narrow.png is shown in place of FIGURE.png on a narrow screen.
_NARROW = "_narrow"
# Settings in which a run may differ from the run with equal weights that it is compared with.
_FREE = frozenset(
    "balance rule alpha output live visualdl tensorboard checkpoint_every resume device".split()
)
# These entries of metrics.json have places of their own on the page. The others are results.
_PLACED = (
    *("version", "equation", "diagnosis", "settings", "versions", "machine"),
    *("final_losses", "final_weights", "steps"),  # the history has these too
    "error_curve",
)

_CURVES = {  # quantity -> heading, and how to read it
    "losses": ("Losses", "Without their weights."),
    "weights": ("Weights", "What each loss is multiplied by."),
    "gradient_norms": (
        "Gradient norms",
        "How strongly each loss, without its weight, pulls at the shared parameters.",
    ),
    "training_rates": (
        "Inverse training rates",
        "A rate above 1: this loss has fallen less than the others, relative to its first value.",
    ),
}
_EQUAL = "equal weights"


class _Equal(NamedTuple):
    """A run with equal weights, and otherwise the same settings."""

    folder: Path
    history: History
    metrics: Mapping[str, Any]


def write_report(folder: PathLike, path: PathLike | None = None) -> Path:
    """Write the page of a run: settings, curves, figures, diagnosis, versions.

    Everything on it is within the one file; it asks for nothing from anywhere. If a folder beside
    the run's holds a run with equal weights and otherwise the same settings, the page shows both.

    Args:
        folder: The run's. It holds ``history.npz`` (``History.save``), and may hold
            ``metrics.json``, a dict from which ``settings``, ``versions``, ``machine``,
            ``diagnosis`` and ``error_curve``, a list of ``[step, error]``, get a place of their
            own and everything else is listed under results, and figures, ``*.png``. On a narrow
            screen ``FIGURE_narrow.png`` is shown in place of ``FIGURE.png``.
        path: The file to write; ``report.html`` in the folder by default.

    Returns:
        The file that was written.

    Raises:
        ValueError: There is no run in the folder, one of its files is damaged or of a newer
            version, or a link leads out of the folder.
        OSError: The page cannot be written.
        ImportError: Matplotlib, which the extra ``[plot]`` brings, is not installed.

    Examples:
        >>> import tempfile
        >>> import paddle
        >>> history, folder = History(), Path(tempfile.mkdtemp())
        >>> for loss in (4.0, 1.0):
        ...     history.record(["pde", "data"], losses=paddle.to_tensor([loss, 2.0]))
        >>> history.save(folder / "history.npz")
        >>> page = write_report(folder)
        >>> page.name, page.read_text(encoding="utf-8").count("<img")
        ('report.html', 1)
    """
    folder = Path(folder)
    history = _history(folder)
    path_of_metrics = _own(folder, folder / METRICS)
    metrics = load_metrics(path_of_metrics) if path_of_metrics.exists() else {}
    figures = sorted(
        _own(folder, p)
        for p in folder.glob("*.png")
        if p.name != _TRAINING and not p.stem.endswith(_NARROW)
    )
    path = folder / PAGE if path is None else Path(path)
    equal = _equal(folder, history, metrics)
    replace(path, [_report(folder, history, metrics, figures, equal).encode()])
    return path


def _equal(folder: Path, history: History, metrics: Mapping[str, Any]) -> _Equal | None:
    """The run to compare with; None if there is none beside."""
    own = _settings(metrics)
    if not own.get("problem") or own.get("balance") in (None, "equal"):
        return None
    alike = {name: value for name, value in own.items() if name not in _FREE}
    for path in sorted(folder.resolve().parent.glob(f"*/{METRICS}")):
        try:
            other = load_metrics(_own(path.parent, path))
            settings = _settings(other)
            kept = {name: value for name, value in settings.items() if name not in _FREE}
            if settings.get("balance") == "equal" and kept == alike:
                found = _Equal(path.parent, _history(path.parent), other)
                if len(found.history) == len(history) and found.history.names == history.names:
                    return found
        except (ValueError, OSError):  # whatever else lies beside the run
            continue
    return None


def _settings(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = metrics.get("settings")
    return settings if isinstance(settings, dict) else {}


def _history(folder: Path) -> History:
    path = _own(folder, folder / HISTORY)
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise ValueError(f"{str(folder)!r} {what}; give the folder that a run has written")
    if not path.is_file():
        raise ValueError(
            f"{str(folder)!r} has no {HISTORY}, so no finished run; give the folder that a run has "
            f"written, or save the history of your own to it: history.save({HISTORY!r})"
        )
    history = History.load(path)
    if not len(history):
        raise ValueError(f"the history {str(path)!r} has no step; train for one at least")
    return history


def _own(folder: Path, path: Path) -> Path:
    """The path, unless a link leads it out of the folder: the page may go to somebody else."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{str(path)!r} is a link that leads out of the run's folder; replace it by the file "
            "that is meant, or take it away"
        )
    return path


def _report(
    folder: Path,
    history: History,
    metrics: Mapping[str, Any],
    figures: Sequence[Path],
    equal: _Equal | None,
) -> str:
    settings = _settings(metrics)
    title = text(settings.get("problem", folder.resolve().name))
    results = {"steps": len(history), **_results(metrics)}
    notes = {}
    if equal is not None:
        theirs = _results(equal.metrics)
        notes = {name: f"{_EQUAL}: {text(theirs[name])}" for name in results if name in theirs}
    findings = metrics.get("diagnosis")
    if not isinstance(findings, list):
        findings = history.diagnose()
    versions = metrics.get("versions")
    sections = [
        section("Diagnosis", findings_of(findings)),
        section("Losses and weights", _losses(history, equal)),
        section("Curves", grid(_curves(history, metrics, equal), "curves")),
    ]
    if figures:
        drawn = (
            figure_of(p.stem, p.read_bytes(), p.name, scrolls=True, narrow=_narrow(p))
            for p in figures
        )
        sections.append(section("Figures", "".join(drawn)))
    tables = []
    if settings:
        tables.append(subsection("Settings", table(["setting", "value"], settings.items())))
    if isinstance(versions, dict):
        tables.append(subsection("Versions", table(["what", "version"], versions.items())))
    if tables:
        sections.append(section("How it was made", grid(tables, "tables")))
    if "machine" in metrics:
        sections.append(f'<p class="note">{escaped(metrics["machine"])}</p>')
    equation = metrics.get("equation", "")
    return page(title, "report of a run", equation, results, sections, notes)


def _narrow(figure: Path) -> bytes | None:
    path = figure.with_name(f"{figure.stem}{_NARROW}.png")
    return path.read_bytes() if path.exists() else None


def _results(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What has no place of its own on the page."""
    results: dict[str, Any] = {}
    for name, value in metrics.items():
        if name not in _PLACED:
            results.update(_flat(name, value))
    return results


def _flat(name: str, value: Any) -> dict[str, Any]:
    """A result, or the results in a dict of them: ``{"errors": {"u": 1}}`` gives ``errors: u``."""
    if isinstance(value, dict):
        return {f"{name}: {part}": number for part, number in value.items()}
    return {name: value}


def _losses(history: History, equal: _Equal | None) -> str:
    last = history.last()
    header = ["loss", "first", "last", "weight", "gradient norm", "inverse training rate"]
    rows = [
        [name, losses[0], *(last[quantity][name] for quantity in QUANTITIES)]
        for name, losses in history.losses.items()
    ]
    if equal is not None:
        header.insert(3, f"last, {_EQUAL}")
        for row, losses in zip(rows, equal.history.losses.values()):
            row.insert(3, losses[-1])
    return table(header, rows, kind="numbers")


def _curves(history: History, metrics: Mapping[str, Any], equal: _Equal | None) -> Iterable[str]:
    try:
        from matplotlib.colors import to_hex
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a report needs matplotlib: pip install matplotlib") from error
    numbers, names = history.to_numpy(), history.names
    for quantity, (heading, reading) in _CURVES.items():
        if quantity != "losses" and np.isnan(numbers[quantity]).all():
            continue  # as norms and rates are without a balancer
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = getattr(history, f"plot_{quantity}")(figure.subplots())
        axes.grid(alpha=0.25)
        axes.get_legend().remove()
        if quantity == "losses":  # all curves share one key, because names may be long
            colors = [to_hex(line.get_color()) for line in axes.lines]
            yield key(names, colors)
            if equal is not None:
                reading += f" Dashed: with {_EQUAL}, run {equal.folder.name}."
                steps = equal.history.steps  # a long run has no row for each of them
                for losses, color in zip(equal.history.losses.values(), colors):
                    axes.plot(steps, losses, "--", color=color, linewidth=0.8, zorder=1)
        alt = f"{heading} of {', '.join(names)} over {len(history)} steps"
        yield figure_of(heading, png(figure), alt, reading)
    curve = _error_curve(metrics)
    if len(curve):
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(*curve.T, color="black", linewidth=1.3)
        reading = "Of the network, against the known solution."
        if equal is not None and len(_error_curve(equal.metrics)):
            axes.plot(*_error_curve(equal.metrics).T, "--", color="black", linewidth=0.8)
            reading += f" Dashed: with {_EQUAL}."
        axes.grid(alpha=0.25)
        axes.set(xlabel="step", ylabel="relative error", yscale="log")
        yield figure_of("Error", png(figure), f"error over {len(history)} steps", reading)


def _error_curve(metrics: Mapping[str, Any]) -> np.ndarray:
    """Steps and errors, shape [moments, 2]; no moments if they are not known."""
    try:
        curve = np.array(metrics.get("error_curve", []), float)
    except (TypeError, ValueError):  # of somebody else's
        curve = np.empty(0)
    return curve if curve.ndim == 2 and curve.shape[1] == 2 else np.empty((0, 2))
