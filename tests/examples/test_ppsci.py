"""The config-driven examples for PaddleScience, in all their modes, as a user starts them."""

import importlib.util
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
        script, *config = example.split()
        command = [sys.executable, "-W", "ignore", str(EXAMPLES / script), *config, *settings]
        command += [f"hydra.run.dir={tmp_path / 'run'}", f"INFER.export_path={tmp_path / 'net'}"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        return result.returncode, result.stdout + result.stderr

    return start


@pytest.mark.parametrize(
    "example, equations, conditions, error, files",
    [
        ("ppsci_laplace/laplace2d.py", ["EQ.laplace"], ["BC.u"], 0.2, ["u.vtu"]),
        (
            "ppsci_allen_cahn/allen_cahn.py",
            ["EQ.allen_cahn"],
            ["IC.u", "BC.u", "data.u"],
            0.6,
            ["u_0.png", "u_1.png", "u_2.png"],
        ),
        (
            "ppsci_flow/flow.py",
            ["EQ.continuity", "EQ.momentum_x", "EQ.momentum_y"],
            ["inflow.u", "inflow.v", "walls.u", "walls.v", "outflow.p"],
            0.7,
            ["flow.vtu"],
        ),
        (
            "ppsci_flow/flow.py --config-name=kovasznay",
            ["EQ.continuity", "EQ.momentum_x", "EQ.momentum_y"],
            [
                "inflow.u",
                "inflow.v",
                "inflow.p",
                "sides.u",
                "sides.v",
                "outflow.u",
                "outflow.v",
                "outflow.p",
            ],
            0.7,
            ["flow.vtu"],
        ),
    ],
    ids=["laplace", "allen_cahn", "channel", "kovasznay"],
)
def test_every_mode_runs_and_agrees(run, tmp_path, example, equations, conditions, error, files):
    short = ["TRAIN.epochs=3", "TRAIN.iters_per_epoch=100", "POINTS.inside=400", "log_freq=100"]
    code, printed = run(example, *short)
    assert code == 0, printed
    # The log says once which losses the rule takes for what.
    [said] = re.findall(r"equations (.*) keep weights near 1; conditions (.*) get a lead", printed)
    assert [re.findall(r"'(\S+)'", kind) for kind in said] == [equations, conditions]
    weights = dict(re.findall(r"weight/([\w.]+): ([\d.]+)", printed))  # the last of each
    assert weights.keys() == {*equations, *conditions}
    assert max(float(weights[name]) for name in equations) < 3
    # In so few steps one condition may be at rest before the lead grows, and get none.
    risen = sum(float(weights[name]) > 3 for name in conditions)
    assert risen >= max(1, len(conditions) - 1)

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
    inferred = float(re.search(r"Relative L2 error (?:u )?([^\s,;]+)", printed)[1])
    assert inferred == pytest.approx(evaluated, rel=0.15)  # on other points


@pytest.mark.parametrize(
    "example",
    [
        "ppsci_laplace/laplace2d.py",
        "ppsci_allen_cahn/allen_cahn.py",
        "ppsci_flow/flow.py",
    ],
)
def test_a_comparison_makes_the_two_runs_that_one_can_make_apart(run, tmp_path, example):
    short = ["TRAIN.epochs=1", "TRAIN.iters_per_epoch=15", "POINTS.inside=50", "log_freq=15"]

    def last_losses(*settings):
        code, printed = run(example, *short, *settings)
        assert code == 0, printed
        lines = [line for line in printed.splitlines() if "[Iter 15/15]" in line]
        return ["weight/" in line for line in lines], [
            re.findall(r" (?:loss|\w+): [\d.]+(?=,)", line.split("batch_cost")[0]) for line in lines
        ]

    balanced, both = last_losses("COMPARE=true")
    assert balanced == [False, True]
    assert (tmp_path / "run/compare.png").stat().st_size > 10_000
    assert last_losses("GRADNORM=null") == ([False], both[:1])
    assert last_losses() == ([True], both[1:])


def test_a_wrong_mode_is_named(run):
    code, printed = run("ppsci_laplace/laplace2d.py", "mode=test")
    assert code != 0
    assert "'train', 'eval', 'export' or 'infer'" in printed


def imported(example):
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / example)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_front_solves_the_equation():
    example = imported("ppsci_allen_cahn/allen_cahn.py")
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


def test_the_flows_solve_the_equations():
    example = imported("ppsci_flow/flow.py")
    for flow in example.Channel(10, 1), example.Kovasznay(40, 4):
        check_flow(flow)


def check_flow(flow):
    h = 1e-4
    points = {key: value.astype("float64") for key, value in flow.grid().items()}

    def at(field, x=0.0, y=0.0):
        return getattr(flow, field)({"x": points["x"] + x, "y": points["y"] + y})

    def slope(field, x, y):
        return (at(field, x * h, y * h) - at(field, -x * h, -y * h)) / (2 * h)

    def residual(field, *axis):
        ways = ((h, 0), (-h, 0), (0, h), (0, -h))
        spread = (sum(at(field, *way) for way in ways) - 4 * at(field)) / h**2
        convection = at("u") * slope(field, 1, 0) + at("v") * slope(field, 0, 1)
        return convection + slope("p", *axis) - spread * flow.viscosity

    assert np.abs(slope("u", 1, 0) + slope("v", 0, 1)).max() < 1e-5
    assert np.abs(residual("u", 1, 0)).max() < 1e-5 < np.abs(slope("p", 1, 0)).max()
    assert np.abs(residual("v", 0, 1)).max() < 1e-5
