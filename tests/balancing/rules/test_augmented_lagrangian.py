import numpy as np
import pytest

from paddlescience_gradnorm.balancing import AugmentedLagrangian, Measurement


def test_weights_are_those_of_the_authors(recorded):
    rule, state = AugmentedLagrangian(), AugmentedLagrangian().start(4)
    for measurement, expected in zip(recorded.measurements(), recorded["capu"]):
        # The authors' weights come from the loss of the step itself.
        acting = state["multipliers"] + state["penalties"] * measurement.losses
        np.testing.assert_allclose(acting[1:], expected, rtol=1e-10)
        before = state
        weights, state = rule.weigh(np.ones(4), state, measurement)
        loss = measurement.losses[1:]
        multipliers, penalties = before["multipliers"][1:], before["penalties"][1:]
        terms = [measurement.losses[0], *(multipliers * loss + penalties * loss**2 / 2)]
        np.testing.assert_allclose(state["terms"], terms, rtol=1e-14)
        newest = state["multipliers"] + state["penalties"] * measurement.losses
        assert weights[0] == 1 and (weights[1:] == newest[1:]).all()


def test_multipliers_rest_while_the_lagrangian_falls():
    rule, state = AugmentedLagrangian(), AugmentedLagrangian().start(2)
    equations = np.array([True, False])
    for loss in 0.9 ** np.arange(10):
        _, state = rule.weigh(np.ones(2), state, Measurement(np.full(2, loss), equations=equations))
    assert state["multipliers"].tolist() == [1, 1]
    _, state = rule.weigh(np.ones(2), state, Measurement(np.full(2, loss), equations=equations))
    assert state["multipliers"][1] == 1 + loss


def test_a_loss_that_is_absent_is_no_fall_of_the_lagrangian():
    rule, state = AugmentedLagrangian(), AugmentedLagrangian().start(3)
    equations = np.array([True, False, False])
    _, state = rule.weigh(np.ones(3), state, Measurement(np.ones(3), equations=equations))
    part = {name: array[:2] for name, array in state.items()}
    same = Measurement(np.ones(2), equations=equations[:2])
    assert rule.weigh(np.ones(2), part, same)[1]["multipliers"][1] == 2


def test_a_condition_that_is_met_overflows_nowhere():
    rule, state = AugmentedLagrangian(), AugmentedLagrangian().start(2)
    for _ in range(50):
        measurement = Measurement(np.array([1.0, 0.0]), equations=np.array([True, False]))
        weights, state = rule.weigh(np.ones(2), state, measurement)
    assert weights.tolist() == [1, 1] and np.isfinite(state["penalties"]).all()


def test_what_a_balancer_has_to_know_of_it():
    rule = AugmentedLagrangian()
    assert rule.needs == frozenset() and rule.tells_equations and rule.fewest_losses == 1


@pytest.mark.parametrize("options", [{"eta": 0}, {"zeta": 1}, {"omega": 0}])
def test_options_out_of_range(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
        AugmentedLagrangian(**options)
