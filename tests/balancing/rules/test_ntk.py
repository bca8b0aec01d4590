import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlescience_gradnorm.balancing import NTK, InverseNorm, Measurement


def of_points(jacobians, residuals):
    """The measurement of losses mean(r^2), and the mean diagonals of their kernels J J^T."""
    losses = [np.mean(r**2) for r in residuals]
    gradients = np.array([2 * r @ j / len(r) for j, r in zip(jacobians, residuals)])
    diagonals = [np.mean((j**2).sum(1)) for j in jacobians]
    return Measurement(np.array(losses), gradients @ gradients.T), np.array(diagonals)


def estimates(measurement):
    """The k_i of the rule up to a common factor: mean(k) / w."""
    return 1 / NTK(memory=0.0, eps=0.0).weigh(np.ones(len(measurement.losses)), {}, measurement)[0]


def test_of_single_points_it_is_the_diagonal_of_the_kernel():
    rng = np.random.default_rng(0)
    jacobians = [rng.normal(size=(1, 5)) * size for size in (1, 10, 0.1)]
    measurement, diagonals = of_points(jacobians, [rng.normal(size=1) for _ in range(3)])
    np.testing.assert_allclose(estimates(measurement), diagonals / diagonals.mean(), rtol=1e-12)


def test_residuals_do_not_matter_if_the_points_gradients_are_parallel():
    rng = np.random.default_rng(1)
    jacobians = [np.ones((n, 1)) * rng.normal(size=(1, 5)) for n in (3, 30)]
    measurement, diagonals = of_points(jacobians, [np.full(3, 1e-3), np.full(30, 7.0)])
    np.testing.assert_allclose(estimates(measurement), diagonals / diagonals.mean(), rtol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 20))
def test_it_is_never_above_the_mean_diagonal(seed, points):
    rng = np.random.default_rng(seed)
    # The first loss, of one point, tells the common factor.
    jacobians = [rng.normal(size=(1, 4)), rng.normal(size=(points, 4))]
    residuals = [np.ones(1), rng.normal(size=points)]
    measurement, diagonals = of_points(jacobians, residuals)
    first, second = estimates(measurement)
    assert second <= first * diagonals[1] / diagonals[0] * (1 + 1e-12)


def test_the_factor_of_a_loss_is_that_of_its_kernel_and_not_that_of_its_gradient():
    plain = Measurement(np.ones(2), np.diag([4.0, 4.0]))
    scaled = Measurement(np.array([1.0, 100.0]), np.diag([4.0, 4e4]))
    ratio = np.divide(*estimates(scaled)) / np.divide(*estimates(plain))
    np.testing.assert_allclose(ratio, 1 / 100, rtol=1e-12)
    # With r in place of 10 r the norm of the gradient changes by 100 as well, but a smaller
    # residual makes the gradient smaller, and the kernel not.
    met = Measurement(np.array([1.0, 1e-4]), np.diag([4.0, 4e-4]))
    np.testing.assert_allclose(estimates(met), 1, rtol=1e-12)
    assert np.ptp(InverseNorm(0.0).weigh(np.ones(2), {}, met)[0]) > 10


def test_a_step_goes_part_of_the_way():
    measurement = Measurement(np.array([1.0, 4.0]), np.diag([36.0, 16.0]))
    new, _ = NTK(memory=0.9, eps=0.0).weigh(np.array([2.0, 3.0]), {}, measurement)
    np.testing.assert_allclose(new, [0.9 * 2 + 0.1 * 5 / 9, 0.9 * 3 + 0.1 * 5 / 1], rtol=1e-12)
    assert NTK().needs_positive_losses and NTK.update_every == 1000


def test_options_out_of_range():
    for options in ({"memory": 1}, {"eps": np.inf}):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
            NTK(**options)
