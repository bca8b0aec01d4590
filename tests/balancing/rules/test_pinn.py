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


@pytest.mark.parametrize(
    "progress, of_one, of_several",
    [
        (0, 0, 0),
        (0.25, 0.5, 0),
        (0.3, 0.6, 0),
        (0.425, 0.85, 0.25),
        (0.5, 1, 0.4),
        (0.55, 1, 0.5),
        (0.8, 1, 1),
        (1, 1, 1),
    ],
)
def test_the_lead_grows_in_the_first_half_or_later_with_several_equations(
    progress, of_one, of_several
):
    one, several = (measured(ONES, ONES, x, progress=progress) for x in ([0], [0, 1]))
    assert many_updates(PinnRule(), one) == pytest.approx([1, 20**of_one, 20**of_one])
    assert many_updates(PinnRule(), several) == pytest.approx([1, 1, 20**of_several])
    late = many_updates(PinnRule(late=True), one)
    assert late == pytest.approx([1, 20**of_several, 20**of_several])
    assert many_updates(PinnRule(late=False), several) == pytest.approx([1, 1, 20])
    # Noisy data among the equations are no second equation.
    noisy = measured(ONES, ONES, [0, 1], progress=progress, names=("pde", "data", "bc"))
    assert many_updates(PinnRule(), noisy) == pytest.approx([1, 1, 20**of_one])


def after_tenths(losses, name="data", equations=(0,)):
    """What the rule remembers after a run in whose tenths the second loss has these means."""
    rule, state = PinnRule(), PinnRule().start(3)
    for tenth, mean in enumerate(losses):
        for progress, loss in ((tenth / 10, mean / 2), (tenth / 10 + 0.09, mean * 2)):
            measurement = measured(
                (1, loss, 1), ONES, equations, progress=progress, names=("pde", name, "bc")
            )
            _, state = rule.weigh(np.ones(3), state, measurement)
    return state


def lead_of_data(progress, losses, name="data", **options):
    run = measured(ONES, ONES, [0], progress=progress, names=("pde", name, "bc"))
    weights = many_updates(PinnRule(**options), run, after_tenths(losses, name))
    grown = 1 if options else min(1, progress / 0.5)
    assert weights[[0, 2]] == pytest.approx([1, 20**grown])
    return weights[1]


@pytest.mark.parametrize("name", ["data", "sensors_u", "PointSetBC 2"])
def test_data_have_the_lead_from_the_start_and_lose_it_if_they_are_noisy(name):
    noise, later = [1, 0.03, 0.0252], [1, 0.5, 0.2, 0.06, 0.01, 0.0118]
    for progress, lost in ((0, 0), (0.3, 0), (0.45, 0.5), (0.6, 1), (1, 1)):
        assert lead_of_data(progress, noise, name) == pytest.approx(20 ** (1 - lost))
    for progress, lost in ((0.6, 0), (0.75, 0.5), (0.9, 1)):
        assert lead_of_data(progress, later, name) == pytest.approx(20 ** (1 - lost))
    assert lead_of_data(0.9, noise, name, late=False) == pytest.approx(20)


@pytest.mark.parametrize(
    "losses",
    [
        [1, 0.02, 0.016, 0.013, 0.01, 0.008],  # they fall
        [1, 0.008, 0.01, 0.013, 0.016, 0.02],  # or rise
        [1, 0.07, 0.07, 0.07, 0.07, 0.07],  # nothing has been learned
        [1, 0.5, 0.4, 0.3, 0.02, 0.01, 0.01, 0.01],  # at rest only when others are, too
        [1, 0.05],
        [],
    ],
)
def test_data_that_are_not_at_rest_keep_the_lead(losses):
    assert lead_of_data(1.0, losses) == pytest.approx(20)


@pytest.mark.parametrize(
    "losses, grows",
    [
        ([1, 0.05, 0.041], True),
        ([1, 0.05, 0.042], False),
        ([1, 0.05, 0.07], False),  # whether it rises
        ([1, 0.7, 0.7], True),  # but it has not been learned yet
        ([1, 0.05, 0.041, 0.041, 0.041], True),  # what comes later does not matter
        ([1, 0.05], True),  # of a run that went on from elsewhere
    ],
)
def test_with_several_equations_a_condition_at_rest_gets_no_lead(losses, grows):
    state = after_tenths(losses, "walls", [0, 2])
    for progress in (0.55, 0.8, 1.0):
        run = measured(ONES, ONES, [0, 2], progress=progress, names=("pde", "walls", "energy"))
        share = grows * min(1, (progress - 0.3) / 0.5)
        assert many_updates(PinnRule(), run, state) == pytest.approx([1, 20**share, 1])
        assert many_updates(PinnRule(late=False), run, state) == pytest.approx([1, 20, 1])
    one = measured(ONES, ONES, [0], progress=1.0, names=("pde", "walls", "bc"))
    assert many_updates(PinnRule(), one, state) == pytest.approx([1, 20, 20])


