import numpy as np
import pytest

from paddlescience_gradnorm import arguments


@pytest.mark.parametrize("value", [2, 2.5, np.float32(0.5), np.int64(3), float("inf")])
def test_numbers_pass(value):
    assert arguments.number("lr", value) == float(value)


@pytest.mark.parametrize("value", [True, "2", None, 1j, [1.0]])
def test_what_is_no_number_is_named(value):
    with pytest.raises(TypeError, match="lr must be a number, got "):
        arguments.number("lr", value)


@pytest.mark.parametrize("value", [2, np.int64(2)])
def test_integers_pass(value):
    assert arguments.integer("n", value, at_least=2) == 2


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
        arguments.integer("n", value, at_least=2)
