"""What docs/bad_numbers.md says, for both rules."""

import dataclasses
import functools

import numpy as np
import paddle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddlescience_gradnorm import LossBalancer
from paddlescience_gradnorm.balancing import GradNormRule, Measurement, PinnRule, Rule
from paddlescience_gradnorm.balancing._update import faults_of, updated

RULES = {
    "published": {"rule": "published", "alpha": 1.0},
    "pinn": {"rule": "pinn", "alpha": 1.0, "update_every": 1, "equations": [0]},
}
NAN, INF = float("nan"), float("inf")
TINY = float(np.finfo("float32").tiny)  # a loss below it has no training rate

for_both_rules = pytest.mark.parametrize("rule", RULES)


def balancer_on(weight, n_loss=3, **options):
    return LossBalancer(weight, n_loss, **{"weight_lr": 0.01, "floor": 1e-3, **options})


@pytest.fixture(params=["float32", "float64"])
def weight(request):
    paddle.set_default_dtype(request.param)
    return paddle.create_parameter(
        [3],
        request.param,
        attr=paddle.ParamAttr(initializer=paddle.nn.initializer.Assign(np.array([1.0, 2.0, 3.0]))),
    )


def loss_of(weight, value, gradient, dtype=None):
    """A loss of this value whose gradient is this number in every entry of the parameter."""
    product = (weight * gradient).sum()
    loss = product - product.detach() + value
    return loss if dtype is None else loss.astype(dtype)


def after_step(balancer, weight, values, gradients):
    """The weights after one step."""
    balancer.backward([loss_of(weight, *of) for of in zip(values, gradients)])
    weight.clear_gradient()
    weights = balancer.get_weights()
    check(weights, balancer.floor, balancer.rule)
    return weights


def check(weights, floor, rule):
    rounding = np.finfo(weights.dtype).eps
    assert np.isfinite(weights).all()
    assert (weights >= floor * (1 - 4 * rounding)).all()
    if isinstance(rule, PinnRule):
        assert (weights <= rule.bound * (1 + 64 * rounding)).all()
    else:
        assert abs(weights.astype("float64").sum() - len(weights)) <= 16 * len(weights) * rounding


def messages(record):
    return [str(w.message) for w in record if w.category is RuntimeWarning]


GOOD = ([1.0, 2.0, 3.0], [1.0, 2.0, 0.5])


# Through the balancer.


@for_both_rules
@pytest.mark.parametrize("bad", [NAN, INF, -INF, -1.0, 0.0])
def test_a_bad_loss_is_left_out_while_the_others_are_balanced(weight, rule, bad, recorded_warnings):
    balancer = balancer_on(weight, **RULES[rule])
    before = after_step(balancer, weight, *GOOD)
    references = balancer.rule_state["initial_losses"]
    for _ in range(2):
        after = after_step(balancer, weight, [1.0, bad, 3.0], GOOD[1])
        assert after[1] == before[1] and after[2] > before[2]
        # The equation is the unit by the PINN rule, and gives to the other by the published.
        assert after[0] < before[0] if rule == "published" else after[0] == before[0]
        assert balancer.rule_state["initial_losses"][1] == references[1]
        before = after
    (message,) = messages(recorded_warnings)
    assert message.startswith("step 1: loss 'losses[1]' is ")
    assert message.endswith("; it is left out of the balancing while this lasts")
    assert after_step(balancer, weight, [1.0, 2.5, 3.0], GOOD[1])[1] != before[1]


@for_both_rules
@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_others_get_what_they_would_get_alone(weight, rule, bad):
    both, alone = balancer_on(weight, **RULES[rule]), balancer_on(weight, 2, **RULES[rule])
    for number in (NAN, INF, 0.0):
        if bad == "loss":
            third = loss_of(weight, number, 2.0)
        elif number == 0:
            third = loss_of(weight, 2.0, 0.0)
        else:
            third = loss_of(weight, 2.0, 1.0) + Slope.apply(weight, paddle.full([3], number))
        both.backward([loss_of(weight, 1.0, 1.0), third, loss_of(weight, 3.0, 0.25)])
        alone.backward([loss_of(weight, 1.0, 1.0), loss_of(weight, 3.0, 0.25)])
        weights, expected = both.get_weights(), alone.get_weights()
        np.testing.assert_allclose(weights[::2], expected, rtol=4 * np.finfo(weights.dtype).eps)
        assert weights[1] == 1 and both.rule_state["initial_losses"][1] == 0
    assert abs(weights[2] - 1) > 0.01


