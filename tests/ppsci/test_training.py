"""What the aggregator finds out about the training of a real Solver."""

import weakref

import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import paddle
import ppsci
import ppsci_problem as problem
from ppsci_problem import pinn

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer
from paddlescience_gradnorm.pde.problems import problem as pde_problem
from paddlescience_gradnorm.ppsci import GradNormAggregator
from paddlescience_gradnorm.ppsci._training import training_solver
from paddlescience_gradnorm.training import Checkpoints, Trainer


@pytest.mark.parametrize(
    "settings, total",
    [
        ({"epochs": 5}, 5),
        ({"epochs": 4, "iters_per_epoch": 3, "batch": 8}, 12),
        ({"epochs": 4, "iters_per_epoch": 3, "batch": 8, "update_freq": 2}, 8),
        ({"epochs": 5, "update_freq": 4}, 5),
    ],
)
def test_the_solver_tells_how_long_the_run_is(solve, solver_log, settings, total):
    text = solver_log()
    _, aggregator, _ = solve(pinn(), **settings)
    balancer = aggregator.balancer
    assert balancer.total_steps == total == balancer.step_count.item()
    assert f"that grows between steps 0 and {round(0.5 * total)}" in text()


@pytest.mark.skipif(not hasattr(ppsci.optimizer, "SOAP"), reason="came with PaddleScience 1.4.0")
def test_a_training_by_soap_resumes_to_the_last_bit(tmp_path):
    def trainer():
        paddle.seed(0)
        losses = pde_problem("poisson").sample(60, seed=0).losses
        net = GradNorm(FCNet(2, 1, 3, 8))
        soap = ppsci.optimizer.soap.SOAP(net.parameters(), 1e-3, weight_decay=0.0)
        return Trainer(net, losses, soap, progress=False)

    whole, first, second = trainer(), trainer(), trainer()
    whole.net.balancer.total_steps = first.net.balancer.total_steps = 30
    second.net.balancer.total_steps = 30
    whole.fit(epochs=30)
    first.fit(epochs=14, checkpoints=Checkpoints(tmp_path, every=14))
    second.fit(epochs=30, checkpoints=Checkpoints(tmp_path, every=14), resume="latest")
    for one, other in zip(whole.net.parameters(), second.net.parameters()):
        assert one.numpy().tobytes() == other.numpy().tobytes()
    assert (whole.net.get_weights() == second.net.get_weights()).all()


def test_each_step_of_lbfgs_counts_as_the_steps_to_an_update(solve):
    lbfgs = ppsci.optimizer.LBFGS(1.0, max_iter=15)
    _, aggregator, _ = solve(pinn(update_every=10), optimizer=lbfgs, epochs=6)
    assert aggregator.balancer.total_steps == 60 == aggregator.balancer.step_count.item()


def test_a_resumed_training_has_the_length_of_the_whole(solve, tmp_path):
    solve(pinn(), epochs=4, save_freq=2)
    checkpoint = str(tmp_path / "run/checkpoints/epoch_2")
    _, aggregator, _ = solve(pinn(), epochs=6, checkpoint_path=checkpoint)
    assert aggregator.balancer.total_steps == 6 == aggregator.balancer.step_count.item()


def test_a_resumed_training_by_lbfgs_has_the_length_of_the_whole(solve, tmp_path):
    """Of its steps, each of which counts as many, or of the training by Adam before it."""
    settings = {"optimizer": ppsci.optimizer.LBFGS(1.0, max_iter=15), "epochs": 4}
    solve(pinn(update_every=10), save_freq=2, **settings)
    checkpoint = str(tmp_path / "run/checkpoints/epoch_2")
    _, aggregator, _ = solve(pinn(update_every=10), checkpoint_path=checkpoint, **settings)
    assert aggregator.balancer.total_steps == 40 == aggregator.balancer.step_count.item()
    state = aggregator.state_dict()
    for given, expected in ((None, 40), (77, 77)):
        other = solve(pinn(total_steps=given), epochs=1)[1]
        other.set_state_dict(state)
        assert other.balancer.total_steps == expected


