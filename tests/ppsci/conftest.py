"""What the tests of the adapter for PaddleScience share besides ``ppsci_problem``."""

import logging

import paddle
import pytest


@pytest.fixture
def solve(tmp_path):
    """Trains; returns the Solver, the aggregator, and losses and weights of every step."""
    import ppsci_problem as problem  # here, because it needs PaddleScience

    def run(aggregate=None, **settings):
        settings = {"epochs": 5, "output": tmp_path / "run", **settings}
        # As in a process of its own: optimizers know parameters by name.
        with paddle.utils.unique_name.guard():
            made = aggregate or problem.gradnorm()
            solver, aggregator = problem.solver(aggregate=made, **settings)
            rows = problem.record(solver)
            solver.train()
        return solver, aggregator, rows

    return run


@pytest.fixture
def solver_log(caplog):
    """What a Solver logs from now on, as text."""
    log = logging.getLogger("ppsci")

    def listen():
        caplog.clear()
        log.setLevel("INFO")
        log.addHandler(caplog.handler)
        return lambda: caplog.text

    yield listen
    log.removeHandler(caplog.handler)
    log.setLevel("ERROR")
