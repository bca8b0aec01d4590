import numpy as np
import paddle
import pytest
import scipy.linalg

from paddlescience_gradnorm.rotograd.rotations import Rotations, add_gradient, cached

T, D = 3, 6


@pytest.fixture
def rotations(float64):
    made = Rotations(T, D, paddle.float64)
    made.set([scipy.linalg.expm(skew(seed, 1.0)) for seed in range(T)])
    return made


def skew(seed, size):
    """Skew-symmetric, with eigenvalues up to about ``size``."""
    lower = np.tril(np.random.default_rng(seed).standard_normal((D, D)), -1)
    return size * (lower - lower.T) / np.linalg.norm(lower - lower.T, 2)


def step_tangent(rotations, steps):
    rotations.tangent.set_value(np.stack([np.tril(step, -1) for step in steps]))


def deviation(rotations):
    matrices = rotations.matrices().numpy()
    return np.abs(matrices @ matrices.transpose(0, 2, 1) - np.eye(matrices.shape[1])).max()


def test_they_start_as_the_identity():
    np.testing.assert_array_equal(
        Rotations(2, 4, paddle.float32).matrices().numpy(), np.stack([np.eye(4)] * 2)
    )


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1e-2, 0.1, 3.0])
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-13), ("float32", 5e-7)])
def test_a_step_is_the_exponential(size, dtype, tolerance):
    rotations = Rotations(T, D, getattr(paddle, dtype))
    start = np.stack([scipy.linalg.expm(skew(seed, 1.0)) for seed in range(T)])
    rotations.set(start)
    steps = [skew(10 + seed, size) for seed in range(T)]
    step_tangent(rotations, np.array(steps, dtype))
    found = rotations.matrices().numpy()
    assert deviation(rotations) < tolerance
    if hasattr(paddle.linalg, "matrix_exp") or size < 0.01:
        expected = [b @ scipy.linalg.expm(a) for b, a in zip(start, steps)]
    else:  # within the series' reach this Paddle is at the exponential too
        exact = np.stack([b @ scipy.linalg.expm(a) for b, a in zip(start, steps)])
        one = np.eye(D)
        cayley = np.stack(
            [b @ np.linalg.solve(one - a / 2, one + a / 2) for b, a in zip(start, steps)]
        )
        expected = min(exact, cayley, key=lambda matrices: np.abs(found - matrices).max())
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_the_tangent_gradient_is_that_of_the_matrices(rotations):
    # By central differences, along every entry of the triangle.
    ambient = np.random.default_rng(5).standard_normal((T, D, D))
    base = rotations.matrices().numpy()
    rotations.add_gradient(paddle.to_tensor(base.transpose(0, 2, 1) @ ambient))
    gradient = rotations.tangent.grad.numpy()
    assert (np.triu(gradient) == 0).all()
    for i, j in zip(*np.tril_indices(D, -1)):
        move = np.zeros((D, D))
        move[i, j], move[j, i] = 1e-5, -1e-5
        plus, minus = (base @ scipy.linalg.expm(sign * move) for sign in (1, -1))
        slope = (ambient * (plus - minus)).sum(axis=(1, 2)) / 2e-5
        np.testing.assert_allclose(gradient[:, i, j], slope, rtol=1e-8)


def test_gradients_add_up(rotations):
    gradient = paddle.to_tensor(np.random.default_rng(5).standard_normal((T, D, D)))
    rotations.add_gradient(gradient)
    once = rotations.tangent.grad.numpy().copy()
    rotations.add_gradient(gradient)
    np.testing.assert_allclose(rotations.tangent.grad.numpy(), 2 * once)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "Momentum"])
def test_descent_finds_the_nearest_rotation(float64, optimizer):
    # ||R - Q||^2 has its minimum, 0, at Q.
    target = np.stack([scipy.linalg.expm(skew(seed, 1.0)) for seed in range(T)])
    rotations = Rotations(T, D, paddle.float64)
    rate = 0.03 if optimizer == "Adam" else 0.02
    stepper = getattr(paddle.optimizer, optimizer)(rate, parameters=rotations.parameters())
    for _ in range(300):
        matrices = rotations.matrices()
        difference = 2 * (matrices - paddle.to_tensor(target))
        rotations.add_gradient(paddle.matmul(matrices, difference, transpose_x=True))
        stepper.step()
        stepper.clear_grad()
    np.testing.assert_allclose(rotations.matrices().numpy(), target, atol=1e-3)
    assert deviation(rotations) < 1e-12


