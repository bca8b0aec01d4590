"""MkDocs hook: MathJax for the pages that have formulas, from the site itself.

Formulas are written as on GitHub, ``$x$`` and ``$$x$$``. MathJax comes from the package
``django-static-mathjax``, which holds its files and needs no Django. Nothing is fetched from
elsewhere when a page is read, so formulas also show without a network.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.utils import get_relative_url

SCRIPT = "javascripts/mathjax.js"  # on the site
FONTS_INSIDE = "static/mathjax/es5/tex-svg.js"  # one file that draws its letters as SVG
SETTINGS = (
    '<script>MathJax = {tex: {inlineMath: [["\\\\(", "\\\\)"]]}, '
    'options: {ignoreHtmlClass: ".*", processHtmlClass: "arithmatex"}};</script>'
)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Load MathJax on this page, if it has a formula."""
    if 'class="arithmatex"' not in html:
        return html
    language = config.plugins["i18n"].current_language
    here = page.url if language == "en" else f"{language}/{page.file.src_uri}"
    return f'{html}{SETTINGS}<script async src="{get_relative_url(SCRIPT, here)}"></script>'


def on_post_build(config: Any) -> None:
    """Copy MathJax to the site."""
    package = find_spec("mathjax")
    if package is None or package.origin is None:
        raise PluginError("no MathJax for the formulas: pip install -e '.[docs]'")
    target = Path(config.site_dir) / SCRIPT
    if target.parent.parent.name in config.plugins["i18n"].build_languages[1:]:
        return  # the other languages use the file of the first
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(package.origin).parent / FONTS_INSIDE, target)
