"""What GradNormAggregator adds to the logs of PaddleScience's Solver."""

import logging
import re
import struct

import numpy as np
import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import ppsci
import ppsci_problem as problem
from ppsci_problem import NAMES, apart, gradnorm, trained

from paddlescience_gradnorm.ppsci import GradNormAggregator
from paddlescience_gradnorm.ppsci._solver_log import SolverLog, plot_weights
from paddlescience_gradnorm.training import History


@pytest.fixture
def expected_scalars():
    def check(read, aggregator):
        norms = aggregator.balancer.gradient_norms.tolist()
        for name, weight, norm in zip(NAMES, aggregator.get_weights(), norms):
            assert read(f"train/weight/{name}") == pytest.approx(weight, rel=1e-6)
            assert read(f"train/gradient_norm/{name}") == pytest.approx(norm, rel=1e-6)
        assert read("train/EQ") > 0

    return check


def _train_with(logger, tmp_path):
    settings = {"epochs": 3, "wandb_config": {}, f"use_{logger}": True}
    solver, aggregator = problem.solver(tmp_path, gradnorm(), **settings)
    solver.train()
    return solver, aggregator


def test_visualdl_gets_weights_and_norms_beside_the_losses(tmp_path, expected_scalars):
    pytest.importorskip("visualdl", reason="needs visualdl: pip install -e '.[ppsci-test]'")
    from visualdl import LogReader

    solver, aggregator = _train_with("vdl", tmp_path)
    solver.vdl_writer.close()
    reader = LogReader(file_path=str(next((tmp_path / "vdl").iterdir())))
    assert [point.id for point in reader.get_data("scalar", "train/weight/u")] == [1, 2, 3]
    expected_scalars(lambda tag: reader.get_data("scalar", tag)[-1].value, aggregator)


def test_tensorboard_gets_weights_and_norms_beside_the_losses(tmp_path, expected_scalars):
    pytest.importorskip("tensorboardX", reason="needs tensorboardX: pip install -e '.[ppsci-test]'")
    from tensorboardX.proto.event_pb2 import Event

    solver, aggregator = _train_with("tbd", tmp_path)
    solver.tbd_writer.close()
    content = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    logged, at = {}, 0
    while at < len(content):  # records: length, its checksum, an event, its checksum
        (length,) = struct.unpack("<Q", content[at : at + 8])
        for value in Event.FromString(content[at + 12 : at + 12 + length]).summary.value:
            logged[value.tag] = value.simple_value
        at += length + 16
    expected_scalars(logged.get, aggregator)


