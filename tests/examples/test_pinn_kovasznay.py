import importlib.util
import json
import os
import signal
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

PATH = Path(__file__).parents[2] / "examples/pinn_kovasznay/pinn_kovasznay.py"
spec = importlib.util.spec_from_file_location("pinn_kovasznay", PATH)
pinn_kovasznay = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pinn_kovasznay)


@pytest.mark.parametrize("balance", ["rotogradnorm", "gradnorm", "equal"])
def test_a_short_run_learns_and_writes_everything(tmp_path, capsys, balance):
    output = tmp_path / "run"
    arguments = ["--balance", balance, "--epochs", "60", "--points", "64", "--seed", "3", "--live"]
    metrics = pinn_kovasznay.main([*arguments, "--alpha", "0.5", "--output", str(output)])

    assert json.loads((output / "metrics.json").read_text()) == {"version": 1, **metrics}
    expected = {"balance": balance, "epochs": 60, "points": 64, "seed": 3, "alpha": 0.5}
    assert metrics["settings"].items() >= expected.items()
    weights = list(metrics["final_weights"].values())
    assert sum(weights) == pytest.approx(3, abs=1e-5)
    assert (weights == [1, 1, 1]) == (balance == "equal")
    for figure in ("solution.png", "training.png"):
        pixels = np.asarray(Image.open(output / figure).convert("L"))
        assert pixels.shape[0] > 300 and pixels.std() > 10  # not an empty sheet
    printed = capsys.readouterr()
    assert f"u {metrics['relative_l2_errors']['u']:.2e}" in printed.out
    assert "60/60" in printed.err and "weight" in printed.err
    assert len(pinn_kovasznay.History.load(output / "history.npz")) == 60

    # The trained parameters give the same errors again.
    model = pinn_kovasznay.build(balance, 0.5)
    model.set_state_dict(paddle.load(str(output / "model.pdparams")))
    errors = pinn_kovasznay.relative_errors(*pinn_kovasznay.evaluate(model))
    assert errors == pytest.approx(metrics["relative_l2_errors"], rel=1e-4)


@pytest.mark.parametrize("balance", ["rotogradnorm", "gradnorm", "equal"])
def test_training_lowers_the_losses(balance):
    problem = pinn_kovasznay.Problem(64, seed=0)
    model = pinn_kovasznay.build(balance, 0.12)
    losses = pinn_kovasznay.train(model, problem, 80, 5e-3, None, None).history.to_numpy()["losses"]
    assert losses[-1].sum() < 0.7 * losses[0].sum()


def test_exact_solution_has_no_loss(float64):
    problem = pinn_kovasznay.Problem(64, seed=0)
    x, y = (problem.interior[:, k].astype("float64") for k in range(2))
    decay, turn = pinn_kovasznay.DECAY, 2 * np.pi
    wave = paddle.exp(decay * x)
    cosine, sine = paddle.cos(turn * y), paddle.sin(turn * y)
    zero = paddle.zeros_like(x)
    # By hand, as Paddle 2.6 does not differentiate exp twice.
    u = {
        (): 1 - wave * cosine,
        (0,): -decay * wave * cosine,
        (1,): turn * wave * sine,
        (0, 0): -(decay**2) * wave * cosine,
        (1, 1): turn**2 * wave * cosine,
    }
    v = {
        (): decay / turn * wave * sine,
        (0,): decay**2 / turn * wave * sine,
        (1,): decay * wave * cosine,
        (0, 0): decay**3 / turn * wave * sine,
        (1, 1): -decay * turn * wave * sine,
    }
    p = {(): (1 - wave**2) / 2, (0,): -decay * wave**2, (1,): zero, (0, 0): zero, (1, 1): zero}

    class Exact(pinn_kovasznay.Flow):
        def partial_derivatives(self, ins, indices):
            return [paddle.stack([field[i] for field in (u, v, p)], axis=1) for i in indices]

    residuals = problem.residual(Exact(paddle.nn.Identity()), problem.interior.astype("float64"))
    for residual in residuals:
        np.testing.assert_allclose(residual.numpy(), 0, atol=1e-6)
    found = paddle.stack([field[()] for field in (u, v, p)], axis=1).numpy()
    np.testing.assert_allclose(found, pinn_kovasznay.exact(problem.interior.numpy()), atol=1e-6)


def test_flow_derivatives_are_those_of_its_values():
    model = pinn_kovasznay.build("rotogradnorm", 0.12)
    rng = np.random.default_rng(0)
    model.set_rotation([np.linalg.qr(rng.standard_normal((50, 50)))[0] for _ in range(3)])
    flow = pinn_kovasznay.Flow(model)
    points = paddle.rand([5, 2])
    step = paddle.to_tensor([1e-2, 0.0])
    slope = (flow(points + step) - flow(points - step)) / 2e-2
    (found,) = flow.partial_derivatives(points, [(0,)])
    np.testing.assert_allclose(found.numpy(), slope.numpy(), atol=2e-3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--epochs", "0"], "must be an integer from 1 to 2147483647, got '0'"),
        (["--learning-rate", "0"], "must be a finite number above 0, got '0'"),
        (["--alpha", "-1"], "must be a finite number of at least 0, got '-1'"),
        (["--balance", "magic"], "invalid choice: 'magic'"),
        (["--checkpoint-every", "0"], "must be an integer from 1 to 2147483647, got '0'"),
    ],
)
def test_bad_options_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit):
        pinn_kovasznay.parse(arguments)
    assert message in capsys.readouterr().err


def assert_same_run(one, other, folders):
    for name in ("relative_l2_errors", "final_losses", "final_weights"):
        assert one[name] == other[name]
    first, second = (paddle.load(str(folder / "model.pdparams")) for folder in folders)
    for name, tensor in first.items():
        np.testing.assert_array_equal(second[name].numpy(), tensor.numpy())


@pytest.mark.parametrize(
    "balance, number, code",
    [
        ("rotogradnorm", signal.SIGINT, 130),
        ("gradnorm", signal.SIGTERM, 143),
        ("equal", signal.SIGINT, 130),
    ],
)
def test_a_signal_stops_it_with_a_checkpoint_that_it_goes_on_from(
    tmp_path, monkeypatch, capsys, balance, number, code
):
    arguments = ["--balance", balance, "--epochs", "20", "--points", "16", "--output"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = pinn_kovasznay.main([*arguments, str(whole)])

    class Kill(pinn_kovasznay.StopOnSignals):
        def on_train_batch_begin(self, step, logs=None):
            if self.model.step == 12:
                os.kill(os.getpid(), number)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(pinn_kovasznay, "StopOnSignals", Kill)
        pinn_kovasznay.main([*arguments, str(stopped)])
    assert exit.value.code == code
    assert "stopped at step 13; go on with --resume latest" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"pinn_kovasznay: the run is at step 0, but .*00000013"):
        pinn_kovasznay.main([*arguments, str(stopped)])

    resumed = pinn_kovasznay.main([*arguments, str(stopped), "--resume", "latest"])
    assert_same_run(resumed, expected, (stopped, whole))


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_in_another(tmp_path, signalled, finished):
    arguments = ["--epochs", "400", "--points", "16", "--checkpoint-every", "20"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = finished(PATH, whole, *arguments)
    code, printed = signalled(PATH, stopped, signal.SIGTERM, *arguments)
    assert code == 143 and "go on with --resume latest" in printed
    assert not (stopped / "metrics.json").exists()
    resumed = finished(PATH, stopped, *arguments, "--resume", "latest")
    assert_same_run(resumed, expected, (stopped, whole))
