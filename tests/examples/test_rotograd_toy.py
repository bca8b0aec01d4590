import importlib.util
import json
import os
import signal
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

PATH = Path(__file__).parents[2] / "examples/rotograd_toy/rotograd_toy.py"
spec = importlib.util.spec_from_file_location("rotograd_toy", PATH)
rotograd_toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rotograd_toy)


def test_a_short_run_learns_and_writes_everything(tmp_path, capsys):
    output = tmp_path / "run"
    metrics = rotograd_toy.main(["--steps", "60", "--seed", "1", "--output", str(output)])

    assert json.loads((output / "metrics.json").read_text()) == {"version": 1, **metrics}
    assert metrics["settings"].items() >= {"steps": 60, "seed": 1, "alpha": 0.5}.items()
    assert list(metrics["final_losses"]) == list(rotograd_toy.METHODS)
    for figure in ("landscape.png", "gradients.png"):
        pixels = np.asarray(Image.open(output / figure).convert("L"))
        assert pixels.shape[0] > 300 and pixels.std() > 10  # not an empty sheet
    printed = capsys.readouterr().out
    for method, (first, second) in metrics["final_losses"].items():
        assert f"{method:13s} losses {first:6.3f} {second:6.3f}" in printed


def test_every_method_starts_alike_and_descends():
    options = rotograd_toy.parse(["--steps", "40"])
    runs = {method: rotograd_toy.Run(method, options) for method in rotograd_toy.METHODS}
    for run in runs.values():
        for step in range(40):
            run.step(step)
        run.measure(40)
    results = {method: run.measured.arrays for method, run in runs.items()}
    for name in ("representation", "losses", "gradients"):
        first = [result[name][0] for result in results.values()]
        for other in first[1:]:
            np.testing.assert_allclose(other, first[0], rtol=1e-5, atol=1e-5)
    for method, result in results.items():
        assert result["losses"][-1].sum() < result["losses"][0].sum()
        turned = np.abs(result["rotations"][-1] - np.eye(2)).max() > 0.01
        assert turned == method.startswith("Roto")


@pytest.mark.parametrize("task", [0, 1])
def test_losses_are_those_of_the_landscape_and_zero_in_the_minimum(task):
    points = np.random.default_rng(0).uniform(-3, 3, (20, 2))
    points[0] = rotograd_toy.MINIMA[task]
    losses = [rotograd_toy.task_loss(task, paddle.to_tensor(p[None])).item() for p in points]
    np.testing.assert_allclose(losses, rotograd_toy.landscape(task, points), atol=1e-12)
    assert losses[0] == 0 and min(losses[1:]) > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "0"], "must be an integer from 1 to 2147483647, got '0'"),
        (["--own-rate", "0"], "must be a finite number above 0, got '0'"),
        (["--alpha", "-1"], "must be a finite number of at least 0, got '-1'"),
        (["--seed", "-1"], "must be an integer from 0 to 2147483647, got '-1'"),
        (["--checkpoint-every", "0"], "must be an integer from 1 to 2147483647, got '0'"),
    ],
)
def test_bad_options_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit):
        rotograd_toy.parse(arguments)
    assert message in capsys.readouterr().err


def assert_same_run(one, other):
    for name in ("final_losses", "first_cosine", "mean_cosine"):
        assert one[name] == other[name]


# Within the first method, at the end of the second, within the last.
@pytest.mark.parametrize(
    "number, code, at",
    [(signal.SIGINT, 130, 5), (signal.SIGTERM, 143, 20), (signal.SIGINT, 130, 33)],
)
def test_a_signal_stops_it_with_a_checkpoint_that_it_goes_on_from(
    tmp_path, monkeypatch, capsys, number, code, at
):
    arguments = ["--steps", "10", "--output"]
    expected = rotograd_toy.main([*arguments, str(tmp_path / "whole")])
    stopped = str(tmp_path / "stopped")
    steps = []

    class Killed(rotograd_toy.Run):
        def step(self, step):
            steps.append(step)
            if len(steps) == at:
                os.kill(os.getpid(), number)
            super().step(step)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(rotograd_toy, "Run", Killed)
        rotograd_toy.main([*arguments, stopped])
    assert exit.value.code == code and len(steps) == at
    assert f"stopped at step {at}; go on with --resume latest" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=rf"rotograd_toy: the run is at step 0, but .*{at:08d}"):
        rotograd_toy.main([*arguments, stopped])
    with pytest.raises(SystemExit, match=r"rotograd_toy: .* does not fit .*; nothing has been"):
        rotograd_toy.main(["--steps", "11", "--output", stopped, "--resume", "latest"])

    assert_same_run(rotograd_toy.main([*arguments, stopped, "--resume", "latest"]), expected)
    assert len(steps) == at


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_in_another(tmp_path, signalled, finished):
    arguments = ["--steps", "100", "--checkpoint-every", "20"]
    expected = finished(PATH, tmp_path / "whole", *arguments)
    stopped = tmp_path / "stopped"
    code, printed = signalled(PATH, stopped, signal.SIGTERM, *arguments)
    assert code == 143 and "go on with --resume latest" in printed
    assert not (stopped / "metrics.json").exists()
    paths = sorted((stopped / "checkpoints").iterdir())
    for resume, output in ((str(paths[-1]), tmp_path / "other"), ("latest", stopped)):
        assert_same_run(finished(PATH, output, *arguments, "--resume", resume), expected)


def test_without_a_checkpoint_it_starts_anew_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="there is no checkpoint in .*; the run starts anew"):
        rotograd_toy.main(["--steps", "2", "--output", str(tmp_path), "--resume", "latest"])
