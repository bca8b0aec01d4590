import warnings

import pytest

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer
from paddlescience_gradnorm.balancing._faults import FaultReporter


@pytest.fixture
def reporter():
    return FaultReporter("the update is skipped")


def messages(record):
    return [str(warning.message) for warning in record]


def test_a_fault_is_told_once(reporter, recorded_warnings):
    for step in (3, 4, 5):
        reporter.report(step, "loss 'pde'", "is nan")
    assert messages(recorded_warnings) == ["step 3: loss 'pde' is nan; the update is skipped"]
    assert recorded_warnings[0].category is RuntimeWarning


def test_another_fault_and_the_fault_of_another_are_told(reporter, recorded_warnings):
    for what, fault in [("a", "is nan"), ("b", "is nan"), ("a", "is inf"), ("b", "is nan")]:
        reporter.report(0, what, fault)
    told = [message.split("; ")[0] for message in messages(recorded_warnings)]
    assert told == ["step 0: a is nan", "step 0: b is nan", "step 0: a is inf"]


def test_numbers_do_not_make_it_another_fault(reporter, recorded_warnings):
    reporter.report(0, "a", "is denormal", "1e-42")
    reporter.report(1, "a", "is denormal", "2e-42")
    assert messages(recorded_warnings) == ["step 0: a is denormal (1e-42); the update is skipped"]


def test_what_is_forgotten_is_told_again(reporter, recorded_warnings):
    for forgotten in ("nothing", "a", None):
        reporter.report(0, "a", "is nan")
        reporter.report(0, "a", "is inf")
        reporter.report(0, "b", "is nan")
        reporter.forget(forgotten)
    reporter.report(0, "b", "is nan")
    told = [message[len("step 0: ") :].split(";")[0] for message in messages(recorded_warnings)]
    first = ["a is nan", "a is inf", "b is nan"]
    assert told == [*first, "a is nan", "a is inf", "b is nan"]


def test_reporters_know_nothing_of_each_other(reporter, recorded_warnings):
    FaultReporter("it goes on").report(0, "a", "is nan")
    reporter.report(0, "a", "is nan")
    assert [message.split("; ")[1] for message in messages(recorded_warnings)] == [
        "it goes on",
        "the update is skipped",
    ]


def test_a_warning_can_be_made_an_error(reporter):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="step 7: a is nan"):
            reporter.report(7, "a", "is nan")


def test_a_warning_points_at_the_users_line(recorded_warnings):
    net = GradNorm(FCNet(1, 1, 2, 4), alpha=1.0, weight_lr=0.1)
    balancer = LossBalancer(FCNet(1, 1, 2, 4), equations=[])
    for each in (net.backward, balancer.backward):
        shared = net.get_last_shared_layer() if each == net.backward else balancer.shared[0]
        each([shared.square().sum(), float("nan") * shared.sum()])
    assert [warning.filename for warning in recorded_warnings] == [__file__] * 2
