"""The Python blocks of the README, and of the examples' and docs' pages, run as they stand."""

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("README*.md"), *ROOT.glob("examples/*/README.md"), *ROOT.glob("docs/**/*.md")]
)
ORIGINALS = {page: page.with_name(re.sub(r"[._]zh\.md$", ".md", page.name)) for page in PAGES}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def pages(are_translations):
    chosen = [page for page in PAGES if (ORIGINALS[page] != page) is are_translations]
    return pytest.mark.parametrize("page", chosen, ids=lambda p: str(p.relative_to(ROOT)))


def blocks_of(page):
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pages(are_translations=False)
def test_code_blocks_run(page):
    if page == ROOT / "README.md":
        pytest.skip("its blocks run one by one, below")
    # In a process of their own, as a reader pastes them; later blocks go on from earlier ones.
    blocks = blocks_of(page)
    for package in "ppsci", "deepxde":
        if find_spec(package) is None:
            without = [block for block in blocks if not re.search(rf"\b{package}\b", block)]
            if blocks and not without:
                pytest.skip(f"needs {package}: pip install -e '.[{package}]'")
            blocks = without
    code = "\n".join(blocks)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("number", range(len(blocks_of(ROOT / "README.md"))))
def test_a_block_of_the_readme_runs_by_itself(number):
    code = blocks_of(ROOT / "README.md")[number]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pages(are_translations=True)
def test_a_translation_has_the_code_of_its_original(page):
    # But for comments, so that what has been run in one language is true of the other.
    ours, original = (
        [ast.dump(ast.parse(block)) for block in blocks_of(p)] for p in (page, ORIGINALS[page])
    )
    assert ours == original


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_readme_has_a_block_that_runs_and_both_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert BLOCK.search(text)
    assert "make demo" in text and "make test" in text
