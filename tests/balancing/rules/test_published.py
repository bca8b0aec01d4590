import dataclasses

import numpy as np
import paddle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import GradientRule
from paddlescience_gradnorm.balancing.rules import GradNormRule


def measured(losses, norms, **others):
    losses, norms = np.array(losses, float), np.array(norms, float)
    return Measurement(losses, np.diag(norms**2), **others)


def references(*values):
    return {"initial_losses": np.array(values, float)}


@st.composite
def steps(draw):
    """alpha, weights, losses, initial losses and gradient norms of 2 to 6 losses."""
    n_loss = draw(st.integers(2, 6))
    column = st.lists(st.floats(1e-3, 1e3), min_size=n_loss, max_size=n_loss)
    return draw(st.floats(0, 3)), *(np.array(draw(column)) for _ in range(4))


@settings(max_examples=200, deadline=None)
@given(steps())
def test_closed_form_is_the_gradient_of_lgrad(step):
    alpha, weights, losses, initial, norms = step
    w = paddle.to_tensor(weights, stop_gradient=False)
    # Equations 1 and 2 of the paper, the target a constant.
    ratios = paddle.to_tensor(losses / initial)
    powers = (ratios / ratios.mean()) ** paddle.full([], alpha, "float64")
    target = (w * paddle.to_tensor(norms)).mean() * powers
    differences = w * paddle.to_tensor(norms) - target.detach()
    # At a difference of 0 the sign, and with it the gradient, is rounding.
    rounding = 1e-12 * max((weights * norms).max(), target.max().item())
    assume(differences.abs().min().item() > rounding)
    lgrad = differences.abs().sum()
    lgrad.backward()

    found = GradNormRule(alpha).gradient(weights, references(*initial), measured(losses, norms))

    scale = norms.max()
    np.testing.assert_allclose(found.gradient, w.grad.numpy(), rtol=1e-12, atol=1e-12 * scale)
    np.testing.assert_allclose(found.loss, lgrad.item(), rtol=1e-12, atol=rounding)


@settings(deadline=None)
@given(steps())
def test_a_step_descends_along_the_gradient_and_keeps_the_sum(step):
    alpha, weights, losses, initial, norms = step
    rule, state, measurement = GradNormRule(alpha), references(*initial), measured(losses, norms)
    measurement = dataclasses.replace(measurement, rate=1e-6 / norms.max(), floor=1e-9)
    new, _ = rule.weigh(weights, state, measurement)
    moved = weights - measurement.rate * rule.gradient(weights, state, measurement).gradient
    np.testing.assert_allclose(new, moved * len(new) / moved.sum(), rtol=1e-12)


def test_a_slow_loss_is_pushed_up():
    step = GradNormRule(1.0).gradient(np.ones(2), references(1, 1), measured([0.9, 0.1], [1, 1]))
    assert step.gradient[0] < 0 < step.gradient[1]  # descent raises the first weight


def test_the_weighted_norm_counts_and_not_the_norm():
    weights = np.array([4.0, 0.1])
    step = GradNormRule(0.0).gradient(weights, references(1, 1), measured([1, 1], [1, 10]))
    assert step.gradient.tolist() == [1, -10] and step.loss == 3


def test_equal_norms_and_rates_ask_for_no_change():
    ones = np.ones(3)
    rule, measurement = GradNormRule(1.5), measured(ones, ones)
    step = rule.gradient(ones, references(1, 1, 1), measurement)
    assert step.loss == 0 and step.gradient.tolist() == [0, 0, 0]
    np.testing.assert_allclose(rule.weigh(ones, step.state, measurement)[0], ones, rtol=1e-15)


def test_with_alpha_0_no_weight_depends_on_losses_or_references():
    weights, norms = np.array([1.0, 0.5, 1.5]), [1, 2, 3]
    steps = [
        GradNormRule(0.0).gradient(weights, references(*initial), measured(losses, norms))
        for losses, initial in [([1, 1, 1], [1, 1, 1]), ([-5, 0, 1e300], [0, 1e-300, 7])]
    ]
    assert steps[0].loss == steps[1].loss
    assert steps[0].gradient.tolist() == steps[1].gradient.tolist()


