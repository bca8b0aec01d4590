"""MkDocs hook: search finds the pages of the reader's language and no others.

The plugin i18n puts the pages of all languages into one index. Here each language gets its own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

INDEX = "search/search_index.json"
BASE = re.compile(r'(<script id="__config"[^>]*>\{.*?"base": ")([./]+)"')


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Let a translated page look for its index in the folder of its language."""
    language = config.plugins["i18n"].current_language
    if language == "en":
        return output
    return BASE.sub(lambda m: f'{m[1]}{m[2].removesuffix("..").rstrip("/") or "."}"', output)


@event_priority(-200)  # after i18n, which builds the other languages and fills the index
def on_post_build(config: Any) -> None:
    """Take the index apart."""
    site = Path(config.site_dir)
    if not (site / INDEX).is_file():
        return  # the build of another language, which leaves its pages to the first
    whole = json.loads((site / INDEX).read_text(encoding="utf-8"))
    languages = [name for name in config.plugins["i18n"].build_languages if (site / name).is_dir()]
    kept = whole["docs"]
    for language in languages:
        folder = f"{language}/"
        own = [doc for doc in kept if doc["location"].startswith(folder)]
        kept = [doc for doc in kept if not doc["location"].startswith(folder)]
        docs = [{**doc, "location": doc["location"].removeprefix(folder)} for doc in own]
        _write(site / language / INDEX, whole["config"], language, docs)
    _write(site / INDEX, whole["config"], "en", kept)


def _write(path: Path, settings: dict[str, Any], language: str, docs: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"config": {**settings, "lang": [language]}, "docs": docs}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
