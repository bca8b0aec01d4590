import numpy as np
import pytest

from paddlescience_gradnorm.balancing import GradNormRule, Measurement, PinnRule, Rule
from paddlescience_gradnorm.balancing._diagnosis import diagnose, is_dead, listed

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
    names=NAMES,
    equations=(True, False, False),
    stopped=None,
):
    """That of a healthy run, but for what is given."""
    norms = np.array(norms, float)
    gram = np.outer(norms, norms) * (np.eye(3) if cosines is None else cosines)
    measurement = Measurement(
        *(np.array(losses), gram), equations=np.array(equations), step=5000, floor=floor
    )
    arrays = {"initial_losses": np.array(initial), "largest_losses": np.array(initial)}
    state = {**arrays, "log_losses": np.zeros([3, 10, 2]), "log_unit": np.array(0.0)}
    return diagnose(names, np.array(weights), rule, state, measurement, stopped=stopped)


@pytest.mark.parametrize("rule", RULES)
def test_a_healthy_run_has_no_findings(rule):
    assert diagnosis(rule) == []


@pytest.mark.parametrize("rule", RULES)
def test_opposite_gradients_are_no_finding_because_they_cancel_where_training_rests(rule):
    cosines = np.array([[1, 0.3, -0.4], [0.3, 1, -0.99], [-0.4, -0.99, 1]])
    assert diagnosis(rule, cosines=cosines) == []


@pytest.mark.parametrize("rule", RULES)
def test_weights_at_the_floor_are_named(rule):
    (finding,) = diagnosis(rule, weights=(0.101, 1, 2), floor=0.1)
    assert finding.startswith("The weight of 'pde' is at its floor of 0.1, ")
    (finding,) = diagnosis(rule, weights=(0.101, 1, 0.1), floor=0.1)
    assert finding.startswith("The weight of 'pde' and 'data' is at its floor")
    assert diagnosis(rule, weights=(0.102, 1, 2), floor=0.1) == []


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_without_a_gradient_is_named(rule):
    stopped = {"boundary": (10, "has no gradient on the shared parameters")}
    (finding,) = diagnosis(rule, norms=(1, 0, 1), stopped=stopped)
    assert finding.startswith("'boundary' has been left out of the balancing since step 10, ")
    assert "because it has no gradient on the shared parameters. Leave it out of" in finding


@pytest.mark.parametrize(
    "fault, remedy",
    [
        (
            "is nan",
            "because it is nan. Look for a division by 0, a root or a logarithm in it, or a batch "
            "without points.",
        ),
        ("is -inf", "because it is -inf. Look for a division by 0, an exponential or"),
        (
            "is 0 and has no training rate",
            "such as PinnRule() with its defaults.",
        ),
        ("has a gradient of norm above 1e+19, too large for an optimizer to square", "Scale it"),
        ("is empty", "since step 7, because it is empty."),
    ],
)
def test_what_has_stopped_is_named_with_the_step_and_a_remedy(fault, remedy):
    (finding,) = diagnosis(PinnRule(), stopped={"data": (7, fault)})
    assert finding.startswith("'data' has been left out of the balancing since step 7, because it")
    assert remedy in finding


def test_losses_that_have_stopped_together_are_named_together():
    stopped = {"boundary": (8, "is 0"), "data": (7, "is nan"), "pde": (7, "is nan")}
    first, second = diagnosis(PinnRule(), stopped=stopped)
    assert first.startswith("'data' and 'pde' have been left out of the balancing since step 7, ")
    assert "because each of them is nan." in first
    assert second.startswith("'boundary' has been left out of the balancing since step 8, ")


def test_of_losses_that_have_all_failed_the_first_is_named():
    after = {"pde": (8, "is nan"), "boundary": (8, "is inf")}
    slope = "has a gradient of norm nan"
    (finding,) = diagnosis(PinnRule(), stopped={**after, "data": (7, slope)}, weights=(1e-3, 1, 1))
    assert finding.startswith(f"'data' failed first, in step 7, because it {slope}, and then all ")
    assert finding.endswith(
        "Look for a division by 0, a root or a logarithm in it, or a batch without points."
    )
    (finding,) = diagnosis(PinnRule(), stopped=dict.fromkeys(NAMES, (8, "is nan")))
    assert finding.startswith("All losses have been left out of the balancing since step 8, ")
    assert "look for NaN in the network's parameters" in finding


