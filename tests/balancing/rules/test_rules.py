import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddlescience_gradnorm.balancing.rule import Rule
from paddlescience_gradnorm.balancing.rules import RULES, GradNormRule, PinnRule, find_rule

ROOT = Path(__file__).parents[3]


class InverseNorms(Rule):
    """A user's own."""

    def weigh(self, weights, state, measurement):
        return 1 / measurement.norms, state


class WithAlpha(InverseNorms):
    def __init__(self, alpha=0.5):
        self.alpha = alpha


def test_there_is_a_name_for_each_rule():
    assert list(RULES.items()) == [("published", GradNormRule), ("pinn", PinnRule)]


def test_the_rule_is_the_published_one_if_alpha_alone_is_given_and_else_the_default():
    assert find_rule() == find_rule("pinn") == PinnRule()
    assert find_rule(alpha=0.5) == find_rule("published", 0.5) == GradNormRule(0.5)
    assert find_rule(alpha=0) == GradNormRule(0)
    assert find_rule("pinn", 0.5) == PinnRule(alpha=0.5)


@pytest.mark.parametrize("rule", [PinnRule(strength=0.3), GradNormRule(2.0), InverseNorms()])
def test_a_rule_is_taken_as_it_is(rule):
    assert find_rule(rule) is rule


def test_a_name_that_is_none_is_an_error_that_lists_those_there_are():
    with pytest.raises(ValueError, match="rule must be one of 'published', 'pinn', got 'gradnorm'"):
        find_rule("gradnorm", 1.0)


@pytest.mark.parametrize("rule", [3, ["pinn"], dict])
def test_something_else_than_a_rule_is_named(rule):
    with pytest.raises(TypeError, match="rule must be 'published', 'pinn' or an instance") as error:
        find_rule(rule)
    assert str(error.value).endswith(f"of Rule, got {rule!r}")


@pytest.mark.parametrize("kind", [InverseNorms, PinnRule])
def test_a_class_in_place_of_an_instance_is_explained(kind):
    with pytest.raises(
        TypeError, match=rf"got <class .*; pass an instance, .* {kind.__name__}\(\)"
    ):
        find_rule(kind)


def test_alpha_is_missing_where_a_rule_has_no_default():
    with pytest.raises(TypeError, match="alpha is missing: the rule 'published' has no default"):
        find_rule("published")


@pytest.mark.parametrize("rule", [PinnRule(), InverseNorms(), WithAlpha()])
def test_alpha_beside_a_rule_is_refused(rule):
    with pytest.raises(ValueError, match=r"alpha is 1.0, but .* has its own options; give it"):
        find_rule(rule, 1.0)


def test_alpha_out_of_range_is_the_rules_own_error():
    for name in RULES:
        with pytest.raises(ValueError, match="alpha must be finite and at least 0, got -1"):
            find_rule(name, -1)


def test_alpha_goes_to_any_registered_rule_that_has_it(monkeypatch):
    monkeypatch.setitem(RULES, "own", InverseNorms)
    monkeypatch.setitem(RULES, "own with alpha", WithAlpha)
    assert isinstance(find_rule("own"), InverseNorms)
    with pytest.raises(
        ValueError, match=r"alpha is 1.0, but the rule 'own' has none; leave it out"
    ):
        find_rule("own", 1.0)
    assert find_rule("own with alpha").alpha == 0.5
    assert find_rule("own with alpha", 1.0).alpha == 1.0


def test_every_rule_runs_without_paddle():
    code = """
import sys
sys.modules["paddle"] = None
import numpy as np
from paddlescience_gradnorm.balancing import Measurement
from paddlescience_gradnorm.balancing.rules import RULES, find_rule
for name in RULES:
    rule = find_rule(name, 1.0)
    weights, state = np.ones(3), rule.start(3)
    for step in range(50):
        measurement = Measurement(
            np.array([3.0, 2.0, 1.0]) / (step + 1), np.diag([1.0, 4.0, 9.0]),
            largest=np.ones(3), mean=np.ones(3), equations=np.array([True, False, False]),
            step=step, rate=0.1,
        )
        rule.imbalance(weights, state, measurement)
        weights, state = rule.weigh(weights, state, measurement)
        rule.findings("abc", weights, state, measurement)
    rule.check(1e-3)
    print(name, *weights)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [name for name, *_ in lines] == list(RULES)
    for _, *weights in lines:
        values = np.array(weights, float)
        assert np.isfinite(values).all() and np.ptp(values) > 0.1
