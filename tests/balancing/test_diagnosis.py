import numpy as np
import pytest

from paddlescience_gradnorm.balancing import GradNormRule, PinnRule
from paddlescience_gradnorm.balancing.diagnosis import diagnose

HEALTHY = {
    "names": ["pde", "boundary", "data"],
    "weights": np.array([0.5, 1.0, 1.5]),
    "losses": np.array([1e-3, 1e-2, 1e-4]),
    "references": np.array([1e-2, 1e-1, 1e-3]),
    "gradient_norms": np.ones(3),
    "cosines": np.eye(3),
    "rule": GradNormRule(1.0),
    "floor": 1e-3,
    "updates": 5000,
}


def changed(name, *values):
    return {name: np.array(values)}


@pytest.mark.parametrize("rule", [GradNormRule(1.0), PinnRule()])
def test_a_healthy_run_has_no_findings(rule):
    assert diagnose(**{**HEALTHY, "rule": rule}) == []


@pytest.mark.parametrize(
    "rule, change, words",
    [
        (GradNormRule(1.0), changed("weights", 1e-3, 1, 2), "'pde' is at its floor of 0.001"),
        (
            PinnRule(bound=5),
            changed("weights", 1.0, 1.0, 5.0),
            "'data' is at its bound, 5 times above",
        ),
        (
            PinnRule(bound=5),
            changed("weights", 1.0, 1.0, 0.2),
            "'data' is at its bound, 5 times below",
        ),
        (PinnRule(), changed("losses", 1e-3, 1e-1, 1e-4), "'boundary' no longer falls"),
        (PinnRule(), changed("losses", 1e-3, 1e-2, 2e-2), "'data' is 20 times its reference"),
        (GradNormRule(1.0), changed("losses", 1, 1e-2, 1e-4), "'pde' is 100 times its reference"),
        (GradNormRule(1.0), changed("gradient_norms", 1, 0, 1), "'boundary' has no gradient"),
    ],
)
def test_what_is_wrong_is_named(rule, change, words):
    (finding,) = diagnose(**{**HEALTHY, "rule": rule, **change})
    assert words in finding


def test_gradients_in_conflict_are_named_in_pairs():
    cosines = np.array([[1, 0.3, -0.4], [0.3, 1, -0.9], [-0.4, -0.9, 1]])
    (finding,) = diagnose(**{**HEALTHY, "cosines": cosines})
    pairs = "'pde' and 'data' (cosine -0.40), 'boundary' and 'data' (cosine -0.90)"
    assert finding.startswith(f"The gradients of {pairs} point against each other")


def test_a_loss_is_given_time_before_it_is_called_stuck():
    change = {"rule": PinnRule(), "updates": 90, "losses": HEALTHY["references"]}
    assert diagnose(**{**HEALTHY, **change}) == []