def test_references_are_the_first_losses_above_zero():
    rule = GradNormRule(0.0)  # which is asked where losses are zero or negative, too
    state = rule.start(4)
    assert state.keys() == {"initial_losses"} and state["initial_losses"].tolist() == [0] * 4
    for losses, expected in [
        ([2, 0, -3, 0], [2, 0, 0, 0]),
        ([1, 4, 5, 0], [2, 4, 5, 0]),
        ([9, 9, 9, 1e-300], [2, 4, 5, 1e-300]),
    ]:
        _, state = rule.weigh(np.ones(4), state, measured(losses, np.ones(4)))
        assert state["initial_losses"].tolist() == expected


def test_a_first_loss_is_its_own_reference():
    step = GradNormRule(2.0).gradient(np.ones(2), references(0, 0), measured([5, 1e-3], [2, 2]))
    assert step.loss == 0  # both rates are 1


def test_the_imbalance_is_lgrad():
    weights, state, measurement = np.array([0.5, 1.5]), references(1, 2), measured([1, 1], [3, 1])
    rule = GradNormRule(1.0)
    assert rule.imbalance(weights, state, measurement) == 1.0  # 1.5 and 1.5; targets 2 and 1
    assert (
        rule.imbalance(weights, state, measurement)
        == rule.gradient(weights, state, measurement).loss
    )


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_nothing_is_changed_in_place(alpha):
    weights, state, measurement = np.ones(2), references(0, 2), measured([1, 3], [1, 4])
    arrays = [weights, state["initial_losses"], measurement.losses, measurement.gram]
    for array in arrays:
        array.flags.writeable = False
    new, new_state = GradNormRule(alpha).weigh(weights, state, measurement)
    assert new_state["initial_losses"].tolist() == [1, 2]
    assert (new != weights).all() and state["initial_losses"].tolist() == [0, 2]


@pytest.mark.parametrize(
    "loss, initial, is_found",
    [(20.1, 2, True), (20, 2, False), (1e9, 0, False), (np.nan, 2, False)],
)
def test_a_reference_that_was_too_small_is_found(loss, initial, is_found):
    names, measurement = ["pde", "bc"], measured([1, loss], [1, 1])
    found = GradNormRule(1.0).findings(names, np.ones(2), references(1, initial), measurement)
    assert len(found) == is_found
    for finding in found:
        assert finding.startswith("The reference L(0) of 'bc' was too small to mean anything")
        assert "the loss is now up to 10.1 times as large" in finding
        assert "reset_initial_losses()" in finding and 'rule="pinn"' in finding


@pytest.mark.parametrize(
    "rate, is_found", [(1e-3, False), (0.0110, False), (0.0112, True), (np.nan, False)]
)
def test_a_step_of_half_the_weight_is_found(rate, is_found):
    # The norms are equal at weights of 0.2 and 1.8. A step of the first is 9 times the rate.
    found = GradNormRule(0.0).findings(
        *(["pde", "bc"], np.ones(2), references(0, 0)), measured([1, 1], [9, 1], rate=rate)
    )
    assert len(found) == is_found
    for finding in found:
        assert finding.startswith("The weight of 'pde' jumps: with weight_lr=0.0112 a step moves")
        assert "moves it by 0.1, and its gradient asks for a weight of 0.2." in finding
        assert "Lower weight_lr to 1e-03" in finding


@pytest.mark.parametrize("norms", [(0, 1), (np.nan, 1)])
def test_of_a_loss_that_cannot_be_balanced_the_rule_says_nothing(norms):
    findings = GradNormRule(0.0).findings
    assert findings(["pde", "bc"], np.ones(2), references(0, 0), measured([1, 1], norms)) == []


def test_what_a_balancer_has_to_know_of_it():
    assert issubclass(GradNormRule, GradientRule)
    assert GradNormRule.needs == {"gram"} and GradNormRule.update_every == 1
    assert GradNormRule.keeps_sum and not GradNormRule.tells_equations
    assert not GradNormRule.on_all_parameters
    assert GradNormRule(1.0).needs_positive_losses and not GradNormRule(0.0).needs_positive_losses
    GradNormRule(1.0).check(floor=0.5)


def test_rules_of_equal_alpha_are_equal():
    assert GradNormRule(1.0) == GradNormRule(1) != GradNormRule(2.0)
    assert hash(GradNormRule(1.0)) == hash(GradNormRule(1.0))
    assert repr(GradNormRule(1.5)) == "GradNormRule(alpha=1.5)"


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=f"alpha .* got {alpha}"):
        GradNormRule(alpha)


@pytest.mark.parametrize("alpha", ["1", None, True])
def test_alpha_of_another_type(alpha):
    with pytest.raises(TypeError, match="alpha must be a number"):
        GradNormRule(alpha)
