import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddlescience_gradnorm import balancing
from paddlescience_gradnorm.balancing import rules
from paddlescience_gradnorm.balancing.rule import DirectionRule, Rule
from paddlescience_gradnorm.balancing.rules import (
    DCGD,
    IMTLG,
    MGDA,
    RULES,
    Directed,
    DualBalance,
    Fixed,
    GradNormRule,
    LearningRateAnnealing,
    PCGrad,
    PinnRule,
    ReLoBRaLo,
    UPGrad,
    find_rule,
)

ROOT = Path(__file__).parents[3]


class InverseNorms(Rule):
    """A user's own."""

    def weigh(self, weights, state, measurement):
        return 1 / measurement.norms, state


class WithAlpha(InverseNorms):
    def __init__(self, alpha=0.5):
        self.alpha = alpha


def test_there_is_a_name_for_each_rule():
    classes = {name for name in rules.__all__ if isinstance(getattr(rules, name), type)}
    assert sorted(kind.__name__ for kind in RULES.values()) == sorted(classes)
    assert all(getattr(balancing, name) is getattr(rules, name) for name in classes)
    for name, kind in RULES.items():
        if name not in ("published", "fixed"):
            assert isinstance(find_rule(name), kind) and find_rule(name) == kind()


def test_the_rule_is_the_published_one_if_alpha_alone_is_given_and_else_the_default():
    assert find_rule() == find_rule("pinn") == PinnRule()
    assert find_rule(alpha=0.5) == find_rule("published", 0.5) == GradNormRule(0.5)
    assert find_rule(alpha=0) == GradNormRule(0)
    assert find_rule("pinn", 0.5) == PinnRule(alpha=0.5)


def test_options_go_to_the_rule_that_is_named_and_to_no_other():
    assert find_rule("pinn", 0.5, late=False) == PinnRule(alpha=0.5, late=False)
    assert find_rule("published", alpha=1.5) == GradNormRule(1.5)
    assert find_rule("fixed", weights=[1, 50]) == Fixed([1, 50])
    with pytest.raises(TypeError, match="the rule 'pinn' has no option 'leed'; did you mean 'le"):
        find_rule("pinn", leed=5)
    with pytest.raises(ValueError, match=r"lead is 5, but PinnRule\(.*\) has its own options"):
        find_rule(PinnRule(), lead=5)
    with pytest.raises(TypeError, match=r"rule must be a rule that weighs losses, .* got 'pinn'"):
        find_rule("directed", rule="pinn")


@pytest.mark.parametrize("rule", [PinnRule(strength=0.3), GradNormRule(2.0), InverseNorms()])
def test_a_rule_is_taken_as_it_is(rule):
    assert find_rule(rule) is rule


def test_a_name_that_is_none_is_an_error_that_lists_those_there_are():
    with pytest.raises(ValueError, match=r"got 'ConFIG'; did you mean 'config'"):
        find_rule("ConFIG")
    with pytest.raises(ValueError, match=r"got 'relobrallo'; did you mean 'relobralo'"):
        find_rule("relobrallo")
    with pytest.raises(ValueError, match=r"rule must be one of 'published', .*, got 'gradnorm'"):
        find_rule("gradnorm", 1.0)


@pytest.mark.parametrize("rule", [3, ["pinn"], dict])
def test_something_else_than_a_rule_is_named(rule):
    with pytest.raises(
        TypeError, match=r"rule must be 'published', 'pinn', .* or an instance"
    ) as error:
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


def test_weights_are_missing_for_the_fixed_rule():
    with pytest.raises(TypeError, match=r"weights are missing: .* such as Fixed\(\{'bc': 50\}\)"):
        find_rule("fixed")


