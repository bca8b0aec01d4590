import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlescience_gradnorm.balancing.rules._non_negative import least_over_non_negative


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_it_is_the_best_of_all_sets_of_entries_above_zero(seed, number):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(number + 2, number)) * 10 ** rng.uniform(-2, 2, number)
    quadratic, linear = factor.T @ factor, factor.T @ rng.normal(size=number + 2)

    best, value = np.zeros(number), 0.0
    for size in range(1, number + 1):
        for chosen in map(list, itertools.combinations(range(number), size)):
            x = np.zeros(number)
            x[chosen] = np.linalg.solve(quadratic[np.ix_(chosen, chosen)], linear[chosen])
            if (x >= 0).all() and x @ quadratic @ x / 2 - linear @ x < value:
                best, value = x, x @ quadratic @ x / 2 - linear @ x

    scales = np.sqrt(quadratic.diagonal())
    found = least_over_non_negative(quadratic, linear)
    assert (found >= 0).all()
    np.testing.assert_allclose(
        found * scales, best * scales, atol=1e-10 * max(1, abs(best * scales).max())
    )


@pytest.mark.parametrize("copies", [2, 5])
def test_entries_that_say_the_same_do_not_keep_it_from_ending(copies):
    rng = np.random.default_rng(copies)
    for _ in range(100):
        factor = np.tile(rng.normal(size=(4, 2)), (1, copies)) * rng.choice(
            [1.0, -1.0, 1e4], 2 * copies
        )
        target = rng.normal(size=4)
        found = least_over_non_negative(factor.T @ factor, factor.T @ target)
        slopes = factor.T @ (target - factor @ found) / np.linalg.norm(factor, axis=0)
        assert (found >= 0).all() and slopes.max() < 1e-8
        assert abs(slopes[found > 0]).max(initial=0) < 1e-8
