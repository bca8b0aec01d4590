import numpy as np

from paddlescience_gradnorm.balancing import AlignedMTL, Measurement


def coefficients(gradients):
    measurement = Measurement(np.ones(len(gradients)), gradients @ gradients.T)
    return AlignedMTL().weigh(np.ones(len(gradients)), {}, measurement)[0]


def test_directions_are_those_of_torchjd(recorded, same_directions):
    same_directions(recorded.directions(AlignedMTL()), recorded["aligned_mtl"])


def test_it_is_the_mean_of_orthogonal_gradients_of_one_length():
    gradients = np.random.default_rng(0).normal(size=(3, 20)) * [[10.0], [1.0], [3.0]]
    left, sizes, right = np.linalg.svd(gradients, full_matrices=False)
    aligned = sizes.min() * left @ right
    np.testing.assert_allclose(coefficients(gradients) @ gradients, aligned.mean(0), rtol=1e-9)


def test_orthogonal_gradients_keep_their_directions():
    gradients = np.diag([8.0, 2.0, 4.0])
    np.testing.assert_allclose(coefficients(gradients) @ gradients, [2 / 3] * 3, rtol=1e-12)


def test_parallel_gradients_count_as_one_direction():
    gradients = np.array([[3.0, 4.0], [6.0, 8.0]])
    direction = coefficients(gradients) @ gradients
    np.testing.assert_allclose(direction[0] / direction[1], 0.75, rtol=1e-12)
    assert 5 < np.linalg.norm(direction) < 10
