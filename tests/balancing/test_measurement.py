import dataclasses

import numpy as np
import pytest

from paddlescience_gradnorm.balancing.measurement import STATISTICS, Measurement

GRADIENTS = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0], [-6.0, -8.0, 0.0], [0.0, 5.0, 0.0]])


@pytest.fixture
def measurement():
    return Measurement(
        losses=np.array([1.0, 2.0, 3.0, 4.0]),
        gram=GRADIENTS @ GRADIENTS.T,
        largest=np.abs(GRADIENTS).max(1),
        mean=np.abs(GRADIENTS).mean(1),
        std=GRADIENTS.std(1),
        kurtosis=np.array([1.0, 2.0, 3.0, 4.0]),
        names=("pde", "bc", "ode", "ic"),
        equations=np.array([True, False, True, False]),
        step=7,
        interval=5,
        rate=0.1,
        floor=1e-2,
    )


def test_norms_are_those_of_the_gradients(measurement):
    assert measurement.norms.tolist() == [5, 2, 10, 5]


def test_equations_that_are_left_out_stay_known(measurement):
    assert measurement.all_equations == ("pde", "ode")
    left = measurement.of(np.array([True, True, False, True]))
    assert left.equations.tolist() == [True, False, False] and left.names == ("pde", "bc", "ic")
    assert left.all_equations == ("pde", "ode")
    assert (
        Measurement(np.ones(3), equations=np.array([True, False, True])).all_equations == ("",) * 2
    )
    assert Measurement(np.ones(3)).all_equations == ()


def test_cosines_are_those_of_the_angles_between_the_gradients(measurement):
    expected = [[1, 0, -1, 0.8], [0, 1, 0, 0], [-1, 0, 1, -0.8], [0.8, 0, -0.8, 1]]
    np.testing.assert_allclose(measurement.cosines, expected, rtol=1e-15)


def test_a_zero_gradient_has_no_direction():
    measurement = Measurement(np.ones(2), np.array([[0.0, 0.0], [0.0, 4.0]]))
    assert measurement.norms.tolist() == [0, 2]
    assert measurement.cosines.tolist() == [[0, 0], [0, 1]]


def test_rounding_takes_no_cosine_past_1():
    gradient = np.random.default_rng(0).random((2, 1)) @ np.random.default_rng(1).random((1, 100))
    gram = gradient @ gradient.T
    gram[0, 1] = gram[1, 0] = gram[0, 1] * (1 + 1e-12)
    assert Measurement(np.ones(2), gram).cosines.max() == 1
    assert Measurement(np.ones(2), np.diag(gram.diagonal()) - gram).cosines.min() >= -1


def test_the_smallest_and_largest_gradients_have_cosines():
    gram = np.array([[1e300, 0.5], [0.5, 1e-300]])
    np.testing.assert_allclose(Measurement(np.ones(2), gram).cosines, [[1, 0.5], [0.5, 1]])


def test_without_gradients_there_are_no_norms_and_cosines():
    measurement = Measurement(np.ones(3))
    assert np.isnan(measurement.norms).all() and measurement.norms.shape == (3,)
    assert np.isnan(measurement.cosines).all() and measurement.cosines.shape == (3, 3)


def test_no_loss_is_an_equation_unless_that_is_said():
    assert Measurement(np.ones(3)).equations.tolist() == [False] * 3
    said = Measurement(np.ones(2), equations=np.array([False, True]))
    assert said.equations.tolist() == [False, True]


def test_a_part_is_what_would_have_been_measured_of_these_losses_alone(measurement):
    which = np.array([True, False, False, True])
    part = measurement.of(which)
    gradients = GRADIENTS[which]
    assert part.losses.tolist() == [1, 4]
    assert part.gram.tolist() == (gradients @ gradients.T).tolist()
    assert part.largest.tolist() == np.abs(gradients).max(1).tolist()
    assert part.mean.tolist() == np.abs(gradients).mean(1).tolist()
    assert part.std.tolist() == gradients.std(1).tolist()
    assert part.kurtosis.tolist() == [1, 4] and part.names == ("pde", "ic")
    assert part.equations.tolist() == [True, False]
    assert part.norms.tolist() == [5, 5] and part.cosines[0, 1] == 0.8
    for name in ("step", "interval", "rate", "floor"):
        assert getattr(part, name) == getattr(measurement, name)


def test_a_part_keeps_no_norms_of_the_whole(measurement):
    assert measurement.norms[0] == 5 and measurement.cosines[0, 2] == -1  # which are cached
    part = measurement.of(np.array([False, True, True, False]))
    assert part.norms.tolist() == [2, 10] and part.cosines.tolist() == [[1, 0], [0, 1]]


def test_a_part_of_what_was_not_measured_is_not_measured():
    part = Measurement(np.array([1.0, 2.0])).of(np.array([False, True]))
    assert part.losses.tolist() == [2] and part.equations.tolist() == [False]
    assert part.gram is None and part.names == ()
    assert all(getattr(part, name) is None for name in STATISTICS)


def test_a_part_may_be_everything_or_nothing(measurement):
    everything = measurement.of(np.ones(4, bool))
    for field in dataclasses.fields(Measurement):
        np.testing.assert_array_equal(
            getattr(everything, field.name), getattr(measurement, field.name)
        )
    assert measurement.of(np.zeros(4, bool)).cosines.shape == (0, 0)


def test_a_measurement_does_not_change(measurement):
    with pytest.raises(dataclasses.FrozenInstanceError):
        measurement.rate = 1.0
