import argparse

import pytest

from paddlescience_gradnorm import command_line


@pytest.mark.parametrize(
    "kind, text, value",
    [
        (command_line.at_least(1), "1", 1),
        (command_line.at_least(0), "0", 0),
        (command_line.at_least(0), "2147483647", 2**31 - 1),
        (command_line.non_negative, "0", 0.0),
        (command_line.non_negative, "1e-3", 1e-3),
        (command_line.positive, "0.5", 0.5),
    ],
)
def test_options_pass(kind, text, value):
    found = kind(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "kind, text, message",
    [
        (command_line.at_least(1), "0", "must be an integer from 1 to 2147483647, got '0'"),
        (command_line.at_least(0), "-1", "must be an integer from 0 to 2147483647, got '-1'"),
        (command_line.at_least(0), "2147483648", "got '2147483648'"),
        (command_line.at_least(1), "1.5", "must be an integer .*, got '1.5'"),
        (command_line.non_negative, "-1", "must be a finite number of at least 0, got '-1'"),
        (command_line.non_negative, "nan", "must be a finite number of at least 0, got 'nan'"),
        (command_line.non_negative, "inf", "got 'inf'"),
        (command_line.positive, "0", "must be a finite number above 0, got '0'"),
        (command_line.positive, "fast", "must be a finite number above 0, got 'fast'"),
    ],
)
def test_other_options_are_named(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(text)
