"""The report of a finished run: one HTML page that needs no network and no script."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlescience_gradnorm.training._checkpoint_file import PathLike
from paddlescience_gradnorm.training.history import QUANTITIES, History

HISTORY, METRICS, PAGE = "history.npz", "metrics.json", "report.html"
# This figure shows the same curves as the page itself.
_TRAINING = "training.png"
# These entries of metrics.json have places of their own on the page. The others are results.
_PLACED = (
    *("equation", "diagnosis", "settings", "versions", "machine"),
    *("final_losses", "final_weights", "steps"),  # the history has these too
)

_CURVES = {  # quantity -> heading, and how to read it
    "losses": ("Losses", "Unweighted, at the start of every step."),
    "weights": ("Weights", "Those that acted in the step."),
    "gradient_norms": (
        "Gradient norms",
        "Of the unweighted losses, on the shared parameters, when the weights were last updated.",
    ),
    "training_rates": (
        "Training rates",
        "Inverse: a loss above 1 has fallen less than the others, measured against its reference.",
    ),
}


def write_report(folder: PathLike, path: PathLike | None = None) -> Path:
    """Write the page of a run: settings, curves, figures, diagnosis, versions.

    Everything on it is within the one file; it asks for nothing from anywhere.

    Args:
        folder: The run's. It holds ``history.npz`` (``History.save``), and may hold
            ``metrics.json``, a dict from which ``settings``, ``versions``, ``machine`` and
            ``diagnosis`` get a place of their own and everything else is listed under
            results, and figures, ``*.png``.
        path: The file to write; ``report.html`` in the folder by default.

    Returns:
        The file that was written.

    Raises:
        ValueError: There is no run in the folder, or one of its files is damaged.
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
    metrics = _metrics(folder / METRICS)
    figures = sorted(p for p in folder.glob("*.png") if p.name != _TRAINING)
    page = _page(folder, history, metrics, figures)
    path = folder / PAGE if path is None else Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def _history(folder: Path) -> History:
    path = folder / HISTORY
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise ValueError(f"{str(folder)!r} {what}; give the folder that a run has written")
    if not path.is_file():
        raise ValueError(
            f"{str(folder)!r} has no {HISTORY}, so no finished run; give the folder that a run has "
            f"written, or save the history of your own to it: history.save({HISTORY!r})"
        )
    try:
        history = History.load(path)
        shapes = {values.shape for q, values in history.to_numpy().items() if q in QUANTITIES}
        whole = shapes == {(len(history), len(history.names))}
    except (ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile):
        whole = False
    if not whole:
        raise ValueError(f"{str(path)!r} is damaged, or no history; train again")
    if not len(history):
        raise ValueError(f"the history {str(path)!r} has no step; train for one at least")
    return history


def _metrics(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        metrics = None
    if not isinstance(metrics, dict):
        raise ValueError(f"{str(path)!r} is no dict in JSON; mend it or take it away")
    return metrics


def _page(
    folder: Path, history: History, metrics: Mapping[str, Any], figures: Sequence[Path]
) -> str:
    settings = metrics.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    title = _text(settings.get("problem", folder.resolve().name))
    results = {"steps": len(history)}
    for key, value in metrics.items():
        if key not in _PLACED:
            results.update(_flat(key, value))
    findings = metrics.get("diagnosis")
    if not isinstance(findings, list):
        findings = history.diagnose()
    versions = metrics.get("versions")
    sections = [
        _section("Diagnosis", _diagnosis(findings)),
        _section("Losses and weights", _losses(history)),
        _section("Curves", _grid(_curves(history), "curves")),
    ]
    if figures:
        drawn = (_figure(p.stem, p.read_bytes(), p.name, scrolls=True) for p in figures)
        sections.append(_section("Figures", "".join(drawn)))
    tables = []
    if settings:
        tables.append(_subsection("Settings", _table(["setting", "value"], settings.items())))
    if isinstance(versions, dict):
        tables.append(_subsection("Versions", _table(["what", "version"], versions.items())))
    if tables:
        sections.append(_section("How it was made", _grid(tables, "tables")))
    if "machine" in metrics:
        sections.append(f'<p class="note">{_escaped(metrics["machine"])}</p>')
    return _TEMPLATE.format(
        title=_escaped(title),
        style=_STYLE,
        equation=f"<p>{_escaped(metrics['equation'])}</p>" if "equation" in metrics else "",
        results="".join(
            f"<div><dt>{_escaped(key.replace('_', ' '))}</dt><dd>{_escaped(value)}</dd></div>"
            for key, value in results.items()
        ),
        sections="\n".join(sections),
    )


def _flat(key: str, value: Any) -> dict[str, Any]:
    """A result, or the results in a dict of them: ``{"errors": {"u": 1}}`` gives ``errors: u``."""
    if isinstance(value, dict):
        return {f"{key}: {name}": number for name, number in value.items()}
    return {key: value}


def _diagnosis(findings: Sequence[Any]) -> str:
    if not findings:
        return '<p class="well">Nothing needs attention.</p>'
    items = "".join(f"<li>{_escaped(finding)}</li>" for finding in findings)
    return f'<ul class="findings">{items}</ul>'


def _losses(history: History) -> str:
    last = history.last()
    rows = [
        [name, losses[0], *(last[quantity][name] for quantity in QUANTITIES)]
        for name, losses in history.losses.items()
    ]
    header = ["loss", "at first", "at last", "weight", "gradient norm", "training rate"]
    return _table(header, rows, kind="numbers")


def _curves(history: History) -> Iterable[str]:
    try:
        from matplotlib.colors import to_hex
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "a report needs matplotlib: pip install 'paddlescience_gradnorm[plot]'"
        ) from error
    numbers, names = history.to_numpy(), history.names
    for quantity, (heading, reading) in _CURVES.items():
        if quantity != "losses" and np.isnan(numbers[quantity]).all():
            continue  # as norms and rates are without a balancer
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = getattr(history, f"plot_{quantity}")(figure.subplots())
        axes.grid(alpha=0.25)
        axes.get_legend().remove()
        if quantity == "losses":  # all curves share one key, because names may be long
            yield _key(names, [to_hex(line.get_color()) for line in axes.lines])
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=200)
        alt = f"{heading} of {', '.join(names)} over {len(history)} steps"
        yield _figure(heading, image.getvalue(), alt, reading)


