"""What can be checked of the pages without building the site: links, anchors, images, names."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "docs/**/", "examples/*/", "benchmarks/")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}*.md"))
FENCED = re.compile(r"^(`{3,}).*?^\1", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)
MODULES = (
    *("", ".balancing", ".network", ".rotograd", ".pde", ".pde.problems", ".training"),
    *(".ppsci", ".deepxde", ".runtime", ".ranks", ".command_line"),
    ".point_weights",
)


def text_of(page):
    """The page without code, in which brackets and # mean something else."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page):
    """As they are made where the pages are read in a repository, and by mkdocs.yml's slugify."""
    found = re.findall(r' id="([^"]+)"', text_of(page))
    for heading in HEADING.findall(text_of(page)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        found.append(re.sub(r"[^\w\- ]", "", shown.lower()).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_anchors_and_images_lead_somewhere(page):
    for link in LINK.findall(INLINE.sub("", text_of(page))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link
        # The Chinese site shows a page without a translation in English, and its links lead to the
        # translations of the other pages.
        translated = target.with_suffix(".zh.md")
        if anchor and not page.with_suffix(".zh.md").is_file() and translated.is_file():
            assert anchor in anchors(translated), f"{translated.name}: {link}"


def test_chinese_pages_lead_to_chinese_pages():
    # The site would find them by itself; who reads them in the repository would not.
    for page in (page for page in PAGES if page.name.endswith(("_zh.md", ".zh.md"))):
        for link in LINK.findall(INLINE.sub("", text_of(page))):
            path = page.parent / link.partition("#")[0]
            is_english = path.suffix == ".md" and path.with_suffix(".zh.md").is_file()
            assert not is_english, f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_list_has_an_empty_line_before_it(page):
    # Without one it is a list in the repository, and a part of the paragraph on the site.
    lines = text_of(page).splitlines()
    for before, line in zip(lines, lines[1:]):
        if re.match(r"([-*]|\d+\.) ", line):
            assert not before.strip() or re.match(r" |[-*] |\d+\. ", before), line


def test_every_page_is_in_the_navigation():
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w/]+\.md)$", settings, re.MULTILINE))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")}
    assert named == {page for page in pages if not page.endswith(".zh.md")}
    assert all(page.replace(".zh.md", ".md") in named for page in pages)


def public_names():
    """Full names of what is public: what the public modules list in ``__all__``."""
    for module in MODULES:
        source = ROOT / "paddlescience_gradnorm" / module.strip(".").replace(".", "/")
        source = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
        for node in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
                for name in ast.literal_eval(node.value):
                    if name != "__version__":
                        yield f"paddlescience_gradnorm{module}.{name}"


def test_the_api_page_lists_exactly_the_public_names():
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    # A name may be public in several modules. The page has it once.
    assert {resolved(name) for name in listed} == {resolved(name) for name in public_names()}


def resolved(path):
    """The object of this name; of one that has an identity of its own, by that."""
    # These need PaddleScience and DeepXDE.
    if path.startswith(("paddlescience_gradnorm.ppsci", "paddlescience_gradnorm.deepxde")):
        return path
    module, _, name = path.rpartition(".")
    return id(getattr(importlib.import_module(module), name))


def test_a_module_has_a_public_name_or_begins_with_an_underscore():
    public = {name.rpartition(".")[2] for name in public_names()}
    package = ROOT / "paddlescience_gradnorm"
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            body = ast.parse(file.read_text(encoding="utf-8")).body
            assert public & {getattr(node, "name", None) for node in body}, file


def test_docstrings_are_markdown_in_the_layout_that_the_site_reads():
    for file in ROOT.glob("paddlescience_gradnorm/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                docstring = ast.get_docstring(node) or ""
                where = f"{file.name}: {getattr(node, 'name', 'module')}"
                assert not re.search(r":(class|func|meth|mod|data|attr):`", docstring), where
                assert not re.search(r"^ *Example:$", docstring, re.MULTILINE), where
