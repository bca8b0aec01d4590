import numpy as np
import pytest

from paddlescience_gradnorm.balancing import Measurement, SoftAdapt


def test_weights_are_those_of_physicsnemo(recorded):
    found = recorded.weights(SoftAdapt(eps=1e-8))
    np.testing.assert_allclose(found, recorded["softadapt"], rtol=1e-10)


def test_weights_are_the_softmax_of_ratios_and_of_mean_1():
    rule, state = SoftAdapt(tau=0.5), SoftAdapt().start(3)
    first, state = rule.weigh(np.ones(3), state, Measurement(np.array([1.0, 2.0, 4.0])))
    assert first.tolist() == [1, 1, 1]
    second, _ = rule.weigh(first, state, Measurement(np.array([1.0, 1.0, 8.0])))
    powers = np.exp(np.array([1, 0.5, 2]) / 0.5)
    np.testing.assert_allclose(second, 3 * powers / powers.sum(), rtol=1e-14)


def test_the_unit_of_a_loss_does_not_matter_unless_eps_is_added(recorded):
    def weights(eps):
        rule, found = SoftAdapt(eps=eps), []
        for unit in (1.0, 1e-9):
            state = rule.start(4)
            for losses in recorded.losses[:2] * [1, unit, 1, 1]:
                new, state = rule.weigh(np.ones(4), state, Measurement(losses))
            found.append(new)
        return found

    np.testing.assert_allclose(*weights(0.0), rtol=1e-12)
    one, other = weights(1e-8)
    assert abs(one / other - 1).max() > 0.05


def test_ratios_beyond_all_digits_overflow_nowhere():
    rule, state = SoftAdapt(), {"previous_losses": np.array([1e-300, 1.0, 1e300])}
    weights, _ = rule.weigh(np.ones(3), state, Measurement(np.array([1e300, 1e300, 1e-300])))
    np.testing.assert_allclose(weights, [3, 0, 0], atol=1e-12)


def test_a_loss_that_joins_has_the_ratio_1():
    state = {"previous_losses": np.array([2.0, 0.0])}
    weights, new = SoftAdapt().weigh(np.ones(2), state, Measurement(np.array([2.0, 7.0])))
    assert weights.tolist() == [1, 1] and new["previous_losses"].tolist() == [2, 7]


def test_what_a_balancer_has_to_know_of_it():
    assert SoftAdapt().needs == frozenset() and SoftAdapt().needs_positive_losses


@pytest.mark.parametrize("options", [{"tau": 0}, {"tau": np.inf}, {"eps": -1e-9}])
def test_options_out_of_range(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be finite and .* got {value}"):
        SoftAdapt(**options)
