import numpy as np
import pytest

from paddlescience_gradnorm.balancing import InverseNorm, Measurement


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_a_step_is_that_of_jaxpi(recorded, eps):
    rule, weights = InverseNorm(eps=eps), np.ones(4)
    for measurement, found in zip(recorded.measurements(), recorded.weights(rule)):
        norms = np.linalg.norm(recorded.gradients[measurement.step], axis=1)
        weights = 0.9 * weights + 0.1 * norms.mean() / (norms + eps * norms.mean())
        np.testing.assert_allclose(found, weights, rtol=1e-12)


def test_weighted_norms_are_equal_at_rest():
    rule, weights = InverseNorm(eps=0.0), np.ones(3)
    measurement = Measurement(np.ones(3), np.diag([1e8, 1.0, 1e-8]))
    for _ in range(500):
        weights, _ = rule.weigh(weights, {}, measurement)
    np.testing.assert_allclose(weights * measurement.norms, measurement.norms.mean(), rtol=1e-9)


def test_eps_limits_the_weights():
    measurement = Measurement(np.ones(2), np.diag([1.0, 1e-40]))
    new, _ = InverseNorm(memory=0.0, eps=1e-3).weigh(np.ones(2), {}, measurement)
    np.testing.assert_allclose(new[1], 1e3, rtol=1e-9)


def test_options_out_of_range():
    assert InverseNorm.update_every == 1000
    for options in ({"memory": -0.1}, {"eps": -1}):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
            InverseNorm(**options)
