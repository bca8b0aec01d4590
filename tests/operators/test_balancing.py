"""The functions in C++ against the same in Paddle's operators."""

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.balancing.algorithm import (
    GradNormRule,
    PinnRule,
    inverse_rate_powers,
    largest_norm,
    settle_in_place,
)
from paddlescience_gradnorm.balancing.rotograd import (
    FactoredGradients,
    direction_shares,
    logit_gradient,
)
from paddlescience_gradnorm.operators import balancing

pytestmark = pytest.mark.usefixtures("built_operators")
FLOOR = 1e-3


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def both(cpp, dtype):
    """What a function returns and leaves in its arguments, shape by shape, in both forms."""
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]

    def run(function, *arrays):
        results = []
        for loaded in (False, True):
            cpp(loaded)
            tensors = [paddle.to_tensor(a, None if a.dtype == bool else dtype) for a in arrays]
            with paddle.no_grad():
                returned = function(*tensors)
            assert returned is None or isinstance(returned, bool) == loaded
            results.append([x.numpy() for x in tensors] + [np.array(bool(returned))])
        for in_paddle, in_cpp in zip(*results):
            np.testing.assert_allclose(in_cpp, in_paddle, rtol=tolerance)
        return results[1]

    return run


def random(n_loss, seed=0):
    """Weights, losses, references and norms."""
    rng = np.random.default_rng(seed)
    return [rng.lognormal(0, 1, n_loss) for _ in range(4)]


ZERO, TRUE, FALSE = np.zeros([]), np.array(True), np.array(False)


@pytest.mark.parametrize("n_loss", [2, 7, 64])
@pytest.mark.parametrize("rule", [GradNormRule(0.0), GradNormRule(1.5), PinnRule(), PinnRule(1.5)])
def test_a_step(both, rule, n_loss):
    weights, losses, references, norms = random(n_loss)
    references[0] = 0  # not known yet

    def step(w, values, initial, of_norms, loss):
        return rule.step_in_place(w, values, initial, of_norms, 0.01, FLOOR, [1], loss)

    after, _, known, _, loss, usable = both(step, weights, losses, references, norms, ZERO)
    assert usable and loss > 0 and (after != weights).any() and known[0] > 0
    if isinstance(rule, GradNormRule):
        np.testing.assert_allclose(after.sum(), n_loss, rtol=1e-5)


@pytest.mark.parametrize(
    "fault", ["none", "nan loss", "infinite norm", "norm too large", "weights not finite"]
)
def test_a_gradient_for_an_optimizer(both, dtype, fault):
    weights, losses, references, norms = random(4)
    if fault == "nan loss":
        losses[2] = np.nan
    elif fault != "none":
        norms[2] = np.inf if fault == "infinite norm" else norms[2]
        norms[2] = 2 * largest_norm(getattr(paddle, dtype)) if "large" in fault else norms[2]
    finite = FALSE if "weights" in fault else TRUE
    rule = GradNormRule(1.0)
    *_, gradient, _, usable, returned = both(
        rule.gradient_in_place,
        *(weights, losses, references, norms),
        *(finite, np.full(4, 9.0), ZERO, FALSE),
    )
    assert usable == returned == (fault == "none")
    assert (np.abs(gradient) == norms.astype(dtype)).all() if usable else (gradient == 0).all()


@pytest.mark.parametrize("usable", [TRUE, FALSE])
@pytest.mark.parametrize("now", [[3.0, 1.0], [2.0, 2.0], [np.nan, 1.0], [np.inf, 1.0], [-1.0, 1.0]])
def test_settling(both, now, usable):
    acted = np.array([2.0, 2.0])

    def settle(weights, before, good, finite):
        return settle_in_place(weights, before, good, finite, FLOOR)

    weights, kept, _, finite, _ = both(settle, np.array(now), acted, usable, TRUE)
    np.testing.assert_array_equal(weights, kept)
    assert finite == np.isfinite(now).all()
    if now == [3.0, 1.0] and usable:
        np.testing.assert_allclose(weights, [1.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("n_loss", [2, 7])
@pytest.mark.parametrize("fault", [None, np.nan, np.inf, -1.0])
def test_numbers_of_rotograd(cpp, dtype, n_loss, fault):
    weights, losses, references, norms = (paddle.to_tensor(x, dtype) for x in random(n_loss))
    rows = paddle.to_tensor(np.random.default_rng(1).standard_normal((n_loss, 3)), dtype)
    outputs = [row.reshape([-1, 1]) for row in rows]
    entries = [paddle.ones([1, 1], dtype)] * n_loss
    total = norms.sum()
    if fault is not None:
        losses[0] = norms[1] = fault

    def numbers():
        gradients = FactoredGradients(outputs, entries)
        return [
            *(inverse_rate_powers(losses, references, alpha) for alpha in (0.0, 1.0, 1.5)),
            gradients.norm_of(weights),
            gradients.norm_of_sum(),
            direction_shares(total, norms),
            *(logit_gradient(weights, norms, total, losses, through) for through in (True, False)),
        ]

    in_paddle = numbers()
    cpp(True)
    in_cpp = numbers()
    for ours, theirs in zip(in_cpp, in_paddle):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol={"float32": 1e-4, "float64": 1e-11}[dtype])


def test_what_they_are_not_made_for_is_left_as_it_was(cpp):
    weights, losses = paddle.to_tensor([1.0, 3.0]), [paddle.to_tensor(2.0), paddle.to_tensor(0.5)]
    gradients = [[paddle.ones([3, 2])], [None]]
    into = paddle.zeros([2]), paddle.zeros([2])

    def measured(weights=weights, losses=losses, gradients=gradients, into=into):
        return balancing.measure(weights, weights, losses, gradients, *into)

    assert measured() is None
    cpp(True)
    table = paddle.ones([2, 3])
    assert measured(losses=[losses[0], losses[1].astype("float64")]) is None
    assert measured(gradients=[[table.T], [None]]) is None  # has gaps
    assert measured(into=(into[0], paddle.ones([2, 2])[:, 0])) is None
    assert measured(weights=weights.astype("float16")) is None
    assert measured(weights=np.ones(2)) is None
    assert balancing.weigh(weights, [losses[0], 0.5]) is None
    assert [x.tolist() for x in into] == [[0, 0], [0, 0]]

    total, products = measured()
    assert total.item() == 3.5 and total.dtype == paddle.float32 and total.stop_gradient
    assert products.tolist() == [[6, 0], [0, 0]] and products.dtype == paddle.float64
    assert into[0].tolist() == [2, 0.5]
    np.testing.assert_allclose(into[1].tolist(), [np.sqrt(6), 0], rtol=1e-6)
    one_column = paddle.ones([6, 1])[:3]
    assert measured(gradients=[[one_column], [one_column]])[1].tolist() == [[3, 3], [3, 3]]
