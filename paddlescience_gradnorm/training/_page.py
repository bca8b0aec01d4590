"""Parts of an HTML page that needs no network and no script."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

TEMPLATE = Path(__file__).with_name("page.html")


def page(
    title: str,
    kind: str,
    equation: str,
    results: Mapping[str, Any],
    sections: Iterable[str],
    notes: Mapping[str, str] | None = None,
) -> str:
    """The page: a heading, numbers in boxes, sections of HTML.

    Args:
        title: The heading.
        kind: What the page is, in lower case.
        equation: For people; may be empty.
        results: Name -> number.
        sections: HTML.
        notes: Name of a result -> what stands below its number.
    """
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        title=escaped(title),
        kind=kind,
        Kind=kind.capitalize(),
        equation=f"<p>{escaped(equation)}</p>" if equation else "",
        results="".join(
            _result(name, value, (notes or {}).get(name, "")) for name, value in results.items()
        ),
        sections="\n".join(sections),
    )


def _result(name: str, value: Any, note: str) -> str:
    below = f"<small>{escaped(note)}</small>" if note else ""
    words = escaped(name.replace("_", " "))
    return f"<div><dt>{words}</dt><dd>{escaped(value)}{below}</dd></div>"


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


def figure_of(
    heading: str,
    png: bytes,
    alt: str,
    reading: str = "",
    scrolls: bool = False,
    narrow: bytes | None = None,
) -> str:
    """A figure with its caption; on a narrow screen it scrolls, shrinks or is ``narrow``."""
    image = f'<img src="{_data(png)}" alt="{escaped(alt)}">'
    kinds = ["wide"] if scrolls else []
    if narrow is not None:
        source = f'<source media="(max-width: 40rem)" srcset="{_data(narrow)}">'
        image = f"<picture>{source}{image}</picture>"
        kinds.append("both")
    caption = f"<b>{escaped(heading)}</b> {escaped(reading)}"
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<figure{kind}><figcaption>{caption}</figcaption><div>{image}</div></figure>\n"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


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
    # On a narrow screen each number brings the head of its column.
    labels = [f' data-label="{escaped(cell)}"' if kind == "numbers" else "" for cell in header]
    body = "\n".join(
        f'<tr><th scope="row">{escaped(name)}</th>'
        + "".join(f"<td{label}>{escaped(cell)}</td>" for label, cell in zip(labels[1:], cells))
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
