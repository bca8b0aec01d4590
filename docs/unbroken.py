"""MkDocs hook: numbers and options are not torn apart, and columns of prose are not squeezed.

Browsers break a line after the hyphens of ``1e-4``, ``--option`` and ``-m``, and between the
numbers of ``1.07 [1.05, 1.10]``, which in a narrow column of a table are three lines. A table with columns of numbers leaves a column of prose
room for one word a line.
"""

from __future__ import annotations

import re
from typing import Any

TAG = re.compile(r"(<!--.*?-->|<[^>]+>)", re.DOTALL)
TORN = re.compile(r"\d[\d.]*e[-\u2212]\d+|(?<![\w-])--[a-z][\w-]*")
TORN_IN_CODE = re.compile(rf"{TORN.pattern}|(?<![\w-])-[a-zA-Z]\b")
NUMBERS = re.compile(r"<td([^>]*)>(?=[-\u2212\d.,; /()\[\]es%*]{5,26}</td>)")
CELL = re.compile(r"<td((?! class)[^>]*)>(.*?)</td>", re.DOTALL)
PROSE = 60  # characters, from which on a cell is prose
VERBATIM = ("pre", "script", "style", "svg")


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Mark them for the style sheet."""
    html = NUMBERS.sub(r'<td\1 class="together">', html)
    html = CELL.sub(_with_class, html)
    parts = TAG.split(html)
    inside: list[str] = []  # elements whose text is left as it is
    for number, part in enumerate(parts):
        if number % 2:
            name = part.strip("</>").partition(" ")[0]
            if name in VERBATIM and part.startswith("</"):
                inside.pop()
            elif name in VERBATIM:
                inside.append(name)
        elif not inside:
            torn = TORN_IN_CODE if parts[max(number - 1, 0)].startswith("<code") else TORN
            parts[number] = torn.sub(r'<span class="together">\g<0></span>', part)
    return "".join(parts)


def _with_class(cell: re.Match[str]) -> str:
    attributes, content = cell.groups()
    long = len(TAG.sub("", content)) >= PROSE
    return f'<td{attributes} class="prose">{content}</td>' if long else cell[0]
