"""MkDocs hook: an index of all public names at the top of the page of the API."""

from __future__ import annotations

import re
from typing import Any

MARK = "<!-- index of the names below: docs/api_index.py -->"
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
NAME = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put a table of sections and names in the place of the mark."""
    if page.file.src_uri != "api.md":
        return markdown
    _, *sections = SECTION.split(markdown)
    rows = ["| | |", "|---|---|"]
    for title, text in zip(sections[::2], sections[1::2]):
        names = [f"[`{name.rpartition('.')[2]}`][{name}]" for name in NAME.findall(text)]
        rows.append(f"| {title} | {', '.join(names)} |")
    return markdown.replace(MARK, "\n".join(rows))
