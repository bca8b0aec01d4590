import numpy as np

from paddlescience_gradnorm.balancing import Measurement, Uncertainty


def test_weights_are_those_of_gradient_descent_on_the_log_variances(recorded):
    # Recorded are the weights that act in each step. The rule returns those of the next one.
    found = recorded.weights(Uncertainty(), rate=0.05)
    assert (recorded["uncertainty"][0] == 0.5).all()
    np.testing.assert_allclose(found[:-1], recorded["uncertainty"][1:], rtol=1e-10)


def test_weighted_losses_are_a_half_at_rest():
    rule, losses = Uncertainty(), np.array([3.0, 0.01, 1e-30])
    weights, state = np.ones(3), rule.start(3)
    for _ in range(3000):
        weights, state = rule.weigh(weights, state, Measurement(losses, rate=0.1))
    np.testing.assert_allclose(weights * losses, 0.5, rtol=1e-6)


def test_a_large_loss_carries_no_weight_beyond_its_rest():
    rule = Uncertainty()
    measurement = Measurement(np.array([1e6, 1e300]), rate=1.0)
    weights, state = rule.weigh(np.ones(2), rule.start(2), measurement)
    np.testing.assert_allclose(weights * measurement.losses, 0.5, rtol=1e-12)
    state = {"log_variances": np.full(2, -1000.0)}  # from which exp(s) would overflow
    assert np.isfinite(rule.weigh(weights, state, measurement)[0]).all()


def test_what_a_balancer_has_to_know_of_it():
    assert Uncertainty().needs == frozenset() and Uncertainty().needs_positive_losses
