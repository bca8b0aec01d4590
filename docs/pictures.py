"""MkDocs hook: a click on a picture shows it whole, which a phone's screen is too narrow for."""

from __future__ import annotations

import re
from typing import Any

PICTURE = re.compile(r'<p>(<img [^>]*?src="(?!data:)([^"]+)"[^>]*>)</p>')


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Make links to themselves of pictures that stand alone."""
    return PICTURE.sub(r'<p><a class="picture" href="\2">\1</a></p>', html)
