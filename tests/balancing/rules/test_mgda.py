import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlescience_gradnorm.balancing import MGDA, Measurement


def coefficients(gradients, **options):
    measurement = Measurement(np.ones(len(gradients)), gradients @ gradients.T)
    return MGDA(**options).weigh(np.ones(len(gradients)), {}, measurement)[0]


def shortest(gradients):
    """The shortest convex combination, by trying all sets of gradients."""
    found = []
    for size in range(1, len(gradients) + 1):
        for chosen in itertools.combinations(range(len(gradients)), size):
            part = gradients[list(chosen)]
            of_part = np.linalg.lstsq(part @ part.T, np.ones(size), rcond=None)[0]
            of_part /= of_part.sum()
            if (of_part >= 0).all():
                found.append(of_part @ part)
    return min(found, key=np.linalg.norm)


def test_directions_by_steps_are_those_of_torchjd(recorded, same_directions):
    same_directions(recorded.directions(MGDA(tolerance=1e-3)), recorded["mgda"])


def test_the_solution_is_shorter_than_what_steps_find(recorded):
    exact = np.linalg.norm(recorded.directions(MGDA()), axis=1)
    steps = np.linalg.norm(recorded["mgda"], axis=1)
    assert (exact <= steps * (1 + 1e-12)).all() and (exact < 0.999 * steps).any()


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_it_is_the_shortest_and_lowers_all_losses_alike_or_faster(seed, n_loss):
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(n_loss, 8)) * 10 ** rng.uniform(-1, 1, (n_loss, 1))
    found = coefficients(gradients)
    assert (found >= 0).all() and abs(found.sum() - 1) < 1e-14
    direction, norms = found @ gradients, np.linalg.norm(gradients, axis=1)
    np.testing.assert_allclose(direction, shortest(gradients), atol=1e-10 * norms.max())
    falls = gradients @ direction
    assert (falls > direction @ direction - 1e-10 * norms * norms.min()).all()
    np.testing.assert_allclose(
        falls[found > 0], direction @ direction, atol=1e-10 * norms.max() * norms.min()
    )


def test_it_is_never_longer_than_the_smallest_gradient():
    assert coefficients(np.array([[9.0, 3.0], [0.1, 0.0], [5.0, 5.0]])).tolist() == [0, 1, 0]


def test_opposite_gradients_give_no_gradient():
    gradients = np.array([[2.0, 4.0], [-1.0, -2.0]])
    np.testing.assert_allclose(coefficients(gradients), [1 / 3, 2 / 3], rtol=1e-7)


def test_options_out_of_range():
    with pytest.raises(ValueError, match="tolerance must be finite and above 0, got 0"):
        MGDA(0)
