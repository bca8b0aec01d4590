import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlescience_gradnorm import LossBalancer
from paddlescience_gradnorm.training import History, Trainer

PATH = Path(__file__).parents[2] / "examples/toy_regression/toy_regression.py"
spec = importlib.util.spec_from_file_location("toy_regression", PATH)
toy = sys.modules["toy_regression"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)

SILENT = toy.ProgressBar(disable=True)


@pytest.fixture
def small(monkeypatch):
    """The same experiment on smaller data and layers."""
    sizes = {"N_INPUTS": 10, "N_OUTPUTS": 5, "WIDTH": 20, "TRAINING": 1000, "TEST": 100}
    for name, size in sizes.items():
        monkeypatch.setattr(toy, name, size)


def test_a_small_run_writes_everything(small, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = ["--steps", "60", "--seeds", "3", "5", "--alphas", "0.12", "1"]
    metrics = toy.main([*arguments, "--output", str(output)])

    assert json.loads((output / "metrics.json").read_text()) == {"version": 1, **metrics}
    assert metrics["seeds"] == [3, 5] and metrics["settings"]["steps"] == 60
    printed = capsys.readouterr().out
    for n_tasks in (2, 10):
        results = metrics[f"T = {n_tasks}"]
        assert list(results["test_loss"]) == [toy.SINGLE, *toy.METHODS]
        for method, ends in results["test_loss"].items():
            assert np.shape(ends) == (2,)
            assert f"{method:22} {ends[0]:8.3f} {ends[1]:8.3f}" in printed
            by_task = results["test_loss_by_task"][method]
            np.testing.assert_allclose(np.sum(by_task, axis=1), ends)
            assert np.shape(by_task) == (2, n_tasks)
        assert results["test_loss_by_alpha"]["0.12"] == results["test_loss"]["GradNorm"]
        if n_tasks == 10:  # of two weights only one can be too large, whatever alpha
            assert results["test_loss_by_alpha"]["1"] != results["test_loss"]["GradNorm"]
        # Each network of its own has learned its task, whatever the scale.
        assert np.max(results["test_loss_by_task"][toy.SINGLE]) < 1.1
        for seed, weights in zip((3, 5), results["final_weights"]):
            history = History.load(output / f"gradnorm_T{n_tasks}_seed{seed}.npz")
            assert len(history) == 60 and history.last()["weights"] == weights
            assert sum(weights.values()) == pytest.approx(n_tasks, abs=1e-4)
    for figure in ("weights.png", "test_loss.png", "alpha.png"):
        pixels = np.asarray(Image.open(output / figure).convert("L"))
        assert pixels.shape[0] > 300 and pixels.std() > 10  # not an empty sheet


def test_the_seed_decides_the_run(small):
    settings = toy.Settings(steps=20, test_every=20)
    curves = [
        toy.train("GradNorm", toy.Problem.draw((1.0, 100.0), seed), settings, view=SILENT)[0]
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(curves[0], curves[1])
    assert (curves[0][-1] != curves[2][-1]).all()


@pytest.mark.parametrize("inputs, mean", [("normal", 0.0), ("uniform", 0.5)])
def test_data_are_scaled_tanh_of_maps_that_tasks_share_in_part(monkeypatch, inputs, mean):
    monkeypatch.setattr(toy, "TRAINING", 400)
    problem = toy.Problem.draw((3.0, 48.0), 0, inputs)
    x, *outputs = problem.training
    assert x.shape == (400, 250) and x.dtype == np.float32
    assert x.mean() == pytest.approx(mean, abs=0.02)
    for y, sigma in zip(outputs, (3, 48)):
        assert y.shape == (400, 100) and np.abs(y).max() <= sigma
    # Signs of the two tasks agree as those of normal numbers whose correlation is
    # 10^2 / (10^2 + 3.5^2) = 0.89, which is for 1 - arccos(0.89) / pi = 0.85 of them.
    agree = (np.sign(outputs[0]) == np.sign(outputs[1])).mean()
    assert agree == pytest.approx(0.85, abs=0.02)


def test_batches_hold_every_row_once_with_its_outputs(small):
    problem = toy.Problem.draw((1.0, 100.0), 0)
    x, first, _ = problem.training
    drawn = [batch for batch in toy.Batches(problem, 20)]  # noqa: C416, list() wants a length
    for batches in (drawn[:10], drawn[10:]):
        rows = np.concatenate([batch[0] for batch in batches])
        order = np.argsort(rows[:, 0])
        np.testing.assert_array_equal(rows[order], x[np.argsort(x[:, 0])])
        outputs = np.concatenate([batch[1] for batch in batches])
        np.testing.assert_array_equal(outputs[order], first[np.argsort(x[:, 0])])
    assert (drawn[0][0] != drawn[10][0]).any()
    np.testing.assert_array_equal(drawn[0][0], next(iter(toy.Batches(problem, 1)))[0])


def test_every_method_starts_from_the_same_network(small):
    problem = toy.Problem.draw((1.0, 100.0), 0)
    starts = []
    for method in toy.METHODS.values():
        paddle.seed(problem.seed)
        trainer = method(toy.Network(2), problem, toy.Settings())
        starts.append(problem.test_losses(trainer.net))
    for start in starts:
        np.testing.assert_array_equal(start, starts[0])


def test_uncertainty_weighting_rests_where_variances_are_the_losses():
    balancer = toy.UncertaintyWeighting(3)
    values = np.array([0.3, 40.0, 7.0], "float32")
    balancer.log_variances.set_value(np.log(values * [1, 1, 2]).astype("float32"))
    total = balancer.backward(dict(zip("abc", paddle.to_tensor(values))))
    np.testing.assert_allclose(balancer.log_variances.grad.numpy(), [0, 0, 0.25], atol=1e-6)
    # Negative log-likelihood of a normal distribution, but for a constant.
    variances = values * [1, 1, 2]
    expected = (values / variances + np.log(variances)).sum() / 2
    assert total.item() == pytest.approx(expected, rel=1e-5)


# What GradNorm promises.


@pytest.mark.parametrize("alpha", [0.12, 1.0])
def test_weights_settle_where_gradient_norms_are_equal_up_to_the_rates(small, alpha):
    problem = toy.Problem.draw((1.0, 10.0), 0)
    settings = toy.Settings(steps=2000, test_every=2000, alpha=alpha, weights_rate=2e-3)
    _, history = toy.train("GradNorm", problem, settings, view=SILENT)
    run = history.to_numpy()
    norms = run["weights"] * run["gradient_norms"]
    targets = norms.mean(axis=1, keepdims=True) * run["training_rates"] ** alpha
    ratios = norms / targets
    assert (np.median(ratios[:100], axis=0) / [1, 1] > 1.2).any()  # at the start they are not
    np.testing.assert_allclose(np.median(ratios[-500:], axis=0), 1, atol=0.08)


def own_step(net, problem, rate):
    """The weights by plain gradient descent, as in the paper's formula."""
    balancer = LossBalancer(
        net.trunk[-2].weight, 2, toy.PAPER_ALPHA, weight_lr=rate, warmup_steps=200, floor=1e-5
    )
    return Trainer(net, problem.losses, toy.adam(1e-3, net), balancer)


@pytest.mark.parametrize("sigmas, rate", [((1.0, 10.0), 1e-4), ((1.0, 100.0), 3e-6)])
@pytest.mark.parametrize("steps_by", ["adam", "own step"])
def test_no_weight_changes_by_more_than_five_percent_in_a_step(small, sigmas, rate, steps_by):
    problem = toy.Problem.draw(sigmas, 0)
    if steps_by == "adam":
        settings = toy.Settings(steps=1000, test_every=1000)
        _, history = toy.train("GradNorm", problem, settings, view=SILENT)
    else:
        loader = paddle.io.DataLoader(toy.Batches(problem, 1000), batch_size=None)
        history = own_step(toy.Network(2), problem, rate).fit(loader)
    weights = history.to_numpy()["weights"]
    assert weights.shape == (1000, 2) and np.ptp(weights, axis=0).min() > 0.01
    assert toy.largest_change(history) <= 0.05


# Signals.


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_training_and_the_finished_ones_are_not_made_again(
    small, tmp_path, monkeypatch, capsys, number, code
):
    more = ["--seeds", "3", "--steps", "30", "--tasks", "2", "--alphas", "0.12", "1", "--output"]
    expected = toy.main([*more, str(tmp_path / "whole")])
    stopped = str(tmp_path / "stopped")
    begun = []

    class Kill(toy.ProgressBar):
        at = None

        def on_train_begin(self, logs=None):
            begun.append(None)
            super().on_train_begin(logs)

        def on_train_batch_begin(self, step, logs=None):
            if (len(begun), self.model.step) == self.at:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(toy, "ProgressBar", Kill)
    monkeypatch.setattr(Kill, "at", (5, 17))  # two single tasks, two methods, GradNorm
    with pytest.raises(SystemExit) as exit:
        toy.main([*more, stopped])
    assert exit.value.code == code
    title = "T = 2, seed 3, GradNorm, alpha 0.12"
    message = f"{title}: stopped at step 18; go on with --resume latest"
    assert message in capsys.readouterr().out
    folder = tmp_path / "stopped/checkpoints"
    assert [path.name for path in (folder / title).iterdir()] == ["step_00000018.ckpt"]
    assert len(list(folder.glob("*/step_00000030.ckpt"))) == 4
    with pytest.raises(SystemExit, match=r"toy_regression: .* that is not finished"):
        toy.main([*more, stopped])
    resume = ["--resume", "latest"]
    with pytest.raises(SystemExit, match=r"toy_regression: .* other settings: .*'steps': 30"):
        toy.main([*more, stopped, *resume, "--steps", "31"])

    steps = []
    monkeypatch.setattr(
        Kill, "on_train_batch_begin", lambda self, step, logs=None: steps.append(self.model.step)
    )
    resumed = toy.main([*more, stopped, *resume])
    assert steps == [*range(18, 30), *range(30), *range(30)]  # GradNorm, RotoGradNorm, alpha 1
    for name in ("T = 2", "settings"):
        assert resumed[name] == expected[name]
    histories = [
        History.load(tmp_path / run / "gradnorm_T2_seed3.npz").to_numpy()
        for run in ("whole", "stopped")
    ]
    for name, numbers in histories[0].items():
        np.testing.assert_array_equal(histories[1][name], numbers)
    assert not folder.exists()  # as nothing is left to go on with


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_in_another(tmp_path, signalled, finished):
    arguments = ["--seeds", "0", "--steps", "40", "--tasks", "2", "--alphas", "0.12"]
    arguments += ["--checkpoint-every", "15"]
    expected = finished(PATH, tmp_path / "whole", *arguments)
    stopped = tmp_path / "stopped"
    code, printed = signalled(PATH, stopped, signal.SIGTERM, *arguments)
    assert code == 143 and "go on with --resume latest" in printed
    assert not (stopped / "metrics.json").exists()
    resumed = finished(PATH, stopped, *arguments, "--resume", "latest")
    assert resumed["T = 2"] == expected["T = 2"]


def test_without_a_checkpoint_it_starts_anew_with_a_warning(small, tmp_path):
    arguments = ["--seeds", "0", "--steps", "2", "--tasks", "2", "--alphas", "0.12"]
    with pytest.warns(UserWarning, match="there is no checkpoint in .*; it starts anew"):
        toy.main([*arguments, "--output", str(tmp_path), "--resume", "latest"])


# Options.


def test_quick_is_one_seed_and_few_steps():
    options = toy.parse(["--quick"])
    assert options.seeds == [0] and options.steps == 250 and toy.PAPER_ALPHA in options.alphas


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "0"], "must be an integer from 1 to 2147483647, got '0'"),
        (["--alphas", "0.1", "-1"], "must be a finite number of at least 0, got '-1'"),
        (["--learning-rate", "0"], "must be a finite number above 0, got '0'"),
        (["--weights-rate", "inf"], "must be a finite number above 0, got 'inf'"),
        (["--seeds", "-1"], "must be an integer from 0 to 2147483647, got '-1'"),
        (["--tasks", "3"], "invalid choice: 3"),
        (["--checkpoint-every", "0"], "must be an integer from 1 to 2147483647, got '0'"),
        (["--resume", "some.ckpt"], "invalid choice: 'some.ckpt'"),
    ],
)
def test_bad_options_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit):
        toy.parse(arguments)
    assert message in capsys.readouterr().err