@pytest.mark.parametrize("bad", [NAN, -1.0, 0.0])
def test_of_two_losses_none_can_be_balanced_without_the_other(weight, bad, recorded_warnings):
    balancer = balancer_on(weight, 2, **RULES["published"])
    before = after_step(balancer, weight, [1.0, 2.0], [1.0, 2.0])
    references = balancer.rule_state["initial_losses"]
    for values in ([bad, 2.0], [1.0, bad]):
        after = after_step(balancer, weight, values, [1.0, 2.0])
        np.testing.assert_array_equal(after, before)
        np.testing.assert_array_equal(balancer.rule_state["initial_losses"], references)
    assert len(messages(recorded_warnings)) == 2
    assert after_step(balancer, weight, [1.0, 2.0], [1.0, 2.0])[1] != before[1]


@pytest.mark.parametrize("bad", [NAN, -1.0, 0.0])
def test_a_condition_goes_on_by_the_pinn_rule_when_its_equation_cannot(
    weight, bad, recorded_warnings
):
    balancer = balancer_on(weight, 2, **RULES["pinn"])
    # Before any equation has been measured there is no unit.
    alone = after_step(balancer, weight, [bad, 2.0], [1.0, 2.0])
    assert alone.tolist() == [1, 1]
    before = after_step(balancer, weight, [1.0, 2.0], [1.0, 2.0])
    for _ in range(3):
        after = after_step(balancer, weight, [bad, 2.0], [1.0, 2.0])
        np.testing.assert_allclose(after[1] / before[1], np.exp(0.01), rtol=1e-6)
        assert after[0] == before[0] == 1
        before = after
    # And the equation alone has nothing to be compared with.
    np.testing.assert_array_equal(after_step(balancer, weight, [1.0, bad], [1.0, 2.0]), before)
    assert len(messages(recorded_warnings)) == 2


def test_the_equations_that_are_left_are_the_unit_of_the_pinn_rule(weight, recorded_warnings):
    balancer = balancer_on(weight, 4, **{**RULES["pinn"], "equations": (0, 1)})
    losses, gradients = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 0.5, 4.0]
    before = after_step(balancer, weight, losses, gradients)
    after = after_step(balancer, weight, [NAN, NAN, 3.0, 4.0], gradients)
    assert ((after != before) == [False, False, True, True]).all()
    before = after
    after = after_step(balancer, weight, [NAN, 2.0, 3.0, 4.0], gradients)
    assert ((after != before) == [False, True, True, True]).all()
    assert abs(after[1] - 1) < abs(before[1] - 1)  # the equation that is left is the unit
    assert len(messages(recorded_warnings)) == 2
    # Without equations among the losses all are alike.
    balancer = balancer_on(weight, **{**RULES["pinn"], "equations": ()})
    assert (
        (after_step(balancer, weight, [NAN, 2.0, 3.0], GOOD[1]) != 1) == [False, True, True]
    ).all()


@for_both_rules
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_bad_gradient(weight, rule, bad, recorded_warnings):
    balancer = balancer_on(weight, **RULES[rule])
    before = after_step(balancer, weight, *GOOD)
    slope = paddle.to_tensor([1.0, 0.0, 0.0]) * bad
    for _ in range(2):
        losses = [loss_of(weight, *of) for of in zip(*GOOD)]
        losses[2] = losses[2] + Slope.apply(weight, slope)
        balancer.backward(losses)
        weight.clear_gradient()
        after = balancer.get_weights()
        check(after, balancer.floor, balancer.rule)
        assert after[2] == before[2] and after[1] != before[1]
        before = after
    (message,) = messages(recorded_warnings)
    assert "'losses[2]' has a gradient of norm " in message
    assert after_step(balancer, weight, *GOOD)[2] != before[2]


class Slope(paddle.autograd.PyLayer):
    """Zero, with this gradient."""

    @staticmethod
    def forward(ctx, parameter, slope):
        ctx.save_for_backward(slope)
        return parameter.sum() * 0

    @staticmethod
    def backward(ctx, gradient):
        (slope,) = ctx.saved_tensor()
        return slope * gradient, None


@for_both_rules
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_bad_parameter(weight, rule, bad, recorded_warnings):
    balancer = balancer_on(weight, **RULES[rule])
    before = after_step(balancer, weight, *GOOD)
    good = weight.numpy()
    for value in (np.array([1.0, bad, 3.0]), good):
        np.testing.assert_array_equal(balancer.get_weights(), before)
        weight.set_value(paddle.to_tensor(value, dtype=weight.dtype))
        balancer.backward([(weight * k).square().sum() for k in (1.0, 2.0, 3.0)])
        weight.clear_gradient()
    assert len(messages(recorded_warnings)) == 3  # for each loss, once
    assert (balancer.get_weights() != before).any()


