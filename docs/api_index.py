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
IN_CHINESE = {
    "Networks and balancers": "网络与平衡器",
    "Rules": "规则",
    "Equations and points": "方程与配点",
    "Weights of points": "配点的权重",
    "Problems": "自带的问题",
    "Training": "训练",
    "Several processes": "多进程",
    "Speed on a CPU": "CPU 上的速度",
    "Options of a command line": "命令行选项",
    "They need only numpy, not Paddle. [Rules](rules.md) compares them, and [Write a rule]"
    "(write_a_rule.md) shows how to use them.": "它们只需要 numpy，不需要 Paddle。比较见"
    "[规则一览](rules.md)，用法见[编写规则](write_a_rule.md)。",
    "; they live in `paddlescience_gradnorm.rotograd`.": "；源代码在 "
    "`paddlescience_gradnorm.rotograd` 中。",
    "; it needs PaddleScience.": "；需要 PaddleScience。",
    "; it needs DeepXDE on its Paddle backend.": "；需要使用 Paddle 后端的 DeepXDE。",
    ": types for `argparse`, which need no Paddle.": "：供 `argparse` 使用的类型，不需要 Paddle。",
}
INTRODUCTION_IN_CHINESE = (
    "本页列出全部公开的名称。内容取自源代码的 docstring，因此是英文；其中的例子都作为测试运行。"
    "以下划线开头的名称，以及本页没有列出的名称，今后可能改变。"
)
NAME = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put a table of sections and names in the place of the mark."""
    if page.file.src_uri != "api.md":
        return markdown
    if config.plugins["i18n"].current_language == "zh":
        markdown = _in_chinese(markdown)
    _, *sections = SECTION.split(markdown)
    rows = ["| | |", "|---|---|"]
    for title, text in zip(sections[::2], sections[1::2]):
        names = [f"[`{name.rpartition('.')[2]}`][{name}]" for name in NAME.findall(text)]
        rows.append(f"| {title} | {', '.join(names)} |")
    return markdown.replace(MARK, "\n".join(rows))


def _in_chinese(markdown: str) -> str:
    """The page with Chinese words around the docstrings, and with the English anchors."""
    markdown = INTRODUCTION.sub(INTRODUCTION_IN_CHINESE, markdown)
    for english, chinese in IN_CHINESE.items():
        anchor = english.lower().replace(" ", "-")
        heading = f'<a id="{anchor}"></a>\n\n## {chinese}\n'
        changed = markdown.replace(f"## {english}\n", heading)
        if changed == markdown:
            changed = markdown.replace(f"{english}\n", f"{chinese}\n")
        if changed == markdown:
            raise ValueError(f"{english!r} is not on the page api.md: change IN_CHINESE with it")
        markdown = changed
    return markdown
