"""MkDocs hook: what belongs together stays in one line, and columns of prose are not squeezed.

Browsers break a line after the hyphens of ``1e-4``, ``--option`` and ``-m``, between a number and
its unit, inside of ``.venv/bin``, and between the numbers of ``1.07 [1.05, 1.10]``, which in a
narrow column of a table are three lines. A table with many columns of numbers leaves a column of
prose room for one word a line.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

TAG = re.compile(r"(<!--.*?-->|<[^>]+>)", re.DOTALL)
UNIT = r"\d[\d.,]* (?:%|[kMG]B|GB/s|ms|µs|s|毫秒|秒|分钟)(?![\w/])"
TORN = re.compile(rf"\d[\d.]*e[-\u2212]\d+|(?<![\w-])--[a-z][\w-]*|{UNIT}")
TORN_IN_CODE = re.compile(rf"{TORN.pattern}|(?<![\w-])-[a-zA-Z]\b")
NUMBERS = re.compile(r"<td([^>]*)>(?=[-\u2212\d.,; /()\[\]es%*x秒]{5,26}</td>)")
CODE = re.compile(r"<code>(?=[^<]{1,26}</code>)")
CELL = re.compile(r"<td((?! class)[^>]*)>(.*?)</td>", re.DOTALL)
# Letters from which on a cell is a phrase, or prose. A Chinese character is as wide as two.
PHRASE, PROSE = 16, 60
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
            elif not inside and CODE.match("".join(parts[number : number + 3])):
                parts[number] = '<code class="together">'
        elif not inside:
            torn = TORN_IN_CODE if parts[max(number - 1, 0)].startswith("<code") else TORN
            parts[number] = torn.sub(r'<span class="together">\g<0></span>', part)
    return "".join(parts)


def _with_class(cell: re.Match[str]) -> str:
    attributes, content = cell.groups()
    letters = sum(2 if unicodedata.east_asian_width(c) == "W" else 1 for c in TAG.sub("", content))
    if letters < PHRASE:
        return cell[0]
    return f'<td{attributes} class="{"prose" if letters >= PROSE else "phrase"}">{content}</td>'
