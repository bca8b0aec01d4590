"""MkDocs hook: an index of all public names at the top of the page of the API.

The page is in English, because it is made of docstrings. On the Chinese site its introduction is
Chinese.
"""

# ruff: noqa: RUF001, the commas are Chinese

from __future__ import annotations

import re
from typing import Any

MARK = "<!-- index of the names below: docs/api_index.py -->"
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
INTRODUCTION = re.compile(rf"(?<=# API\n\n).*?(?=\n\n{MARK})", re.DOTALL)
IN_CHINESE = (
    "本页列出全部公开的名称。内容取自源代码的 docstring，因此是英文；其中的例子都作为测试运行。"
    "以下划线开头的名称，以及本页没有列出的名称，今后可能改变。"
)
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
    if config.plugins["i18n"].current_language == "zh":
        markdown = INTRODUCTION.sub(IN_CHINESE, markdown)
    return markdown.replace(MARK, "\n".join(rows))
