import numpy as np
import paddle
import pytest

from paddlescience_gradnorm._layers import shielded_parameter
from paddlescience_gradnorm.balancing import Measurement
from paddlescience_gradnorm.balancing._caller_stepped import CallerStepped
from paddlescience_gradnorm.balancing._losses import LossOrder
from paddlescience_gradnorm.balancing._run import Run


def new(n_loss=2):
    weights = shielded_parameter(np.ones(n_loss), "float32")
    return Run.before_a_step(LossOrder(n_loss), CallerStepped(0.25, weights))


def trained():
    run = new()
    run.order.scalars({"pde": paddle.to_tensor(1.0), "bc": paddle.to_tensor(2.0)})
    run.last = Measurement(
        np.array([1.0, 2.0]),
        np.array([[4.0, -1.0], [-1.0, 9.0]]),
        equations=np.array([True, False]),
        step=7,
        rate=0.5,
    )
    run.in_two_passes, run.imbalance, run.caller.updates = False, 3.0, 5
    return run


def test_nothing_is_known_before_a_step():
    run = new(3)
    assert run.last.step == -1 and np.isnan(run.last.losses).all()
    assert run.last.gram.shape == (3, 3) and np.isnan(run.last.norms).all()
    assert run.names is None and not run.accumulation.is_within_a_step


def test_a_resumed_run_knows_what_its_state_says():
    old = trained()
    run = new().resumed(old.extra_state(), measured=True, interval=10, floor=0.125)
    assert run.order.known == ["pde", "bc"] and run.in_two_passes is False
    assert run.imbalance == 3 and run.caller.updates == 5
    assert (run.last.step, run.last.rate, run.last.interval, run.last.floor) == (7, 0.5, 10, 0.125)
    assert run.last.losses.tolist() == [1, 2] and run.last.equations.tolist() == [True, False]
    assert run.last.gram.tolist() == old.last.gram.tolist()
    assert run.names is None  # so that the next step finds out again which are equations


@pytest.mark.parametrize("in_two_passes", [None, False, True])
def test_the_way_that_gradients_are_taken_comes_back(in_two_passes):
    old = trained()
    old.in_two_passes = in_two_passes
    run = new().resumed(old.extra_state(), measured=True, interval=1, floor=0.125)
    assert run.in_two_passes is in_two_passes


def test_a_run_without_gradients_has_none_when_it_is_resumed():
    old = trained()
    old.last = Measurement(np.array([1.0, 2.0]))
    state = old.extra_state()
    assert np.isnan(state["last"]["gram"]).all()
    assert new().resumed(state, measured=False, interval=1, floor=0.125).last.gram is None


def test_a_step_that_is_discarded_leaves_nothing():
    run = trained()
    run.accumulation.add(paddle.ones([2]), np.ones([2, 3], np.float32))
    run.unchecked, run.caller.awaited = (8, paddle.ones([2])), 9
    run.discard_step()
    assert not run.accumulation.is_within_a_step and run.unchecked is None
    assert run.caller.awaited == -1 and run.last.step == 7
