import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rule import GradientRule
from paddlescience_gradnorm.balancing.rules import PinnRule


def measured(losses, norms, equations=(), **others):
    losses, norms = np.array(losses, float), np.array(norms, float)
    are_equations = np.isin(np.arange(len(losses)), equations)
    return Measurement(losses, np.diag(norms**2), equations=are_equations, **others)


def references(*values):
    initial = np.array(values, float)
    known = {"initial_losses": initial, "largest_losses": initial}
    return {**PinnRule().start(len(values)), **known}


def many_updates(rule, measurement, state=None, weights=None, n=3000):
    """The weights after many updates, in each of which the same is measured."""
    state = rule.start(len(measurement.losses)) if state is None else state
    weights = np.ones(len(measurement.losses)) if weights is None else weights
    for _ in range(n):
        weights, _ = rule.weigh(weights, state, measurement)
    return weights


@st.composite
def steps(draw):
    """A rule; weights, losses, initial losses and gradient norms of 2 to 6 losses; equations."""
    n_loss = draw(st.integers(2, 6))
    column = st.lists(st.floats(1e-3, 1e3), min_size=n_loss, max_size=n_loss)
    rule = PinnRule(
        alpha=draw(st.floats(0, 3)),
        strength=draw(st.floats(0.1, 1)),
        lead=draw(st.floats(0.1, 30)),
        bound=1e6,
        met=0,
        late=False,
        by_root=draw(st.booleans()),
    )
    equations = draw(st.sets(st.integers(0, n_loss - 1)))
    return rule, *(np.array(draw(column)) for _ in range(4)), list(equations)


