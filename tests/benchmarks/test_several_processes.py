"""What several processes cost: the model on paper, and a short run in one and two processes."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from paddlescience_gradnorm import FCNet

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import several_processes
from several_processes import Network, bytes_of, fitted, predicted


def test_the_line_through_all_reduces_that_lie_on_one_is_that_line():
    network = Network(latency=2e-5, bandwidth=3e9)
    for ranks in (2, 8):
        seconds = {size: network.all_reduce(size, ranks) for size in (4, 4000, 4_000_000)}
        found = fitted(seconds, ranks)
        assert found.latency == pytest.approx(network.latency)
        assert found.bandwidth == pytest.approx(network.bandwidth)


def test_an_all_reduce_is_messages_up_and_down_a_tree_and_bytes_around_a_ring():
    network = Network(latency=1.0, bandwidth=10.0)
    assert network.all_reduce(100, 1) == 0
    assert network.all_reduce(0, 8) == 6
    assert network.all_reduce(100, 2) == 2 + 10
    assert Network(0.0, math.inf).all_reduce(100, 4) == 0


def test_an_update_reduces_the_losses_and_their_gradients():
    assert bytes_of(5, 50) == 4 * 5 * 51
    network = Network(latency=1.0, bandwidth=4.0)
    plain = predicted(7.0, 3.0, 2, 10, 0, 2, network)
    assert plain == 7 + 2 + 10  # the network's 10 values
    assert predicted(7.0, 3.0, 2, 10, 5, 2, network) == plain + (3 + 2 + 2 * 11) / 5


def test_the_table_on_paper_has_a_row_for_each_number_of_gpus():
    table = several_processes.on_gpus(5e12, Network(1e-5, 2e10))
    assert len(table.splitlines()) == 2 + 3 * len(several_processes.GPUS)
    assert "| 10,000 | 5 | 4 x 50 | 512 |" in table


@pytest.mark.slow
def test_a_short_run_is_measured_beside_the_model(monkeypatch, capsys):
    monkeypatch.setattr(several_processes, "HERE", (1, 2))
    monkeypatch.setattr(sys, "argv", ["several_processes.py", "--repeats", "2", "--steps", "10"])
    several_processes.main()
    lines = capsys.readouterr().out.splitlines()
    (one,), (two, reduced) = ([x for x in lines if x.startswith(f"| {n} |")] for n in (1, 2))
    assert "(" not in one and two.count("(") == 3 and "µs" in reduced


def test_the_network_that_is_measured_is_that_of_the_model(monkeypatch):
    monkeypatch.setattr(several_processes, "tune_cpu", lambda **_: None)
    nets = []

    def made(*arguments):
        nets.append(FCNet(*arguments))
        return nets[-1]

    monkeypatch.setattr(several_processes, "FCNet", made)
    several_processes.measure(20, repeats=1, steps=1)
    values = {sum(int(np.prod(p.shape)) for p in net.parameters()) for net in nets}
    assert values == {several_processes.parameters(several_processes.NETWORK)} == {7851}
