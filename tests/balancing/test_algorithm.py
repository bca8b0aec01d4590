import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlescience_gradnorm.balancing.algorithm import (
    GradNormRule,
    PinnRule,
    find_rule,
    renormalized,
    settled,
    stepped,
)


@pytest.fixture(autouse=True)
def _no_gradients():
    with paddle.no_grad():  # as in a step
        yield


@st.composite
def steps(draw):
    """alpha, weights, losses, initial losses and gradient norms of 2 to 6 tasks."""
    n_loss = draw(st.integers(2, 6))
    column = st.lists(st.floats(1e-3, 1e3), min_size=n_loss, max_size=n_loss)
    return draw(st.floats(0, 3)), *(np.array(draw(column)) for _ in range(4))


def tensors(*arrays):
    return [paddle.to_tensor(a, dtype="float64") for a in arrays]


@settings(max_examples=200, deadline=None)
@given(steps())
def test_closed_form_is_the_gradient_of_lgrad(step):
    alpha, *arrays = step
    weights, losses, initial, norms = tensors(*arrays)
    weights.stop_gradient = False
    # Equations 1 and 2 of the paper, the target a constant.
    ratios = losses / initial
    target = (weights * norms).mean() * (ratios / ratios.mean()) ** paddle.full(
        [], alpha, "float64"
    )
    with paddle.enable_grad():
        lgrad = (weights * norms - target.detach()).abs().sum()
    lgrad.backward()

    output = GradNormRule(alpha).evaluate(weights.detach(), losses, initial, norms)

    assert bool(output.usable)
    scale = norms.max().item()
    np.testing.assert_allclose(
        output.weight_gradient.numpy(), weights.grad.numpy(), rtol=1e-12, atol=1e-12 * scale
    )
    np.testing.assert_allclose(output.loss.item(), lgrad.item(), rtol=1e-12)


def test_a_slow_task_is_pushed_up():
    weights, losses, initial, norms = tensors([1, 1], [0.9, 0.1], [1, 1], [1, 1])
    gradient = GradNormRule(1.0).evaluate(weights, losses, initial, norms).weight_gradient
    assert gradient[0].item() < 0 < gradient[1].item()  # descent raises the first weight


def test_equal_norms_and_rates_ask_for_no_change():
    ones = paddle.ones([3], "float64")
    output = GradNormRule(1.5).evaluate(ones, ones, ones, ones)
    assert output.loss.item() == 0
    assert output.weight_gradient.tolist() == [0, 0, 0]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "losses, initial, norms",
    [
        ([np.nan, 1], [1, 1], [1, 1]),
        ([np.inf, 1], [1, 1], [1, 1]),
        ([-1, 2], [1, 1], [1, 1]),
        ([1, 1], [0, 1], [1, 1]),
        ([0, 0], [1, 1], [1, 1]),
        ([1, 1], [1, 1], [np.nan, 1]),
        ([1, 1], [1, 1], [np.inf, 1]),
    ],
)
def test_numbers_without_a_meaning_are_not_usable(alpha, losses, initial, norms):
    ones, losses, initial, norms = tensors([1, 1], losses, initial, norms)
    output = GradNormRule(alpha).evaluate(ones, losses, initial, norms)
    assert not bool(output.usable)
    assert output.weight_gradient.tolist() == [0, 0]


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=f"alpha .* got {alpha}"):
        GradNormRule(alpha)


@pytest.mark.parametrize("alpha", ["1", None, True])
def test_alpha_of_another_type(alpha):
    with pytest.raises(TypeError, match="alpha must be a number"):
        GradNormRule(alpha)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8),
    st.sampled_from([1e-6, 1e-3, 0.1, 0.9]),
    st.sampled_from(["float32", "float64"]),
)
def test_renormalized_weights_keep_sum_and_floor(values, floor, dtype):
    weights = renormalized(paddle.to_tensor(values, dtype=dtype), floor).numpy()
    rounding = np.finfo(dtype).eps
    assert np.isfinite(weights).all()
    assert (weights >= floor * (1 - 4 * rounding)).all()
    assert abs(weights.sum() - len(values)) <= 16 * len(values) * rounding


def test_renormalized_is_plain_scaling_where_the_floor_allows():
    weights = np.array([0.2, 1.0, 5.0])
    scaled = renormalized(paddle.to_tensor(weights), floor=1e-3).numpy()
    np.testing.assert_allclose(scaled, weights * 3 / weights.sum(), rtol=1e-14)


