"""Parts of an HTML page that needs no network and no script."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def page(
    title: str,
    kind: str,
    equation: str,
    results: Mapping[str, Any],
    sections: Iterable[str],
) -> str:
    """The page: a heading, numbers in boxes, sections of HTML."""
    return _TEMPLATE.format(
        title=escaped(title),
        kind=kind,
        Kind=kind.capitalize(),
        style=_STYLE,
        equation=f"<p>{escaped(equation)}</p>" if equation else "",
        results="".join(
            f"<div><dt>{escaped(name.replace('_', ' '))}</dt><dd>{escaped(value)}</dd></div>"
            for name, value in results.items()
        ),
        sections="\n".join(sections),
    )


def png(figure: Any) -> bytes:
    """A figure of matplotlib as a file."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=200)
    return image.getvalue()


def key(names: Sequence[str], colors: Sequence[str]) -> str:
    """What color belongs to what name, for all curves of a grid."""
    items = (
        f'<li><i style="background: {color}"></i>{escaped(name)}</li>'
        for name, color in zip(names, colors)
    )
    return f'<ul class="key">{"".join(items)}</ul>\n'


def figure_of(heading: str, png: bytes, alt: str, reading: str = "", scrolls: bool = False) -> str:
    """A figure with its caption; on a narrow screen it scrolls or shrinks."""
    source = base64.b64encode(png).decode("ascii")
    image = f'<img src="data:image/png;base64,{source}" alt="{escaped(alt)}">'
    caption = f"<b>{escaped(heading)}</b> {escaped(reading)}"
    kind = ' class="wide"' if scrolls else ""
    return f"<figure{kind}><figcaption>{caption}</figcaption><div>{image}</div></figure>\n"


def findings_of(findings: Sequence[Any]) -> str:
    """What needs attention, or that nothing does."""
    if not findings:
        return '<p class="well">Nothing needs attention.</p>'
    items = "".join(f"<li>{escaped(finding)}</li>" for finding in findings)
    return f'<ul class="findings">{items}</ul>'


def section(heading: str, content: str) -> str:
    """A part of the page."""
    return f"<section>\n<h2>{heading}</h2>\n{content}\n</section>"


def subsection(heading: str, content: str) -> str:
    """A part of a grid."""
    return f"<div><h3>{heading}</h3>{content}</div>"


def grid(parts: Iterable[str], kind: str) -> str:
    """Parts side by side; the kind is ``"curves"`` or ``"tables"``."""
    return f'<div class="grid {kind}">{"".join(parts)}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "words") -> str:
    """A table, of ``"words"`` or ``"numbers"``."""
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{escaped(name)}</th>'
        + "".join(f"<td>{escaped(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def escaped(value: Any) -> str:
    """A value as HTML."""
    return html.escape(text(value))


def text(value: Any) -> str:
    """A value as people read it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text(x)}" for key, x in value.items())
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return str(value)


_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}: {kind}</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="note">{Kind}, paddlescience_gradnorm</p>
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
