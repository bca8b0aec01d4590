import warnings

import numpy as np
import pytest

from paddlescience_gradnorm.pde import sample_boundary, sample_face, sample_interior

LOW, HIGH = [-1.0, 0.0, 2.0], [1.0, 5.0, 2.5]


@pytest.mark.parametrize("method", ["sobol", "lhs"])
@pytest.mark.parametrize("n", [1, 100, 256])
def test_interior_points_lie_inside(method, n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy warns where Sobol points lose their balance
        points = sample_interior(n, LOW, HIGH, method, seed=0)
    assert points.shape == (n, 3)
    assert ((np.array(LOW) <= points) & (points <= np.array(HIGH))).all()


@pytest.mark.parametrize("method", ["sobol", "lhs"])
def test_interior_points_are_spread_evenly(method):
    points = sample_interior(256, [0, 0], [1, 1], method, seed=0)
    for axis in range(2):  # one point in each of 256 slices
        slices = np.sort((points[:, axis] * 256).astype(int))
        np.testing.assert_array_equal(slices, np.arange(256))


@pytest.mark.parametrize("method", ["sobol", "lhs"])
@pytest.mark.parametrize("sample", [sample_interior, sample_boundary])
def test_seed_decides(sample, method):
    one, same, other = (sample(64, LOW, HIGH, method, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize("method", ["sobol", "lhs"])
def test_boundary_points_lie_exactly_on_faces_in_proportion_to_area(method):
    low, high = [0.1, 0.0], [0.4, 3.0]
    points = sample_boundary(1024, low, high, method, seed=0)
    assert ((np.array(low) <= points) & (points <= np.array(high))).all()
    left, right = points[:, 0] == low[0], points[:, 0] == high[0]
    bottom, top = points[:, 1] == low[1], points[:, 1] == high[1]
    assert (left | right | bottom | top).all()
    # Perimeter 6.6: long sides 3 / 6.6 each, short ones 0.3 / 6.6.
    assert abs(left.sum() - 1024 * 3 / 6.6) < 2 and abs(right.sum() - 1024 * 3 / 6.6) < 2
    assert abs(bottom.sum() - 1024 * 0.3 / 6.6) < 2 and abs(top.sum() - 1024 * 0.3 / 6.6) < 2
    assert np.ptp(points[left, 1]) > 2.9


def test_boundary_of_an_interval_and_of_a_box():
    assert set(sample_boundary(8, [-1.0], [2.0], seed=0).ravel()) == {-1.0, 2.0}
    points = sample_boundary(600, LOW, HIGH, seed=0)
    on_face = (points == np.array(LOW)) | (points == np.array(HIGH))
    assert on_face.any(axis=1).all()
    assert on_face.any(axis=0).all()


@pytest.mark.parametrize("sample", [sample_interior, sample_boundary])
@pytest.mark.parametrize(
    "arguments, match",
    [
        ((0, [0], [1]), "n must be at least 1, got 0"),
        ((4, [0, 0], [1]), r"low and high must be d numbers each, got \[0, 0\] and \[1\]"),
        ((4, [], []), "low and high must be d numbers"),
        ((4, [0, 1], [1, 1]), r"low must lie below high .* got \[0, 1\] and \[1, 1\]"),
        ((4, [0], [float("inf")]), "low must lie below high"),
        ((4, [0], [1], "halton"), "method must be 'sobol' or 'lhs', got 'halton'"),
    ],
)
def test_bad_arguments_are_named(sample, arguments, match):
    with pytest.raises(ValueError, match=match):
        sample(*arguments)


@pytest.mark.parametrize("method", ["sobol", "lhs"])
def test_face_points_have_some_coordinates_fixed(method):
    points = sample_face(128, LOW, HIGH, {0: -1.0, 2: 2.25}, method, seed=0)
    assert (points[:, 0] == -1.0).all() and (points[:, 2] == 2.25).all()
    line = np.sort((points[:, 1] / 5 * 128).astype(int))
    np.testing.assert_array_equal(line, np.arange(128))
    corner = sample_face(2, LOW, HIGH, {0: 1.0, 1: 0.0, 2: 2.5}, method, seed=0)
    assert corner.tolist() == [[1.0, 0.0, 2.5]] * 2
    inside = sample_interior(16, LOW, HIGH, method, seed=5)
    np.testing.assert_array_equal(sample_face(16, LOW, HIGH, {}, method, seed=5), inside)


@pytest.mark.parametrize("fixed", [{3: 0.0}, {0: 1.5}, {0: float("nan")}])
def test_faces_outside_the_box_are_named(fixed):
    with pytest.raises(ValueError, match=r"fixed must have coordinate numbers below 3 .* got \{"):
        sample_face(4, LOW, HIGH, fixed)


@pytest.mark.parametrize(
    "fixed, error, match",
    [
        ([0], TypeError, r"fixed must be a dict, .* such as \{0: 0.0\}, got \[0\]"),
        ({0.0: 1.0}, TypeError, "a coordinate number of fixed must be an integer, got 0.0"),
        ({-1: 1.0}, ValueError, "a coordinate number of fixed must be at least 0, got -1"),
        ({0: None}, TypeError, r"fixed\[0\] must be a number, got None"),
    ],
)
def test_what_fixes_no_coordinate_is_named(fixed, error, match):
    with pytest.raises(error, match=match):
        sample_face(3, [0.0, 0.0], [1.0, 1.0], fixed)