FALSE_TRUE = [paddle.to_tensor(False), paddle.to_tensor(True)]


def test_stepped_is_a_renormalised_descent():
    weights, gradient = tensors([0.5, 1.0, 1.5], [4.0, -2.0, 1.0])
    new = stepped(weights, gradient, FALSE_TRUE[True], rate=0.05, floor=1e-3).numpy()
    expected = np.array([0.3, 1.1, 1.45])
    np.testing.assert_allclose(new, expected * 3 / expected.sum(), rtol=1e-14)


def test_stepped_keeps_to_the_floor():
    weights, gradient = tensors([0.5, 1.5], [1e9, -1e9])
    new = stepped(weights, gradient, FALSE_TRUE[True], rate=0.1, floor=0.01).numpy()
    np.testing.assert_allclose(new, [0.01, 1.99], rtol=1e-7)


@pytest.mark.parametrize("values", [[0.5, 2.5], [3.0, 3.0]])
def test_a_step_that_is_not_usable_leaves_the_weights(values):
    weights, gradient = tensors(values, [np.nan, 1.0])
    assert stepped(weights, gradient, FALSE_TRUE[False], 0.1, 1e-3).tolist() == values


def test_settled_weights_are_renormalised_only_after_somebodys_step():
    acted, moved = tensors([3.0, 5.0], [3.0, 9.0])
    assert settled(acted, acted, FALSE_TRUE[True], floor=1e-3).tolist() == [3.0, 5.0]
    assert settled(moved, acted, FALSE_TRUE[True], floor=1e-3).tolist() == [0.5, 1.5]
    assert settled(moved, acted, FALSE_TRUE[False], floor=1e-3).tolist() == [3.0, 5.0]


