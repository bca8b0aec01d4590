import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.balancing._accumulation import (
    Accumulation,
    BalancerState,
    loss_scaling,
)

BEFORE = BalancerState({"step_count": np.array(5), "loss_weights": np.array([0.5, 1.5])}, None)


class Scaler:
    """What a ``paddle.amp.GradScaler`` shows of its work."""

    def __init__(self):
        self._found_inf = paddle.to_tensor([False])

    def look(self, overflow):
        self._found_inf = paddle.to_tensor([overflow])


@pytest.fixture(params=["on the host", "on an accelerator"])
def rows_of(request):
    """Makes gradients in both of their forms."""
    if request.param == "on the host":
        return lambda values: np.array(values, np.float32)
    return paddle.to_tensor


def losses_of(*values):
    return paddle.to_tensor(values)


def values_of(means):
    return [None if mean is None else np.asarray(mean).tolist() for mean in means]


@pytest.fixture
def two_parts(rows_of):
    accumulation = Accumulation()
    accumulation.add(losses_of(1.0, 4.0), rows_of([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    accumulation.add(losses_of(3.0, 0.0), rows_of([[3.0, 2.0, 1.0], [0.0, 1.0, 2.0]]))
    return accumulation


MEANS = [[2.0, 2.0], [[2.0, 2.0, 2.0], [2.0, 3.0, 4.0]]]


def test_losses_and_gradients_are_averaged_over_the_micro_batches(two_parts):
    assert values_of(two_parts.means()) == MEANS


def test_one_part_is_what_it_is(rows_of):
    accumulation, rows = Accumulation(), rows_of([[1.0, 2.0]])
    accumulation.add(losses_of(0.1), rows)
    losses, means = accumulation.means()
    assert losses.tolist() == [np.float32(0.1)] and np.asarray(means).tolist() == [[1.0, 2.0]]


def test_without_gradients_there_are_means_of_the_losses_alone():
    accumulation = Accumulation()
    accumulation.add(losses_of(1.0, 4.0), None)
    accumulation.add(losses_of(3.0, 0.0), None)
    assert values_of(accumulation.means()) == [[2.0, 2.0], None]


@pytest.mark.parametrize("multiplier", [0.5, paddle.full([1], 0.5)])
def test_what_gradients_have_been_multiplied_by_does_not_count(rows_of, multiplier):
    accumulation = Accumulation()
    accumulation.add(losses_of(1.0, 2.0), rows_of([[1.0], [2.0]]), multiplier)
    accumulation.add(losses_of(1.0, 2.0), rows_of([[3.0], [4.0]]), multiplier)
    assert values_of(accumulation.means()) == [[1.0, 2.0], [[4.0], [6.0]]]


def test_a_part_that_is_changed_later_counts_as_it_was(two_parts, rows_of):
    losses, rows = losses_of(1.0, 1.0), rows_of([[1.0] * 3] * 2)
    two_parts.add(losses, rows)
    expected = values_of(two_parts.means())
    losses.fill_(7.0)
    rows[:] = 7.0
    assert values_of(two_parts.means()) == expected


def test_a_step_lasts_from_its_first_part_to_its_end(two_parts):
    assert not Accumulation().is_within_a_step and two_parts.is_within_a_step
    two_parts.end_step(BEFORE)
    assert not two_parts.is_within_a_step
    two_parts.add(losses_of(9.0, 9.0), np.full([2, 3], 9.0, np.float32))
    assert two_parts.is_within_a_step
    assert values_of(two_parts.means()) == [[9.0] * 2, [[9.0] * 3] * 2]  # the next step's alone


def test_a_step_that_is_taken_back_is_open_again_with_its_parts(two_parts, rows_of):
    two_parts.end_step(BEFORE)
    assert two_parts.take_back() is BEFORE and two_parts.is_within_a_step
    assert values_of(two_parts.means()) == MEANS
    two_parts.add(losses_of(5.0, 2.0), rows_of([[2.0, 2.0, 5.0], [5.0, 0.0, 4.0]]))
    assert values_of(two_parts.means()) == [[3.0, 2.0], [[2.0, 2.0, 3.0], [3.0, 2.0, 4.0]]]
    # And once more.
    two_parts.end_step(BEFORE)
    assert two_parts.take_back() is BEFORE
    assert values_of(two_parts.means())[0] == [3.0, 2.0]


def test_a_step_is_taken_back_once(two_parts):
    two_parts.end_step(BEFORE)
    two_parts.take_back()
    with pytest.raises(RuntimeError, match="there is no step to take back"):
        two_parts.take_back()


def test_a_step_that_stands_is_not_taken_back(two_parts):
    with pytest.raises(RuntimeError, match="there is no step to take back"):
        Accumulation().take_back()
    two_parts.end_step(BEFORE)
    two_parts.add(losses_of(1.0, 1.0), None)
    two_parts.end_step(None)
    with pytest.raises(RuntimeError, match="there is no step to take back"):
        two_parts.take_back()
    assert not two_parts.is_within_a_step


def test_the_last_step_alone_is_taken_back(two_parts):
    two_parts.end_step(BEFORE)
    later = BalancerState({"step_count": np.array(6)}, None)
    two_parts.add(losses_of(8.0, 8.0), None)
    two_parts.end_step(later)
    assert two_parts.take_back() is later
    assert values_of(two_parts.means()) == [[8.0, 8.0], None]


def test_an_overflow_is_taken_back_once_and_its_parts_are_gone(two_parts):
    scaler = Scaler()
    two_parts.end_step(BEFORE, scaler)
    assert two_parts.take_back_overflow() is None  # it has not looked yet
    scaler.look(overflow=True)
    assert two_parts.take_back_overflow() is BEFORE
    assert two_parts.take_back_overflow() is None
    assert not two_parts.is_within_a_step
    with pytest.raises(RuntimeError, match="there is no step to take back"):
        two_parts.take_back()


def test_a_step_without_an_overflow_stands(two_parts):
    scaler = Scaler()
    two_parts.end_step(BEFORE, scaler)
    scaler.look(overflow=False)
    assert two_parts.take_back_overflow() is None
    scaler.look(overflow=True)  # at a step of something else
    assert two_parts.take_back_overflow() is None


def test_an_overflow_of_an_earlier_step_is_not_taken_for_one_of_this(two_parts):
    scaler = Scaler()
    scaler.look(overflow=True)
    two_parts.end_step(BEFORE, scaler)
    assert two_parts.take_back_overflow() is None


def test_without_a_scaler_there_is_no_overflow(two_parts):
    assert two_parts.take_back_overflow() is None
    two_parts.end_step(BEFORE)
    assert two_parts.take_back_overflow() is None
    assert two_parts.take_back() is BEFORE


def test_a_step_taken_back_by_hand_waits_for_no_scaler(two_parts):
    scaler = Scaler()
    two_parts.end_step(BEFORE, scaler)
    two_parts.take_back()
    scaler.look(overflow=True)
    assert two_parts.take_back_overflow() is None
    assert values_of(two_parts.means()) == MEANS


@pytest.mark.filterwarnings("ignore:.*makes no effect")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_scaling_is_what_losses_are_multiplied_by(dtype, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(paddle.base.core.Place, "is_gpu_place", lambda self: True)
        scaler = paddle.amp.GradScaler(init_loss_scaling=128.0)
    with paddle.amp.auto_cast(dtype="float16"):
        pass
    scaling = loss_scaling(scaler, getattr(paddle, dtype))
    assert scaling.tolist() == [128] and scaling.dtype == getattr(paddle, dtype)


def test_without_a_scaler_that_acts_there_is_no_scaling():
    assert loss_scaling(None, paddle.float32) is None
    assert loss_scaling(paddle.amp.GradScaler(enable=False), paddle.float32) is None


@pytest.mark.parametrize("scaler", [1024, "scaler", Scaler()])
def test_something_else_than_a_scaler_is_named(scaler):
    with pytest.raises(TypeError, match=r"scaler must be a paddle.amp.GradScaler or None, got"):
        loss_scaling(scaler, paddle.float32)