def test_wandb_gets_weights_and_norms_beside_the_losses(tmp_path, expected_scalars, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb: pip install -e '.[ppsci-test]'")
    for name, value in [("MODE", "offline"), ("DIR", str(tmp_path)), ("SILENT", "true")]:
        monkeypatch.setenv(f"WANDB_{name}", value)
    solver, aggregator = _train_with("wandb", tmp_path)
    summary = dict(solver.wandb_writer.summary)
    solver.wandb_writer.finish()
    assert summary["step"] == 3
    expected_scalars(summary.get, aggregator)


def test_other_aggregators_log_as_before(solve):
    _, _, rows = solve(lambda model: None)
    assert set(rows[-1]) == {"train/lr", "train/loss", "train/EQ", "train/BC"}


def test_norms_are_logged_on_request_only(tmp_path):
    solver, aggregator = problem.solver(tmp_path, gradnorm(), epochs=2)
    aggregator.log_to(solver)
    rows = problem.record(solver)
    solver.train()
    assert set(rows[-1]) == {
        *("train/lr", "train/loss", "train/EQ", "train/BC"),
        *(f"train/weight/{name}" for name in NAMES),
    }


def test_the_solvers_lines_show_weights_with_three_digits(solver_log):
    model, constraint, equation = apart()
    aggregator = GradNormAggregator.of(model, constraint, equation)
    said = solver_log()
    trained(model, constraint, equation, aggregator, steps=2)
    line = next(line for line in said().splitlines() if "[Train]" in line)
    shown = dict(re.findall(r"weight/(\S+): (\S+),", line))
    assert list(shown) == aggregator.names
    assert all(number == f"{float(number):.3g}" for number in shown.values())


def test_the_solvers_log_says_which_losses_are_equations(tmp_path, caplog):
    model, constraint, equation = apart()
    ppsci.utils.logger.init_logger("ppsci", str(tmp_path / "train.log"), "info")
    try:
        aggregator = GradNormAggregator.of(model, constraint, equation)
        trained(model, constraint, equation, aggregator, steps=12)
        trained(model, constraint, equation, aggregator, steps=7)
    finally:
        ppsci.utils.logger.init_logger("ppsci", None, "error")
    said = re.compile("ppsci INFO: loss weights by .*equations 'EQ.laplace' .*'left.u', 'right.u'")
    log = (tmp_path / "train.log").read_text()
    assert len(said.findall(log)) == 1
    assert len(re.findall("ppsci INFO: the run has 19 steps now", log)) == 1
    assert not caplog.text  # Paddle prints what it gets there, so the line would be there twice
    ours = logging.getLogger("paddlescience_gradnorm")
    assert (ours.level, ours.propagate, ours.handlers) == (logging.NOTSET, True, [])


@pytest.mark.parametrize("by_epoch", [False, True])
def test_the_solvers_picture_of_the_losses_has_one_of_the_weights_beside_it(
    tmp_path, by_epoch, monkeypatch
):
    drawn, plot_curve = [], ppsci.utils.misc.plot_curve

    def noted(data, xlabel, ylabel, output_dir, smooth_step, use_semilogy):
        drawn.append((ylabel, list(data), smooth_step, use_semilogy))
        plot_curve(data, xlabel, ylabel, output_dir, smooth_step, use_semilogy)

    monkeypatch.setattr(ppsci.utils.misc, "plot_curve", noted)
    model, constraint, equation = apart()
    aggregator = GradNormAggregator.of(model, constraint, equation)
    solver = ppsci.solver.Solver(
        *(model, constraint, str(tmp_path), ppsci.optimizer.Adam(1e-3)(model)),
        **{"epochs": 4, "iters_per_epoch": 5, "equation": equation},
        loss_aggregator=aggregator,
    )
    aggregator.log_to(solver)
    with pytest.raises(ValueError, match=r"no weights to draw: call aggregator\.log_to"):
        aggregator.plot_weights(str(tmp_path))
    solver.train()
    solver.plot_loss_history(by_epoch=by_epoch)
    loss = "Epoch-Loss_curve.jpg" if by_epoch else "Iteration-Loss_curve.jpg"
    assert drawn[1] == ("Weight", aggregator.names, 5 if by_epoch else 1, True)
    assert {path.name for path in tmp_path.glob("*.jpg")} == {loss, "Iteration-Weight_curve.jpg"}
    weights = aggregator._log.history.to_numpy()["weights"]
    assert weights.shape == (20, 3)
    assert (weights[0] == 1).all()
    assert (weights[19] == aggregator.get_weights()).all()


def test_the_weights_of_a_long_run_are_thinned_and_drawn_where_they_were(monkeypatch, tmp_path):
    """In the picture a weight between two kept steps is that of the first of them."""
    solver, _ = problem.solver(tmp_path, lambda model: None)
    log = SolverLog()
    log.start(solver, {"weight": lambda: np.ones(2)})
    log.history = History(limit=1000)
    log.enter(["a", "b"])
    for step in range(3000):
        log.record(np.array([1.0, step]))
    assert len(log.history.steps) < 1010
    drawn = []
    monkeypatch.setattr(ppsci.utils.misc, "plot_curve", lambda *options: drawn.append(options))
    plot_weights(log.history, str(tmp_path), smooth_step=7, use_semilogy=True)
    ((curves, *_, smooth_step, _),) = drawn
    assert list(curves) == ["a", "b"] and len(curves["a"]) == 3000 and smooth_step == 7
    assert curves["b"][:2990] == [float(step // 4 * 4) for step in range(2990)]
    assert curves["b"][2990:] == [float(step) for step in range(2990, 3000)]


def test_every_solver_draws_its_own_weights(monkeypatch, tmp_path):
    """A second Solver with the same aggregator leaves the first one's picture as it was."""
    drawn = []

    def noted(data, xlabel, ylabel, output_dir, smooth_step, use_semilogy):
        if ylabel == "Weight":
            drawn.append((output_dir, data))

    monkeypatch.setattr(ppsci.utils.misc, "plot_curve", noted)
    model, constraint, equation = apart()
    aggregator = GradNormAggregator.of(model, constraint, equation)
    solvers = []
    for epochs in (2, 3):
        solver = ppsci.solver.Solver(
            *(model, constraint, str(tmp_path / str(epochs)), ppsci.optimizer.Adam(1e-3)(model)),
            **{"epochs": epochs, "iters_per_epoch": 5, "equation": equation},
            loss_aggregator=aggregator,
        )
        aggregator.log_to(solver)
        if epochs == 3:
            with pytest.raises(ValueError, match=r"no weights to draw: .* just before solver"):
                solver.plot_loss_history()
        solver.train()
        solvers.append(solver)
    for solver in solvers:
        solver.plot_loss_history()
    (first, of_first), (second, of_second) = drawn
    assert (first, second) == (str(tmp_path / "2"), str(tmp_path / "3"))
    assert list(of_first) == list(of_second) == aggregator.names
    assert {len(weights) for weights in of_first.values()} == {10}
    assert {len(weights) for weights in of_second.values()} == {15}
    assert [weights[0] for weights in of_first.values()] == [1, 1, 1]
    assert [weights[0] for weights in of_second.values()] != [1, 1, 1]


def test_a_solver_that_does_not_have_the_aggregator_is_refused(tmp_path):
    solver, _ = problem.solver(tmp_path, gradnorm())
    forgotten = GradNormAggregator(solver.model)
    with pytest.raises(ValueError, match="has the loss_aggregator GradNormAggregator, not this"):
        forgotten.log_to(solver)
