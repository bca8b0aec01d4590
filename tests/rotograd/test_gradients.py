import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.rotograd._gradients import (
    FactoredGradients,
    LatentGradients,
    cooperative,
    direction_shares,
    inverse_rate_powers,
    logit_gradient,
    norm_of_sum,
    rotation_gradients,
    size_factors,
    softmax_weights,
)

N, D = 12, 7


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tensor(array):
    return paddle.to_tensor(array, dtype="float64")


def random_gradients(rng, tasks=3):
    scales = 10.0 ** np.arange(tasks)
    return [scale * rng.standard_normal((N, D)) for scale in scales]


def gram_of(gradients):
    return gradients.gram(gradients.products_of_columns.numpy().astype(np.float64))


def turned(gradients, pulls=None, divisor=1):
    """The rotations' gradients, the whole."""
    latent = LatentGradients([tensor(g) for g in gradients])
    shares = direction_shares(gram_of(latent), np.array(pulls or [1.0] * len(gradients)))
    return rotation_gradients(latent, tensor(shares), divisor).whole().numpy()


@pytest.mark.parametrize("widths", [(1, 1, 1), (2, 2, 2), (1, 2, 3)])
def test_factored_and_full_gradients_agree(rng, widths):
    outputs = [tensor(rng.standard_normal((N, m))) for m in widths]
    entries = [tensor(rng.standard_normal((D, m))) for m in widths]
    factored = FactoredGradients(outputs, entries)
    full = LatentGradients([p @ f.t() for p, f in zip(outputs, entries)])
    factors, matrix = tensor(rng.random(3)), tensor(rng.standard_normal((N, D)))
    for method, argument in (
        ("combined", factors),
        ("times_combined", factors),
        ("times", matrix),
    ):
        results = [getattr(g, method)(argument).numpy() for g in (factored, full)]
        np.testing.assert_allclose(*results, rtol=1e-12, err_msg=method)
    np.testing.assert_allclose(gram_of(factored), gram_of(full), rtol=1e-12)


def test_the_gram_matrix_gives_the_norm_of_any_sum(rng):
    gradients, factors = random_gradients(rng), rng.random(3)
    gram = gram_of(LatentGradients([tensor(g) for g in gradients]))
    expected = np.linalg.norm(sum(f * g for f, g in zip(factors, gradients)))
    assert norm_of_sum(gram, factors) == pytest.approx(expected, rel=1e-13)


def test_gradients_that_cancel_have_no_norm_below_zero(rng):
    output = paddle.to_tensor(rng.standard_normal((N, 1)), dtype="float32")
    entry = paddle.to_tensor(rng.standard_normal((D, 1)), dtype="float32")
    gram = gram_of(FactoredGradients([output, -output, output], [entry] * 3))
    norm = norm_of_sum(gram, np.array([0.1, 0.3, 0.2]))
    assert 0 <= norm < 1e-3 * np.sqrt(gram[0, 0])


@pytest.mark.parametrize("pulls", [None, [0.5, 2.0, 1.0]])
@pytest.mark.parametrize("divisor", [1, N])
def test_rotation_gradients_are_those_of_the_definition(rng, pulls, divisor):
    gradients = random_gradients(rng)
    rotations = [np.linalg.qr(rng.standard_normal((D, D)))[0] for _ in gradients]
    mean = np.mean(gradients, axis=0)
    pulled = [pull * g / np.linalg.norm(g) for pull, g in zip(pulls or [1] * 3, gradients)]
    direction = np.linalg.norm(mean) * np.mean(pulled, axis=0)
    found = turned(gradients, pulls, divisor)
    for r, g, of_task in zip(rotations, gradients, found):
        rotation = paddle.to_tensor(r, stop_gradient=False)
        on_rotated = tensor(g @ r.T)
        distance = (tensor(direction) @ rotation.t() - on_rotated).square().sum() / divisor
        distance.backward()
        np.testing.assert_allclose(r @ of_task, rotation.grad.numpy(), rtol=1e-10)


def test_equal_gradients_turn_nothing(rng):
    gradient = rng.standard_normal((N, D))
    np.testing.assert_allclose(turned([gradient] * 3), 0, atol=1e-13)


def test_a_task_without_a_gradient_does_not_disturb_the_others(rng):
    gradients = random_gradients(rng)
    gradients[1] *= 0
    found = turned(gradients)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[1], found[1].T, rtol=1e-12)  # no way to turn
    assert np.abs(found[0] - found[0].T).max() > 1e-3


def test_cooperation_gives_both_gradients_the_norm_of_their_mean(rng):
    turning, own = rng.standard_normal((2, 3, D, D))
    found = cooperative(tensor(turning), tensor(1e4 * own)).numpy()
    for t, o, f in zip(turning, 1e4 * own, found):
        mean_norm = np.linalg.norm((t + o) / 2)
        expected = mean_norm * (t / np.linalg.norm(t) + o / np.linalg.norm(o))
        np.testing.assert_allclose(f, expected, rtol=1e-12)


def test_sizes_become_equal_and_slow_tasks_decide():
    norms = np.array([1.0, 10.0, 100.0])
    sizes = size_factors(norms, norms) * norms
    np.testing.assert_allclose(sizes, 37.0)  # all as far from zero as at first: the mean
    slow = np.array([1.0, 1e5, 1e5])  # the first has not come any nearer, the others have
    sizes = size_factors(norms, slow) * norms
    np.testing.assert_allclose(sizes, sizes[0])
    assert 1.0 < sizes[0] < 1.2


def test_size_factors_of_a_task_without_a_gradient_are_finite():
    norms = np.array([0.0, 2.0])
    assert np.isfinite(size_factors(norms, np.ones(2)) * norms).all()


@pytest.mark.parametrize("alpha, powers", [(0.0, [1, 1]), (1.0, [0.5, 1.5]), (2.0, [0.25, 2.25])])
def test_powers_of_training_rates(alpha, powers):
    losses, initial = np.array([1.0, 6.0]), np.array([2.0, 4.0])
    np.testing.assert_allclose(inverse_rate_powers(losses, initial, alpha), powers)
    with np.errstate(all="ignore"):
        assert np.isnan(inverse_rate_powers(losses * [-1, 1], initial, alpha)[0])
        assert np.isnan(inverse_rate_powers(losses, initial * [0, 1], alpha)[0])
        assert np.isnan(inverse_rate_powers(losses * np.nan, initial, alpha)).all()


@pytest.mark.parametrize("through_sum", [True, False])
def test_logit_gradient_is_that_of_the_definition(through_sum):
    logits = paddle.to_tensor([0.3, -0.2, 1.0], dtype="float64", stop_gradient=False)
    norms, powers, common = np.array([1.0, 4.0, 0.5]), np.array([0.8, 1.2, 1.0]), 1.1
    if through_sum:
        weights = paddle.nn.functional.softmax(logits) * 3
    else:
        weights = logits.exp() * (3 / logits.exp().sum()).detach()
    (weights * tensor(norms) - tensor(common * powers)).abs().sum().backward()
    found = logit_gradient(softmax_weights(logits.numpy()), norms, common, powers, through_sum)
    np.testing.assert_allclose(found, logits.grad.numpy(), rtol=1e-12)
    assert (abs(found.sum()) < 1e-12) == through_sum


@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
def test_softmax_weights_sum_to_their_number(shift):
    weights = softmax_weights(np.array([5.0, -3.0, 0.0, 1.0]) + shift)
    assert weights.sum() == pytest.approx(4, abs=1e-12) and (weights > 0).all()