def many_steps(rule, n, losses, references, norms, residuals=(), weights=None):
    weights = paddle.ones([len(norms)], "float64") if weights is None else weights
    losses, references, norms = tensors(losses, references, norms)
    for _ in range(n):
        weights = rule.step(weights, losses, references, norms, 0.01, 1e-6, residuals).weights
    return weights.numpy()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_pinn_rule_rests_part_of_the_way_to_equal_norms(alpha, strength):
    losses, references, norms = np.array([[0.5, 2, 1], [1, 1, 3], [10.0, 0.1, 1]])
    weights = many_steps(PinnRule(alpha, strength), 3000, losses, references, norms)
    rates = losses / references
    expected = ((rates / rates.mean()) ** alpha / norms) ** strength
    np.testing.assert_allclose(weights, expected / np.exp(np.log(expected).mean()), rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(steps(), st.floats(0.1, 1))
def test_a_step_of_the_pinn_rule_is_bounded_in_the_logarithm(step, strength):
    alpha, *arrays = step
    weights, losses, references, norms = tensors(*arrays)
    rule = PinnRule(alpha, strength, bound=1e6)
    new = rule.step(weights, losses, references, norms, 0.01, 1e-9, (0,))
    assert bool(new.usable)
    change = np.log(new.weights.numpy()) - np.log(weights.numpy())
    assert (np.abs(change) <= 0.01 + 1e-6).all()


def test_no_rate_takes_the_pinn_rule_past_its_targets():
    start, losses, references, norms = tensors([1, 1, 0.5], [1, 1, 1], [1, 1, 1], [4, 1, 2])
    for rate in (1.0, 1e4):
        step = PinnRule(strength=0.5, lead=1.1).step(
            start, losses, references, norms, rate, 1e-3, [0]
        )
        expected = [1, 2.2, 0.5 * np.e]  # the last is too far away for one step
        np.testing.assert_allclose(step.weights.numpy(), expected, rtol=1e-12)


def test_equal_norms_and_rates_leave_equal_weights():
    ones = paddle.ones([3], "float64")
    step = PinnRule().step(ones, ones, ones, 5 * ones, 0.01, 1e-3, ())
    np.testing.assert_allclose(step.weights.numpy(), [1, 1, 1], rtol=1e-12)
    assert step.loss.item() == 0


def test_conditions_have_a_lead_over_equations():
    norms = np.array([4.0, 1.0, 1.0, 0.25])
    ones = np.ones(4)
    rule = PinnRule(strength=0.5, lead=3.0)
    weights = many_steps(rule, 3000, ones, ones, norms, residuals=(0, 1))
    expected = norms**-0.5 * [1, 1, 3, 3]
    np.testing.assert_allclose(weights, expected / np.sqrt(expected[0] * expected[1]), rtol=1e-6)


def test_where_all_losses_are_equations_none_is_held_down():
    weights = many_steps(PinnRule(strength=0.5), 3000, [1, 1], [1, 1], [1, 16], residuals=(0, 1))
    np.testing.assert_allclose(weights, [2, 0.5], rtol=1e-6)


def test_bound_of_the_pinn_rule():
    weights = many_steps(PinnRule(strength=1.0, bound=5), 2000, [1, 1], [1, 1], [1, 1e9])
    np.testing.assert_allclose(weights[0] / weights[1], 25, rtol=1e-6)


@pytest.mark.parametrize("losses, norms", [([1, 0], [1, 1]), ([1, 1], [9, 0]), ([1, 0], [9, 0])])
def test_a_loss_that_is_zero_gets_the_mean_of_the_others(losses, norms):
    start = paddle.to_tensor([0.5, 1.5], dtype="float64")
    weights = many_steps(PinnRule(strength=0.5), 3000, losses, [1, 1], norms, weights=start)
    np.testing.assert_allclose(weights, [1, 1], rtol=1e-6)


@pytest.mark.parametrize(
    "losses, references, norms",
    [
        ([np.nan, 1], [1, 1], [1, 1]),
        ([np.inf, 1], [1, 1], [1, 1]),
        ([-1, 2], [1, 1], [1, 1]),
        ([1, 1], [0, 1], [1, 1]),
        ([0, 0], [1, 1], [1, 1]),
        ([1, 1], [1, 1], [np.nan, 1]),
        ([1, 1], [1, 1], [np.inf, 1]),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_pinn_rule_stays_where_numbers_have_no_meaning(losses, references, norms, alpha):
    weights, *others = tensors([0.25, 1.75], losses, references, norms)
    step = PinnRule(alpha).step(weights, *others, 0.01, 1e-3, (0,))
    assert not bool(step.usable)
    assert step.weights.tolist() == [0.25, 1.75]


def test_published_references_are_the_first_losses_that_can_be():
    rule = GradNormRule(1.0)
    references, first, second = tensors([0, 0, 0, 0], [2, 0, np.nan, np.inf], [3, 4, 5, -1])
    references = rule.references(references, first)
    assert references.tolist() == [2, 0, 0, 0]
    assert rule.references(references, second).tolist() == [2, 4, 5, 0]


def test_references_of_the_pinn_rule_are_averages():
    rule = PinnRule(memory=0.75)
    references, first, second = tensors([0, 0, 0], [2, 0, np.nan], [6, 4, 5])
    references = rule.references(references, first)
    assert references.tolist() == [2, 0, 0]
    references = rule.references(references, second)
    assert references.tolist() == [3, 4, 5]
    assert rule.references(references, first).tolist() == [2.75, 4, 5]


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": -1},
        {"strength": 0},
        {"strength": np.inf},
        {"lead": 0},
        {"bound": 1},
        {"memory": 1.0},
    ],
)
def test_options_of_the_pinn_rule_out_of_range(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must .* got {value}"):
        PinnRule(**options)


def test_rules_by_name_and_by_alpha():
    assert find_rule(None, None) == find_rule("pinn", None) == PinnRule()
    assert find_rule(None, 0.5) == find_rule("published", 0.5) == GradNormRule(0.5)
    assert find_rule("pinn", 0.5) == PinnRule(alpha=0.5)
    assert find_rule(PinnRule(strength=0.3), None) == PinnRule(strength=0.3)


def test_rules_that_are_none_are_named():
    with pytest.raises(ValueError, match="rule must be one of 'published', 'pinn', got 'gradnorm'"):
        find_rule("gradnorm", 1.0)
    with pytest.raises(TypeError, match="alpha is missing: the published rule"):
        find_rule("published", None)
    with pytest.raises(TypeError, match=r"rule must be .* got 3"):
        find_rule(3, None)
    with pytest.raises(ValueError, match=r"alpha is 1.0, but PinnRule.* has its own"):
        find_rule(PinnRule(), 1.0)
