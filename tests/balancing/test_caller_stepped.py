import math

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm._layers import shielded_parameter
from paddlescience_gradnorm.balancing._caller_stepped import CallerStepped, set_grad
from paddlescience_gradnorm.balancing.rule import renormalized

ALL = np.array([True, True, True])
SOME = np.array([True, False, True])
NONE = np.array([False, False, False])
START = np.ones(3)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def weights(dtype):
    return shielded_parameter(START, dtype)


@pytest.fixture
def caller(weights):
    return CallerStepped(floor=0.25, weights=weights)


def offer(caller, weights, movable=ALL, gradient=(1.0, -1.0, 2.0), step=1, scaling=None):
    """What a balancer does in step 0: the weights as they are have acted."""
    acted = weights.numpy().astype("float64")
    gradient = np.where(movable, gradient, 0.0)
    caller.offer(weights, gradient, acted, movable, step, scaling)
    return acted


def move(weights, values):
    weights.set_value(np.array(values, weights.numpy().dtype))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# The gradient that is offered.


def test_the_gradient_is_written_for_the_optimizer(caller, weights, dtype):
    offer(caller, weights, gradient=(0.1, -0.2, 1e-3))
    assert weights.grad.dtype == weights.dtype
    assert weights.grad.tolist() == np.array([0.1, -0.2, 1e-3], dtype).tolist()
    offer(caller, weights, gradient=(1.0, 2.0, 3.0))  # not added to that
    assert weights.grad.tolist() == [1, 2, 3]


def test_the_gradient_is_scaled_as_the_networks(caller, weights, dtype):
    scaling = paddle.to_tensor([1024.0], dtype)
    offer(caller, weights, gradient=(1.0, -2.0, 0.5), scaling=scaling)
    assert weights.grad.tolist() == [1024, -2048, 512]


def test_an_optimizers_decay_is_taken_off_the_weights(caller, weights):
    group = {"params": [weights], "weight_decay": 0.5}
    optimizer = paddle.optimizer.Momentum(1.0, parameters=[group])
    offer(caller, weights, gradient=(0.0, 0.0, 0.25))
    optimizer.step()
    assert weights.tolist() == [1, 1, 0.75]


@pytest.mark.parametrize("moves", [False, True])
def test_weights_that_never_move_are_pointed_out_after_100_updates(
    caller, weights, moves, recorded_warnings
):
    for step in range(99):
        offer(caller, weights, step=step + 1)
    assert not recorded_warnings
    if moves:
        move(weights, [1.0, 1.0, 1.0 + 1e-5])
    for step in range(99, 300):
        offer(caller, weights, step=step + 1)
    messages = [str(warning.message) for warning in recorded_warnings]
    if moves:
        assert messages == []
    else:
        (message,) = messages
        assert message.startswith("after 100 updates the loss weights are what they were at the")
        assert "loss_weights among its parameters, or pass weight_lr" in message


def test_the_largest_norm_is_one_that_the_dtype_can_square(caller, dtype):
    limit = np.finfo(dtype).max
    assert caller.largest_norm == pytest.approx(math.sqrt(limit) / 2)
    with np.errstate(over="raise"):
        np.square(np.array(caller.largest_norm, dtype))


# What becomes of the weights after the optimizer's step.


def test_weights_that_were_moved_are_renormalised(caller, weights):
    offer(caller, weights)
    move(weights, [3.0, 9.0, 12.0])
    close(caller.settled(weights, step=1), [3 / 8, 9 / 8, 12 / 8])
    move(weights, [-5.0, 1.0, 1.0])
    close(caller.settled(weights, step=1), [0.25, 1.375, 1.375])


def test_to_ask_what_they_are_to_be_changes_nothing(caller, weights):
    offer(caller, weights)
    move(weights, [3.0, 9.0, 12.0])
    caller.settled(weights, step=1)
    assert weights.tolist() == [3, 9, 12] and caller.acted.tolist() == [1, 1, 1]


