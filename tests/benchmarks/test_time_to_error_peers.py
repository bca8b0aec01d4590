"""The sides of PaddleScience and DeepXDE in the benchmark of seconds to an error."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest

from paddlescience_gradnorm.training import _runs

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import time_to_error


@pytest.mark.parametrize(
    ("package", "contestant"),
    [
        ("deepxde", "deepxde paddle"),
        ("ppsci", "ppsci"),
        ("ppsci", "ppsci ours"),
        ("ppsci", "pinn soap"),
    ],
)
def test_a_peer_trains(package: str, contestant: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: pip install -e '.[{package}]'")
    command = ["--output", str(tmp_path), "--problems", "poisson", "--steps", "100"]
    command += ["--contestants", f"equal,{contestant}", "--seeds", "0"]
    time_to_error.main([*command, f"--{package}-python", sys.executable])
    errors = {run["contestant"]: run["course"][-1][2] for run in _runs.read_runs(tmp_path)}
    assert math.isfinite(errors[contestant])
    if package == "deepxde":  # with equal weights, from the same start and at the same points
        assert errors[contestant] == pytest.approx(errors["equal"], rel=1e-2)
