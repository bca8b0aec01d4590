import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.balancing.rotograd import (
    FactoredGradients,
    LatentGradients,
    cooperative,
    logit_gradient,
    rotation_gradients,
    size_factors,
    softmax_weights,
)

pytestmark = pytest.mark.usefixtures("both_operators")

N, D = 12, 7


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tensor(array):
    return paddle.to_tensor(array, dtype="float64")


def random_gradients(rng, tasks=3):
    scales = 10.0 ** np.arange(tasks)
    return [scale * rng.standard_normal((N, D)) for scale in scales]


@pytest.mark.parametrize("widths", [(1, 1, 1), (1, 2, 3)])
def test_factored_and_full_gradients_agree(rng, widths):
    outputs = [tensor(rng.standard_normal((N, m))) for m in widths]
    entries = [tensor(rng.standard_normal((D, m))) for m in widths]
    factored = FactoredGradients(outputs, entries)
    full = LatentGradients([p @ f.t() for p, f in zip(outputs, entries)])
    factors, matrix = tensor(rng.random(3)), tensor(rng.standard_normal((N, D)))
    for method, argument in (
        ("combined", factors),
        ("norm_of", factors),
        ("products", factors),
        ("products_with", matrix),
    ):
        results = [getattr(g, method)(argument).numpy() for g in (factored, full)]
        np.testing.assert_allclose(*results, rtol=1e-12, err_msg=method)
    np.testing.assert_allclose(factored.norms.numpy(), full.norms.numpy(), rtol=1e-13)


def test_gradients_that_cancel_have_no_norm_below_zero(rng):
    output = paddle.to_tensor(rng.standard_normal((N, 1)), dtype="float32")
    entry = paddle.to_tensor(rng.standard_normal((D, 1)), dtype="float32")
    gradients = FactoredGradients([output, -output, output], [entry] * 3)
    norm = gradients.norm_of(paddle.to_tensor([0.1, 0.3, 0.2])).item()
    assert 0 <= norm < 1e-3 * gradients.norms[0].item()


@pytest.mark.parametrize("pulls", [None, [0.5, 2.0, 1.0]])
@pytest.mark.parametrize("divisor", [1, N])
def test_rotation_gradients_are_those_of_the_definition(rng, pulls, divisor):
    gradients = random_gradients(rng)
    rotations = [np.linalg.qr(rng.standard_normal((D, D)))[0] for _ in gradients]
    mean = np.mean(gradients, axis=0)
    pulled = [pull * g / np.linalg.norm(g) for pull, g in zip(pulls or [1] * 3, gradients)]
    direction = np.linalg.norm(mean) * np.mean(pulled, axis=0)
    found = (
        rotation_gradients(
            LatentGradients([tensor(g) for g in gradients]), pulls and tensor(pulls), divisor
        )
        .whole()
        .numpy()
    )
    for r, g, of_task in zip(rotations, gradients, found):
        rotation = paddle.to_tensor(r, stop_gradient=False)
        on_rotated = tensor(g @ r.T)
        distance = (tensor(direction) @ rotation.t() - on_rotated).square().sum() / divisor
        distance.backward()
        np.testing.assert_allclose(r @ of_task, rotation.grad.numpy(), rtol=1e-10)


def test_equal_gradients_turn_nothing(rng):
    gradient = tensor(rng.standard_normal((N, D)))
    found = rotation_gradients(LatentGradients([gradient] * 3), None, 1)
    np.testing.assert_allclose(found.whole().numpy(), 0, atol=1e-13)


def test_a_task_without_a_gradient_does_not_disturb_the_others(rng):
    gradients = random_gradients(rng)
    gradients[1] *= 0
    latent = LatentGradients([tensor(g) for g in gradients])
    found = rotation_gradients(latent, None, 1).whole().numpy()
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
    norms = tensor([1.0, 10.0, 100.0])
    sizes = size_factors(norms, norms) * norms
    np.testing.assert_allclose(sizes.numpy(), 37.0)  # all as far from zero as at first: the mean
    slow = tensor([1.0, 1e5, 1e5])  # the first has not come any nearer, the others have
    sizes = (size_factors(norms, slow) * norms).numpy()
    np.testing.assert_allclose(sizes, sizes[0])
    assert 1.0 < sizes[0] < 1.2


def test_size_factors_of_a_task_without_a_gradient_are_finite():
    norms = tensor([0.0, 2.0])
    assert np.isfinite((size_factors(norms, tensor([1.0, 1.0])) * norms).numpy()).all()


@pytest.mark.parametrize("through_sum", [True, False])
def test_logit_gradient_is_that_of_the_definition(through_sum):
    logits = paddle.to_tensor([0.3, -0.2, 1.0], dtype="float64", stop_gradient=False)
    norms, powers, common = tensor([1.0, 4.0, 0.5]), tensor([0.8, 1.2, 1.0]), tensor(1.1)
    if through_sum:
        weights = softmax_weights(logits)
    else:
        weights = logits.exp() * (3 / logits.exp().sum()).detach()
    (weights * norms - common * powers).abs().sum().backward()
    found = logit_gradient(weights.detach(), norms, common, powers, through_sum)
    np.testing.assert_allclose(found.numpy(), logits.grad.numpy(), rtol=1e-12)
    assert (abs(found.sum().item()) < 1e-12) == through_sum


def test_softmax_weights_sum_to_their_number():
    weights = softmax_weights(tensor([5.0, -3.0, 0.0, 1.0])).numpy()
    assert weights.sum() == pytest.approx(4, abs=1e-12) and (weights > 0).all()