@pytest.mark.parametrize("rate", [1e-3, 3e-2])
def test_they_stay_orthogonal_over_5000_steps_in_float32(rate):
    rotations = Rotations(2, 16, paddle.float32)
    optimizer = paddle.optimizer.Adam(rate, parameters=rotations.parameters())
    worst = 0.0
    for step in range(5000):
        rotations.add_gradient(paddle.randn([2, 16, 16]))
        optimizer.step()
        optimizer.clear_grad()
        matrices = rotations.matrices()
        if step % 50 == 49:
            worst = max(worst, deviation(rotations))
    assert worst < 1e-6
    assert np.abs(matrices.numpy() - np.eye(16)).max() > 0.1  # they have turned


def test_reading_twice_and_old_readings(rotations):
    before = rotations.matrices()
    kept = before.numpy().copy()
    step_tangent(rotations, [skew(seed, 0.1) for seed in range(T)])
    after = rotations.matrices()
    assert np.abs(after.numpy() - kept).max() > 1e-3
    assert rotations.matrices() is after
    np.testing.assert_array_equal(before.numpy(), kept)


def test_cached_computes_once(rotations, monkeypatch):
    calls = []
    settled = Rotations._settled
    monkeypatch.setattr(Rotations, "_settled", lambda r: calls.append(r) or settled(r))
    other = Rotations(T, D, paddle.float64)
    for inner in range(2):
        with cached():
            with cached():
                rotations.matrices()
            for _ in range(3):
                assert rotations.matrices() is rotations.matrices()
                other.matrices()
            step_tangent(rotations, [skew(inner, 0.1)] * T)
            within = rotations.matrices()
        assert calls == [rotations, other] * (inner + 1)
        assert np.abs((rotations.matrices() - within).numpy()).max() > 1e-3  # after the block
        calls.pop()


def test_cached_ends_with_an_error_too(rotations):
    with pytest.raises(KeyError), cached():
        before = rotations.matrices()
        raise KeyError
    step_tangent(rotations, [skew(0, 0.1)] * T)
    assert np.abs((rotations.matrices() - before).numpy()).max() > 1e-3


def test_set_is_seen_in_a_cached_block_and_drops_the_step(rotations):
    with cached():
        rotations.matrices()
        step_tangent(rotations, [skew(0, 0.1)] * T)
        rotations.set([paddle.eye(D, dtype="float64")] * T)
        np.testing.assert_array_equal(rotations.matrices().numpy(), np.stack([np.eye(D)] * T))


@pytest.mark.parametrize(
    "matrices, match",
    [
        (np.stack([np.eye(D)] * (T + 1)), r"shape \[3, 6, 6\], got \[4, 6, 6\]"),
        (np.stack([np.eye(D + 1)] * T), r"got \[3, 7, 7\]"),
        (np.stack([2 * np.eye(D)] * T), "orthogonal, but R R\\^T is off 1 by 3"),
        (np.full((T, D, D), np.nan), "orthogonal"),
    ],
)
def test_bad_matrices_are_named(rotations, matrices, match):
    with pytest.raises(ValueError, match=match):
        rotations.set(matrices)


def test_an_equal_one_goes_on_from_the_extra_state(rotations):
    step_tangent(rotations, [skew(seed, 0.5) for seed in range(T)])
    rotations.matrices()
    twin = Rotations(T, D, paddle.float64)
    twin.set_extra_state(rotations.extra_state())
    assert twin.extra_state() == rotations.extra_state() != Rotations(1, 2, "float32").extra_state()


def test_a_gradient_is_added_as_by_a_backward_pass():
    parameter = paddle.create_parameter([2], "float32")
    for _ in range(3):
        add_gradient(parameter, paddle.to_tensor([1.0, 2.0]))
    assert parameter.grad.tolist() == [3, 6]


def test_clipping_and_decay_leave_them_alone(rotations):
    optimizer = paddle.optimizer.SGD(
        1.0,
        parameters=rotations.parameters(),
        weight_decay=0.5,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(1e-9),
    )
    gradient = paddle.to_tensor(np.random.default_rng(5).standard_normal((T, D, D)))
    rotations.add_gradient(gradient)
    expected = -rotations.tangent.grad.numpy()
    optimizer.step()
    np.testing.assert_allclose(rotations.tangent.numpy(), expected, rtol=1e-12)
