import numpy as np
import pytest

from paddlescience_gradnorm.balancing import IMTLG, ConFIG, Measurement


def test_directions_are_those_of_torchjd(recorded, same_directions):
    same_directions(recorded.directions(IMTLG()), recorded["imtl_g"])


def test_it_is_the_direction_of_config_with_coefficients_of_sum_1(recorded):
    coefficients = recorded.weights(IMTLG())
    np.testing.assert_allclose(coefficients.sum(1), 1, rtol=1e-12)
    found, other = recorded.directions(IMTLG()), recorded.directions(ConFIG())
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(other, axis=1)
    np.testing.assert_allclose((found * other).sum(1), lengths, rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_where_the_formula_would_ascend_it_is_the_mean(scale):
    # The middle gradient of three has a negative coefficient. If it is the smallest, it wins.
    gradients = np.array([[1.0, 0.0, 0.1], [0.8, 0.6, 0.1], [0.6, 0.8, 0.1]]) * [[1], [scale], [1]]
    measurement = Measurement(np.ones(3), gradients @ gradients.T)
    found, _ = IMTLG().weigh(np.ones(3), {}, measurement)
    descends = (gradients @ (found @ gradients) > 0).all()
    assert descends
    if scale == 1e-3:
        np.testing.assert_allclose(found, 1 / 3, rtol=1e-12)
    else:
        assert np.ptp(found) > 0.1
