import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlescience_gradnorm.balancing import DCGD, ConFIG, Measurement


def combined(gradients):
    measurement = Measurement(np.ones(len(gradients)), gradients @ gradients.T)
    return ConFIG().weigh(np.ones(len(gradients)), {}, measurement)[0] @ gradients


def test_directions_are_those_of_the_authors(recorded, same_directions):
    same_directions(recorded.directions(ConFIG()), recorded["config"])
    same_directions(recorded.directions(ConFIG(), n_loss=2), recorded["config_two"])


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_all_cosines_are_equal_and_the_length_is_that_of_the_projections(seed, n_loss):
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(n_loss, 40)) * 10 ** rng.uniform(-3, 3, size=(n_loss, 1))
    norms, direction = np.linalg.norm(gradients, axis=1), combined(gradients)
    length = np.linalg.norm(direction)
    cosines = gradients @ direction / norms / length
    assert cosines[0] > 0
    np.testing.assert_allclose(cosines, cosines[0], rtol=1e-8)
    np.testing.assert_allclose(length, (cosines * norms).sum(), rtol=1e-8)


def test_of_two_losses_it_is_the_centre_of_the_dual_cone(recorded):
    found = [recorded.weights(rule, n_loss=2) for rule in (ConFIG(), DCGD("center"))]
    np.testing.assert_allclose(*found, rtol=1e-10)


def test_coefficients_may_be_negative_from_three_losses_on():
    gradients = np.array([[1.0, 0.0, 0.1], [0.8, 0.6, 0.1], [0.6, 0.8, 0.1]])
    measurement = Measurement(np.ones(3), gradients @ gradients.T)
    assert ConFIG().weigh(np.ones(3), {}, measurement)[0].min() < 0


@pytest.mark.parametrize("angle", [np.pi - 1e-3, np.pi - 1e-6, np.pi - 1e-9, np.pi])
def test_nearly_opposite_gradients_have_the_coefficients_of_the_limit(angle):
    gradients = np.array([[4.0, 0.0], [np.cos(angle), np.sin(angle)]])
    measurement = Measurement(np.ones(2), gradients @ gradients.T)
    found, _ = ConFIG().weigh(np.ones(2), {}, measurement)
    np.testing.assert_allclose(found, [5 / 8, 5 / 2], rtol=1e-9)


def test_parallel_gradients_are_added():
    gradients = np.array([[2.0, 1.0], [4.0, 2.0], [6.0, 3.0]])
    np.testing.assert_allclose(combined(gradients), gradients.sum(0), rtol=1e-12)