def test_a_loss_that_only_the_last_update_left_out_has_not_stopped():
    assert diagnosis(PinnRule(), norms=(1, 0, 1)) == []
    assert diagnosis(PinnRule(), losses=(1e-3, np.nan, 1e-4)) == []


@pytest.mark.parametrize(
    "names, equations, wrong",
    [
        (["pde", "left", "right"], (False, True, True), "pde"),
        (["left", "Residual_u", "right"], (True, False, False), "Residual_u"),
        (["momentum_x", "continuity", "bc"], (True, False, False), None),  # may well be meant
        (["pde", "data", "bc"], (True, True, False), None),
        (["a", "b", "c"], (False, True, False), None),
        (["code", "mode", "model"], (True, False, False), None),
        (["pde", "left", "right"], (False, False, False), None),  # without equations
    ],
)
def test_an_equation_among_the_conditions_is_named(names, equations, wrong):
    found = diagnosis(PinnRule(lead=1.0), names=names, equations=equations)
    assert len(found) == (wrong is not None)
    for finding in found:
        assert finding.startswith(f"{wrong!r} has an equation's name, but is balanced as a")
        assert f"pass equations=['{wrong}']." in finding
    assert diagnosis(GradNormRule(0.0), names=names, equations=equations) == []


def test_of_a_dead_network_nothing_else_is_said():
    signs = np.array([1.0, -1.0, 1.0])
    (finding,) = diagnosis(
        PinnRule(),
        weights=(1e-3, 1, 1),
        cosines=np.outer(signs, signs),
        stopped={"pde": (3, "is 0")},
    )
    assert finding.startswith("The gradients of all losses are parallel.")


@pytest.mark.parametrize(
    "pairs, dead",
    [
        ((1, 1, 1), True),
        ((1, -1, -1), True),
        ((0, 0, 1), True),  # without a gradient of the first
        ((1, -0.9999, -1), False),
        ((-1, 0, 0), False),  # two losses at rest, and one that is met
        ((0, 0, 0), False),
        ((np.nan,) * 3, False),
    ],
)
def test_gradients_of_a_dead_network_are_parallel(pairs, dead):
    cosines = np.eye(3)
    cosines[np.triu_indices(3, 1)] = pairs
    assert is_dead(cosines) == dead


def test_names_are_listed_up_to_four():
    assert [listed("abcdef"[:n]) for n in (1, 2, 4, 5)] == [
        "'a'",
        "'a' and 'b'",
        "'a', 'b', 'c' and 'd'",
        "'a', 'b', 'c' and 2 more",
    ]


def test_the_findings_of_the_rule_are_among_them():
    (finding,) = diagnosis(GradNormRule(1.0), losses=(1, 1e-2, 1e-4))
    assert finding.startswith("The reference L(0) of 'pde' was too small")
    (finding,) = diagnosis(
        PinnRule(bound=25, met=0), weights=(1, 25, 1), losses=(1e9, 1, 1e9), norms=(1e9, 1, 1e9)
    )
    assert finding.startswith("The gradients of 'boundary' are so far from those of the others")


def test_findings_come_in_one_order_and_what_the_rule_says_replaces_the_floor():
    class Own(Rule):
        def weigh(self, weights, state, measurement):
            return weights, state

        def findings(self, names, weights, state, measurement):
            return [f"{weights.tolist()} {state['initial_losses'].sum()} of 'data'"]

    found = diagnosis(
        Own(), weights=(1e-3, 1, 1e-3), initial=(1, 1, 1), stopped={"boundary": (3, "is 0")}
    )
    starts = ["'boundary' has been left out", "The weight of 'pde' is at its floor", "[0.001, 1.0"]
    assert [finding.startswith(start) for finding, start in zip(found, starts)] == [True] * 3
    assert len(found) == 3


def test_without_gradients_there_is_nothing_to_say_of_them():
    measurement = Measurement(np.ones(3))
    state = {"initial_losses": np.ones(3)}
    assert diagnose(NAMES, np.ones(3), GradNormRule(0.0), state, measurement) == []
