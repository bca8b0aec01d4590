"""MkDocs hook: what the pages link to in the repository, outside docs/, becomes part of the site.

The pages are read in the repository too, where ``../examples/own_loop/README.md`` is a link like
any other. On the site Markdown from there is a page, a notebook is a page with its outputs, and
any other file a page that shows it.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, InclusionLevel
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parents[1]
FOLDER = "repository"  # of these pages on the site
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)")
TITLE = re.compile(r"^# .*\n", re.MULTILINE)
ENGLISH = "\n*本页是仓库中的文件，只有英文。*\n"  # noqa: RUF001, below the title on the Chinese site
IN_NOTEBOOK = re.compile(r"data:image/png;base64,([\w+/=]+)")
LANGUAGES = {".py": "python", ".cc": "cpp", ".h": "cpp", ".yaml": "yaml", ".cff": "yaml"}


@event_priority(-200)  # after i18n, which takes the files of docs/ alone
def on_files(files: Any, config: Any) -> Any:
    """Add the files that the pages, or what they link to, lead to."""
    language = config.plugins["i18n"].current_language
    pages = [file.src_uri for file in files.documentation_pages()]
    contents = {_in_repository(page): _text(_in_repository(page)) for page in pages}
    to_read = list(contents)
    while to_read:
        page = to_read.pop()
        for target in LINK.findall(contents[page]):
            linked = _resolved(page, target)
            if _is_of_docs(linked) or linked in contents or not (ROOT / linked).is_file():
                continue  # a link that leads nowhere is left to MkDocs, which says so
            contents[linked] = _text(linked)
            if linked.endswith(".md"):
                content = contents[linked]
                to_read.append(linked)
            else:
                content = _with_files(linked, _shown(linked), config, files)
                contents[linked] = ""
            file = File.generated(
                config, _on_site(linked), content=content, inclusion=InclusionLevel.NOT_IN_NAV
            )
            _translate(file, language, config.plugins["i18n"].build_languages)
            files.append(file)
    return files


@event_priority(100)  # before anybody makes HTML of it
def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links into the repository lead to these pages."""
    source = page.file.src_uri
    here = _in_repository(source)

    def on_site(match: re.Match[str]) -> str:
        linked = _resolved(here, match[1])
        if here == linked.replace(".md", ".zh.md"):  # from a translation to its original
            return f"original:{posixpath.relpath(linked, 'docs')}".replace(".md", ".html")
        if (_is_of_docs(here) and _is_of_docs(linked)) or not (ROOT / linked).is_file():
            return match[0]
        return posixpath.relpath(_on_site(linked), posixpath.dirname(source) or ".")

    if source.startswith(FOLDER) and config.plugins["i18n"].current_language == "zh":
        markdown = TITLE.sub(lambda title: title[0] + ENGLISH, markdown, count=1)
    return LINK.sub(on_site, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Let a translation's links to its original, which i18n leads back to it, lead there."""
    return re.sub(
        'href="original:([^"#]*)', lambda m: f'href="{get_relative_url(m[1], page.url)}', html
    )


def _with_files(path: str, content: str, config: Any, files: Any) -> str:
    """A page whose pictures are files of the site, to which they can be links."""
    pictures = list(dict.fromkeys(IN_NOTEBOOK.findall(content)))
    for number, picture in enumerate(pictures, start=1):
        name = f"{path}.{number}.png"
        png = base64.b64decode(picture)
        files.append(File.generated(config, posixpath.join(FOLDER, name), content=png))
        content = content.replace(f"data:image/png;base64,{picture}", posixpath.basename(name))
    return content


def _translate(file: File, language: str, languages: Iterable[str]) -> None:
    """Move a file to the folder of the language, and tell i18n where the others have it."""
    address = file.dest_uri
    where = {name: address if name == "en" else f"{name}/{address}" for name in languages}
    file.dest_uri = where[language]
    file.locale = file.locale_alternate_of = language
    file.alternates = {name: SimpleNamespace(url=url) for name, url in where.items()}


def _in_repository(source: str) -> str:
    """The path in the repository of a page of the site, from the site's."""
    path = posixpath.relpath(source, FOLDER)
    return posixpath.join("docs", source) if path.startswith("..") else path


def _on_site(path: str) -> str:
    """The source that the site has of a file of the repository."""
    if _is_of_docs(path):
        return posixpath.relpath(path, "docs")
    return posixpath.join(FOLDER, path if path.endswith(".md") else f"{path}.md")


def _is_of_docs(path: str) -> bool:
    return path.startswith("docs/")


def _resolved(page: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _shown(path: str) -> str:
    if path.endswith(".ipynb"):
        return "\n\n".join(_of_notebook(json.loads(_text(path))))
    language = LANGUAGES.get(Path(path).suffix, "text")
    title = path.replace("_", r"\_")  # __init__ is not bold
    return f"# {title}\n\n``````{language}\n{_text(path)}\n``````\n"


def _of_notebook(notebook: dict[str, Any]) -> Iterator[str]:
    """Markdown of the cells and their outputs."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"``````python\n{source}\n``````"
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                yield f"![](data:image/png;base64,{data['image/png'].strip()})"
            else:
                text = "".join(output.get("text", data.get("text/plain", "")))
                yield f"``````{{.text .output .no-copy}}\n{text.rstrip()}\n``````"
