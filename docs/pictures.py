"""MkDocs hook: a click on a picture shows it alone, where it can be enlarged.

On a phone a picture is as wide as the screen, so that what stands side by side in it can be
compared, and its letters are small.
"""

from __future__ import annotations

import re
from typing import Any

PICTURE = re.compile(r'<p>(<img [^>]*?src="(?!data:)([^"]+)"[^>]*>)</p>')


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Make links to themselves of pictures that stand alone."""
    return PICTURE.sub(r'<p><a class="picture" href="\2">\1</a></p>', html)
