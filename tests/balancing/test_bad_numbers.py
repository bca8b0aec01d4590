"""What docs/bad_numbers.md says, for both rules and both forms of the operators."""

import numpy as np
import paddle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddlescience_gradnorm import LossBalancer
from paddlescience_gradnorm.balancing import GradNormRule, PinnRule

RULES = {
    "published": {"rule": "published", "alpha": 1.0},
    "pinn": {"rule": "pinn", "alpha": 1.0, "update_every": 1},
}
NAN, INF = float("nan"), float("inf")

with_both_operators = pytest.mark.usefixtures("both_operators")
for_both_rules = pytest.mark.parametrize("rule", RULES)


def balancer_on(weight, n_loss=3, **options):
    return LossBalancer(weight, n_loss, floor=1e-3, **{"lr": 0.01, **options})


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


def updated(balancer, weight, values, gradients):
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
        assert (weights <= max(rule.bound, floor) * (1 + 64 * rounding)).all()
    else:
        assert abs(weights.astype("float64").sum() - len(weights)) <= 16 * len(weights) * rounding


def messages(record):
    return [str(w.message) for w in record if w.category is RuntimeWarning]


GOOD = ([1.0, 2.0, 3.0], [1.0, 2.0, 0.5])


@with_both_operators
@for_both_rules
@pytest.mark.parametrize("bad", [NAN, INF, -INF, -1.0])
def test_a_bad_loss(weight, rule, bad, recorded_warnings):
    balancer = balancer_on(weight, **RULES[rule])
    before = updated(balancer, weight, *GOOD)
    references = balancer.initial_losses.numpy()
    for _ in range(2):
        after = updated(balancer, weight, [1.0, bad, 3.0], GOOD[1])
        np.testing.assert_array_equal(after, before)
        assert balancer.initial_losses.numpy()[1] == references[1]
    assert len(messages(recorded_warnings)) == 1 and "'losses[1]'" in messages(recorded_warnings)[0]
    assert (updated(balancer, weight, [1.0, 2.5, 3.0], GOOD[1]) != before).any()


@with_both_operators
@for_both_rules
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_bad_gradient(weight, rule, bad, recorded_warnings):
    balancer = balancer_on(weight, **RULES[rule])
    before = updated(balancer, weight, *GOOD)
    slope = paddle.to_tensor([1.0, 0.0, 0.0]) * bad
    for _ in range(2):
        losses = [loss_of(weight, *of) for of in zip(*GOOD)]
        losses[2] = losses[2] + Slope.apply(weight, slope)
        balancer.backward(losses)
        weight.clear_gradient()
        np.testing.assert_array_equal(balancer.get_weights(), before)
    (message,) = messages(recorded_warnings)
    assert "'losses[2]' has a gradient of norm" in message
    assert (updated(balancer, weight, *GOOD) != before).any()


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


@with_both_operators
@for_both_rules
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_bad_parameter(weight, rule, bad, recorded_warnings):
    balancer = balancer_on(weight, **RULES[rule])
    before = updated(balancer, weight, *GOOD)
    good = weight.numpy()
    for value in (np.array([1.0, bad, 3.0]), good):
        np.testing.assert_array_equal(balancer.get_weights(), before)
        weight.set_value(paddle.to_tensor(value, dtype=weight.dtype))
        balancer.backward([(weight * k).square().sum() for k in (1.0, 2.0, 3.0)])
        weight.clear_gradient()
    assert len(messages(recorded_warnings)) == 3  # for each loss, once
    assert (balancer.get_weights() != before).any()


@with_both_operators
@for_both_rules
@pytest.mark.parametrize("first", [0.0, "denormal"])
def test_a_loss_that_begins_with_zero(weight, rule, first, recorded_warnings):
    balancer = balancer_on(weight, **RULES[rule])
    dtype = balancer.get_weights().dtype
    first = first or 0.0
    first = float(np.finfo(dtype).smallest_subnormal * 8) if first == "denormal" else first
    for _ in range(3):
        assert (updated(balancer, weight, [1.0, first, 3.0], GOOD[1]) == 1).all()
        assert balancer.initial_losses.tolist() == [1, 0, 3]
    (message,) = messages(recorded_warnings)
    assert "'losses[1]' is" in message and "which cannot be the reference L(0)" in message
    assert (updated(balancer, weight, *GOOD) != 1).any()
    assert balancer.initial_losses.tolist()[1] == 2


