import argparse

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


@pytest.mark.parametrize(
    "kind, text, value",
    [
        (arguments.at_least(1), "1", 1),
        (arguments.at_least(0), "0", 0),
        (arguments.at_least(0), "2147483647", 2**31 - 1),
        (arguments.non_negative, "0", 0.0),
        (arguments.non_negative, "1e-3", 1e-3),
        (arguments.positive, "0.5", 0.5),
    ],
)
def test_options_pass(kind, text, value):
    found = kind(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "kind, text, message",
    [
        (arguments.at_least(1), "0", "must be an integer from 1 to 2147483647, got '0'"),
        (arguments.at_least(0), "-1", "must be an integer from 0 to 2147483647, got '-1'"),
        (arguments.at_least(0), "2147483648", "got '2147483648'"),
        (arguments.at_least(1), "1.5", "must be an integer .*, got '1.5'"),
        (arguments.non_negative, "-1", "must be a finite number of at least 0, got '-1'"),
        (arguments.non_negative, "nan", "must be a finite number of at least 0, got 'nan'"),
        (arguments.non_negative, "inf", "got 'inf'"),
        (arguments.positive, "0", "must be a finite number above 0, got '0'"),
        (arguments.positive, "fast", "must be a finite number above 0, got 'fast'"),
    ],
)
def test_other_options_are_named(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(text)
