import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import ranks


@pytest.fixture
def rank_of(monkeypatch):
    """Makes this process one of several, for what does not communicate."""

    def be(rank, number):
        monkeypatch.setattr(ranks._ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks._ranks, "number", lambda: number)

    return be


@pytest.mark.parametrize("number", [1, 2, 3, 7, 12])
def test_the_shares_are_all_points_each_once(rank_of, number):
    points = np.arange(20).reshape(10, 2)
    found = []
    for rank in range(number):
        rank_of(rank, number)
        found.append(ranks.share(points))
        np.testing.assert_array_equal(ranks.share(paddle.to_tensor(points)).numpy(), found[-1])
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert sorted(map(tuple, np.concatenate(found))) == sorted(map(tuple, points))


@pytest.mark.parametrize("number", [1, 2, 3, 7, 12])
def test_the_mean_over_processes_is_the_mean_over_points(rank_of, number, float64):
    points, scale = paddle.rand([10, 2]), paddle.to_tensor(2.0, stop_gradient=False)
    means = []
    for rank in range(number):
        rank_of(rank, number)
        means.append(ranks.mean(lambda x, y: scale * x * y, points, points.numpy()))
        # Without points it is a constant, by which a balancer knows that there is no gradient.
        assert means[-1].shape == [] and means[-1].stop_gradient == (rank >= 10)
    expected = 2 * (points * points).mean().item()
    assert np.mean(means) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("points", [(), (np.ones((0, 2)),), (np.ones((3, 2)), np.ones((4, 2)))])
def test_points_that_are_none_or_differ_are_an_error(points):
    with pytest.raises(ValueError, match="points must be as many in each argument, 1 at least"):
        ranks.mean(lambda *x: paddle.zeros([1]), *points)
