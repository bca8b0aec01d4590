import math

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.balancing import GradNormRule, Measurement, PinnRule
from paddlescience_gradnorm.balancing._faults import FaultReporter
from paddlescience_gradnorm.balancing._schedule import ALONE, EMPTY, Schedule, missed_after
from paddlescience_gradnorm.balancing._update import Update

NAMES = ["pde", "bc", "data"]
NONE = [0, 0, 0]


def schedule(rule=None):
    return Schedule(rule or PinnRule(), FaultReporter("it is left out"))


def losses_of(*values):
    return [paddle.to_tensor(float(value), stop_gradient=False) for value in values]


FULL, WITHOUT_DATA = losses_of(1, 2, 3), losses_of(1, 2, 0)


def update_of(balanced, faults):
    return Update(np.ones(3), {}, np.array(balanced, bool), faults)


def measured(*losses, step=0):
    return Measurement(np.array(losses), step=step)


@pytest.mark.parametrize("update_every", [1, 3, 10])
def test_an_update_is_due_in_every_kth_step(update_every):
    regular = schedule()
    due = [step for step in range(31) if regular.is_due(step, update_every, FULL, NONE)]
    assert due == list(range(0, 31, update_every))
    assert not regular.makes_up and regular.only(NONE) is None


def test_nothing_is_due_while_it_is_frozen_even_within_a_step():
    frozen = schedule()
    assert frozen.is_due(0, 1, FULL, NONE)
    frozen.frozen = True
    assert not frozen.is_due(0, 1, FULL, NONE) and not frozen.is_due(1, 1, FULL, [0, 0, EMPTY])
    frozen.frozen = False
    assert not frozen.is_due(1, 1, FULL, NONE)  # as its first micro-batch
    assert frozen.is_due(2, 1, FULL, NONE)


def test_a_step_that_has_the_missed_loss_makes_up_for_its_update():
    late, missed = schedule(), [0, ALONE, EMPTY]
    assert not late.is_due(11, 10, WITHOUT_DATA, missed)
    assert late.is_due(12, 10, FULL, missed) and late.makes_up
    assert late.only(missed) == [False, True, True]
    assert late.is_due(20, 10, FULL, missed) and not late.makes_up and late.only(missed) is None


@pytest.mark.parametrize("missed", [NONE, [0, 0, ALONE], [ALONE, EMPTY, 0]])
def test_only_an_empty_loss_asks_for_a_step_of_its_own(missed):
    losses = [FULL[0], WITHOUT_DATA[2], FULL[2]]
    assert not schedule().is_due(11, 10, losses, missed)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
def test_a_loss_is_there_if_it_could_be_balanced(value):
    assert not schedule().is_due(1, 10, losses_of(1, 2, value), [0, 0, EMPTY])


@pytest.mark.parametrize(("alpha", "is_there"), [(0.0, True), (1.0, False)])
def test_a_negative_loss_is_there_for_a_rule_without_ratios(alpha, is_there):
    losses = losses_of(1, 2, -3)
    assert schedule(GradNormRule(alpha)).is_due(1, 10, losses, [0, 0, EMPTY]) == is_there


def test_a_loss_without_a_graph_is_not_there():
    constant = [*FULL[:2], paddle.to_tensor(3.0)]
    assert not schedule().is_due(1, 10, constant, [0, 0, EMPTY])


def test_the_first_micro_batch_decides():
    parts, missed = schedule(), [0, 0, EMPTY]
    assert parts.is_due(10, 10, WITHOUT_DATA, missed) and parts.is_due(10, 10, FULL, missed)
    assert not parts.is_due(11, 10, WITHOUT_DATA, missed)
    assert not parts.is_due(11, 10, FULL, missed)  # too late, so the next step makes up for it
    assert parts.is_due(12, 10, WITHOUT_DATA, missed) and parts.makes_up
    assert not parts.is_due(13, 10, WITHOUT_DATA, missed)


def test_a_forgotten_step_is_decided_anew():
    begun = schedule()
    assert not begun.is_due(11, 10, WITHOUT_DATA, [0, 0, EMPTY])
    begun.forget_step()
    assert begun.is_due(11, 10, FULL, [0, 0, EMPTY])


def test_a_resumed_schedule_is_a_new_one():
    old, missed = schedule(), [0, 0, EMPTY]
    old.record(update_of([1, 1, 0], ["", "", "is nan"]), measured(1, 1, math.nan), NAMES, missed)
    old.is_due(11, 10, WITHOUT_DATA, missed)
    old.is_due(11, 10, FULL, missed)
    old.resume(frozen=False)
    assert old.left_out == {} and not old.is_due(12, 10, WITHOUT_DATA, missed)
    old.resume(frozen=True)
    assert old.frozen


def test_what_an_update_has_missed():
    faults = ["", "is 0", "has no gradient on the shared parameters"]
    of = update_of([1, 0, 0], faults), measured(1, 0, 2)
    assert missed_after(*of, NONE, makes_up=False) == [0, EMPTY, 0]
    nan = update_of([0, 0, 1], ["", "is nan", ""]), measured(1, math.nan, 1)
    assert missed_after(*nan, NONE, makes_up=False) == [ALONE, EMPTY, 0]
    # Those that had been balanced before an update that makes up for another miss nothing by it.
    assert missed_after(*nan, [0, EMPTY, 0], makes_up=True) == [0, EMPTY, 0]
    assert missed_after(*nan, [ALONE, EMPTY, 0], makes_up=True) == [ALONE, EMPTY, 0]


def test_a_loss_is_left_out_since_the_first_of_the_updates_in_a_row():
    account, missed, fault = schedule(), [0, 0, 0], ["", "is nan", ""]
    for step, faults in ((0, [""] * 3), (10, fault), (20, fault)):
        value = math.nan if any(faults) else 1.0
        measurement = measured(1, value, 1, step=step)
        account.record(update_of([1, not any(faults), 1], faults), measurement, NAMES, missed)
    assert account.left_out == {"bc": (10, "is nan")} and missed == [0, EMPTY, 0]
    account.record(update_of([1, 1, 1], [""] * 3), measured(1, 1, 1, step=30), NAMES, missed)
    assert account.left_out == {} and missed == NONE


def test_a_loss_without_a_name_is_not_listed():
    account = schedule()
    update = update_of([1, 0, 0], ["", "is nan", "is 0"])
    account.record(update, measured(1, math.nan, 0), NAMES[:2], [0, 0, 0])
    assert account.left_out == {"bc": (0, "is nan")}


def test_an_update_that_makes_up_for_another_starts_no_new_entry():
    account, missed = schedule(), [0, 0, EMPTY]
    assert account.is_due(11, 10, FULL, missed) and account.makes_up
    update = update_of([0, 0, 1], ["", "is 0", ""])
    account.record(update, measured(1, 0, 1, step=11), NAMES, missed)
    assert account.left_out == {} and missed == NONE


def test_progress_is_a_share_of_the_steps_that_are_planned():
    plan = schedule()
    assert math.isnan(plan.progress(3))
    plan.plan(8)
    assert [plan.progress(step) for step in (0, 2, 8, 9)] == [0, 0.25, 1, 1]
    plan.plan(None)
    assert math.isnan(plan.progress(3))


def test_a_number_of_steps_by_the_user_stays():
    plan = schedule()
    plan.give(10)
    for planned in (100, None):
        plan.plan(planned)
        assert plan.total_steps == 10 and plan.progress(5) == 0.5
    plan.give(None)
    plan.plan(20)
    assert plan.total_steps == 20
