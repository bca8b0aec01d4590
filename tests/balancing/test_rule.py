import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import GradientRule, GradientStep, Rule, renormalized


class AlongTheNorms(GradientRule):
    """A user's own rule with a gradient; it counts its updates."""

    def start(self, n_loss):
        return {"updates": np.zeros([])}

    def gradient(self, weights, state, measurement):
        norms = measurement.norms
        return GradientStep(norms.sum(), norms, {"updates": state["updates"] + 1})


class OfTheLosses(Rule):
    """A user's own rule that needs no gradients and has no gradient."""

    needs = frozenset()

    def weigh(self, weights, state, measurement):
        return 1 / measurement.losses, state


values = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8)
floors = st.sampled_from([1e-9, 1e-6, 1e-3, 0.1, 0.9, 0.999999])
EPS = np.finfo(float).eps


@settings(max_examples=500, deadline=None)
@given(values, floors)
def test_renormalized_weights_keep_sum_and_floor(weights, floor):
    scaled = renormalized(np.array(weights), floor)
    assert np.isfinite(scaled).all()
    assert (scaled >= floor).all()
    assert abs(scaled.sum() - len(scaled)) <= 16 * len(scaled) * EPS


@settings(max_examples=500, deadline=None)
@given(st.lists(st.floats(), min_size=2, max_size=64), floors)
def test_renormalized_weights_keep_sum_and_floor_whatever_finite_numbers_they_are(weights, floor):
    weights = np.array(weights)
    scaled = renormalized(np.nan_to_num(weights), floor)
    assert (scaled >= floor).all()
    assert abs(scaled.sum() - len(scaled)) <= 16 * len(scaled) * EPS
    if np.isnan(weights).any():  # which must not be taken for weights
        assert np.isnan(renormalized(weights, floor)).all()


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=8))
def test_renormalized_is_plain_scaling_where_the_floor_allows(weights):
    weights = np.array(weights)
    plain = weights * len(weights) / weights.sum()
    floor = 0.99 * min(plain.min(), 0.999)
    np.testing.assert_allclose(renormalized(weights, floor), plain, rtol=1e-12)


@given(values, floors)
def test_renormalized_weights_stay_what_they_are(weights, floor):
    scaled = renormalized(np.array(weights), floor)
    np.testing.assert_allclose(renormalized(scaled, floor), scaled, rtol=1e-6)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=8), st.floats(1e-6, 1e6), floors)
def test_renormalized_weights_have_no_unit(weights, unit, floor):
    weights = np.array(weights)
    np.testing.assert_allclose(
        renormalized(weights * unit, floor), renormalized(weights, floor), rtol=1e-6
    )


@given(values, floors)
def test_renormalized_keeps_the_order(weights, floor):
    weights = np.array(weights)
    scaled = renormalized(weights, floor)
    assert (np.diff(scaled[np.argsort(weights)]) >= 0).all()


def test_what_is_under_the_floor_is_put_on_it_and_the_others_give_up_what_they_have_above_it():
    scaled = renormalized(np.array([0.01, 1.0, 1.99]), floor=0.25)
    assert scaled[0] == 0.25
    # The others have 0.75 and 1.74 above the floor, of which 0.24 have to go.
    left = 1 - 0.24 / (0.75 + 1.74)
    np.testing.assert_allclose(scaled[1:], [0.25 + 0.75 * left, 0.25 + 1.74 * left], rtol=1e-12)


@pytest.mark.parametrize("weights", [[-1.0, -5.0, 0.0], [0.0, 0.0, 0.0], [7.0, 7.0, 7.0]])
def test_weights_of_which_none_is_above_zero_become_equal(weights):
    np.testing.assert_allclose(renormalized(np.array(weights), 0.1), [1, 1, 1], rtol=1e-15)


def test_a_rule_with_a_gradient_descends_and_renormalises():
    weights, measurement = (
        np.array([0.5, 1.0, 1.5]),
        Measurement(np.ones(3), np.diag([16.0, 4.0, 1.0]), rate=0.05, floor=1e-3),
    )
    rule = AlongTheNorms()
    new, state = rule.weigh(weights, rule.start(3), measurement)
    expected = np.array([0.5 - 0.2, 1.0 - 0.1, 1.5 - 0.05])
    np.testing.assert_allclose(new, expected * 3 / expected.sum(), rtol=1e-14)
    assert state == {"updates": 1} and weights.tolist() == [0.5, 1.0, 1.5]
    assert rule.imbalance(weights, state, measurement) == 7


def test_a_rule_with_a_gradient_keeps_to_the_floor_at_any_rate():
    measurement = Measurement(np.ones(2), np.diag([1e18, 0.0]), rate=1e3, floor=0.01)
    new, _ = AlongTheNorms().weigh(np.array([0.5, 1.5]), AlongTheNorms().start(2), measurement)
    np.testing.assert_allclose(new, [0.01, 1.99], rtol=1e-14)


def test_what_a_rule_is_unless_it_says_otherwise():
    assert Rule.needs == {"gram"} and Rule.update_every == 1 and Rule.on_all_parameters
    assert not Rule.tells_equations and not Rule.keeps_sum and GradientRule.keeps_sum
    rule, measurement = OfTheLosses(), Measurement(np.array([1.0, 4.0]))
    assert rule.start(2) == {} and not rule.needs_positive_losses
    assert np.isnan(rule.imbalance(np.ones(2), {}, measurement))
    assert rule.findings("ab", np.ones(2), {}, measurement) == []
    rule.check(floor=0.9)
    assert rule.weigh(np.ones(2), {}, measurement)[0].tolist() == [1, 0.25]


@pytest.mark.parametrize("kind, missing", [(Rule, "weigh"), (GradientRule, "gradient")])
def test_a_rule_without_its_formula_cannot_be_made(kind, missing):
    class Incomplete(kind):
        pass

    with pytest.raises(TypeError, match=missing):
        Incomplete()


def test_a_rule_is_printed_with_its_options():
    class Mine(Rule):
        def __init__(self, *options):
            if options:
                self.strength, self.lead = options

        def weigh(self, weights, state, measurement):
            return weights, state

    # By this comparisons tell rules from one another.
    assert repr(Mine()) == "Mine()" and repr(Mine(0.5, "late")) == "Mine(strength=0.5, lead='late')"
