"""The benchmark on DeepXDE's examples, on an example of our own in the place of one of them."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks/deepxde_examples.py"
spec = importlib.util.spec_from_file_location("deepxde_examples", PROGRAM)
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark  # which dataclasses look up
spec.loader.exec_module(benchmark)

SOURCE = '''"""An example."""
import deepxde as dde
from deepxde.backend import tf


def pde(x, u):
    return dde.grad.hessian(u, x) + tf.sin(x)


line = dde.geometry.Interval(0, 1)
ends = dde.icbc.DirichletBC(line, lambda x: 0, lambda x, on: on)
data = dde.data.PDE(line, pde, ends, 8, 2)
model = dde.Model(data, dde.nn.FNN([1, 8, 1], "tanh", "Glorot normal"))
model.compile("adam", lr=1e-3, loss_weights=[1, 7])
model.train(iterations=9000)
model.compile("L-BFGS")
losshistory, train_state = model.train()
dde.saveplot(losshistory, train_state, issave=True, isplot=True)
'''


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A repository with one example."""
    example = benchmark.Example(
        "pinn_forward/own.py",
        "Own",
        "sum(train_state.loss_train)",
        benchmark.steps(9000, 20),
        {", loss_weights=[1, 7]": ""},
    )
    monkeypatch.setattr(benchmark, "EXAMPLES", {"own": example})
    monkeypatch.setattr(benchmark, "LBFGS_STEPS", 3)
    folder = tmp_path / "snapshot/examples"
    (folder / "pinn_forward").mkdir(parents=True)
    (folder / "dataset").mkdir()
    (folder / "pinn_forward/own.py").write_text(SOURCE)
    return folder.parent


def test_the_copies_differ_in_two_lines_and_the_weights_by_hand(snapshot):
    example = benchmark.EXAMPLES["own"]
    original, balanced = (
        benchmark.program(SOURCE, example, variant, 5).splitlines()
        for variant in benchmark.VARIANTS
    )
    assert [line for line in balanced if line not in original] == [
        "from paddlescience_gradnorm.deepxde import balance",
        'model.compile("adam", lr=1e-3)',
        "balance(model)",
    ]
    assert balanced.index("balance(model)") + 1 == balanced.index("model.train(iterations=20)")
    assert 'model.compile("adam", lr=1e-3, loss_weights=[1, 7])' in original
    assert "    return dde.grad.hessian(u, x) + paddle.sin(x)" in original
    assert "dde.config.set_random_seed(5)" in original
    assert not any("saveplot" in line or "import tf" in line for line in original)


def test_an_error_draws_its_random_points_once():
    class dde:
        class metrics:
            l2_relative_error = staticmethod(lambda exact, predicted: exact == predicted)

    class model:
        predict = staticmethod(lambda x: x)

    draws = iter([3, 4])
    names = {"dde": dde, "model": model, "draw": lambda: next(draws), "same": lambda x: x}
    assert eval(benchmark.l2("same", "draw()"), names) is True


def test_another_version_of_an_example_is_a_failure_in_the_table(snapshot, tmp_path, capsys):
    (snapshot / "examples/pinn_forward/own.py").write_text(SOURCE.replace("9000", "8000"))
    benchmark.main([str(snapshot), "--work", str(tmp_path / "work"), "--seeds", "0"])
    printed = capsys.readouterr().out
    assert "own.py has no 'iterations=9000': it is another version of the example" in printed
    assert "| Own | | fails as it is, seed 0: `ValueError: pinn_forward/own.py" in printed


def test_a_folder_that_is_no_clone_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([str(tmp_path), "--work", str(tmp_path)])
    assert f"{tmp_path} has no folder examples" in capsys.readouterr().err


def test_runs_leave_files_and_are_not_made_again(snapshot, tmp_path, capsys):
    pytest.importorskip("deepxde", reason="needs DeepXDE: pip install -e '.[deepxde]'")
    work = tmp_path / "work"
    benchmark.main([str(snapshot), "--work", str(work), "--seeds", "0"])
    printed = capsys.readouterr().out
    result = json.loads((work / "results/own-balanced-0.json").read_text())
    assert result["steps"] == 20 and result["names"] == ["pde", "DirichletBC"]
    assert result["weights"][1] > 1 and result["cpu_ms_a_step"] > 0
    original = json.loads((work / "results/own-original-0.json").read_text())
    assert f"| Own | 20 | {original['error']:.2g} | {result['error']:.2g} |" in printed
    assert re.search(r"\| Own \| 0 \| pde [\d.]+, DirichletBC [\d.]+ \|", printed)
    assert "Geometric mean of the ratios" in printed

    result["error"] = 123.0
    (work / "results/own-balanced-0.json").write_text(json.dumps(result))
    arguments = [str(snapshot), "--work", str(work), "--seeds", "0", "1", "--table"]
    benchmark.main(arguments)  # as they are, and seed 1 is not there
    printed = capsys.readouterr().out
    assert "| 1.2e+02 |" in printed and not (work / "results/own-original-1.json").exists()
