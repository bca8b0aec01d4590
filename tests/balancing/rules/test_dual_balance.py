import numpy as np
import pytest

from paddlescience_gradnorm.balancing import DualBalance, Measurement

NAMES = {"mean": "db_pinn_mean", "std": "db_pinn_std", "kurtosis": "db_pinn_kurt"}


@pytest.mark.parametrize("by", NAMES)
def test_weights_are_those_of_the_authors(recorded, by):
    found = recorded.weights(DualBalance(by), zeros=1)
    np.testing.assert_allclose(found[:, 1:], recorded[NAMES[by]], rtol=1e-10)
    assert (found[:, 0] == 1).all()


@pytest.mark.parametrize("by", NAMES)
def test_it_asks_for_what_it_needs(by):
    rule = DualBalance(by)
    assert rule.needs == {by, "largest"} if by == "mean" else by in rule.needs
    measurement = Measurement(
        np.ones(2),
        **{name: np.array([4.0, 2.0]) for name in rule.needs},
        equations=np.array([True, False]),
    )
    new, _ = rule.weigh(np.ones(2), rule.start(2), measurement)
    assert new.tolist() == [1, 1 if by == "kurtosis" else 2]
    assert rule == DualBalance(by) and hash(rule) == hash(DualBalance(by))


@pytest.mark.parametrize("by", ["std", "kurtosis"])
def test_a_gradient_whose_entries_are_all_equal_has_the_ratio_1(by):
    rule, equations = DualBalance(by), np.array([True, False, False])
    measurement = Measurement(
        np.ones(3),
        std=np.array([3.0, 0.0, 1.0]),
        kurtosis=np.array([3.0, np.nan, 1.0]),
        equations=equations,
    )
    new, _ = rule.weigh(np.ones(3), rule.start(3), measurement)
    shared = (1 + (3 if by == "std" else 1)) / 2
    assert new.tolist() == [1, shared, shared]


def test_of_several_equations_the_largest_counts(measured):
    rule, gradients = DualBalance("std"), np.array([[1.0, -1.0], [5.0, -5.0], [2.0, -2.0]])
    new, _ = rule.weigh(np.ones(3), rule.start(3), measured(gradients, equations=[0, 1]))
    assert new.tolist() == [1, 1, 2.5]


@pytest.mark.parametrize("equations", [[], [0, 1]])
def test_without_two_kinds_of_losses_nothing_changes(measured, equations):
    rule, state, weights = DualBalance(), DualBalance().start(2), np.array([2.0, 3.0])
    measurement = measured(np.array([[1.0, 2.0], [3.0, 0.0]]), equations=equations)
    assert rule.weigh(weights, state, measurement) == (weights, state)


def test_each_loss_counts_the_updates_that_it_has_had():
    rule = DualBalance("std")
    state = {"updates": np.array([5.0, 1.0, 3.0]), "mean_losses": np.array([1.0, 2.0, 3.0])}
    measurement = Measurement(
        np.array([1.0, 4.0, 3.0]),
        std=np.array([6.0, 1.0, 2.0]),
        equations=np.array([True, False, False]),
    )
    new, state = rule.weigh(np.array([1.0, 2.0, 8.0]), state, measurement)
    assert state["updates"].tolist() == [6, 2, 4]
    assert state["mean_losses"].tolist() == [1, 3, 3]
    targets = (6 + 3) * np.array([4 / 3, 1]) / (4 / 3 + 1)
    expected = [1, 2 + (targets[0] - 2) / 2, 8 + (targets[1] - 8) / 4]
    np.testing.assert_allclose(new, expected, rtol=1e-14)


def test_a_statistic_that_is_none_is_named():
    with pytest.raises(ValueError, match="by must be one of 'mean', 'std', 'kurtosis', got 'max'"):
        DualBalance("max")