@pytest.mark.parametrize(
    "lid, walls, data, gains",
    [
        ((0.2, 0.2), (0.2, 0.1), (1, 1), False),  # two thirds of the conditions' losses rest
        ((0.02, 0.0111), (0.2, 0.1), (1, 1), True),  # the lid's falls
        ((0.012, 0.012), (0.2, 0.1), (1, 1), False),
        ((0.011, 0.011), (0.2, 0.1), (1, 1), True),  # less than a tenth: a pressure at one point
        ((0.02, 0.012), (0.2, 0.1), (0.01, 0.01), True),  # noise is no conflict
    ],
)
def test_conditions_at_rest_that_are_a_large_part_take_the_lead_from_all(lid, walls, data, gains):
    rule, names = PinnRule(), ("pde1", "pde2", "lid", "walls", "data")
    state = rule.start(5)
    state["largest_losses"][:] = 1
    for tenth in (0, 1):
        means = np.array([1, 1, lid[tenth], walls[tenth], data[tenth]])
        state["log_losses"][:, tenth + 1] = np.stack([3 * np.log(means), [3] * 5], axis=1)
    run = measured([1] * 5, [1] * 5, [0, 1], progress=0.8, names=names)
    rests = lid[0] < 1.2 * lid[1]
    of_lid, of_walls = (20**x for x in (gains and not rests, gains))
    weights = many_updates(rule, run, state)
    assert weights[:4] == pytest.approx([1, 1, of_lid, of_walls])
    # With one equation, whose lead comes early, nobody looks.
    one = measured([1] * 5, [1] * 5, [0], progress=0.8, names=("pde1", "bc", *names[2:]))
    assert many_updates(rule, one, state)[1:4] == pytest.approx([20, 20, 20])


def test_noise_is_found_and_what_to_check():
    def found(progress, losses, **options):
        names = ("pde", "data", "bc")
        run = measured(ONES, ONES, [0], progress=progress, names=names, step=5000)
        state = after_tenths(losses)
        return PinnRule(**options).findings(names, np.ones(3), state, run)

    noise = [1, 0.02, 0.019]
    (finding,) = [f for f in found(0.4, noise) if "noise" in f]
    assert finding.startswith(
        "'data' has come to rest, so what is left of its loss counts as noise"
    )
    for quiet in (found(0.3, noise), found(0.4, [1, 0.02, 0.01]), found(0.4, noise, late=False)):
        assert not any("noise" in finding for finding in quiet)


def test_of_a_run_whose_length_is_not_known_data_keep_the_lead():
    run = measured(ONES, ONES, [0], names=("pde", "data", "bc"))
    weights = many_updates(PinnRule(), run, after_tenths([1, 0.02, 0.02]))
    assert weights == pytest.approx([1, 20, 20])
    _, state = PinnRule().weigh(np.ones(3), PinnRule().start(3), run)
    assert not state["log_losses"].any()


def test_a_loss_of_zero_is_no_part_of_the_means_by_which_noise_is_told():
    state = PinnRule().start(2)
    for loss in (0.1, 0.0, 0.1):
        measurement = measured((1.0, loss), (1, 1), [0], progress=0.15, names=("pde", "data"))
        _, state = PinnRule().weigh(np.ones(2), state, measurement)
    np.testing.assert_allclose(state["log_losses"][1, 1], [2 * np.log(0.1), 2])
    assert state["log_losses"][:, [0, *range(2, 10)]].sum() == 0


def test_a_lead_that_must_come_late_does_not_come_if_nobody_knows_when_that_is():
    several, one = measured(ONES, ONES, [0, 1]), measured(ONES, ONES, [0])
    from_the_start, none = pytest.approx([1, 1, 20]), pytest.approx([1, 1, 1])
    assert many_updates(PinnRule(), several) == none == many_updates(PinnRule(late=True), one)
    assert many_updates(PinnRule(late=False), several) == from_the_start
    assert many_updates(PinnRule(), one) == pytest.approx([1, 20, 20])
    # Gradients still count, and so do measured data.
    smaller = measured(ONES, [1, 1, 1 / 8], [0, 1])
    assert many_updates(PinnRule(), smaller) == pytest.approx([1, 1, 2])
    data = measured(ONES, ONES, [0, 1], names=("continuity", "momentum", "data"))
    assert many_updates(PinnRule(), data) == from_the_start
    # Noise that counts as an equation, so that it has no lead, is not a second one.
    noise = measured(ONES, ONES, [0, 1], names=("pde", "data", "bc"))
    assert many_updates(PinnRule(), noise) == from_the_start


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
        assert finding.startswith(f"After {step + 10} steps weights are still moving at the")
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
    rule, two = PinnRule(lead=5.0, bound=50.0), ["momentum_x", "momentum_y"]
    of_equations, of_conditions = rule.effects(two, ["bc"], total_steps=1000)
    assert of_equations == "keep weights near 1"
    grows = "get a lead of 5 that grows between steps {} and {}, weights up to 50"
    assert of_conditions == grows.format(300, 800)
    for one in (["pde"], ["pde", "data"]):
        assert rule.effects(one, ["bc"], total_steps=1000)[1] == grows.format(0, 500)
    of_data = "a lead of 5 from the start, taken back if it is noise that is left"
    of_conditions = rule.effects(["pde"], ["data"], 1000)[1]
    assert of_conditions == f"get {of_data}, weights up to 50"
    of_conditions = rule.effects(["pde"], ["bc", "obs", "data"], 1000)[1]
    assert of_conditions == (
        f"get a lead of 5 that grows between steps 0 and 500 ('obs' and 'data': {of_data}), "
        "weights up to 50"
    )
    advice = " (pass total_steps=, the number of steps, for a lead at the right time)"
    for conditions, given in (
        (["bc"], "no lead"),
        (["data"], "a lead of 5 from the start"),
        (["bc", "data"], "no lead ('data': a lead of 5 from the start)"),
    ):
        assert rule.effects(two, conditions)[1] == f"get {given}, weights up to 50{advice}"
        of_one = rule.effects(["pde"], conditions)[1]
        assert of_one == f"get a lead of 5 from the start, weights up to 50{advice}"
    for steps in (None, 1000):
        of_conditions = PinnRule(late=False).effects(two, ["data"], steps)[1]
        assert "lead of 20 from the start, weights" in of_conditions
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