@pytest.mark.parametrize("step", [0, 2])
def test_in_another_step_than_the_next_nobody_is_awaited(caller, weights, step):
    assert caller.settled(weights, step=0) is None  # nor before the first
    offer(caller, weights)
    move(weights, [3.0, 9.0, 12.0])
    assert caller.settled(weights, step) is None
    assert caller.settle(weights, step) and weights.tolist() == [3, 9, 12]


def test_weights_that_nobody_moved_stay_as_they_are(caller, weights):
    move(weights, [1.5, 1.25, 0.25])
    offer(caller, weights)
    assert caller.settled(weights, step=1) is None


def test_given_weights_act_in_the_first_step_alone_even_if_nobody_moves_them(weights):
    move(weights, [3.0, 9.0, 12.0])
    caller = CallerStepped(floor=0.25, weights=weights)
    offer(caller, weights)
    close(caller.settled(weights, step=1), [3 / 8, 9 / 8, 12 / 8])
    offer(caller, weights, step=2)  # as after a step that has been taken back
    assert caller.settled(weights, step=2) is None


def test_weights_that_must_not_move_are_put_back(caller, weights):
    move(weights, [0.5, 1.0, 1.5])
    offer(caller, weights, movable=NONE)
    assert caller.settled(weights, step=1) is None
    move(weights, [3.0, 9.0, 12.0])  # by momentum
    assert caller.settled(weights, step=1).tolist() == [0.5, 1.0, 1.5]


def test_weights_that_move_keep_their_sum_and_the_others_are_put_back(caller, weights):
    move(weights, [0.5, 1.0, 1.5])
    offer(caller, weights, movable=SOME)
    assert caller.settled(weights, step=1) is None
    move(weights, [3.0, 7.0, 5.0])
    close(caller.settled(weights, step=1), [0.75, 1.0, 1.25])
    move(weights, [-1.0, 7.0, 5.0])
    close(caller.settled(weights, step=1), [0.25, 1.0, 1.75])  # none below the floor
    move(weights, [0.5, 7.0, 1.5])
    close(caller.settled(weights, step=1), [0.5, 1.0, 1.5])


def test_wherever_weights_are_moved_sum_and_floor_hold(dtype):
    rng, rounding = np.random.default_rng(0), np.finfo(dtype).eps
    weights = shielded_parameter(np.ones(5), dtype)
    for floor in rng.uniform(1e-3, 0.5, 200):
        caller = CallerStepped(floor, weights)
        move(weights, renormalized(rng.lognormal(0, 2, 5), floor))
        movable = rng.random(5) < 0.7
        acted = offer(caller, weights, movable, gradient=np.ones(5))
        if not (acted[movable] > 1.01 * floor).any():
            continue  # see below
        move(weights, acted + rng.normal(0, 1, 5))
        settled = caller.settled(weights, step=1)
        assert (settled[~movable] == acted[~movable]).all()
        assert (settled[movable] >= floor).all()
        np.testing.assert_allclose(settled.sum(), acted.sum(), rtol=8 * rounding)


def test_weights_on_the_floor_that_alone_may_move_stay_there(caller, weights):
    move(weights, [0.25, 2.5, 0.25])
    offer(caller, weights, movable=SOME)
    move(weights, [0.1, 2.5, 0.4])
    settled = caller.settled(weights, step=1)
    close(settled, [0.25, 2.5, 0.25])
    assert (settled >= 0.25).all()


@pytest.mark.parametrize("moved", [0.2, 0.3, -0.1])
def test_weights_on_the_floor_that_are_moved_alike_stay_there(caller, weights, moved):
    move(weights, [0.25, 2.5, 0.25])
    offer(caller, weights, movable=SOME)
    move(weights, [moved, 2.5, moved])
    close(caller.settled(weights, step=1), [0.25, 2.5, 0.25])