@settings(deadline=None)
@given(steps())
def test_a_step_goes_part_of_the_way_to_the_target_and_at_most_so_far(step):
    rule, weights, losses, initial, norms, equations = step
    initial_after = initial + (losses - initial) * (1 - rule.memory)
    # As the docstring says it.
    ratios = losses / initial_after
    of_roots = norms / np.sqrt(losses) if rule.by_root else norms
    targets = ((ratios / ratios.mean()) ** rule.alpha / of_roots) ** rule.strength
    of_unit = targets
    if 0 < len(equations) < len(norms):
        of_unit = targets[equations]
        targets = targets * np.where(np.isin(np.arange(len(norms)), equations), 1, rule.lead)
    unit = np.exp(np.log(of_unit).mean())
    missing = np.log((targets / unit).clip(1e-6, 1e6)) - np.log(weights)

    measurement = measured(losses, norms, equations, rate=0.01, interval=5, floor=1e-9)
    new, state = rule.weigh(weights, references(*initial), measurement)

    np.testing.assert_allclose(np.log(new / weights), missing.clip(-1, 1) * 0.05, atol=1e-9)
    np.testing.assert_allclose(state["initial_losses"], initial_after, rtol=1e-12)
    imbalance = rule.imbalance(weights, references(*initial), measurement)
    np.testing.assert_allclose(imbalance, np.abs(missing).clip(max=1).sum(), atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_weights_rest_part_of_the_way_to_equal_norms(alpha, strength):
    losses, initial, norms = np.array([[0.5, 2, 1], [1, 1, 3], [10.0, 0.1, 1]])
    rule = PinnRule(alpha, strength, memory=1 - 1e-16)
    weights = many_updates(rule, measured(losses, norms), references(*initial))
    rates = losses / initial
    expected = ((rates / rates.mean()) ** alpha / (norms / losses**0.5)) ** strength
    np.testing.assert_allclose(weights, expected / np.exp(np.log(expected).mean()), rtol=1e-6)


def test_no_rate_takes_a_weight_past_its_target():
    start = np.array([1, 1, 0.5])
    for rate, interval in [(1.0, 1), (1e4, 1), (0.1, 10)]:
        measurement = measured([1, 1, 1], [4, 1, 2], [0], rate=rate, interval=interval)
        rule = PinnRule(strength=0.5, lead=1.1)
        weights, _ = rule.weigh(start, rule.start(3), measurement)
        expected = [1, 2.2, 0.5 * np.e]  # the last is too far away for one step
        np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_the_rate_grows_with_the_steps_between_two_updates():
    rule, norms = PinnRule(strength=1.0), [1.0, np.exp(-0.5)]
    for interval in (1, 10):
        measurement = measured([1, 1], norms, rate=0.01, interval=interval)
        weights, _ = rule.weigh(np.ones(2), rule.start(2), measurement)
        expected = np.array([-0.25, 0.25]) * 0.01 * interval
        np.testing.assert_allclose(np.log(weights), expected, rtol=1e-12)


def test_equal_norms_and_rates_leave_equal_weights():
    measurement = measured([1, 1, 1], [5, 5, 5])
    rule = PinnRule(alpha=1.0)
    np.testing.assert_allclose(many_updates(rule, measurement, n=3), [1, 1, 1], rtol=1e-12)
    assert abs(rule.imbalance(np.ones(3), rule.start(3), measurement)) < 1e-14


def test_conditions_have_a_lead_over_equations_which_are_the_unit():
    norms = np.array([4.0, 1.0, 1.0, 0.25])
    rule = PinnRule(strength=0.5, lead=3.0, late=False)
    weights = many_updates(rule, measured(np.ones(4), norms, [0, 1]))
    expected = norms**-0.5 * [1, 1, 3, 3]
    np.testing.assert_allclose(weights, expected / np.sqrt(expected[0] * expected[1]), rtol=1e-6)


@pytest.mark.parametrize("violation", [0.0, 1e-4, 0.08, 0.5, 2.0, 30.0])
def test_a_condition_that_is_met_loses_its_lead(violation):
    # A condition is violated in proportion to 1 / w, so its loss is C / w^2. The equation's is 1.
    rule, weights = PinnRule(lead=20.0, met=0.1), np.ones(2)
    state = {**rule.start(2), "largest_losses": np.array([1.0, 1e6])}
    for _ in range(3000):
        loss = violation / weights[1] ** 2
        now = measured([1.0, loss], [1, loss**0.5 or 1], [0])
        weights, state = rule.weigh(weights, state, now)
    # w = lead (C / w / met)^2, between 1 and the lead
    expected = np.clip(np.cbrt(20.0 * (violation / 0.1) ** 2), 1, 20)
    np.testing.assert_allclose(weights, [1, expected], rtol=1e-3)


@pytest.mark.parametrize("largest, expected", [(1.0, 20), (10.0, 20), (20.0, 5), (1e3, 1)])
def test_a_condition_that_is_small_beside_the_equation_must_have_fallen_too(largest, expected):
    # lead (C / largest / met)^2: an equation's loss may be huge only because it is not trained yet
    rule, weights = PinnRule(lead=20.0, met=0.1), np.ones(2)
    state = rule.start(2)
    for loss in (largest, *[1.0] * 3000):
        weights, state = rule.weigh(weights, state, measured([1e4, loss], [100, loss**0.5], [0]))
    assert state["largest_losses"].tolist() == [1e4, largest]
    np.testing.assert_allclose(weights, [1, expected], rtol=1e-3)


def test_what_is_not_met_keeps_its_lead_and_targets_below_1_stay():
    one, plain = PinnRule(lead=20.0, met=0.1), PinnRule(lead=20.0, met=0)
    high = measured([1.0, 0.2], [1, 1], [0])
    for before in ([1.0, 1.0], [1.0, 15.0]):
        weights = np.array(before)
        changed, unchanged = (r.weigh(weights, r.start(2), high)[0] for r in (one, plain))
        assert (changed == unchanged).all()
    large = measured([1.0, 1e-9], [1, 1e6], [0])  # heads for 0.2 without a loss to look at
    pair = [many_updates(rule, large) for rule in (one, plain)]
    assert (pair[0] == pair[1]).all() and pair[0][1] < 1


ONES = [1, 1, 1]


def test_the_conditions_have_the_lead_that_the_run_gives_them():
    # When and to whom is tested with the lead.
    for progress, of_one, of_several in ((0, 0, 0), (0.5, 1, 0.4), (1, 1, 1)):
        one, several = (measured(ONES, ONES, x, progress=progress) for x in ([0], [0, 1]))
        assert many_updates(PinnRule(), one) == pytest.approx([1, 20**of_one, 20**of_one])
        assert many_updates(PinnRule(), several) == pytest.approx([1, 1, 20**of_several])
        late = many_updates(PinnRule(late=True), one)
        assert late == pytest.approx([1, 20**of_several, 20**of_several])
        assert many_updates(PinnRule(late=False), several) == pytest.approx([1, 1, 20])
    unknown = measured(ONES, ONES, [0, 1])
    assert many_updates(PinnRule(), unknown) == pytest.approx([1, 1, 1])
    assert many_updates(PinnRule(late=False), unknown) == pytest.approx([1, 1, 20])
    # Without a lead gradients still count.
    smaller = measured(ONES, [1, 1, 1 / 8], [0, 1])
    assert many_updates(PinnRule(), smaller) == pytest.approx([1, 1, 2])


def test_losses_are_remembered_by_tenths_of_the_run():
    rule, names = PinnRule(), ("pde", "data", "bc")
    state = rule.start(3)
    for progress, loss in ((0.0, 1.0), (0.1, 0.02), (0.2, 0.02)):
        now = measured([1, loss, 1], ONES, [0], progress=progress, names=names)
        _, state = rule.weigh(np.ones(3), state, now)
    run = measured(ONES, ONES, [0], progress=0.6, names=names)
    assert many_updates(rule, run, state) == pytest.approx([1, 1, 20])  # the data are noisy
    assert many_updates(PinnRule(late=False), run, state) == pytest.approx([1, 20, 20])


def test_noise_is_found_and_what_to_check():
    names, state = ("pde", "data", "bc"), PinnRule().start(3)
    state["largest_losses"][:] = 1
    state["log_losses"][1, 1:3] = [np.log(0.02), 1]
    for progress, is_found in ((0.4, True), (0.3, False)):
        run = measured(ONES, ONES, [0], progress=progress, names=names, step=5000)
        found = PinnRule().findings(names, np.ones(3), state, run)
        noise = [finding for finding in found if "noise" in finding]
        assert bool(noise) == is_found
        expected = "'data' has come to rest, so what is left of its loss counts as noise"
        assert all(finding.startswith(expected) for finding in noise)


def test_norms_are_those_of_the_root_mean_squares():
    rule = PinnRule(strength=0.5, lead=1.0, met=0)
    losses, norms = np.array([4.0, 1.0, 9.0]), np.array([8.0, 1.0, 12.0])
    of_roots = norms / np.sqrt(losses)  # 4, 1, 4
    weights = many_updates(rule, measured(losses, norms, [0]))
    assert weights == pytest.approx((of_roots[0] / of_roots) ** 0.5)
    # So a condition's weight stays as it is while its residual becomes smaller everywhere.
    smaller = np.array([1.0, 1e-3, 1e-6])
    later = measured(losses * smaller**2, norms * smaller, [0])
    assert many_updates(rule, later) == pytest.approx(weights)
    # A loss at or below 0 has no root, and the norms are those of the losses themselves.
    energy = measured([-4.0, 1.0, 9.0], norms, [0])
    assert many_updates(rule, energy) == pytest.approx((norms[0] / norms) ** 0.5)
    plain = PinnRule(strength=0.5, lead=1.0, met=0, by_root=False)
    of_losses = measured(losses, norms, [0])
    assert many_updates(plain, of_losses) == pytest.approx((norms[0] / norms) ** 0.5)


@pytest.mark.parametrize("equations", [[], [0, 1]])
def test_without_two_kinds_of_losses_there_is_no_lead(equations):
    weights = many_updates(PinnRule(strength=0.5), measured([1, 1], [1, 16], equations))
    np.testing.assert_allclose(weights, [2, 0.5], rtol=1e-6)


@pytest.mark.parametrize("by_root, left", [(True, 5 / 6), (False, 2 / 3)])
def test_how_much_of_a_factor_within_a_loss_is_left(by_root, left):
    # As docs/troubleshooting.md tells it.
    rule = PinnRule(lead=1.0, met=0, by_root=by_root)
    weights = many_updates(rule, measured([1, 1000], [1, 1000], [0]))
    assert 1000 * weights[1] == pytest.approx(1000**left)


def test_without_an_equation_the_unit_is_that_of_the_last_update_with_one():
    rule = PinnRule(strength=0.5, lead=3.0, late=False)
    equations, conditions = measured([1, 1], [4, 1], [0, 1]), measured([1, 1], [1, 0.25])
    _, state = rule.weigh(np.ones(2), rule.start(2), equations)
    assert state["log_unit"] == -np.log(2)  # of a norm of 2
    weights = many_updates(rule, conditions, state)
    # As if all four had been measured together.
    together = many_updates(rule, measured(np.ones(4), [4, 1, 1, 0.25], [0, 1]))
    np.testing.assert_allclose(weights, together[2:], rtol=1e-12)
    np.testing.assert_allclose(weights, [3 * 2**0.5, 3 * 8**0.5], rtol=1e-6)
    assert rule.weigh(weights, state, conditions)[1]["log_unit"] == state["log_unit"]


@pytest.mark.parametrize("equations", [[], [0]])
def test_a_loss_alone_has_nothing_to_be_compared_with(equations):
    rule, weights = PinnRule(), np.array([7.0])
    new, state = rule.weigh(weights, rule.start(1), measured([3], [4], equations))
    assert new.tolist() == [7] and state["initial_losses"].tolist() == [3]
    # But a condition has the unit of an earlier update.
    state = {**state, "log_unit": np.array(0.0)}
    new, _ = rule.weigh(weights, state, measured([3], [1], equations))
    assert (new[0] > 7) == (not equations)


def test_no_target_is_further_from_its_unit_than_the_bound():
    weights = many_updates(PinnRule(strength=1.0, bound=5), measured([1, 1], [1, 1e9]))
    np.testing.assert_allclose(weights, [5, 0.2], rtol=1e-6)
    weights = many_updates(PinnRule(lead=20.0, bound=5), measured([1, 1], [1, 1], [0]))
    np.testing.assert_allclose(weights, [1, 5], rtol=1e-6)


def test_weights_outside_the_bound_come_back():
    start = np.array([1e-4, 1e4])
    weights = many_updates(PinnRule(bound=5), measured([1, 1], [1, 1], floor=1e-6), weights=start)
    np.testing.assert_allclose(weights, [1, 1], rtol=1e-6)


def test_references_are_averages_over_the_updates_in_which_a_loss_is_above_zero():
    rule = PinnRule(memory=0.75)
    state = rule.start(3)
    assert state["initial_losses"].tolist() == [0, 0, 0]
    for losses, expected in [
        ([2, 0, -1], [2, 0, 0]),
        ([6, 4, 5], [3, 4, 5]),
        ([2, 0, -7], [2.75, 4, 5]),
    ]:
        _, state = rule.weigh(np.ones(3), state, measured(losses, np.ones(3)))
        assert state["initial_losses"].tolist() == expected


def test_an_average_follows_a_loss_that_has_fallen_beyond_all_digits():
    rule = PinnRule(memory=0.0)
    _, state = rule.weigh(np.ones(2), references(1e30, 1e30), measured([1e-9, 1e30], [1, 1]))
    assert state["initial_losses"].tolist() == [1e-9, 1e30]


def test_a_loss_that_does_not_fall_is_raised_if_alpha_asks_for_it():
    measurement = measured([1.0, 1.0], [1, 1])
    state = references(10, 1)
    still = PinnRule().weigh(np.ones(2), state, measurement)[0]
    raised = PinnRule(alpha=1.0).weigh(np.ones(2), state, measurement)[0]
    assert still.tolist() == [1, 1] and raised[0] < 1 < raised[1]


def test_with_alpha_0_no_weight_depends_on_losses_or_references():
    weights, norms = np.array([1.0, 0.5, 1.5]), [1, 2, 3]
    found = [
        PinnRule().weigh(weights, references(*initial), measured(losses, norms, [0]))[0].tolist()
        for losses, initial in [([1, 1, 1], [1, 1, 1]), ([-5, 0, 1e300], [0, 1e-300, 7])]
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_extreme_losses_and_norms_overflow_nowhere(alpha):
    rule = PinnRule(alpha, strength=1.0, bound=1e6)
    measurement = measured([1.7e308, 1.2e-38, 1.0], [1e150, 1e-150, 1.0], [0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = many_updates(rule, measurement, references(1.2e-38, 1.7e308, 1.0), n=5)
        assert np.isfinite(rule.imbalance(weights, references(1, 1, 1), measurement))
        below = measured([-1.7e308, 1.0], [1, 1])
        PinnRule().weigh(np.ones(2), references(1.7e308, 1.0), below)
    assert np.isfinite(weights).all() and weights.min() > 0.9


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_nothing_is_changed_in_place(alpha):
    weights, state, measurement = np.ones(2), references(0, 2), measured([1, 3], [1, 4], [0])
    for array in [weights, state["initial_losses"], measurement.losses, measurement.gram]:
        array.flags.writeable = False
    new, new_state = PinnRule(alpha, memory=0.5).weigh(weights, state, measurement)
    assert new_state["initial_losses"].tolist() == [1, 2.5]
    assert new[1] != 1 and state["initial_losses"].tolist() == [0, 2]


def findings(
    rule, weights=(1, 1), losses=(1, 1), initial=(2, 2), norms=(1, 1), equations=(), **pace
):
    pace = {"step": 4990, "interval": 10, "rate": 0.01, **pace}
    measurement = measured(losses, norms, equations, **pace)
    return rule.findings(["pde", "bc"], np.array(weights, float), references(*initial), measurement)


@pytest.mark.parametrize("scale, is_found", [(1e12, True), (1e4, False)])
@pytest.mark.parametrize("weight, step", [(600, 4990), (50, 390)])
def test_a_loss_in_other_units_is_found_at_the_bound(scale, is_found, weight, step):
    # Scaling a loss scales its gradient too.
    loud = {"losses": (scale, 1), "norms": (scale, 1), "equations": [0]}
    found = findings(PinnRule(bound=300, met=0), weights=(1, min(weight, 300)), step=step, **loud)
    assert len(found) == is_found
    for finding in found:
        assert finding.startswith("The gradients of 'bc' are so far from those of the others")
        assert "bound=300 limits the weight" in finding


def test_a_loss_that_is_met_may_be_at_the_bound():
    met = {"losses": (1, 1e-14), "norms": (1, 1e-7), "equations": [0]}
    assert findings(PinnRule(), weights=(1, 1000), **met) == []


def test_what_was_at_the_bound_in_one_measurement_is_not_found():
    loud = {"losses": (1e12, 1), "norms": (1e12, 1), "equations": [0]}
    assert findings(PinnRule(), weights=(1, 400), **loud) == []


@pytest.mark.parametrize(
    "weight, rate, step, is_found",
    [
        (1.04, 1e-4, 390, True),  # always too slow
        (2.7, 0.01, 90, True),  # always at the largest pace, and hardly begun
        (7.5, 0.01, 190, False),  # nearly there
        (1.04, 0.01, 390, False),  # has been elsewhere
    ],
)
def test_weights_that_have_always_moved_at_the_largest_pace_are_found(weight, rate, step, is_found):
    found = findings(PinnRule(), weights=(1, weight), equations=[0], rate=rate, step=step)
    assert len(found) == is_found  # the weight heads for the lead, 20
    for finding in found:
        assert finding.startswith(f"In the last update, in step {step + 1}, weights were still ")
        assert f"'bc' ({weight:g}, heading for 20)." in finding


def test_too_short_a_run_and_too_small_a_rate_are_told_apart():
    for options, advice in (
        (
            {"weight": 7.3, "step": 190},
            "Train for 100 steps more at least, or raise weight_lr from",
        ),
        (
            {"weight": 1.04, "rate": 1e-4, "step": 390},
            "Raise weight_lr from 0.0001 to 0.01, or train",
        ),
        ({"weight": 1.2, "step": 10}, "Train for 280 steps more at least."),
    ):
        weights = (1, options.pop("weight"))
        (finding,) = findings(PinnRule(), weights=weights, equations=[0], **options)
        assert advice in finding, finding


@pytest.mark.parametrize(
    "losses, norms", [((1, np.nan), (1, 1)), ((1, 1), (1, 0)), ((1, 1), (0, 1))]
)
def test_of_a_loss_that_cannot_be_balanced_a_rule_says_nothing(losses, norms):
    for alpha in (0.0, 1.0):
        assert findings(PinnRule(alpha), losses=losses, norms=norms, equations=[0]) == []


def test_an_average_that_is_far_too_small_is_found_if_alpha_looks_at_it():
    (finding,) = findings(PinnRule(alpha=1.0), losses=(1, 20.2))
    assert finding.startswith("The loss of 'bc' has risen to up to 10.1 times its moving average.")
    assert "reset_initial_losses()" in finding
    assert findings(PinnRule(), losses=(1, 20.2)) == []
    assert findings(PinnRule(alpha=1.0), losses=(1, 20.2), initial=(2, 0)) == []


def test_a_bound_beyond_the_floor_is_warned_of():
    with pytest.warns(UserWarning, match=r"bound is 1000, .* floor of 0.01.* as 100. Pass floor="):
        PinnRule().check(floor=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PinnRule().check(floor=1e-3)
        PinnRule(bound=50).check(floor=0.01)


def test_what_a_balancer_has_to_know_of_it():
    assert not issubclass(PinnRule, GradientRule)
    assert PinnRule.needs == {"gram"} and PinnRule.update_every == 10
    assert PinnRule.tells_equations and not PinnRule.keeps_sum and PinnRule.fewest_losses == 1
    of_equations, of_conditions = PinnRule(lead=5.0, bound=50.0).effects(["pde"], ["bc"], 1000)
    assert of_equations == "keep weights near 1"
    grows = "a lead of 5 that grows between steps 0 and 500"
    assert of_conditions == f"get {grows}, weights up to 50"
    unknown = PinnRule(bound=50.0).effects(["pde"], ["bc"])[1]
    assert unknown.startswith("get a lead of 20 from the start, weights up to 50 (pass total_steps")
    assert PinnRule.on_all_parameters
    assert PinnRule(alpha=1.0).needs_positive_losses and not PinnRule().needs_positive_losses


def test_rules_of_equal_options_are_equal():
    assert PinnRule() == PinnRule(alpha=0, strength=1 / 3) != PinnRule(lead=1.0)
    assert hash(PinnRule()) == hash(PinnRule())


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": -1},
        {"alpha": np.inf},
        {"strength": 0},
        {"strength": 1.01},
        {"strength": np.nan},
        {"lead": 0},
        {"lead": np.inf},
        {"bound": 1},
        {"bound": np.inf},
        {"met": -0.1},
        {"met": np.inf},
        {"memory": 1.0},
        {"memory": -0.1},
    ],
)
def test_options_out_of_range(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must .* got {value}"):
        PinnRule(**options)


@pytest.mark.parametrize("name", ["alpha", "strength", "lead", "bound", "memory", "met"])
def test_options_of_another_type(name):
    with pytest.raises(TypeError, match=f"{name} must be a number, got '1'"):
        PinnRule(**{name: "1"})
    with pytest.raises(TypeError, match="late must be True, False or None, got 1"):
        PinnRule(late=1)
    with pytest.raises(TypeError, match="by_root must be True or False, got None"):
        PinnRule(by_root=None)


def test_a_loss_at_or_below_0_is_remarked_where_roots_are_taken():
    assert PinnRule().remark(np.array([0.5, 2.0])) is None
    assert PinnRule(by_root=False).remark(np.array([-0.5, 2.0])) is None
    which, fault, consequence = PinnRule().remark(np.array([-0.5, 2.0]))
    assert which.tolist() == [True, False]
    assert fault == "is at or below 0 and has no root" and "PinnRule(by_root=False)" in consequence
