import html
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.training import History, write_report

PATH = Path(__file__).parents[2] / "examples/pinn_laplace/pinn_laplace.py"
spec = importlib.util.spec_from_file_location("pinn_laplace", PATH)
pinn_laplace = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pinn_laplace)


@pytest.mark.parametrize(
    "balance, rule", [("gradnorm", "pinn"), ("gradnorm", "published"), ("equal", "pinn")]
)
def test_a_short_run_learns_and_writes_everything(tmp_path, capsys, balance, rule):
    output = tmp_path / "run"
    arguments = [
        "--balance",
        balance,
        "--rule",
        rule,
        "--epochs",
        "300",
        "--points",
        "64",
        "--seed",
        "3",
    ]
    metrics = pinn_laplace.main([*arguments, "--alpha", "0.5", "--output", str(output)])

    assert metrics["relative_l2_error"] < 0.1  # untrained: about 1
    assert json.loads((output / "metrics.json").read_text()) == {"version": 1, **metrics}
    expected = {"balance": balance, "epochs": 300, "points": 64, "seed": 3, "alpha": 0.5}
    assert metrics["settings"].items() >= expected.items()
    weights = list(metrics["final_weights"].values())
    if balance == "gradnorm" and rule == "pinn":
        # The unit: the geometric mean of the equation's and of the noisy data's, without lead.
        assert weights[0] * weights[2] == pytest.approx(1, rel=1e-4)
    else:
        assert sum(weights) == pytest.approx(3, abs=1e-5)
    assert (weights == [1, 1, 1]) == (balance == "equal")

    for figure in ("solution.png", "training.png"):
        pixels = np.asarray(Image.open(output / figure).convert("L"))
        assert pixels.shape[0] > 300 and pixels.std() > 10  # not an empty sheet
    history = History.load(output / "history.npz")
    assert len(history) == 300 and history.last()["losses"] == metrics["final_losses"]
    page = write_report(output).read_text(encoding="utf-8")
    assert "<h1>laplace</h1>" in page and f"{metrics['relative_l2_error']:.4g}" in page
    assert page.count("<img") == (6 if balance == "gradnorm" else 4)
    assert all(html.escape(finding) in page for finding in metrics["diagnosis"])
    printed = capsys.readouterr().out
    assert f"report {output}" in printed
    assert f"{metrics['relative_l2_error']:.2e}" in printed
    assert str(output / "solution.png") in printed

    # The trained parameters give the same error again.
    net = FCNet(num_ins=2, num_outs=1, num_layers=5, hidden_size=50)
    if balance == "gradnorm":
        net = GradNorm(net, n_loss=3, alpha=0.5, rule=rule, equations=["pde"])
    net.set_state_dict(paddle.load(str(output / "net.pdparams")))
    prediction, truth = pinn_laplace.errors(net)
    error = np.linalg.norm(prediction - truth) / np.linalg.norm(truth)
    assert error == pytest.approx(metrics["relative_l2_error"], rel=1e-5)


def test_a_live_view_and_curves_are_there_when_asked(tmp_path, capsys, monkeypatch):
    arguments = ["--epochs", "5", "--points", "16", "--output", str(tmp_path), "--live"]
    pinn_laplace.main(arguments)
    said = capsys.readouterr().err
    assert "5/5" in said and all(name in said for name in pinn_laplace.LOSSES)
    monkeypatch.setitem(sys.modules, "visualdl", None)
    with pytest.raises(SystemExit, match=r"pinn_laplace: .* pip install visualdl"):
        pinn_laplace.main([*arguments, "--visualdl"])


def test_a_finished_run_may_be_resumed_only_to_be_looked_at_again(tmp_path):
    arguments = options(tmp_path, "--checkpoint-every", "20")
    expected = pinn_laplace.main(arguments)
    again = pinn_laplace.main([*arguments, "--resume", "latest"])
    assert again["final_losses"] == expected["final_losses"]
    assert set(again["diagnosis"]) <= set(expected["diagnosis"])