@with_both_operators
def test_a_loss_that_becomes_zero_sinks_by_the_published_rule(weight, recorded_warnings):
    balancer = balancer_on(weight, **RULES["published"])
    updated(balancer, weight, *GOOD)
    for _ in range(300):
        weights = updated(balancer, weight, [1.0, 0.0, 3.0], GOOD[1])
    assert weights[1] < 0.01 and not messages(recorded_warnings)
    rising = updated(balancer, weight, [1.0, 50.0, 3.0], GOOD[1])
    assert rising[1] > weights[1]


@with_both_operators
def test_a_loss_that_becomes_zero_goes_to_the_middle_by_the_pinn_rule(weight, recorded_warnings):
    balancer = balancer_on(weight, lr=0.1, residuals=(), **RULES["pinn"])
    updated(balancer, weight, *GOOD)
    for _ in range(300):
        weights = updated(balancer, weight, [1.0, 0.0, 3.0], [1.0, 0.0, 4.0])
    np.testing.assert_allclose(weights[1], np.sqrt(weights[0] * weights[2]), rtol=1e-3)
    assert not messages(recorded_warnings)


@with_both_operators
@for_both_rules
def test_all_losses_become_zero(weight, rule, recorded_warnings):
    balancer = balancer_on(weight, **RULES[rule])
    before = updated(balancer, weight, *GOOD)
    for _ in range(2):
        after = updated(balancer, weight, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
        np.testing.assert_array_equal(after, before)
    (message,) = messages(recorded_warnings)
    assert "no training rates where all losses are 0" in message


@with_both_operators
@for_both_rules
@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_a_loss_far_above_or_below_the_others(weight, rule, factor, recorded_warnings):
    balancer = balancer_on(weight, lr=0.05, residuals=(), **RULES[rule])
    for _ in range(300):
        weights = updated(balancer, weight, [1.0, factor, 1.0], [1.0, factor, 1.0])
    assert not messages(recorded_warnings)
    assert (weights[1] < 0.1) == (factor > 1)
    # And back to where all are equal.
    balancer.reset_initial_losses()
    for _ in range(1500):
        weights = updated(balancer, weight, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(weights, [1, 1, 1], atol=0.2)


@with_both_operators
@for_both_rules
def test_gradients_that_are_denormal(rule, recorded_warnings):
    weight = paddle.create_parameter([3], "float32")
    balancer = balancer_on(weight, **RULES[rule])
    for _ in range(5):
        updated(balancer, weight, [1.0, 1.0, 1.0], [1e-42, 1e-42, 2e-42])
    assert (balancer.gradient_norms.numpy() > 0).all()
    assert not messages(recorded_warnings)


@with_both_operators
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


@with_both_operators
@for_both_rules
def test_sixty_four_losses(weight, rule, recorded_warnings):
    balancer = balancer_on(weight, 64, **RULES[rule])
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, gradients = rng.lognormal(0, 3, (2, 64)).tolist()
        weights = updated(balancer, weight, values, gradients)
    assert not messages(recorded_warnings)
    # By the PINN rule the equation's, the first, is the unit.
    assert ((weights != 1) == [rule == "published", *[True] * 63]).all()


@with_both_operators
def test_a_norm_that_an_optimizer_cannot_square(recorded_warnings):
    weight = paddle.create_parameter([3], "float32")
    balancer = balancer_on(weight, lr=None, alpha=1.0)
    adam = paddle.optimizer.Adam(1e-2, parameters=[balancer.loss_weights])
    weights = []
    for large in (1.0, 1e25, 1e25, 1.0, 1.0):
        updated(balancer, weight, GOOD[0], [1.0, large, 0.5])
        adam.step()
        adam.clear_grad()
        weights.append(balancer.get_weights())
    (message,) = messages(recorded_warnings)
    assert "'losses[1]' has a gradient of norm above 9e+18, too large for an optim" in message
    assert (weights[0] == weights[2]).all()  # no step
    assert (weights[2] != weights[3]).all() and (weights[3] != weights[4]).all()  # and no end


@with_both_operators
def test_an_optimizer_that_makes_the_weights_nan(weight, recorded_warnings):
    balancer = balancer_on(weight, lr=None, alpha=1.0)
    updated(balancer, weight, *GOOD)
    before = balancer.get_weights()
    balancer.loss_weights.set_value(paddle.to_tensor([1.0, NAN, 1.0], dtype=weight.dtype))
    np.testing.assert_array_equal(balancer.get_weights(), before)
    balancer.loss_weights.set_value(paddle.to_tensor([1.0, NAN, 1.0], dtype=weight.dtype))
    updated(balancer, weight, *GOOD)
    (message,) = messages(recorded_warnings)
    assert "the optimizer has made the loss weights NaN or infinite" in message


# Random sequences.

SPECIAL = [NAN, INF, -INF, -1.0, 0.0, -0.0, 5e-324, 1e-310, 1e-45, 1e-40, 1e-38, 2e-38]
SPECIAL += [1e-30, 1e-10, 1.0, 1e10, 1e30, 3e38, 1e200, 1.7e308]


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
    residuals = (0,) if draw(st.booleans()) else ()
    rate = draw(st.sampled_from([1e-4, 0.01, 1.0, 1e4]))
    floor = draw(st.sampled_from([1e-6, 1e-3, 0.5]))
    return rule, numbers, draw(st.sampled_from(["float32", "float64"])), residuals, rate, floor


def weights_of(rule, numbers, dtype, residuals, rate, floor):
    """The weights after each step of one sequence, whether it was usable, the references."""
    n_loss = numbers.shape[2]
    with paddle.no_grad(), np.errstate(over="ignore"):
        rows = paddle.unbind(paddle.to_tensor(numbers.astype(dtype).reshape(-1, n_loss)))
        weights, references = paddle.ones([n_loss], dtype), paddle.zeros([n_loss], dtype)
        loss = paddle.zeros([], dtype)
        for losses, norms in zip(rows[::2], rows[1::2]):
            usable = rule.step_in_place(
                weights, losses, references, norms, rate, floor, residuals, loss
            )
            yield weights.numpy().copy(), bool(usable), references.numpy().copy()


def check_sequences(drawn):
    rule, sequences, *options = drawn
    floor = options[-1]
    for numbers in sequences:
        for weights, _, references in weights_of(rule, numbers, *options):
            check(weights, floor, rule)
            assert np.isfinite(references).all() and (references >= 0).all()


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


@with_both_operators
@for_both_rules
@of_number(20, 1_250)  # of 20 sequences, for two rules and two forms of the operators
def test_random_sequences_through_the_rules(rule, examples):
    explore(check_sequences, sequences((rule,)), examples)


@of_number(20, 500)
def test_both_forms_of_the_operators_agree(cpp, examples):
    def check_one(drawn):
        rule, sequences, *options = drawn
        for numbers in sequences:
            cpp(True)
            in_one = list(weights_of(rule, numbers, *options))
            cpp(False)
            for one, other in zip(in_one, weights_of(rule, numbers, *options)):
                assert one[1] == other[1]
                np.testing.assert_allclose(one[2], other[2], rtol=1e-5)
                if not np.allclose(one[0], other[0], rtol=1e-4, atol=0):
                    # A norm at its target to the last bit goes either way by the published
                    # rule, after which the two are no longer the same run.
                    assert isinstance(rule, GradNormRule)
                    break

    explore(check_one, sequences(), examples)


@with_both_operators
@of_number(100, 2_500)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_random_sequences_through_the_balancer(examples):
    @st.composite
    def with_types(draw):
        sequence = draw(sequences(number=1))
        types = st.sampled_from(["float16", "bfloat16", "float32", "float64"])
        n_loss = min(sequence[1].shape[3], 7)
        return sequence, draw(st.lists(types, min_size=n_loss, max_size=n_loss))

    def check_one(drawn):
        (rule, numbers, dtype, residuals, rate, floor), types = drawn
        weight = paddle.create_parameter([2], dtype)
        n_loss = len(types)
        balancer = LossBalancer(
            weight, n_loss, lr=rate, floor=floor, rule=rule, residuals=residuals
        )
        for values, gradients in numbers[0, :, :, :n_loss].tolist():
            balancer.backward([loss_of(weight, *of) for of in zip(values, gradients, types)])
            weight.clear_gradient()
            check(balancer.get_weights(), floor, rule)

    explore(check_one, with_types(), examples)
