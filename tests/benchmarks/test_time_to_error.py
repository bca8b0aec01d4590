"""The benchmark of seconds to an error: what the peers get, the clock, and the driver."""

import math
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet
from paddlescience_gradnorm.pde.problems import problem
from paddlescience_gradnorm.training import _runs

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import time_to_error
from time_to_error_task import Course, Task

FUNCTIONS = {name: getattr(paddle, name) for name in ("sin", "cos", "tanh", "exp", "sqrt")}


def network_of(task: Task) -> FCNet:
    net = FCNet(len(task.coordinates), len(task.fields), len(task.weights), 50)
    for linear, weight in zip(net.linears, task.weights):
        linear.weight.set_value(weight)
    return net


def losses_of(task: Task, net: FCNet) -> dict[str, float]:
    """As a peer computes them: from the file alone, with nested automatic differentiation."""
    found = {}
    for condition in task.conditions:
        columns = [
            paddle.to_tensor(c[:, None], dtype="float32", stop_gradient=False)
            for c in condition.points.T
        ]
        outputs = net(paddle.concat(columns, axis=1))
        scope = {**FUNCTIONS, "pi": math.pi, **dict(zip(task.coordinates, columns))}
        for name, (field, path) in task.used_in(condition).items():
            value = outputs[:, field : field + 1]
            for axis in path:
                (value,) = paddle.grad(value.sum(), columns[axis], create_graph=True)
            scope[name] = value
        found[condition.name] = sum(
            float((eval(code, scope) - condition.targets[:, k : k + 1]).square().mean())
            for k, code in enumerate(condition.codes)
        )
    return found


@pytest.mark.parametrize("name", time_to_error.PROBLEMS)
def test_peers_get_the_losses_of_the_package(name: str, tmp_path: Path) -> None:
    written = time_to_error.task_of(name, seed=3, steps=100)
    written.write(tmp_path / "task.npz")
    task = Task.read(tmp_path / "task.npz")
    net = network_of(task)
    own = problem(name).sample(seed=3, points=time_to_error.PROBLEMS[name]).losses(net)
    theirs = losses_of(task, net)
    assert list(own) == list(theirs)
    for loss in own:
        assert theirs[loss] == pytest.approx(own[loss].item(), rel=1e-3), loss
    assert [c.name for c in task.conditions if c.is_equation] == list(own.equations)


def test_the_error_is_that_of_the_problem() -> None:
    task = time_to_error.task_of("kovasznay", seed=0, steps=10)
    assert task.error(lambda points: problem("kovasznay").solution(points)) == 0
    halved = task.error(lambda points: 0.5 * problem("kovasznay").solution(points))
    assert halved == pytest.approx(0.5)


def test_the_clock_stands_still_while_the_error_is_measured() -> None:
    task = time_to_error.task_of("beam", seed=0, steps=10)
    course = Course(task)

    def slowly(points: np.ndarray) -> np.ndarray:
        time.sleep(0.5)
        return np.zeros((len(points), 1))

    course.record(1, slowly)
    course.record(2, slowly)
    (_, first, error), (_, second, _) = course.rows
    assert error == 1
    assert 0 < first < second
    assert second - first < 0.5  # of which no part is the sleep


@pytest.mark.parametrize(
    ("errors", "seconds"),
    [
        ([0.5, 0.05, 0.04], 2.0),
        ([0.05, 0.5, 0.04], 3.0),
        ([0.05, 0.05, 0.5], math.inf),
        ([0.5, 0.05, math.nan], math.inf),
        ([0.05, math.nan, 0.05], 3.0),
    ],
)
def test_seconds_until_the_error_stays_below(errors: list[float], seconds: float) -> None:
    course = [(k + 1, k + 1.0, error) for k, error in enumerate(errors)]
    assert time_to_error.seconds_to(course, 0.1) == seconds


def test_a_run_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--output", str(tmp_path), "--problems", "beam", "--contestants", "equal,pinn"]
    command += ["--seeds", "0", "--steps", "100"]
    time_to_error.main(command)
    first = _runs.read_runs(tmp_path)
    assert sorted(run["contestant"] for run in first) == ["equal", "pinn"]
    assert all([row[0] for row in run["course"]] == [50, 100] for run in first)
    assert all(math.isfinite(row[2]) for run in first for row in run["course"])
    time_to_error.main(command)
    assert _runs.read_runs(tmp_path) == first
    said = capsys.readouterr().out
    assert "| beam | this package, default | - |" in said
    assert (tmp_path / "time_to_error.png").stat().st_size > 10_000


def test_a_run_that_fails_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--output", str(tmp_path), "--problems", "beam", "--contestants", "torch"]
    command += ["--seeds", "0", "--steps", "50", "--peers-python", sys.executable]
    time_to_error.main(command)  # with Paddle, and without PyTorch
    assert "No module named 'torch'" in "".join(capsys.readouterr())


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        time_to_error.main(["--problems", "poison"])
    assert "problems has poison; choose from poisson, helmholtz" in capsys.readouterr().err
