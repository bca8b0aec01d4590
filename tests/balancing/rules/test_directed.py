import dataclasses

import numpy as np
import pytest

from paddlescience_gradnorm.balancing import (
    DCGD,
    ConFIG,
    Directed,
    DirectionRule,
    DualBalance,
    Equal,
    Fixed,
    PCGrad,
    PinnRule,
    ReLoBRaLo,
    UPGrad,
)
from paddlescience_gradnorm.balancing.rules.directed import combined

EQUATIONS = (0, 2)


@pytest.fixture
def gradients():
    return np.random.default_rng(0).normal(size=(4, 7)) * [[30.0], [1.0], [0.1], [3.0]]


class Remembering(DirectionRule):
    """A user's own direction, which keeps a moving average of the norms."""

    def start(self, n_loss):
        return {"norms": np.zeros(n_loss), "updates": np.zeros([])}

    def weigh(self, weights, state, measurement):
        norms = (state["norms"] + measurement.norms) / 2
        return 1 / norms, {"norms": norms, "updates": state["updates"] + 1}


@pytest.mark.parametrize("rule", [PinnRule(), DualBalance("std"), ReLoBRaLo()])
@pytest.mark.parametrize("direction", [ConFIG(), UPGrad(), PCGrad()])
@pytest.mark.parametrize("groups", ["kinds", "each"])
def test_it_is_the_direction_of_weighted_gradients(measured, gradients, rule, direction, groups):
    both = Directed(rule, direction, groups)
    weights, of_rule, state = np.ones(4), rule.start(4), both.start(4)
    rng = np.random.default_rng(1)
    for step in range(5):
        gradients = gradients + rng.normal(size=gradients.shape)
        losses = rng.uniform(1, 2, 4)
        measurement = measured(gradients, losses, EQUATIONS, step=step, rate=0.1)
        found, state = both.weigh(np.full(4, np.nan), state, measurement)

        # The same on the gradients themselves.
        weights, of_rule = rule.weigh(weights, of_rule, measurement)
        weighted = weights[:, None] * gradients
        if groups == "kinds":
            equations = np.isin(np.arange(4), EQUATIONS)
            weighted = np.array([weighted[equations].sum(0), weighted[~equations].sum(0)])
        of_sums = measured(weighted, step=step)
        expected = direction.weigh(np.ones(len(weighted)), {}, of_sums)[0] @ weighted
        np.testing.assert_allclose(
            found @ gradients, expected, atol=1e-9 * np.linalg.norm(expected)
        )
        np.testing.assert_array_equal(state["directed_weights"], weights)
        for name, array in of_rule.items():
            np.testing.assert_array_equal(state[f"rule_{name}"], array)
    assert np.ptp(weights) > 0.01


def test_dcgd_of_all_losses_is_its_own_groups(measured, gradients):
    measurement = measured(gradients, equations=EQUATIONS)
    expected, _ = DCGD("avg").weigh(np.ones(4), {}, measurement)
    for groups in ("kinds", "each"):
        both = Directed(Equal(), DCGD("avg"), groups)
        found, _ = both.weigh(np.ones(4), both.start(4), measurement)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("equations", [[], [0, 1, 2, 3]])
def test_with_one_kind_of_losses_it_is_the_weighted_sum(measured, gradients, equations):
    both = Directed(Fixed([1, 2, 3, 4]), ConFIG())
    measurement = measured(gradients, equations=equations)
    assert both.weigh(np.ones(4), both.start(4), measurement)[0].tolist() == [1, 2, 3, 4]


def test_weights_keep_to_the_floor(measured, gradients):
    both = Directed(Fixed([1, 1e-9, 1, 1]), ConFIG(), "kinds")
    measurement = measured(gradients, equations=range(4), floor=0.1)
    assert both.weigh(np.ones(4), both.start(4), measurement)[0].tolist() == [1, 0.1, 1, 1]


def test_losses_and_products_of_sums_are_those_that_would_be_measured(measured, gradients):
    measurement = measured(gradients, [1, 2, 3, 4], EQUATIONS, step=3, rate=0.2)
    sums = np.array([[2.0, 0, 1, 0], [0, 3, 0, 0.5]])
    found = combined(measurement, sums)
    assert found.losses.tolist() == [5, 8] and found.equations.tolist() == [True, False]
    np.testing.assert_allclose(found.gram, (sums @ gradients) @ (sums @ gradients).T, rtol=1e-12)
    assert found.largest is None and found.kurtosis is None and (found.step, found.rate) == (3, 0.2)


def test_a_direction_may_remember_something_of_each_loss(measured, gradients):
    both = Directed(Equal(), Remembering(), "each")
    measurement = measured(gradients)
    _, state = both.weigh(np.ones(4), both.start(4), measurement)
    assert state["direction_norms"].tolist() == (measurement.norms / 2).tolist()
    assert state["direction_updates"] == 1
    with pytest.raises(ValueError, match=r"remembers 'norms' of each loss, .* pass groups='each'"):
        Directed(Equal(), Remembering(), "kinds")


def test_it_asks_for_what_both_ask_for():
    both = Directed(DualBalance("kurtosis"), UPGrad(), "each")
    assert both.needs == {"gram", "std", "kurtosis"} and both.update_every == 1
    assert both.tells_equations and both.needs_positive_losses
    alike = Directed(ReLoBRaLo(), UPGrad(), "each")
    assert alike.needs == {"gram"} and not alike.tells_equations
    assert Directed(ReLoBRaLo(), UPGrad()).tells_equations
    asked, rule = (["a", "b"], ["data"], 70), PinnRule(lead=5.0)
    assert Directed(rule).effects(*asked) == rule.effects(*asked)
    assert not Directed().needs_positive_losses


def test_checks_and_findings_are_those_of_the_rule_that_weighs(measured):
    with pytest.raises(ValueError, match=r"below the floor of 0\.1"):
        Directed(Fixed([0.01, 1])).check(0.1)
    with pytest.raises(ValueError, match="weights names 'bc'"):
        Directed(Fixed({"bc": 2})).meet(["pde", "ic"], complete=True)
    rule, measurement = PinnRule(), measured(np.diag([1.0, 1.0]), step=90, rate=0.01, interval=10)
    both = Directed(rule)
    state = {**both.start(2), "directed_weights": np.array([1.0, 2.7])}
    (finding,) = both.findings(["pde", "bc"], np.full(2, 7.0), state, measurement)
    assert (finding,) == tuple(
        rule.findings(["pde", "bc"], np.array([1, 2.7]), rule.start(2), measurement)
    )


def test_something_else_than_rules_is_an_error():
    for options, message in (
        (
            {"rule": ConFIG()},
            r"rule must be a rule that weighs losses, such as .* got ConFIG",
        ),
        ({"rule": "pinn"}, r"rule must be a rule that weighs losses, such as .* got 'pinn'"),
        ({"direction": PinnRule()}, r"direction must be a rule that combines .* got PinnRule"),
        ({"direction": ConFIG}, r"direction must be a rule that combines .* got <class"),
    ):
        with pytest.raises(TypeError, match=message):
            Directed(**options)
    with pytest.raises(ValueError, match="groups must be one of 'kinds', 'each', got 'all'"):
        Directed(groups="all")


def test_it_is_a_value_like_all_rules():
    assert Directed() == Directed(PinnRule(), ConFIG(), "kinds") != Directed(groups="each")
    assert dataclasses.replace(Directed(), groups="each").groups == "each"