def test_alpha_out_of_range_is_the_rules_own_error():
    for name in ("published", "pinn"):
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
for name, kind in RULES.items():
    alpha = 1.0 if name == "published" else None
    rule = kind([1, 2, 3]) if name == "fixed" else find_rule(name, alpha)
    weights, state = np.ones(3), rule.start(3)
    for step in range(50):
        gradients = np.array([[9.0, 0.0, 1.0, 3.0], [-1.0, 2.0, 0.0, 0.0], [0.0, -1.0, 1.0, 0.0]])
        measurement = Measurement(
            np.array([3.0, 2 * 0.8**step, 0.5**step]), gradients @ gradients.T,
            largest=abs(gradients).max(1), mean=abs(gradients).mean(1), std=gradients.std(1),
            kurtosis=np.full(3, 3.0), names=("pde", "bc", "ic"),
            equations=np.array([True, False, False]), step=step, rate=0.1,
        )
        rule.imbalance(weights, state, measurement)
        rule.findings("abc", weights, state, measurement)
        weights, state = rule.weigh(weights, state, measurement)
    rule.check(1e-3)
    rule.meet(["pde", "bc", "ic"], True)
    print(name, *weights)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [name for name, *_ in lines] == list(RULES)
    for name, *weights in lines:
        values = np.array(weights, float)
        assert np.isfinite(values).all() and (np.ptp(values) > 0.01) == (name != "equal"), name


# What holds for every rule.

GRADIENTS = np.random.default_rng(0).normal(size=(4, 9)) * [[30.0], [1.0], [0.1], [3.0]]
ALL = {
    name: find_rule(name, 1.0 if name == "published" else None) for name in RULES if name != "fixed"
}
ALL.update(
    {
        "fixed": Fixed([2, 1, 3, 1]),
        "lr_annealing by mean": LearningRateAnnealing(statistic="mean"),
        "dual_balance by std": DualBalance("std"),
        "dual_balance by kurtosis": DualBalance("kurtosis"),
        "dcgd by proj": DCGD("proj"),
        "dcgd by avg": DCGD("avg"),
        "upgrad, regularised": UPGrad(1e-4),
        "mgda by steps": MGDA(1e-3),
        "directed each": Directed(ReLoBRaLo(), PCGrad(), "each"),
    }
)
every_rule = pytest.mark.parametrize("rule", ALL.values(), ids=ALL)
directions = pytest.mark.parametrize(
    "rule", [rule for rule in ALL.values() if rule.acts_now], ids=str
)


def several_updates(rule, measurement, n=5):
    weights, state = np.ones(len(measurement.losses)), rule.start(len(measurement.losses))
    for _ in range(n):
        weights, state = rule.weigh(weights, state, measurement)
        if not rule.acts_now:
            weights = np.maximum(weights, measurement.floor)  # as a balancer does
    return weights, state


@every_rule
@pytest.mark.parametrize("n_loss", [2, 3, 4])
@pytest.mark.parametrize("equations", [[], [0], [0, 1]])
def test_any_number_of_losses_of_any_kind_gives_finite_weights(rule, n_loss, equations, measured):
    if isinstance(rule, Fixed):
        rule = Fixed(rule.weights[:n_loss])
    gradients = GRADIENTS[:n_loss]
    weights, _ = several_updates(rule, measured(gradients, np.arange(1, n_loss + 1), equations))
    assert weights.shape == (n_loss,) and np.isfinite(weights).all()
    assert rule.acts_now or (weights > 0).all()


@every_rule
def test_losses_may_be_left_out_with_their_part_of_the_state(rule, measured):
    measurement = measured(GRADIENTS, [1, 2, 3, 4])
    weights, state = several_updates(rule, measurement)
    which = np.array([True, False, True, True])
    part = {name: x[which] if np.ndim(x) else x for name, x in state.items()}
    new, new_state = rule.weigh(weights[which], part, measurement.of(which))
    assert new.shape == (3,) and np.isfinite(new).all()
    assert {n: np.shape(x) for n, x in new_state.items()} == {
        n: np.shape(x) for n, x in part.items()
    }


