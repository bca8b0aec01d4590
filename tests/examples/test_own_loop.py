"""The examples run, and so do the programs that they were before the marked lines came."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import LossBalancer

DIRECTORY = Path(__file__).parents[2] / "examples/own_loop"


@pytest.fixture(params=["plain_loop", "model_fit"])
def source(request, monkeypatch):
    monkeypatch.syspath_prepend(str(DIRECTORY))
    # The first is imported by the second; a test module may have left another by its name.
    monkeypatch.delitem(sys.modules, "plain_loop", raising=False)
    return DIRECTORY / f"{request.param}.py"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def errors(net, data):
    outputs = net(data.inputs)
    return np.array(
        [
            (outputs[0] - data.displacement).square().mean().item(),
            (outputs[1] - data.acceleration).square().mean().item(),
        ]
    )


def test_it_learns_and_balances(source, monkeypatch):
    balancers = []
    initialize = LossBalancer.__init__

    def recorded(self, *args, **kwargs):
        initialize(self, *args, **kwargs)
        balancers.append(self)

    monkeypatch.setattr(LossBalancer, "__init__", recorded)
    module = load(source)
    paddle.seed(0)
    start = errors(module.Network(), module.Oscillators(1000))
    net, data = module.main(epochs=8)
    assert (errors(net, data) < 0.9 * start).all()
    (balancer,) = balancers
    # One update for every batch; evaluating has made none.
    assert int(balancer.step_count) == 8 * 10
    weights = balancer.get_weights()
    assert weights[0] > 1.2 and weights.sum() == pytest.approx(2, abs=1e-5)


def test_without_the_marked_lines_it_is_the_program_from_before(source, tmp_path, capsys):
    code = source.read_text()
    assert code.count("# GradNorm: ") >= 3
    code = re.sub(r"^.*# GradNorm: added.*\n", "", code, flags=re.MULTILINE)
    code = re.sub(r"^( *).*# GradNorm: instead of (.*)$", r"\1\2", code, flags=re.MULTILINE)
    assert "alancer" not in code and "paddlescience_gradnorm" not in code
    (tmp_path / source.name).write_text(code)
    net, data = load(tmp_path / source.name).main(epochs=8)
    assert errors(net, data)[1] < 250  # untrained: 343
    assert "weights" not in capsys.readouterr().out