@pytest.mark.parametrize("movable", [ALL, SOME, NONE])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_put_back(caller, weights, movable, bad):
    move(weights, [0.5, 1.0, 1.5])
    offer(caller, weights, movable=movable)
    move(weights, [1.0, bad, 1.0])
    assert caller.settled(weights, step=1).tolist() == [0.5, 1.0, 1.5]
    assert not caller.settle(weights, step=1)
    assert weights.tolist() == [0.5, 1.0, 1.5]
    assert caller.settle(weights, step=1)  # which is told once


def test_settling_puts_them_in_place_once(caller, weights):
    offer(caller, weights)
    move(weights, [3.0, 9.0, 12.0])
    assert caller.settle(weights, step=1)
    close(weights.numpy(), [3 / 8, 9 / 8, 12 / 8])
    assert caller.acted.tolist() == weights.numpy().astype("float64").tolist()
    once = weights.tolist()
    assert caller.settled(weights, step=1) is None
    assert caller.settle(weights, step=1) and weights.tolist() == once


def test_two_moves_in_one_step_are_settled_one_after_the_other(caller, weights):
    offer(caller, weights)
    move(weights, [3.0, 9.0, 12.0])
    caller.settle(weights, step=1)
    move(weights, [3.0, 3.0, 3.0])
    caller.settle(weights, step=1)
    assert weights.tolist() == [1, 1, 1]


# Steps without an update.


def test_in_a_step_without_an_update_a_used_gradient_is_taken_away(caller, weights):
    offer(caller, weights)
    weights.clear_gradient()  # to zero, as an optimizer does it
    caller.rest(weights, step=1, frozen=False)
    assert weights.grad is None  # with zeros the optimizer would go on by its momentum
    caller.rest(weights, step=2, frozen=False)
    assert weights.grad is None


def test_a_gradient_that_is_still_to_be_used_stays_unless_the_weights_are_frozen(caller, weights):
    offer(caller, weights, gradient=(0.0, 0.0, 3.0))
    caller.rest(weights, step=1, frozen=False)
    assert weights.grad.tolist() == [0, 0, 3]
    caller.rest(weights, step=2, frozen=True)
    assert weights.grad is None


def test_the_optimizer_is_awaited_through_steps_without_an_update(caller, weights):
    offer(caller, weights)
    caller.rest(weights, step=1, frozen=False)
    caller.rest(weights, step=2, frozen=False)
    move(weights, [3.0, 9.0, 12.0])
    assert caller.settled(weights, step=1) is None
    close(caller.settled(weights, step=3), [3 / 8, 9 / 8, 12 / 8])


def test_a_rest_after_a_state_was_loaded_awaits_nobody(caller, weights):
    offer(caller, weights)
    caller.rest(weights, step=7, frozen=False)
    move(weights, [3.0, 9.0, 12.0])
    assert caller.settled(weights, step=8) is None


# Checkpoints.


def test_a_loaded_state_goes_on_as_if_never_saved(caller, weights, recorded_warnings):
    for step in range(99):
        offer(caller, weights, step=step + 1)
    move(weights, [0.5, 1.0, 1.5])
    offer(caller, weights, movable=SOME, step=100)
    other = CallerStepped(floor=0.25, weights=shielded_parameter(START, str(weights.dtype)[7:]))
    other.set_extra_state(caller.extra_state())
    move(weights, [3.0, 7.0, 5.0])
    close(other.settled(weights, step=100), [0.75, 1.0, 1.25])
    assert other.updates == caller.updates == 100 and other.awaited == 100
    assert not recorded_warnings


def test_a_gradient_is_made_once(weights):
    set_grad(weights)
    assert weights.grad.tolist() == [0, 0, 0] and weights.grad.dtype == weights.dtype
    weights.grad.set_value(paddle.ones_like(weights))
    set_grad(weights)
    assert weights.grad.tolist() == [1, 1, 1]