@every_rule
def test_no_rule_changes_anything_in_place(rule, measured):
    measurement = measured(GRADIENTS, [1, 2, 3, 4])
    weights, state = several_updates(rule, measurement, n=2)
    arrays = [weights, *state.values(), measurement.losses, measurement.gram, measurement.std]
    before = [np.array(array) for array in arrays]
    for array in arrays:
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    rule.weigh(weights, state, measurement)
    for array, was in zip(arrays, before):
        np.testing.assert_array_equal(array, was)


@every_rule
def test_a_rule_is_a_pure_function(rule, measured):
    measurement = measured(GRADIENTS, [1, 2, 3, 4], step=7)
    first, again = (several_updates(rule, measurement) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    copied = pickle.loads(pickle.dumps(rule))
    np.testing.assert_array_equal(several_updates(copied, measurement)[0], first[0])
    assert copied == rule and copied.needs == rule.needs


DEGENERATE = {
    "parallel": [[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [3.0, 6.0, 0.0]],
    "opposite": [[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0]],
    "opposite, of other size": [[1e3, 2e3, 0.0], [-1e-3, -2e-3, 0.0], [0.0, 0.0, 1.0]],
    "opposite and parallel": [[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]],
    "cancelling": [[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]],
    "more than dimensions": [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0], [-1.0, 2.0]],
    "nearly parallel": [[1.0, 0.0], [1.0, 1e-9]],
    "of very different size": [[1e12, 1e12], [1e-12, -2e-12]],
    "one value": [[3.0], [-2.0]],
}


@every_rule
@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.filterwarnings("error")
def test_gradients_without_a_common_direction_give_finite_weights(rule, kind, measured):
    gradients = np.array(DEGENERATE[kind])
    n_loss = len(gradients)
    if isinstance(rule, Fixed):
        rule = Fixed(np.ones(n_loss))
    for order in (gradients, gradients[::-1]):
        weights, _ = several_updates(rule, measured(order, np.arange(1, n_loss + 1)))
        assert np.isfinite(weights).all()
        if rule.acts_now and not isinstance(rule, (IMTLG, Directed)):
            # No direction is longer than all gradients together.
            norms = np.linalg.norm(order, axis=1)
            assert np.linalg.norm(weights @ order) <= 1.001 * norms.sum()


@directions
def test_a_direction_has_no_unit(rule, measured):
    one, other = (measured(GRADIENTS * unit, [1, 2, 3, 4]) for unit in (1.0, 2.0**-20))
    np.testing.assert_allclose(
        several_updates(rule, one, 1)[0], several_updates(rule, other, 1)[0], rtol=1e-9
    )


@directions
def test_directions_act_at_once_and_look_at_the_gram_matrix_in_every_step(rule):
    assert isinstance(rule, DirectionRule) and "gram" in rule.needs and rule.update_every == 1


@directions
@pytest.mark.parametrize("n_loss", [2, 3, 4])
def test_no_coefficient_is_negative_up_to_as_many_losses_as_a_direction_says(
    rule, n_loss, measured
):
    rng = np.random.default_rng(0)
    sizes = np.array([1e-2, 1.0, 30.0, 1e3])
    found = []
    for _ in range(200):
        gradients = (rng.normal(size=(4, 3)) + rng.normal(size=3)) * rng.permutation(sizes)[:, None]
        found.append(several_updates(rule, measured(gradients[:n_loss], [1] * n_loss, [0]), 1)[0])
    assert (np.array(found) < 0).any() == (n_loss > rule.never_negative_up_to)


@directions
def test_orthogonal_equal_gradients_stay_what_they_are(rule, measured):
    if isinstance(rule, Directed):
        pytest.skip("its weights are another rule's")
    gradients = np.eye(4)
    coefficients, _ = several_updates(rule, measured(gradients), 1)
    np.testing.assert_allclose(coefficients[1:], coefficients[1], rtol=1e-12)
    assert (coefficients > 0).all()
