"""The wheel and the sdist: what they hold, and that they install and run elsewhere."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy
import paddle
import pytest
import scipy
import sympy
import tqdm

import paddlescience_gradnorm

ROOT = Path(__file__).parents[1]
SOURCES = {"taylor_jet.cc", "taylor_jet.h"}
# Of https://www.apache.org/licenses/LICENSE-2.0.txt
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_license_is_the_standard_text():
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def test_the_citation_is_of_this_version():
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {paddlescience_gradnorm.__version__}" in lines
    assert "license: Apache-2.0" in lines


def test_the_changelog_begins_with_this_version_which_has_a_day_once_it_is_released():
    version = paddlescience_gradnorm.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    days = [line.split()[1] for line in citation if line.startswith("date-released:")]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    begins = ["Unreleased"] if ".dev" in version else [f"{version} ({day})" for day in days]
    assert [line[3:] for line in changes if line.startswith("## ")][:1] == begins
    assert len(days) == (".dev" not in version)


def run(*command, cwd):
    # Without the paths by which this process may find the working copy.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What ``python -m build`` makes: the sdist, and the wheel from it."""
    folder = tmp_path_factory.mktemp("dist")
    # From a copy, for it writes into the tree, where others may be at work.
    tree = shutil.copytree(
        ROOT, folder / "tree", ignore=shutil.ignore_patterns(".*", "outputs", "site", "*.egg-info")
    )
    run(sys.executable, "-m", "build", "--outdir", folder, tree, cwd=folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(built):
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(n).decode() for n in names if n.endswith("/METADATA"))
        (license,) = (archive.read(n) for n in names if n.endswith("/LICENSE"))
    packages = {name.split("/")[0] for name in names}
    assert packages == {
        "paddlescience_gradnorm",
        f"paddlescience_gradnorm-{paddlescience_gradnorm.__version__}.dist-info",
    }
    files = {f"paddlescience_gradnorm/_operators/{name}" for name in SOURCES}
    files |= {f"paddlescience_gradnorm/{name}" for name in ("py.typed", "training/page.html")}
    package = ROOT / "paddlescience_gradnorm"
    files |= {str(path.relative_to(ROOT)) for path in package.rglob("*.py")}
    assert {name for name in names if name.startswith("paddlescience_gradnorm/")} == files
    assert hashlib.sha256(license).hexdigest() == APACHE_2
    lines = metadata.splitlines()
    assert f"Version: {paddlescience_gradnorm.__version__}" in lines
    assert "License: Apache-2.0" in lines or "License-Expression: Apache-2.0" in lines


@pytest.mark.slow
def test_the_sdist_holds_what_one_can_work_from(built):
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("paddlescience_gradnorm", "tests", "docs", "examples", "benchmarks"):
        files = {
            str(path.relative_to(ROOT))
            for suffix in (".py", ".md", ".npz", ".png", ".yaml", ".ipynb", ".cc", ".h", ".html")
            for path in (ROOT / folder).rglob(f"*{suffix}")
            if "outputs" not in path.parts
        }
        assert files and not files - names
    top = {"LICENSE", "CITATION.cff", "Makefile", "pyproject.toml", "setup.py", "conftest.py"}
    assert top | {path.name for path in ROOT.glob("*.md")} <= names
    assert not [name for name in names if "__pycache__" in name or "outputs/" in name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_installs_and_runs_in_a_fresh_environment(built, tmp_path, kind):
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", environment, cwd=elsewhere)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", built[kind], cwd=elsewhere)
    # What it depends on comes from here. An editable install of this package does not come along:
    # that is a .pth file, and Python reads those in the environment's own folder only.
    folder = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=elsewhere
    )
    dependencies = {str(Path(m.__file__).parents[1]) for m in (numpy, paddle, scipy, sympy, tqdm)}
    Path(folder.strip(), "dependencies.pth").write_text("\n".join(dependencies) + "\n")

    code = "import paddlescience_gradnorm._operators as o; print(o.__file__)"
    installed = Path(run(python, "-W", "ignore", "-c", code, cwd=elsewhere).splitlines()[-1])
    assert environment in installed.parents
    assert {path.name for path in installed.parent.iterdir()} >= SOURCES
    command = (python, "-W", "ignore", "-m", "paddlescience_gradnorm")
    assert "laplace" in run(*command, "problems", cwd=elsewhere)
    run(*command, "run", "laplace", "--steps", "3", "--points", "8", cwd=elsewhere)
    written = elsewhere / "outputs" / "laplace_pinn"
    assert (written / "metrics.json").exists() and (written / "history.npz").exists()