@pytest.mark.parametrize("by_lbfgs", [False, True])
def test_only_what_the_solver_trains_is_shared(by_lbfgs):
    """As where one network learns what another has learned in a training before."""
    nets = [ppsci.arch.MLP(("x", "y"), (name,), 2, 8) for name in "uw"]
    model = ppsci.arch.ModelList(nets)
    square = ppsci.geometry.Rectangle((0.0, 0.0), (1.0, 1.0))
    loader = {"dataset": "IterableNamedArrayDataset", "iters_per_epoch": 1, "batch_size": 8}
    constraint = {
        name: kind(expression, dict.fromkeys(expression, 1), square, loader, ppsci.loss.MSELoss())
        for name, kind, expression in (
            ("EQ", ppsci.constraint.InteriorConstraint, {"pde": lambda out: out["u"] + out["w"]}),
            ("BC", ppsci.constraint.BoundaryConstraint, {"u": lambda out: out["u"]}),
        )
    }
    both = ppsci.optimizer.OptimizerList(tuple(ppsci.optimizer.Adam(1e-3)(net) for net in nets))
    aggregator = GradNormAggregator.of(model, constraint, equations=["EQ.pde"])
    chosen = GradNormAggregator.of(model, constraint, equations=["EQ.pde"], shared=nets)

    def train(aggregator, optimizer):
        ppsci.solver.Solver(
            *(model, constraint, None, optimizer),
            epochs=1,
            iters_per_epoch=1,
            loss_aggregator=aggregator,
        ).train()
        return [id(p) for p in aggregator.balancer.shared]

    of_nets = [[id(p) for p in net.parameters()] for net in nets]
    adam, lbfgs = ppsci.optimizer.Adam(), ppsci.optimizer.LBFGS(max_iter=2)
    one = (lbfgs if by_lbfgs else adam)(nets[0])
    assert train(aggregator, one) == of_nets[0]
    assert train(aggregator, both) == of_nets[0] + of_nets[1]
    assert train(chosen, one) == of_nets[0] + of_nets[1]


def test_a_second_training_is_added_to_the_first(tmp_path):
    model, aggregator = None, None

    def known(new):
        nonlocal model, aggregator
        if aggregator is None:
            model, aggregator = new, pinn()(new)
        return aggregator

    for total in (3, 6):
        solver, _ = problem.solver(tmp_path, known, lambda new: model or new, epochs=3)
        solver.train()
        assert aggregator.balancer.total_steps == total == aggregator.balancer.step_count.item()
    # L-BFGS ends a run, so the lead of its conditions stays.
    lbfgs = ppsci.optimizer.LBFGS(1.0, max_iter=2)
    solver, _ = problem.solver(tmp_path, known, lambda new: model, optimizer=lbfgs, epochs=2)
    solver.train()
    assert aggregator.balancer.total_steps == 6


def test_looking_for_the_solver_keeps_no_losses_alive(solve):
    kept = []

    class Watched(GradNormAggregator):
        def forward(self, losses, step=None):
            if step == 0:
                kept.extend(weakref.ref(loss) for loss in losses.values())
            elif step == 2:  # the Solver itself keeps those of the step before
                assert kept and not any(loss() for loss in kept)
                kept.clear()
            return super().forward(losses, step)

    # All steps in one epoch, so that the function that makes them does not end between.
    solve(lambda model: Watched(model, 3), epochs=1, iters_per_epoch=3)
    assert not kept


def test_in_a_loop_of_ones_own_nobody_knows(fc_net, make_losses):
    aggregator = GradNormAggregator(fc_net, 3, equations=["pde"])
    losses = dict(zip(["pde", "bc", "data"], make_losses(fc_net)))
    aggregator(losses).backward()
    assert aggregator.balancer.total_steps is None and training_solver(aggregator) is None


def test_a_number_by_the_user_stays(solve):
    _, aggregator, _ = solve(pinn(total_steps=77))
    assert aggregator.balancer.total_steps == 77
    assert isinstance(aggregator.balancer, LossBalancer)
