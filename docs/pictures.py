"""MkDocs hook: pictures on a phone, whose screen is too narrow for most of them.

A click on a picture shows it whole. One whose letters would be too small to read is drawn larger
than the screen, and scrolls (``stylesheets/site.css``).
"""

from __future__ import annotations

import re
import struct
from functools import partial
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).with_name("images")
PICTURE = re.compile(r'<p>(<img [^>]*?src="(?!data:)([^"]+)"[^>]*>)</p>')
PHONE = 358  # pixels of its screen that are a picture's
READABLE, LARGE = 8, 9  # pixels of a letter of 10 points, as most are
INCH = 39.37  # of them are a metre


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Make links to themselves of pictures that stand alone."""
    return PICTURE.sub(partial(_link, files=files), html)


def _link(match: re.Match[str], files: Any) -> str:
    image, source = match.groups()
    inches = _inches(_content(Path(source).name, files))
    if 10 / 72 * PHONE / inches >= READABLE:
        return f'<p><a class="picture" href="{source}">{image}</a></p>'
    width = f"--width: {LARGE * 72 / 10 * inches:.0f}px"
    return f'<p><a class="picture wide" style="{width}" href="{source}">{image}</a></p>'


def _content(name: str, files: Any) -> bytes:
    """Of a picture of the pages, or of a notebook."""
    path = IMAGES / name
    if path.is_file():
        return path.read_bytes()
    return next((f.content_bytes for f in files or () if f.src_uri.endswith(f"/{name}")), b"")


def _inches(png: bytes) -> float:
    """The width for which the picture was drawn, from the first chunks of a PNG file."""
    found = png.find(b"pHYs", 0, 1000)
    if found < 0:
        return 1.0  # not known
    width, metre = (struct.unpack_from(">I", png, at)[0] for at in (16, found + 4))
    return width / metre * INCH
