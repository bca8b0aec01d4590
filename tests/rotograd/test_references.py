import numpy as np
import pytest

from paddlescience_gradnorm.rotograd._references import References


@pytest.fixture
def references():
    return References(2, burn_in_period=2)


def run(references, steps):
    for values in steps:
        step = references.step_count.item()
        taken = references.take("initial_losses", step, np.array(values))
        references.step_count.fill_(step + 1)
        assert taken.tolist() == references.initial_losses.tolist()
    return references.initial_losses.tolist()


def test_they_are_those_of_the_first_step_and_of_the_one_after_the_burn_in(references):
    assert run(references, [[1.0, 2.0], [3.0, 4.0]]) == [1, 2]
    assert run(references, [[5.0, 6.0], [7.0, 8.0]]) == [5, 6]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_what_cannot_be_a_reference_is_none(references, bad):
    assert run(references, [[1.0, bad]]) == [1, 0]
    assert run(references, [[3.0, 4.0]]) == [1, 4]  # the first value that can
    assert run(references, [[bad, 6.0]]) == [1, 6]  # the old one stays


def test_they_are_part_of_the_state(references):
    run(references, [[1.0, 2.0]])
    twin = References(2, burn_in_period=2)
    twin.set_state_dict(references.state_dict())
    assert run(twin, [[3.0, 4.0]]) == [1, 2]
    assert run(twin, [[5.0, 6.0]]) == [5, 6]


def test_a_state_loaded_later_replaces_what_was_known(references):
    untrained = {key: value.clone() for key, value in references.state_dict().items()}
    run(references, [[1.0, 2.0]] * 4)
    references.set_state_dict(untrained)
    assert run(references, [[3.0, 4.0]]) == [3, 4]


def test_a_fault_is_reported_once_until_it_has_passed(references, recorded_warnings):
    finite, bad = np.array([1.0, 2.0]), np.array([1.0, np.inf])
    usable = [
        references.observe(step, finite, norms, np.stack([norms, finite]))
        for step, norms in enumerate((finite, bad, bad, finite, bad))
    ]
    assert usable == [True, False, False, True, False]
    messages = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    assert [message.split(":")[0] for message in messages] == ["step 1", "step 4"]
    assert "inf" in messages[0] and "[1.0, 2.0]" in messages[0]
