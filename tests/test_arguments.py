import numpy as np
import pytest

from paddlescience_gradnorm import _arguments


@pytest.mark.parametrize("value", [2, 2.5, np.float32(0.5), np.int64(3), float("inf")])
def test_numbers_pass(value):
    assert _arguments.number("lr", value) == float(value)


@pytest.mark.parametrize("value", [True, "2", None, 1j, [1.0]])
def test_what_is_no_number_is_named(value):
    with pytest.raises(TypeError, match="lr must be a number, got "):
        _arguments.number("lr", value)


@pytest.mark.parametrize("value", [2, np.int64(2)])
def test_integers_pass(value):
    assert _arguments.integer("n", value, at_least=2) == 2


@pytest.mark.parametrize(
    "value, error, match",
    [
        (1, ValueError, "n must be at least 2, got 1"),
        (2.0, TypeError, "n must be an integer, got 2.0"),
        (True, TypeError, "n must be an integer, got True"),
    ],
)
def test_other_integers_are_named(value, error, match):
    with pytest.raises(error, match=match):
        _arguments.integer("n", value, at_least=2)


@pytest.mark.parametrize(
    "name, message",
    [
        ("residuals", "taker has no option 'residuals', which is called 'equations' now"),
        ("lr", "taker has no option 'lr', which is called 'weight_lr' now"),
        ("update_evry", "taker has no option 'update_evry'; did you mean 'update_every'?"),
        ("lead", r"no option 'lead', which is one of the .* rule: pass rule=PinnRule\(lead=...\)"),
        ("xyz", "taker has no option 'xyz'$"),
    ],
)
def test_an_option_that_there_is_not_is_refused_with_the_one_that_was_meant(name, message):
    def takes(update_every=1, equations=()):
        pass

    with pytest.raises(TypeError, match=message):
        _arguments.refuse("taker", {name: 1}, takes)
    _arguments.refuse("taker", {}, takes)
