import os
import subprocess
import sys
from pathlib import Path

import pytest

import paddlescience_gradnorm

ROOT = Path(__file__).parents[1]


def run(code):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT
    )


WITHOUT_PADDLE = "import sys; sys.modules['paddle'] = None\n"


@pytest.mark.parametrize(
    "name", [*(name for name in paddlescience_gradnorm.__all__ if name[0] != "_"), "network"]
)
def test_without_paddle_a_name_that_needs_it_says_what_to_install(name):
    result = run(WITHOUT_PADDLE + f"from paddlescience_gradnorm import {name}")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: paddlescience_gradnorm needs PaddlePaddle")
    assert "pip install paddlepaddle," in last
    assert "pip install paddlepaddle-gpu 'numpy<2'" in last


def test_without_paddle_all_other_names_are_there():
    result = run(
        WITHOUT_PADDLE + "import paddlescience_gradnorm as package\n"
        "from paddlescience_gradnorm import __version__, balancing\n"
        "assert package.balancing is balancing and callable(balancing.find_rule)\n"
        "assert set(package.__all__) <= set(dir(package))\n"
        "try: package.no_such_name\n"
        "except AttributeError as error: print(error)"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("has no attribute 'no_such_name'")


def test_paddle_says_nothing_of_ccache_and_no_other_warning_is_hidden():
    code = (
        "import warnings; before = list(warnings.filters)\n"
        "import paddlescience_gradnorm\n"
        "added = [entry for entry in warnings.filters if entry not in before]\n"
        "import paddlescience_gradnorm.network, sys\n"
        "assert 'paddle.utils.cpp_extension' in sys.modules\n"
        "(entry,) = added\n"
        "print(entry[0], entry[1].pattern, entry[2].__name__)"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error:No ccache", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": ""},  # so that there is no ccache
    )
    assert result.returncode == 0, result.stderr
    assert "ccache" not in result.stderr
    assert result.stdout == "ignore No ccache found UserWarning\n"


def test_public_names_are_there():
    for name in paddlescience_gradnorm.__all__:
        assert getattr(paddlescience_gradnorm, name) is not None
    from paddlescience_gradnorm import network
    from paddlescience_gradnorm.network import FCNet, GradNorm, NetworkBase

    assert paddlescience_gradnorm.GradNorm is GradNorm
    assert issubclass(GradNorm, NetworkBase) and issubclass(FCNet, NetworkBase)
    for name in ("RotateOnly", "RotoGrad", "RotoGradNorm", "cached"):
        assert getattr(paddlescience_gradnorm, name) is getattr(network, name)


def test_names_are_imported_as_they_are_asked_for():
    code = (
        "import sys, paddlescience_gradnorm as package\n"
        "assert 'paddle' not in sys.modules\n"
        "assert set(package.__all__) <= set(dir(package))\n"
        "from paddlescience_gradnorm import *\n"
        "assert GradNorm is package.GradNorm is package.network.GradNorm\n"
        "assert LossBalancer is package.balancing.LossBalancer and 'paddle' in sys.modules"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_a_name_that_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError, match=r"'paddlescience_gradnorm' has no attribute 'Grad'"):
        _ = paddlescience_gradnorm.Grad
    with pytest.raises(ImportError, match="cannot import name 'Grad'"):
        from paddlescience_gradnorm import Grad  # noqa: F401


@pytest.mark.parametrize("module", ["matplotlib", "ppsci", "deepxde", "scipy", "sympy"])
def test_import_takes_no_more_than_it_needs(module):
    # Paddle itself may bring some of them.
    code = "import zlib, sys, paddle; before = set(sys.modules);"
    code += "from paddlescience_gradnorm import *;"
    result = run(code + f"sys.exit({module!r} in set(sys.modules) - before)")
    assert result.returncode == 0, result.stderr


def test_python_zlib_works_after_the_package_was_imported_first():
    # Paddle 2.6 carries a zlib of its own that crashes Python's, depending on the order.
    code = "import paddlescience_gradnorm, paddle, zlib;"
    code += "print(len(zlib.decompress(zlib.compress(b'a'))))"
    assert run(code).stdout.split()[-1:] == ["1"]


def test_type_information_is_shipped():
    assert (Path(paddlescience_gradnorm.__file__).parent / "py.typed").exists()


def test_training_needs_no_problems():
    # They import scipy, and that may end a process with Paddle 2.6.2 if it comes late.
    code = (
        "import sys; import paddlescience_gradnorm.training; "
        "assert 'paddlescience_gradnorm.pde' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
