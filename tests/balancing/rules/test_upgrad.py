import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlescience_gradnorm.balancing import Measurement, UPGrad


def combined(gradients, **options):
    measurement = Measurement(np.ones(len(gradients)), gradients @ gradients.T)
    return UPGrad(**options).weigh(np.ones(len(gradients)), {}, measurement)[0] @ gradients


def projected(gradient, gradients):
    """The nearest direction that conflicts with none, by trying all sets of constraints."""
    found = []
    for size in range(len(gradients) + 1):
        for chosen in itertools.combinations(range(len(gradients)), size):
            touched = gradients[list(chosen)]
            multipliers = np.linalg.lstsq(touched.T, gradient, rcond=None)[0]
            candidate = gradient - multipliers @ touched
            if (gradients @ candidate > -1e-9).all():
                found.append(candidate)
    return min(found, key=lambda candidate: np.linalg.norm(candidate - gradient))


def test_directions_are_those_of_torchjd(recorded, same_directions):
    same_directions(recorded.directions(UPGrad(regularization=1e-4)), recorded["upgrad"])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(2, 8))
def test_it_is_the_mean_of_the_projections_and_conflicts_with_none(seed, n_loss, dimensions):
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(n_loss, dimensions)) * 10 ** rng.uniform(-1, 1, (n_loss, 1))
    found, norms = combined(gradients), np.linalg.norm(gradients, axis=1)
    expected = np.mean([projected(gradient, gradients) for gradient in gradients], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-8 * norms.max())
    assert (gradients @ found > -1e-8 * norms * norms.max()).all()


def test_without_a_conflict_it_is_the_mean():
    gradients = np.array([[1.0, 0.0], [1.0, 3.0], [0.0, 2.0]])
    np.testing.assert_allclose(combined(gradients), gradients.mean(0), rtol=1e-14)


def test_what_is_added_to_the_diagonal_hides_small_gradients():
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0]]) * [[1000.0], [1.0]]
    assert gradients[1] @ combined(gradients) > -1e-9
    assert gradients[1] @ combined(gradients, regularization=1e-4) < -100


def test_options_out_of_range():
    with pytest.raises(ValueError, match="regularization must be finite and at least 0, got -1"):
        UPGrad(-1)
