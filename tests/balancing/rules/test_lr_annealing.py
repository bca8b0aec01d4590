import numpy as np
import pytest

from paddlescience_gradnorm.balancing import LearningRateAnnealing

GRADIENTS = np.array([[8.0, -2.0], [4.0, 0.0], [1.0, -1.0]])


def test_weights_by_means_are_those_of_physicsnemo(recorded):
    found = recorded.weights(LearningRateAnnealing(0.99, "mean", eps=1e-8))
    np.testing.assert_allclose(found, recorded["lr_annealing_mean"], rtol=1e-10)


def test_a_step_goes_part_of_the_way_to_max_over_mean(measured):
    rule, weights = LearningRateAnnealing(memory=0.75), np.array([3.0, 2.0, 0.5])
    new, _ = rule.weigh(weights, {}, measured(GRADIENTS))
    expected = 0.75 * weights + 0.25 * 8 / (weights * [1, 2, 1])
    np.testing.assert_allclose(new, [1, *expected[1:]], rtol=1e-14)


def test_weights_rest_where_their_square_is_max_over_mean(measured):
    rule, weights = LearningRateAnnealing(memory=0.5), np.ones(3)
    for _ in range(200):
        weights, _ = rule.weigh(weights, {}, measured(GRADIENTS))
    np.testing.assert_allclose(weights, [1, 2, np.sqrt(8)], rtol=1e-12)


@pytest.mark.parametrize("statistic, expected", [("max", 8 / 1), ("mean", 5 / 1)])
def test_of_several_equations_the_largest_counts(measured, statistic, expected):
    rule = LearningRateAnnealing(memory=0.0, statistic=statistic)
    new, _ = rule.weigh(np.ones(3), {}, measured(GRADIENTS, equations=[0, 1]))
    assert new.tolist() == [1, 1, expected]


@pytest.mark.parametrize("equations", [[], [0, 1, 2]])
def test_without_two_kinds_of_losses_the_weights_stay(measured, equations):
    weights = np.array([3.0, 2.0, 0.5])
    new, _ = LearningRateAnnealing().weigh(weights, {}, measured(GRADIENTS, equations=equations))
    assert new.tolist() == weights.tolist()


def test_what_a_balancer_has_to_know_of_it():
    rule = LearningRateAnnealing()
    assert rule.needs == {"largest", "mean"} and rule.update_every == 10 and rule.tells_equations


def test_options_out_of_range():
    for options, message in (
        ({"memory": 1.0}, "memory must be at least 0 and below 1, got 1.0"),
        ({"statistic": "median"}, "statistic must be one of 'max', 'mean', got 'median'"),
        ({"eps": -1}, "eps must be finite and at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            LearningRateAnnealing(**options)
