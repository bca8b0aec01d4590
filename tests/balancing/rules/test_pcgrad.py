import numpy as np
import pytest

from paddlescience_gradnorm.balancing import Measurement, PCGrad
from paddlescience_gradnorm.balancing.rules.pcgrad import projected


def as_the_paper_says(gradients, orders):
    """Algorithm 1, on the gradients themselves."""
    total = np.zeros_like(gradients[0])
    for i, order in enumerate(orders):
        gradient = gradients[i].copy()
        for j in order:
            product = gradient @ gradients[j]
            if j != i and product < 0:
                gradient -= product / (gradients[j] @ gradients[j]) * gradients[j]
        total += gradient
    return total


def test_directions_of_two_losses_are_those_of_torchjd(recorded, same_directions):
    same_directions(recorded.directions(PCGrad(), n_loss=2), recorded["pcgrad_two"])


@pytest.mark.parametrize("step", range(5))
def test_a_given_order_gives_what_the_paper_says(recorded, step):
    rng, gradients = np.random.default_rng(step), recorded.gradients[step]
    orders = [rng.permutation(4) for _ in range(4)]
    found = projected(gradients @ gradients.T, orders) @ gradients
    expected = as_the_paper_says(gradients, orders)
    np.testing.assert_allclose(found, expected, atol=1e-10 * abs(expected).max())


def test_the_order_is_random_but_the_same_in_every_process(recorded):
    gram = recorded.gradients[0] @ recorded.gradients[0].T
    found = [
        PCGrad().weigh(np.ones(4), {}, Measurement(np.ones(4), gram, step=step))[0].tolist()
        for step in (*range(20), *range(20))
    ]
    assert found[:20] == found[20:] and len({tuple(row) for row in found}) > 3


def test_without_a_conflict_it_is_the_plain_sum():
    measurement = Measurement(np.ones(3), np.eye(3) + 0.1)
    assert PCGrad().weigh(np.ones(3), {}, measurement)[0].tolist() == [1, 1, 1]