def _key(names: Sequence[str], colors: Sequence[str]) -> str:
    items = (
        f'<li><i style="background: {color}"></i>{_escaped(name)}</li>'
        for name, color in zip(names, colors)
    )
    return f'<ul class="key">{"".join(items)}</ul>\n'


def _figure(heading: str, png: bytes, alt: str, reading: str = "", scrolls: bool = False) -> str:
    source = base64.b64encode(png).decode("ascii")
    image = f'<img src="data:image/png;base64,{source}" alt="{_escaped(alt)}">'
    caption = f"<b>{_escaped(heading)}</b> {_escaped(reading)}"
    kind = ' class="wide"' if scrolls else ""
    return f"<figure{kind}><figcaption>{caption}</figcaption><div>{image}</div></figure>\n"


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{content}\n</section>"


def _subsection(heading: str, content: str) -> str:
    return f"<div><h3>{heading}</h3>{content}</div>"


def _grid(parts: Iterable[str], kind: str) -> str:
    return f'<div class="grid {kind}">{"".join(parts)}</div>'


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "words") -> str:
    head = "".join(f'<th scope="col">{_escaped(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{_escaped(name)}</th>'
        + "".join(f"<td>{_escaped(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _escaped(value: Any) -> str:
    return html.escape(_text(value))


def _text(value: Any) -> str:
    """A value as people read it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(x)}" for key, x in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)


_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}: report of a run</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="note">Report of a run, paddlescience_gradnorm</p>
<h1>{title}</h1>
{equation}
</header>
<main>
<dl class="results">{results}</dl>
{sections}
</main>
</body>
</html>
"""

_STYLE = """
:root { --ink: #1d2433; --faint: #667085; --line: #e3e7ee; --sheet: #fff; --ground: #f5f7fa; }
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem; background: var(--ground);
  color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  overflow-wrap: anywhere;
}
h1 { margin: 0; font-size: 2rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.25rem; }
h3 { margin: 0 0 .5rem; font-size: 1rem; }
header p { margin: .25rem 0; }
.note { color: var(--faint); font-size: .875rem; }
.results {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10rem), 1fr));
  gap: .75rem; margin: 1.5rem 0 0;
}
.results div, figure, .scroll, .well, .findings {
  background: var(--sheet); border: 1px solid var(--line); border-radius: .5rem;
}
.results div { padding: .6rem .9rem; }
.results dt { color: var(--faint); font-size: .8125rem; }
.results dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.well { margin: 0; padding: .75rem 1rem; border-left: .25rem solid #2e9e5b; }
.findings { margin: 0; padding: 0 1rem; list-style: none; border-left: .25rem solid #d98a00; }
.findings li { padding: .6rem 0; }
.findings li + li { border-top: 1px solid var(--line); }
.grid { display: grid; gap: 1rem; align-items: start; }
.curves { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.tables { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.grid > * { min-width: 0; }
.key { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
.key { margin: 0; padding: 0; list-style: none; }
.key i { display: inline-block; width: 1.25rem; height: .25rem; margin-right: .5rem; }
.key i { vertical-align: middle; border-radius: .125rem; }
figure { margin: 0 0 1rem; padding: .75rem; }
.grid figure { margin: 0; }
figcaption { margin-bottom: .5rem; color: var(--faint); font-size: .875rem; }
figcaption b { color: var(--ink); margin-right: .25rem; }
figure div { overflow-x: auto; }
img { display: block; width: 100%; height: auto; }
.wide img { min-width: 44rem; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .9375rem; overflow-wrap: normal; }
th, td { padding: .4rem .9rem; text-align: left; }
td { font-variant-numeric: tabular-nums; }
.numbers td { white-space: nowrap; }
.words td { overflow-wrap: anywhere; }
thead th { color: var(--faint); font-weight: 500; font-size: .8125rem; white-space: nowrap; }
tbody th { font-weight: 500; }
tbody tr { border-top: 1px solid var(--line); }
@media print { body { background: none; padding: 0; } figure, tr { break-inside: avoid; } }
"""
