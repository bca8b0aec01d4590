"""The program for DeepXDE, with its two lines and without them."""

import difflib
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepxde", reason="needs DeepXDE: pip install -e '.[deepxde]'")

PROGRAM = Path(__file__).parents[2] / "examples/deepxde_poisson/poisson.py"


def error_of(source, folder):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source], capture_output=True, text=True, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return float(re.search(r"L2 relative error: (\S+)", result.stdout)[1])


def test_two_lines_are_the_difference_to_plain_deepxde(tmp_path):
    balanced = PROGRAM.read_text()
    for old, new in ("iterations=2000", "iterations=500"), ("maxiter=1000", "maxiter=0"):
        assert old in balanced
        balanced = balanced.replace(old, new)
    plain = re.sub(r"^.*\bbalance\b.*\n", "", balanced, flags=re.MULTILINE)
    changes = [
        line for line in difflib.ndiff(plain.splitlines(), balanced.splitlines()) if line[0] in "+-"
    ]
    assert changes == [
        "+ from paddlescience_gradnorm.deepxde import balance",
        "+ balance(model)",
    ]
    assert error_of(balanced, tmp_path) < 0.7 * error_of(plain, tmp_path)  # the lead is young