@for_both_rules
@pytest.mark.parametrize("first", [0.0, TINY / 2])
def test_a_loss_that_begins_with_zero(weight, rule, first, recorded_warnings):
    balancer = balancer_on(weight, **RULES[rule])
    for _ in range(3):
        weights = after_step(balancer, weight, [1.0, first, 3.0], GOOD[1])
        assert weights[1] == 1 and weights[2] > 1
        assert balancer.rule_state["initial_losses"].tolist() == [1, 0, 3]
    (message,) = messages(recorded_warnings)
    assert f"'losses[1]' is {first:.3g} and has no training rate; it is left" in message
    assert after_step(balancer, weight, *GOOD)[1] != 1
    assert balancer.rule_state["initial_losses"].tolist() == [1, 2, 3]


@for_both_rules
def test_with_alpha_0_zero_and_negative_losses_are_like_any_other(weight, rule, recorded_warnings):
    runs = []
    for values in ([1.0, 2.0, 3.0], [-1.0, 0.0, 1e-42]):
        balancer = balancer_on(weight, **{**RULES[rule], "alpha": 0.0})
        runs.append([after_step(balancer, weight, values, GOOD[1]) for _ in range(3)])
    np.testing.assert_array_equal(*runs)
    assert (runs[0][0] != 1).any()
    said = messages(recorded_warnings)  # by the PINN rule, which else divides by roots
    assert len(said) == (2 if rule == "pinn" else 0)
    assert all("has no root" in message for message in said)


@for_both_rules
def test_a_loss_without_a_gradient(weight, rule, recorded_warnings):
    balancer = balancer_on(weight, **RULES[rule])
    before = after_step(balancer, weight, *GOOD)
    after = after_step(balancer, weight, GOOD[0], [1.0, 2.0, 0.0])
    assert after[2] == before[2] and after[1] != before[1]
    (message,) = messages(recorded_warnings)
    assert "step 1: loss 'losses[2]' has no gradient on the shared parameters; it" in message
    assert after_step(balancer, weight, *GOOD)[2] != before[2]


