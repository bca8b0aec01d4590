"""The config-driven examples for PaddleScience, in all their modes, as a user starts them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(tmp_path):
    def start(example, *settings):
        command = [sys.executable, "-W", "ignore", str(EXAMPLES / example), *settings]
        command += [f"hydra.run.dir={tmp_path / 'run'}", f"INFER.export_path={tmp_path / 'net'}"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        return result.returncode, result.stdout + result.stderr

    return start


@pytest.mark.parametrize(
    "example, names, error, files",
    [
        ("ppsci_laplace/laplace2d.py", ["laplace", "u"], 0.08, ["u.vtu"]),
        (
            "ppsci_allen_cahn/allen_cahn.py",
            ["allen_cahn", "initial", "boundary", "data"],
            0.6,
            ["u_0.png", "u_1.png", "u_2.png"],
        ),
    ],
    ids=["laplace", "allen_cahn"],
)
def test_every_mode_runs_and_agrees(run, tmp_path, example, names, error, files):
    short = ["TRAIN.epochs=3", "TRAIN.iters_per_epoch=100", "POINTS.inside=400", "log_freq=100"]
    code, printed = run(example, *short)
    assert code == 0, printed
    logged = dict(re.findall(r"weight/(\w+): ([\d.]+)", printed))  # the last of each
    weights = [float(logged[name]) for name in names]
    assert sum(weights) == pytest.approx(len(names), abs=1e-3)
    assert max(weights) - min(weights) > 0.02

    checkpoint = tmp_path / "run/checkpoints/latest"
    code, printed = run(example, "mode=eval", f"EVAL.pretrained_model_path={checkpoint}", short[2])
    assert code == 0, printed
    evaluated = float(re.search(r"L2Rel\.u: ([\d.]+)", printed)[1])
    assert evaluated < error  # untrained: about 1
    assert {path.name for path in (tmp_path / "run/visual").iterdir() if path.is_file()} == {*files}

    code, printed = run(example, "mode=export", f"INFER.pretrained_model_path={checkpoint}")
    assert code == 0, printed
    code, printed = run(example, "mode=infer", short[2])
    assert code == 0, printed
    inferred = float(re.search(r"Relative L2 error (\S+);", printed)[1])
    assert inferred == pytest.approx(evaluated, rel=0.15)  # on other points


def test_without_gradnorm_the_losses_are_summed(run):
    code, printed = run(
        "ppsci_laplace/laplace2d.py", "GRADNORM=null", "TRAIN.epochs=1", "TRAIN.iters_per_epoch=2"
    )
    assert code == 0, printed
    assert "EQ: " in printed and "weight/" not in printed


def test_a_wrong_mode_is_named(run):
    code, printed = run("ppsci_laplace/laplace2d.py", "mode=test")
    assert code != 0
    assert "'train', 'eval', 'export' or 'infer'" in printed


def test_the_front_solves_the_equation():
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "allen_cahn", EXAMPLES / "ppsci_allen_cahn/allen_cahn.py"
    )
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    front, h = example.Front(0.22), 1e-3
    points = {key: value.astype("float64") for key, value in example.grid().items()}

    def at(dt=0.0, dx=0.0):
        return front({"t": points["t"] + dt, "x": points["x"] + dx})

    u = at()
    residual = (
        (at(dt=h) - at(dt=-h)) / (2 * h)
        - 0.22**2 * (at(dx=h) - 2 * u + at(dx=-h)) / h**2
        + 5 * u**3
        - 5 * u
    )
    assert np.abs(residual).max() < 1e-3 < np.abs(5 * u**3 - 5 * u).max()
