import numpy as np
import pytest

from paddlescience_gradnorm.balancing import Measurement, ReLoBRaLo


def test_weights_are_those_of_physicsnemo(recorded):
    rule, draws = ReLoBRaLo(eps=1e-8), [1.0, *recorded["relobralo_draws"]]
    assert set(draws) == {0, 1}
    weights, state = np.ones(4), rule.start(4)
    for rho, measurement, expected in zip(draws, recorded.measurements(), recorded["relobralo"]):
        weights, state = rule.weigh_with(rho, weights, state, measurement)
        np.testing.assert_allclose(weights, expected, rtol=1e-10)


def test_rho_is_drawn_from_the_step_with_probability_beta(recorded):
    rule, state = ReLoBRaLo(beta=0.7), ReLoBRaLo().start(4)
    _, state = rule.weigh(np.ones(4), state, Measurement(recorded.losses[0]))
    looks_back = 0
    for step in range(1, 301):
        measurement = Measurement(recorded.losses[1], step=step)
        new, _ = rule.weigh(np.ones(4), state, measurement)
        again, _ = rule.weigh(np.ones(4), state, measurement)
        kept, _ = rule.weigh_with(1.0, np.ones(4), state, measurement)
        back, _ = rule.weigh_with(0.0, np.ones(4), state, measurement)
        assert (new == again).all() and ((new == kept).all() or (new == back).all())
        looks_back += bool((new == back).all())
    assert 60 < looks_back < 120


def test_the_mean_stays_what_it_was(recorded):
    np.testing.assert_allclose(recorded.weights(ReLoBRaLo(tau=0.1)).mean(1), 1, rtol=1e-12)


def test_the_first_losses_are_kept_and_give_training_rates():
    rule = ReLoBRaLo()
    _, state = rule.weigh(np.ones(2), rule.start(2), Measurement(np.array([4.0, 2.0])))
    _, state = rule.weigh(np.ones(2), state, Measurement(np.array([1.0, 1.0]), step=1))
    assert state["initial_losses"].tolist() == [4, 2]
    assert state["previous_losses"].tolist() == [1, 1]


def test_a_loss_that_joins_is_compared_with_itself():
    state = {"initial_losses": np.array([4.0, 0.0]), "previous_losses": np.array([2.0, 0.0])}
    _, new = ReLoBRaLo().weigh(np.ones(2), state, Measurement(np.array([2.0, 7.0])))
    assert new["initial_losses"].tolist() == [4, 7]


@pytest.mark.parametrize("options", [{"memory": 1}, {"beta": 1.1}, {"tau": 0}, {"eps": -1}])
def test_options_out_of_range(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
        ReLoBRaLo(**options)
    with pytest.raises(TypeError, match=f"{name} must be a number, got 'much'"):
        ReLoBRaLo(**{name: "much"})
