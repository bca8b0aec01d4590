"""MkDocs hook: pictures on a phone, whose screen is too narrow for most of them.

A click on a picture shows it whole. One that is more than twice as wide as high is drawn larger
than the screen, and scrolls (``stylesheets/site.css``).
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).with_name("images")
PICTURE = re.compile(r'<p>(<img [^>]*?src="(?!data:)([^"]+)"[^>]*>)</p>')


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Make links to themselves of pictures that stand alone."""
    return PICTURE.sub(_link, html)


def _link(match: re.Match[str]) -> str:
    image, source = match.groups()
    path = IMAGES / Path(source).name
    kind = "picture wide" if path.is_file() and _is_wide(path) else "picture"
    return f'<p><a class="{kind}" href="{source}">{image}</a></p>'


def _is_wide(path: Path) -> bool:
    """By the first chunk of a PNG file."""
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width > 2 * height
