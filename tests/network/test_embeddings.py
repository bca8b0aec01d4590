import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet
from paddlescience_gradnorm.network import FourierFeatures, PeriodicEmbedding, Scaling


@pytest.fixture
def points():
    return paddle.rand([7, 2], "float64") - 0.5


def test_scaling_is_by_column_or_the_same_for_all(points):
    by_column = Scaling([2.0, 3.0], [1.0, -1.0]).to(dtype="float64")
    np.testing.assert_allclose(by_column(points).numpy(), points.numpy() * [2, 3] + [1, -1])
    same = Scaling(2.0, 1.0).to(dtype="float64")
    np.testing.assert_allclose(same(points).numpy(), points.numpy() * 2 + 1)


def test_a_box_becomes_that_of_minus_one_to_one():
    scaling = Scaling.of_box([0.0, -2.0], [1.0, 6.0])
    corners = paddle.to_tensor([[0.0, -2.0], [1.0, 6.0], [0.5, 2.0]])
    assert scaling(corners).tolist() == [[-1, -1], [1, 1], [0, 0]]


def test_periodic_inputs_become_their_cosine_and_sine_and_the_others_stay(points):
    embedding = PeriodicEmbedding([None, 0.5]).to(dtype="float64")
    x, y = points.numpy().T
    expected = np.stack([x, np.cos(4 * np.pi * y), np.sin(4 * np.pi * y)], axis=1)
    np.testing.assert_allclose(embedding(points).numpy(), expected, atol=1e-6)  # float32 frequency
    assert [w is None for w in embedding.frequencies()] == [True, False]


@pytest.mark.parametrize("trainable", [True, False])
def test_frequencies_are_learned_if_that_is_asked_for(points, trainable):
    net = paddle.nn.Sequential(PeriodicEmbedding([2.0, None], trainable), FCNet(3, 1, 2, 4))
    net(points.astype("float32")).sum().backward()
    assert (net[0].frequency.grad is not None) == trainable
    np.testing.assert_allclose(net[0].frequency.numpy(), [np.pi], rtol=1e-6)


def test_fourier_features_are_cosines_then_sines_of_a_fixed_matrix(points):
    features = FourierFeatures(2, 200, scale=3.0).to(dtype="float64")
    assert features.parameters() == []
    phases = points.numpy() @ features.kernel.numpy()
    expected = np.concatenate([np.cos(phases), np.sin(phases)], axis=1)
    np.testing.assert_allclose(features(points).numpy(), expected, atol=1e-14)
    assert 2.5 < features.kernel.numpy().std() < 3.5


def test_they_are_part_of_a_state_dict():
    made = [
        paddle.nn.Sequential(Scaling(k), FourierFeatures(2, 3), FCNet(6, 1, 2, 4))
        for k in (2.0, 3.0)
    ]
    made[1].set_state_dict(made[0].state_dict())
    ins = paddle.rand([5, 2])
    np.testing.assert_array_equal(made[0](ins).numpy(), made[1](ins).numpy())


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: Scaling([[1.0]]), ValueError, r"factor must be a finite number.*got \[\[1.0\]\]"),
        (lambda: Scaling(1.0, np.nan), ValueError, "shift must be a finite number"),
        (
            lambda: Scaling([2.0, 3.0], [1.0]),
            ValueError,
            r"factor and shift must be for the same number.*got \[2.0, 3.0\] and \[1.0\]",
        ),
        (lambda: Scaling.of_box([0, 1], [1, 1]), ValueError, r"low must lie below high.*\[0, 1\]"),
        (lambda: PeriodicEmbedding([None]), ValueError, r"periods must hold.*got \[None\]"),
        (lambda: PeriodicEmbedding([0.0]), ValueError, r"periods must hold.*got \[0.0\]"),
        (lambda: PeriodicEmbedding(["1"]), TypeError, "periods must be a number, got '1'"),
        (
            lambda: PeriodicEmbedding(1.0),
            TypeError,
            r"periods must be a list with a number or None for each input, .*got 1.0",
        ),
        (lambda: FourierFeatures(0, 3), ValueError, "num_ins must be at least 1, got 0"),
        (lambda: FourierFeatures(2, 3, -1.0), ValueError, "scale must be above 0.*got -1.0"),
    ],
)
def test_bad_arguments_are_named(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    "layer",
    [
        PeriodicEmbedding([1.0]),
        PeriodicEmbedding([1.0, None, None]),
        Scaling.of_box([0], [2]),
        Scaling([2.0]),
        Scaling(2.0, [1.0]),
        Scaling([1.0, 2.0, 3.0]),
        FourierFeatures(1, 3),
    ],
)
def test_another_number_of_columns_is_refused(layer):
    for ins in paddle.rand([7, 2]), paddle.rand([2]), paddle.rand([4, 3, 2]):
        with pytest.raises(ValueError, match=r"ins must have shape \[N, [13]\], got \[.*2\]"):
            layer(ins)


@pytest.mark.parametrize(
    "layer", [PeriodicEmbedding([0.7, None]), Scaling([2.0, 3.0]), FourierFeatures(2, 3)]
)
def test_points_may_have_axes_before_that_of_the_columns(layer):
    ins = paddle.rand([4, 3, 2])
    each = np.stack([layer(part).numpy() for part in ins])
    np.testing.assert_allclose(layer(ins).numpy(), each, rtol=1e-6)