def test_exact_solution_has_no_loss_but_the_noise():
    problem = pinn_laplace.Problem(64, seed=0)

    class Exact(paddle.nn.Layer):
        def forward(self, points):
            a, b = points[:, :1], points[:, 1:]
            # cosh(b) by its Taylor series, which every Paddle differentiates twice
            return paddle.cos(a) * (
                1 + b * b / 2 * (1 + b * b / 12 * (1 + b * b / 30 * (1 + b * b / 56)))
            )

    losses = {name: loss.item() for name, loss in problem.losses(Exact()).items()}
    assert losses["pde"] < 1e-6 and losses["boundary"] < 1e-10
    assert losses["data"] == pytest.approx(pinn_laplace.NOISE**2, rel=0.7)


def test_the_seed_decides_the_run(tmp_path):
    errors = [
        pinn_laplace.main(
            ["--epochs", "5", "--points", "16", "--seed", seed, "--output", str(tmp_path)]
        )["relative_l2_error"]
        for seed in ("1", "1", "2")
    ]
    assert errors[0] == errors[1] != errors[2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--epochs", "0"], "must be an integer from 1 to 2147483647, got '0'"),
        (["--points", "-3"], "must be an integer from 1 to 2147483647, got '-3'"),
        (["--alpha", "-1"], "must be a finite number of at least 0, got '-1'"),
        (["--learning-rate", "nan"], "must be a finite number above 0, got 'nan'"),
        (["--learning-rate", "0"], "must be a finite number above 0, got '0'"),
        (["--seed", "-1"], "must be an integer from 0 to 2147483647, got '-1'"),
        (["--checkpoint-every", "0"], "must be an integer from 1 to 2147483647, got '0'"),
        (["--balance", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_bad_options_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit):
        pinn_laplace.parse(arguments)
    assert message in capsys.readouterr().err


def options(output, *more):
    return ["--epochs", "40", "--points", "16", "--output", str(output), *more]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_with_a_checkpoint_that_it_goes_on_from(
    tmp_path, monkeypatch, capsys, number, code
):
    expected = pinn_laplace.main(options(tmp_path / "whole"))

    class Kill(pinn_laplace.StopOnSignals):
        def on_train_batch_begin(self, step, logs=None):
            if self.model.step == 25:
                os.kill(os.getpid(), number)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(pinn_laplace, "StopOnSignals", Kill)
        pinn_laplace.main(options(tmp_path / "stopped"))
    assert stopped.value.code == code
    assert "stopped at step 26; go on with --resume latest" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"pinn_laplace: the run is at step 0, but .*00000026"):
        pinn_laplace.main(options(tmp_path / "stopped"))

    resumed = pinn_laplace.main(options(tmp_path / "stopped", "--resume", "latest"))
    for name in ("relative_l2_error", "final_losses", "final_weights"):
        assert resumed[name] == expected[name]
    whole, other = (
        paddle.load(str(tmp_path / run / "net.pdparams")) for run in ("whole", "stopped")
    )
    for name, tensor in whole.items():
        np.testing.assert_array_equal(other[name].numpy(), tensor.numpy())


def test_checkpoints_every_so_many_steps(tmp_path):
    arguments = options(tmp_path, "--checkpoint-every", "15")
    expected = pinn_laplace.main(arguments)
    paths = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in paths] == ["step_00000030.ckpt", "step_00000040.ckpt"]
    earlier = ["--resume", str(paths[0])]
    with pytest.raises(SystemExit, match=r"at step 30, but .* later steps"):
        pinn_laplace.main([*arguments, *earlier])
    again = pinn_laplace.main([*options(tmp_path / "other"), *earlier])
    assert again["final_losses"] == expected["final_losses"]
    paths[1].write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"00000040\.ckpt is no checkpoint"):
        again = pinn_laplace.main([*arguments, "--resume", "latest"])
    assert again["final_losses"] == expected["final_losses"]
    with pytest.raises(SystemExit, match=r"pinn_laplace: there is no checkpoint .*none"):
        pinn_laplace.main([*arguments, "--resume", str(tmp_path / "none")])


@pytest.mark.slow
def test_five_thousand_steps_need_no_more_memory():
    script = str(Path(__file__).parent / "memory_of_laplace.py")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", script, "5000", "16", "3", "8"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    megabytes = [float(line) for line in result.stdout.split()]
    assert len(megabytes) == 5
    assert megabytes[-1] - megabytes[0] < 5, megabytes
