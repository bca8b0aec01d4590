"""MkDocs hook: no sitemap, whose addresses would need the site's own, which is not known."""

from __future__ import annotations

from typing import Any


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """Leave it empty: MkDocs then writes none."""
    return "" if template_name == "sitemap.xml" else output
