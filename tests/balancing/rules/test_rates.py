import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlescience_gradnorm.balancing.rules._rates import check_alpha, inverse_training_rates

columns = st.integers(1, 6).flatmap(
    lambda n: st.tuples(*[st.lists(st.floats(1e-3, 1e3), min_size=n, max_size=n)] * 2)
)


@given(columns)
def test_rates_are_the_ratios_to_the_references_over_their_mean(drawn):
    losses, initial = map(np.array, drawn)
    ratios = [loss / first for loss, first in zip(losses, initial)]
    expected = [ratio / (sum(ratios) / len(ratios)) for ratio in ratios]
    np.testing.assert_allclose(inverse_training_rates(losses, initial), expected, rtol=1e-14)


@given(columns, st.floats(1e-6, 1e6))
def test_the_mean_rate_is_1_in_any_unit(drawn, unit):
    losses, initial = map(np.array, drawn)
    rates = inverse_training_rates(losses, initial)
    np.testing.assert_allclose(rates.mean(), 1, rtol=1e-14)
    np.testing.assert_allclose(inverse_training_rates(unit * losses, initial), rates, rtol=1e-12)


def test_a_loss_that_has_become_zero_has_the_rate_zero():
    rates = inverse_training_rates(np.array([0.0, 2.0, 1.0]), np.array([1.0, 2.0, 1.0]))
    assert rates.tolist() == [0, 1.5, 1.5]


@pytest.mark.parametrize(
    "losses, initial, expected",
    [
        ([1.7e308, 1.0], [1.2e-38, 1.0], [2, 0]),  # a ratio overflows
        ([1.7e308, 1.7e308], [1.0, 1.0], [1, 1]),  # their sum does
        ([1.7e308, 1.7e308], [1.2e-38, 2.4e-38], [4 / 3, 2 / 3]),
        ([1.2e-38, 1.2e-38], [1.7e308, 0.85e308], [2 / 3, 4 / 3]),  # all of them underflow
    ],
)
def test_rates_are_finite_where_the_ratios_are_not(losses, initial, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates = inverse_training_rates(np.array(losses), np.array(initial))
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("alpha", [0, 0.0, 0.12, 3, np.float32(1.5)])
def test_alpha_in_range(alpha):
    check_alpha(alpha)


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=f"alpha must be finite and at least 0, got {alpha}"):
        check_alpha(alpha)


@pytest.mark.parametrize("alpha", ["1", None, True])
def test_alpha_of_another_type(alpha):
    with pytest.raises(TypeError, match=f"alpha must be a number, got {alpha!r}"):
        check_alpha(alpha)