@for_both_rules
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_all_losses_become_zero(weight, rule, alpha, recorded_warnings):
    balancer = balancer_on(weight, **{**RULES[rule], "alpha": alpha})
    before = after_step(balancer, weight, *GOOD)
    for _ in range(2):
        after = after_step(balancer, weight, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
        np.testing.assert_array_equal(after, before)
    assert len(messages(recorded_warnings)) == 3
    what = "is 0 and has no training rate" if alpha else "has no gradient on the shared"
    assert all(what in message for message in messages(recorded_warnings))


@for_both_rules
@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_a_loss_far_above_or_below_the_others(weight, rule, factor, recorded_warnings):
    balancer = balancer_on(weight, **{**RULES[rule], "weight_lr": 0.05, "equations": ()})
    for _ in range(100):
        weights = after_step(balancer, weight, [1.0, factor, 1.0], [1.0, factor, 1.0])
    assert not messages(recorded_warnings)
    assert (weights[1] < 0.1) == (factor > 1)
    # And back to where all are equal.
    balancer.reset_initial_losses()
    for _ in range(300):
        weights = after_step(balancer, weight, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(weights, [1, 1, 1], atol=0.2)


@for_both_rules
def test_gradients_that_are_denormal(rule, recorded_warnings):
    weight = paddle.create_parameter([3], "float32")
    balancer = balancer_on(weight, **RULES[rule])
    for _ in range(5):
        after_step(balancer, weight, [1.0, 1.0, 1.0], [1e-42, 1e-42, 2e-42])
    assert (balancer.gradient_norms > 0).all()
    assert not messages(recorded_warnings)


@for_both_rules
def test_losses_of_four_types_together(rule, recorded_warnings):
    weight = paddle.create_parameter([3], "float32")
    dtypes = ["float16", "bfloat16", "float32", "float64"]
    runs = []
    for types in (dtypes, [None] * 4):
        balancer = balancer_on(weight, 4, **RULES[rule])
        for step in range(20):
            values = [1.0 + step / 8, 0.5, 2.0, 4.0]
            balancer.backward(
                [loss_of(weight, *of) for of in zip(values, [1.0, 4.0, 0.5, 2.0], types)]
            )
            weight.clear_gradient()
            check(balancer.get_weights(), balancer.floor, balancer.rule)
        runs.append(balancer.get_weights())
    assert not messages(recorded_warnings)
    np.testing.assert_allclose(*runs, rtol=0.02)  # the weights act rounded to a loss's type
    assert np.abs(runs[0] - 1).max() > 0.02


@for_both_rules
def test_sixty_four_losses(weight, rule, recorded_warnings):
    balancer = balancer_on(weight, 64, **RULES[rule])
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, gradients = rng.lognormal(0, 3, (2, 64)).tolist()
        weights = after_step(balancer, weight, values, gradients)
    assert not messages(recorded_warnings)
    # By the PINN rule the equation's, the first, is the unit.
    assert ((weights != 1) == [rule == "published", *[True] * 63]).all()


@for_both_rules
def test_a_rate_that_is_far_too_large(weight, rule, recorded_warnings):
    balancer = balancer_on(weight, **{**RULES[rule], "weight_lr": 1e30})
    for gradients in ([1.0, 1e30, 1e-30], [1e30, 1e-30, 1.0], [1.0, 1.0, 2.0]):
        after_step(balancer, weight, GOOD[0], gradients)  # which checks them
    assert not messages(recorded_warnings)


def test_a_norm_that_an_optimizer_cannot_square(recorded_warnings):
    weight = paddle.create_parameter([3], "float32")
    balancer = balancer_on(weight, weight_lr=None, alpha=1.0)
    adam = paddle.optimizer.Adam(1e-2, parameters=[balancer.loss_weights])
    weights = []
    for large in (1.0, 1e25, 1e25, 1.0, 1.0):
        after_step(balancer, weight, GOOD[0], [1.0, large, 0.5])
        assert bool(balancer.loss_weights.grad[1] == 0) == (large > 1)
        adam.step()
        adam.clear_grad()
        weights.append(balancer.get_weights())
    (message,) = messages(recorded_warnings)
    assert "'losses[1]' has a gradient of norm above 9e+18, too large for an optim" in message
    moved = np.diff(weights, axis=0) != 0
    assert moved.tolist() == [[True, False, True]] * 2 + [[True] * 3] * 2  # and no end


def test_an_optimizer_that_makes_the_weights_nan(weight, recorded_warnings):
    balancer = balancer_on(weight, weight_lr=None, alpha=1.0)
    after_step(balancer, weight, *GOOD)
    before = balancer.get_weights()
    balancer.loss_weights.set_value(paddle.to_tensor([1.0, NAN, 1.0], dtype=weight.dtype))
    np.testing.assert_array_equal(balancer.get_weights(), before)
    balancer.loss_weights.set_value(paddle.to_tensor([1.0, NAN, 1.0], dtype=weight.dtype))
    after_step(balancer, weight, *GOOD)
    (message,) = messages(recorded_warnings)
    assert "the optimizer has made the loss weights NaN or infinite" in message


@for_both_rules
def test_lgrad_is_no_number_where_nothing_can_be_balanced(weight, rule, recorded_warnings):
    balancer = balancer_on(weight, 2, **RULES[rule])
    lgrad = balancer.step([loss_of(weight, NAN, 1.0), loss_of(weight, NAN, 1.0)])
    assert np.isnan(lgrad.item())
    assert len(messages(recorded_warnings)) == 2


@for_both_rules
def test_a_bad_loss_between_two_updates_is_said_and_changes_nothing(
    weight, rule, recorded_warnings
):
    balancer = balancer_on(weight, **{**RULES[rule], "update_every": 3})
    before = after_step(balancer, weight, *GOOD)
    references = balancer.rule_state["initial_losses"]
    for values in ([1.0, NAN, 3.0], [1.0, NAN, 3.0]):
        np.testing.assert_array_equal(after_step(balancer, weight, values, GOOD[1]), before)
    np.testing.assert_array_equal(balancer.rule_state["initial_losses"], references)
    (message,) = messages(recorded_warnings)
    assert message.startswith("step 1: loss 'losses[1]' is nan; ")


def test_a_rule_of_a_users_own_that_gives_no_numbers_changes_nothing(weight, recorded_warnings):
    class Inverse(Rule):
        def weigh(self, weights, state, measurement):
            with np.errstate(divide="ignore"):
                return 1 / (measurement.losses - 1), state

    balancer = balancer_on(weight, rule=Inverse(), floor=0.1)
    weights = []
    for first in (2.0, 1.0, 1.0, 1 + 1e-300, 1.5):  # the second weight is below the floor
        balancer.backward([loss_of(weight, *of) for of in zip([first, 21.0, 2.0], GOOD[1])])
        weights.append(balancer.get_weights())
    np.testing.assert_allclose(weights, [[1, 0.1, 1]] * 4 + [[2, 0.1, 1]], rtol=1e-6)
    (message,) = messages(recorded_warnings)
    assert message.startswith("step 1: ") and "Inverse" in message
    assert "gives no finite weights" in message


# What a rule says of some of the losses.


def measured(losses, norms, equations=(), **others):
    losses, norms = np.array(losses, float), np.array(norms, float)
    with np.errstate(all="ignore"):
        gram = 0.5 * (np.outer(norms, norms) + np.diag(norms**2))
    are_equations = np.isin(np.arange(len(losses)), equations)
    return Measurement(losses, gram, equations=are_equations, **others)


def test_the_published_rule_keeps_the_sum_of_those_that_are_balanced():
    weights, state = np.array([1.5, 0.5, 1.0]), {"initial_losses": np.array([1.0, 2.0, 0.0])}
    measurement = measured([1.0, NAN, 3.0], [2.0, 1.0, 1.0], rate=0.01)
    new, new_state, good, _ = updated(GradNormRule(0.0), weights, state, measurement)
    # In the unit in which the two sum to 2 they are 1.2 and 0.8.
    moved = np.array([1.2 - 0.01 * 2, 0.8 + 0.01 * 1])
    expected = moved * 2.5 / moved.sum()
    np.testing.assert_allclose(new, [expected[0], 0.5, expected[1]], rtol=1e-14)
    assert good.tolist() == [True, False, True]
    assert new_state["initial_losses"].tolist() == [1, 2, 3]
    assert weights.tolist() == [1.5, 0.5, 1.0] and state["initial_losses"].tolist() == [1, 2, 0]


def test_the_floor_holds_by_any_rule():
    weights, state = np.array([1.0, 0.26, 1.0]), PinnRule().start(3)
    measurement = measured([1.0, 1.0, NAN], [1.0, 1e6, 1.0], [0, 1], rate=1.0, floor=0.25)
    new, *_ = updated(PinnRule(strength=1.0), weights, state, measurement)
    np.testing.assert_allclose(new, [np.e, 0.25, 1], rtol=1e-14)


def test_the_floor_holds_for_those_that_are_balanced():
    weights, state = np.array([0.3, 2.4, 0.3]), GradNormRule(0.0).start(3)
    measurement = measured([1.0, NAN, 3.0], [9.0, 1.0, 1.0], rate=1e6, floor=0.25)
    new, *_ = updated(GradNormRule(0.0), weights, state, measurement)
    np.testing.assert_allclose(new, [0.25, 2.4, 0.35], rtol=1e-14)


def test_those_on_the_floor_have_nothing_to_give():
    weights, state = np.array([0.25, 2.5, 0.25]), GradNormRule(0.0).start(3)
    measurement = measured([1.0, NAN, 3.0], [9.0, 1.0, 1.0], rate=1e6, floor=0.25)
    new, *_ = updated(GradNormRule(0.0), weights, state, measurement)
    assert new.tolist() == weights.tolist()


def test_a_number_that_belongs_to_no_loss_is_passed_on():
    class Counting(Rule):
        needs = frozenset()

        def start(self, n_loss):
            return {"updates": np.zeros([]), "table": np.zeros([n_loss, 2])}

        def weigh(self, weights, state, measurement):
            table = np.stack([measurement.losses, weights], 1)
            return 2 * weights, {"updates": state["updates"] + 1, "table": table}

    rule, weights = Counting(), np.array([1.0, 2.0, 3.0])
    state = rule.start(3)
    new, new_state, good, _ = updated(rule, weights, state, Measurement(np.array([5.0, NAN, 7.0])))
    assert new.tolist() == [2, 2, 6] and good.tolist() == [True, False, True]
    assert new_state["updates"] == 1
    assert new_state["table"].tolist() == [[5, 1], [0, 0], [7, 3]]
    # Nothing to look at but losses, and fewer than two of them.
    new, new_state, good, _ = updated(rule, weights, state, Measurement(np.array([5.0, NAN, INF])))
    assert new is weights and new_state is state and not good.any()


def test_the_gradient_is_zero_where_a_weight_must_not_move():
    rule, weights = GradNormRule(0.0), np.array([1.5, 0.5, 1.0, 1.0])
    measurement = measured([1.0, 1.0, 3.0, NAN], [2.0, 1e20, 1.0, 1.0])
    gradient, _, good, _ = updated(rule, weights, rule.start(4), measurement, largest_norm=9e18)
    assert gradient.tolist() == [2, 0, -1, 0] and good.tolist() == [True, False, True, False]
    gradient, _, good, _ = updated(rule, weights, rule.start(4), measurement, largest_norm=2.0)
    assert gradient.tolist() == [0, 0, 0, 0] and not good.any()


def test_a_scaled_gradient_that_is_infinite_lets_nothing_be_balanced():
    weights, state = np.ones(3), GradNormRule(0.0).start(3)
    for losses, norms, can_be in [
        ([1.0, 2.0, 3.0], [1.0, INF, 2.0], False),
        ([1.0, 2.0, 3.0], [1.0, NAN, 2.0], False),
        ([1.0, NAN, 3.0], [1.0, NAN, 2.0], True),  # no overflow but a loss that is none
        ([1.0, 2.0, 3.0], [1.0, 0.0, 2.0], True),
    ]:
        measurement = measured(losses, norms)
        new, new_state, good, _ = updated(
            GradNormRule(0.0), weights, state, measurement, is_scaled=True
        )
        assert good.tolist() == [can_be, False, can_be]
        assert (new is weights and new_state is state) == (not can_be)
        assert updated(GradNormRule(0.0), weights, state, measurement)[2].any()


@pytest.mark.parametrize("given", [np.ones(2), np.ones([3, 1]), 1.0, np.ones(4)])
def test_weights_of_another_shape_are_an_error(given):
    class Wrong(Rule):
        def weigh(self, weights, state, measurement):
            return given, state

    with pytest.raises(ValueError, match=r"Wrong.* must give 3 weights, got "):
        updated(Wrong(), np.ones(3), {}, measured([1, 1, 1], [1, 1, 1]))


def test_a_list_of_weights_is_as_good_as_an_array():
    class Lists(Rule):
        def weigh(self, weights, state, measurement):
            return [0, 2, 3], state

    new, *_ = updated(Lists(), np.ones(3), {}, measured([1, 1, 1], [1, 1, 1], floor=0.5))
    assert new.tolist() == [0.5, 2, 3]


@pytest.mark.parametrize("given", [NAN, INF, 1e39])
def test_weights_that_float32_does_not_hold_are_not_taken(given):
    class Wild(Rule):
        def weigh(self, weights, state, measurement):
            return np.array([1.0, given]), {"a": np.ones(2)}

    weights, state = np.array([2.0, 3.0]), {"a": np.zeros(2)}
    new, new_state, good, _ = updated(Wild(), weights, state, measured([1, 1], [1, 1]))
    assert new is weights and new_state is state and not good.any()


@pytest.mark.parametrize(
    "loss, norm, fault",
    [
        (1.0, 1.0, ""),
        (NAN, 1.0, "is nan"),
        (-INF, NAN, "is -inf"),
        (-1.0, 1.0, "is negative and has no training rate"),
        (1e-39, 0.0, "is 1e-39 and has no training rate"),
        (TINY, 1.0, ""),
        (1.0, 0.0, "has no gradient on the shared parameters"),
        (1.0, NAN, "has a gradient of norm nan"),
        (1.0, INF, "has a gradient of norm inf"),
        (1.0, 1e10, "has a gradient of norm above 1e+10, too large for an optimizer to square"),
    ],
)
def test_a_fault_is_put_into_words(loss, norm, fault):
    measurement = measured([1.0, loss], [1.0, norm])
    ones = np.ones(2)
    assert faults_of(GradNormRule(1.0), ones, measurement, largest_norm=1e10) == ["", fault]
    if "square" in fault:
        assert faults_of(GradNormRule(1.0), ones, measurement) == ["", ""]
    if "training rate" in fault:
        with_gradient = measured([1.0, loss], [1.0, 1.0])
        assert faults_of(GradNormRule(0.0), ones, with_gradient) == ["", ""]


@pytest.mark.parametrize("weight", [0.0, -1.0, NAN])
def test_a_loss_whose_weight_is_not_above_zero_is_at_fault(weight):
    (none, fault) = faults_of(PinnRule(), np.array([1.0, weight]), measured([1, 1], [1, 1]))
    assert none == ""
    assert fault == f"has the weight {weight:g}, and only weights above 0 are balanced"


def test_between_two_updates_only_losses_can_be_at_fault():
    losses = Measurement(np.array([1.0, NAN, -1.0]))
    faults = faults_of(GradNormRule(1.0), np.ones(3), losses)
    assert faults == ["", "is nan", "is negative and has no training rate"]


# Random sequences.

SPECIAL = [NAN, INF, -INF, -1.0, -1.7e308, 0.0, -0.0, 5e-324, 1e-310, 1e-45, 1e-40, 1e-38, TINY]
SPECIAL += [2e-38, 1e-30, 1e-10, 1.0, 1e10, 1e30, 3e38, 1e200, 1.7e308]


@st.composite
def sequences(draw, kinds=tuple(RULES), number=20):
    """A rule with its options, and losses and norms, shape [number, steps, 2, n_loss].

    Their kind and seed come from hypothesis, the numbers from the seed: one by one they
    would take it far longer than the rules take.
    """
    n_loss = draw(st.sampled_from([2, 2, 3, 4, 7, 64]))
    alpha = draw(st.sampled_from([0.0, 0.12, 1.0, 3.0]))
    rule = GradNormRule(alpha)
    if draw(st.sampled_from(kinds)) == "pinn":
        strength, bound = draw(st.sampled_from([(0.5, 100.0), (1.0, 1e6), (0.01, 1.001)]))
        lead, memory = draw(st.sampled_from([0.1, 1.0, 5.0])), draw(st.sampled_from([0, 0.5, 0.99]))
        rule = PinnRule(alpha, strength, lead, bound, memory)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (number, draw(st.integers(1, 6)), 2, n_loss)
    numbers = rng.lognormal(0, draw(st.sampled_from([0.1, 3.0, 60.0])), shape)
    special = rng.random(shape) < draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    numbers[special] = rng.choice(SPECIAL, shape)[special]
    with np.errstate(over="ignore"):
        for dtype in ("float16", "float32"):  # losses as such a tensor would hold them
            rounded = rng.random(shape) < draw(st.sampled_from([0.0, 0.3]))
            numbers[rounded] = numbers[rounded].astype(dtype)
    numbers[:, :, 1] = np.abs(numbers[:, :, 1])  # norms
    equations = draw(st.sampled_from([(), (0,), (1,), (0, 1), tuple(range(n_loss))]))
    rate = draw(st.sampled_from([1e-4, 0.01, 1.0, 1e4]))
    floor = draw(st.sampled_from([1e-6, 1e-3, 0.5, 0.9]))
    return rule, numbers, equations, rate, floor


def healthy_ones(rule, measurement):
    """Which losses can be balanced, by what is said of it in words."""
    losses, squares = measurement.losses, measurement.gram.diagonal()
    healthy = np.isfinite(losses) & np.isfinite(squares) & (squares > 0)
    return healthy & (losses >= TINY) if rule.alpha else healthy


def alone(rule, weights, state, measurement):
    """What the rule gives to these losses if there are no others."""
    if isinstance(rule, PinnRule):
        return rule.weigh(weights, state, measurement)
    # In the unit in which they sum to their number, so that they keep the sum that they have.
    unit = len(weights) / weights.sum()
    floor = measurement.floor * unit
    if floor > 1 - 1e-9:
        return weights, state  # all are on the floor
    new, state = rule.weigh(weights * unit, state, dataclasses.replace(measurement, floor=floor))
    return new / unit, state


def of_some(state, which):
    return {name: array[which] if array.ndim else array for name, array in state.items()}


def check_update(rule, weights, before, measurement):
    """One update; the weights and the rule's state after it."""
    healthy = healthy_ones(rule, measurement)
    for array in (weights, *before.values(), measurement.losses, measurement.gram):
        array.flags.writeable = False
    # No overflow, and no warning of one.
    with np.errstate(all="raise", under="ignore"):
        new, state, good, faults = updated(rule, weights, before, measurement)
        check(new, measurement.floor, rule)
        after = state["initial_losses"]
        assert np.isfinite(after).all() and (after >= 0).all()
        assert [not fault for fault in faults] == healthy.tolist()
        # All that is healthy is balanced, whatever the others are, and nothing else moves.
        can_be = healthy.sum() >= rule.fewest_losses
        moving = healthy if can_be else np.zeros_like(healthy)
        np.testing.assert_array_equal(new[~moving], weights[~moving])
        np.testing.assert_array_equal(after[~moving], before["initial_losses"][~moving])
        if can_be:
            of_healthy = (weights[healthy], of_some(before, healthy), measurement.of(healthy))
            way = rule.weigh if healthy.all() else functools.partial(alone, rule)
            expected, of_these = way(*of_healthy)
            expected = np.maximum(expected, measurement.floor)
            np.testing.assert_array_equal(new[healthy], expected)
            for name, array in of_some(state, healthy).items():
                np.testing.assert_array_equal(array, of_these[name])
            is_stuck = not good.any()
            assert not is_stuck or (rule.keeps_sum and (expected == weights[healthy]).all())
            if not is_stuck:
                np.testing.assert_array_equal(good, healthy)
        if isinstance(rule, PinnRule):
            check_that_it_goes_on(rule, weights, before, measurement, new, healthy)
    return new, state


def check_that_it_goes_on(rule, weights, before, measurement, new, healthy):
    """Every healthy loss that is not at its target moves, if there is what to compare it with."""
    equations = measurement.equations & healthy
    if healthy.sum() < 2 and (equations.any() or np.isnan(before["log_unit"])):
        return
    limit = np.log(rule.bound)
    logs = -np.log(measurement.norms[healthy])
    if rule.by_root and (measurement.losses[healthy] > 0).all():
        logs = logs + 0.5 * np.log(measurement.losses[healthy])
    if rule.alpha:
        return  # the targets depend on the averages too
    has_unit = equations.any() or not np.isnan(before["log_unit"])
    unit = logs[equations[healthy]].mean() if equations.any() else before["log_unit"]
    targets = rule.strength * (logs - (unit if has_unit else logs.mean()))
    if has_unit:
        are_equations = measurement.equations[healthy]
        # Of a run of unknown length the conditions of several equations have no lead.
        lead = rule.lead if measurement.equations.sum() < 2 else 1.0
        targets = targets + np.where(are_equations, 0, np.log(lead))
        with np.errstate(all="ignore"):
            losses = weights[healthy] * measurement.losses[healthy].clip(0)
            enough = rule.met * losses[are_equations].sum()
            largest = np.maximum(before["largest_losses"], measurement.losses)[healthy]
            own = measurement.losses[healthy] / (rule.met * largest)
            shares = np.maximum(np.log(losses) - np.log(enough), np.log(own))
            withdrawn = (targets + 2 * shares).clip(0)
        is_met = ~are_equations & (targets > 0) & (losses < enough) & (own < 1)
        is_met &= ~rule._is_out_of_scale(measurement.of(healthy))
        targets = np.where(is_met, withdrawn, targets)
    distance = np.abs(targets.clip(-limit, limit) - np.log(weights[healthy]))
    far = distance > 1e-9 * max(1.0, limit)
    at_floor = new[healthy] <= measurement.floor
    moved = new[healthy] != weights[healthy]
    slow = min(1.0, measurement.rate) * distance < 1e-15
    assert (moved | ~far | at_floor | slow).all()


def check_sequences(drawn):
    rule, sequences, equations, rate, floor = drawn
    for numbers in sequences:
        n_loss = numbers.shape[2]
        weights, state = np.ones(n_loss), rule.start(n_loss)
        for step, (losses, norms) in enumerate(numbers):
            measurement = measured(losses, norms, equations, step=step, rate=rate, floor=floor)
            weights, state = check_update(rule, weights, state, measurement)


def check_gradients(drawn):
    rule, sequences, *_ = drawn
    largest = float(np.sqrt(np.finfo("float32").max) / 2)
    for numbers in sequences:
        weights, initial = np.ones(numbers.shape[2]), np.zeros(numbers.shape[2])
        for losses, norms in numbers:
            measurement = measured(losses, norms)
            healthy = healthy_ones(rule, measurement) & (measurement.norms < largest)
            with np.errstate(all="raise", under="ignore"):
                gradient, state, good, _ = updated(
                    rule, weights, {"initial_losses": initial}, measurement, largest
                )
                assert np.isfinite(gradient.astype("float32") ** 2).all()
            (initial,) = state.values()
            np.testing.assert_array_equal(good, healthy if healthy.sum() >= 2 else False)
            size = np.abs(gradient)
            expected = np.where((size > 0) & good, measurement.norms, 0)
            np.testing.assert_array_equal(size, expected)
            if good.any() and size.any():  # some are pushed up and others down
                assert gradient.min() < 0 < gradient.max() or rule.alpha


def of_number(quick, slow):
    """Marks that run a test with this many examples, or by `make test-all` with more."""
    slow_one = pytest.param(slow, marks=pytest.mark.slow)
    return pytest.mark.parametrize("examples", [quick, slow_one])


def explore(check_one, strategy, examples):
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    options = settings(
        max_examples=examples, deadline=None, suppress_health_check=checks, database=None
    )
    options(given(strategy)(check_one))()


@for_both_rules
@of_number(50, 1_000)  # of 20 sequences, for two rules
def test_random_sequences_through_the_rules(rule, examples):
    explore(check_sequences, sequences((rule,)), examples)


@of_number(25, 500)
def test_random_sequences_give_gradients_that_an_optimizer_can_square(examples):
    explore(check_gradients, sequences(("published",)), examples)


@of_number(100, 1_000)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:bound is:UserWarning")
def test_random_sequences_through_the_balancer(examples):
    @st.composite
    def with_types(draw):
        sequence = draw(sequences(number=1))
        types = st.sampled_from(["float16", "bfloat16", "float32", "float64"])
        n_loss = min(sequence[1].shape[3], 7)
        dtype = draw(st.sampled_from(["float32", "float64"]))
        return sequence, dtype, draw(st.lists(types, min_size=n_loss, max_size=n_loss))

    def check_one(drawn):
        (rule, numbers, equations, rate, floor), dtype, types = drawn
        weight = paddle.create_parameter([2], dtype)
        n_loss = len(types)
        balancer = LossBalancer(
            weight,
            n_loss,
            weight_lr=rate,
            floor=floor,
            rule=rule,
            equations=[e for e in equations if e < n_loss],
            update_every=1,
        )
        for values, gradients in numbers[0, :, :, :n_loss].tolist():
            before = balancer.get_weights().astype("float64"), balancer.rule_state
            balancer.backward([loss_of(weight, *of) for of in zip(values, gradients, types)])
            weight.clear_gradient()
            weights = balancer.get_weights()
            check(weights, floor, rule)
            # What the pure function says of what has been measured is put in place.
            new, state, *_ = updated(rule, *before, balancer.last_measurement)
            np.testing.assert_array_equal(weights, new.astype(dtype))
            for name, array in balancer.rule_state.items():
                np.testing.assert_array_equal(array, state[name])

    explore(check_one, with_types(), examples)


def test_a_negative_loss_is_told_to_the_default_rule_once(recorded_warnings):
    net = paddle.nn.Linear(1, 1)
    balancer = LossBalancer(net, equations=["energy"])
    for _ in range(21):  # three updates
        u = net(paddle.ones([1, 1])).sum()
        balancer.backward({"energy": u.square() - 100, "edge": u.square()})
    said = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    assert len(said) == 1
    assert said[0].startswith("step 0: loss 'energy' is at or below 0 and has no root; while")
    assert "rule=PinnRule(by_root=False)" in said[0]
