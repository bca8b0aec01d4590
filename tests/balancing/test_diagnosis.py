import numpy as np
import pytest

from paddlescience_gradnorm.balancing import GradNormRule, Measurement, PinnRule, Rule
from paddlescience_gradnorm.balancing._diagnosis import diagnose

NAMES = ["pde", "boundary", "data"]
RULES = [GradNormRule(1.0), PinnRule(), PinnRule(alpha=1.0)]


def diagnosis(
    rule,
    weights=(0.5, 1.0, 1.5),
    losses=(1e-3, 1e-2, 1e-4),
    initial=(1e-2, 1e-1, 1e-3),
    norms=(1, 1, 1),
    cosines=None,
    floor=1e-3,
):
    """That of a healthy run, but for what is given."""
    norms = np.array(norms, float)
    gram = np.outer(norms, norms) * (np.eye(3) if cosines is None else cosines)
    measurement = Measurement(np.array(losses), gram, step=5000, interval=1, floor=floor)
    return diagnose(
        NAMES, np.array(weights), rule, {"initial_losses": np.array(initial)}, measurement
    )


@pytest.mark.parametrize("rule", RULES)
def test_a_healthy_run_has_no_findings(rule):
    assert diagnosis(rule) == []


@pytest.mark.parametrize("rule", RULES)
def test_a_weight_at_its_floor_is_named(rule):
    (finding,) = diagnosis(rule, weights=(0.101, 1, 2), floor=0.1)
    assert finding.startswith("The weight of 'pde' is at its floor of 0.1: ")
    assert diagnosis(rule, weights=(0.102, 1, 2), floor=0.1) == []


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_without_a_gradient_is_named(rule):
    (finding,) = diagnosis(rule, norms=(1, 0, 1))
    assert finding.startswith("The loss of 'boundary' has no gradient on the shared parameters: ")


@pytest.mark.parametrize("rule", RULES)
def test_gradients_in_conflict_are_named_in_pairs(rule):
    cosines = np.array([[1, 0.3, -0.4], [0.3, 1, -0.9], [-0.4, -0.9, 1]])
    (finding,) = diagnosis(rule, cosines=cosines, norms=(1e-3, 2, 30))
    pairs = "'pde' and 'data' (cosine -0.40), 'boundary' and 'data' (cosine -0.90)"
    assert finding.startswith(f"The gradients of {pairs} point against each other")


def test_the_findings_of_the_rule_are_among_them():
    (finding,) = diagnosis(GradNormRule(1.0), losses=(1, 1e-2, 1e-4))
    assert finding.startswith("The loss of 'pde' is 100 times its reference L(0) = 0.01")
    (finding,) = diagnosis(PinnRule(bound=5), weights=(1, 1, 5))
    assert finding.startswith("The weight of 'data' is at its bound, 5 times above 1")


def test_findings_come_in_one_order_and_are_all_told():
    class Own(Rule):
        def weigh(self, weights, state, measurement):
            return weights, state

        def findings(self, names, weights, state, measurement):
            return [
                f"{names} {weights.tolist()} {state['initial_losses'].sum()} {measurement.step}"
            ]

    found = diagnosis(
        Own(), weights=(1e-3, 1, 1e-3), norms=(1, 0, 1), cosines=np.eye(3) - 0.5, initial=(1, 1, 1)
    )
    starts = ["The weight of 'pde'", "The loss of 'boundary'", "The weight of 'data'"]
    starts += [
        "['pde', 'boundary', 'data'] [0.001, 1.0, 0.001] 3 5000",
        "The gradients of 'pde' and",
    ]
    assert [finding.startswith(start) for finding, start in zip(found, starts)] == [True] * 5
    assert len(found) == 5


def test_without_gradients_there_is_nothing_to_say_of_them():
    measurement = Measurement(np.ones(3))
    state = {"initial_losses": np.ones(3)}
    assert diagnose(NAMES, np.ones(3), GradNormRule(0.0), state, measurement) == []


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_that_was_left_out_is_no_finding(rule):
    cosines = np.eye(3)
    cosines[1] = cosines[:, 1] = np.nan
    assert diagnosis(rule, losses=(1e-3, np.nan, 1e-4), cosines=cosines) == []
