import gc
import weakref

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, _paddle
from paddlescience_gradnorm.balancing._one_pass import (
    backward_by_loss,
    backward_of_sum,
    can_ask_for_gradients,
    gradients_alone,
    measured,
    overwrite,
    refuse_a_static_program,
    two_passes_are_cheaper,
)

NAMES = ["pde", "boundary", "data"]
WEIGHTS = [0.5, 2.0, 0.25]
GRAM = frozenset({"gram"})

passes = pytest.mark.parametrize("in_two_passes", [False, True], ids=["one pass", "two passes"])
graphs = pytest.mark.parametrize("share", [False, True], ids=["disjoint", "shared graph"])


@pytest.fixture(params=["host", "accelerator"])
def place(request, monkeypatch):
    """Where tensors are, as far as this package is told: its two ways to hold gradients."""
    if request.param == "accelerator":
        monkeypatch.setattr(paddle.base.core.Place, "is_cpu_place", lambda self: False)
    return request.param


def gradients(net):
    return {name: p.grad.numpy().copy() for name, p in net.named_parameters()}


def assert_same_gradients(net, expected):
    for name, gradient in gradients(net).items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(gradient, expected[name], rtol=2e-5, atol=2e-6 * scale)


def rows_one_by_one(net, losses, shared):
    """The gradient of each loss, by a backward pass of its own, float64."""
    rows = []
    for loss in losses:
        net.clear_gradients()
        loss.backward(retain_graph=True)
        parts = [np.zeros(p.shape) if p.grad is None else p.grad.numpy() for p in shared]
        rows.append(np.concatenate([part.ravel() for part in parts]).astype("float64"))
    net.clear_gradients()
    return np.array(rows)


# The backward pass.


@pytest.mark.usefixtures("place")
@passes
@graphs
@pytest.mark.parametrize("accumulate", [False, True], ids=["fresh", "accumulated"])
def test_gradients_are_those_of_the_weighted_sum(
    fc_net, make_losses, share, accumulate, in_two_passes
):
    def earlier():
        fc_net.clear_gradients()
        if accumulate:
            make_losses(fc_net, seed=1)[0].backward()

    earlier()
    sum(w * loss for w, loss in zip(WEIGHTS, make_losses(fc_net, share))).backward()
    expected = gradients(fc_net)
    weights, shared = paddle.to_tensor(WEIGHTS), [fc_net.get_last_shared_layer()]

    earlier()
    backward_by_loss(make_losses(fc_net, share), weights, shared, NAMES, in_two_passes)
    assert_same_gradients(fc_net, expected)

    earlier()
    backward_of_sum(make_losses(fc_net, share), weights, NAMES)
    assert_same_gradients(fc_net, expected)


@pytest.mark.usefixtures("place")
@passes
@graphs
@pytest.mark.parametrize("which", ["last weight", "all"])
def test_rows_are_the_gradients_of_each_weighted_loss_alone(
    fc_net, make_losses, share, which, in_two_passes
):
    shared = [fc_net.get_last_shared_layer()] if which == "last weight" else fc_net.parameters()
    expected = rows_one_by_one(fc_net, make_losses(fc_net, share), shared)
    expected *= np.array(WEIGHTS)[:, None]
    factors = paddle.to_tensor(WEIGHTS)
    alone = gradients_alone(make_losses(fc_net, share), factors, shared, NAMES)
    in_a_pass = backward_by_loss(make_losses(fc_net, share), factors, shared, NAMES, in_two_passes)
    for rows in (alone, in_a_pass):
        assert list(rows.shape) == [3, sum(int(p.size) for p in shared)]
        for row, right in zip(np.asarray(rows), expected):
            np.testing.assert_allclose(row, right, rtol=1e-4, atol=1e-6 * np.abs(right).max())


@pytest.mark.usefixtures("place")
@passes
def test_gradients_that_paddle_hands_on_unchanged_stay_what_they_were(in_two_passes):
    # One gradient arrives at both parameters, which later losses add to.
    both = [paddle.create_parameter([3], "float32") for _ in range(2)]
    losses = [(k * (both[0] + both[1])).sum() for k in (1.0, 2.0, 3.0)]
    rows = backward_by_loss(losses, paddle.ones([3]), both, NAMES, in_two_passes)
    assert np.asarray(rows).tolist() == [[k] * 6 for k in (1, 2, 3)]
    assert [p.grad.tolist() for p in both] == [[6.0] * 3] * 2


@pytest.mark.usefixtures("place")
@passes
def test_a_parameter_that_a_loss_misses_counts_zero(fc_net, in_two_passes):
    first, last = fc_net.linears[0].weight, fc_net.get_last_shared_layer()
    losses = [first.sum() + 2 * last.sum(), 3 * last.sum()]
    factors = paddle.to_tensor([0.5, 1.5])
    rows = backward_by_loss(losses, factors, [first, last], NAMES[:2], in_two_passes)
    one, two = np.asarray(rows)
    assert one.tolist() == [0.5] * int(first.size) + [1.0] * int(last.size)
    assert two.tolist() == [0.0] * int(first.size) + [4.5] * int(last.size)


def test_a_parameter_that_has_been_frozen_counts_zero(fc_net, make_losses):
    shared = [fc_net.linears[0].weight, fc_net.get_last_shared_layer()]
    shared[0].stop_gradient = True
    rows = backward_by_loss(make_losses(fc_net), paddle.ones([3]), shared, NAMES)
    assert not rows[:, : shared[0].size].any() and rows[:, shared[0].size :].any()
    assert shared[0].grad is None


@pytest.mark.usefixtures("place")
@passes
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("of_weights", ["float32", "float64"])
def test_rows_are_as_precise_as_the_weights(dtype, of_weights, in_two_passes):
    weight = paddle.create_parameter([2], of_weights)
    losses = [(k * weight).sum().astype(dtype) for k in (1.0, 2.0)]
    factors = paddle.to_tensor([0.5, 4.0], of_weights)
    rows = backward_by_loss(losses, factors, [weight], NAMES[:2], in_two_passes)
    assert str(rows.dtype).endswith(of_weights)
    assert np.asarray(rows).tolist() == [[0.5] * 2, [8.0] * 2]


@pytest.mark.usefixtures("place")
@passes
def test_parameters_in_half_precision_give_rows_in_that_of_the_weights(in_two_passes):
    weight = paddle.nn.Linear(1, 2).to(dtype="bfloat16").weight
    losses = [(k * weight.astype("float32")).sum() for k in (1.0, 3.0)]
    rows = backward_by_loss(losses, paddle.ones([2]), [weight], NAMES[:2], in_two_passes)
    assert str(rows.dtype).endswith("float32")
    assert np.asarray(rows).tolist() == [[1.0] * 2, [3.0] * 2]


@pytest.mark.usefixtures("place")
def test_a_small_gradient_survives_beside_a_large_one(fc_net):
    weight = fc_net.get_last_shared_layer()
    losses = [1e6 * weight.sum(), 1e-6 * weight.sum()]
    ones = paddle.ones([2])
    rows = backward_by_loss(losses, ones, [weight], NAMES[:2])
    np.testing.assert_allclose(np.asarray(rows)[:, 0], [1e6, 1e-6], rtol=1e-6)


def test_the_same_loss_may_stand_twice(fc_net, make_losses):
    shared = [fc_net.get_last_shared_layer()]
    make_losses(fc_net)[0].backward()
    once = shared[0].grad.numpy().ravel()
    fc_net.clear_gradients()
    loss = make_losses(fc_net)[0]
    rows = backward_by_loss([loss, loss], paddle.ones([2]), shared, NAMES[:2])
    np.testing.assert_allclose(rows, [once, once], rtol=1e-6)
    np.testing.assert_allclose(shared[0].grad.numpy().ravel(), 2 * once, rtol=1e-6)


@pytest.mark.parametrize("way", ["one pass", "two passes", "of the sum"])
@graphs
def test_losses_are_detached_and_keep_their_values(fc_net, make_losses, way, share):
    losses, factors = make_losses(fc_net, share), paddle.ones([3])
    values, shared = [loss.item() for loss in losses], [fc_net.get_last_shared_layer()]
    if way == "of the sum":
        backward_of_sum(losses, factors, NAMES)
    else:
        backward_by_loss(losses, factors, shared, NAMES, way == "two passes")
    assert all(loss.stop_gradient and loss.is_leaf for loss in losses)
    assert [loss.item() for loss in losses] == values


@pytest.mark.filterwarnings("ignore:.*hook")
@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_stays_on_the_parameters(fc_net, make_losses, monkeypatch, fails):
    register, helpers = paddle.Tensor.register_hook, []

    def recording(self, hook):
        helpers.append(register(self, hook))
        return helpers[-1]

    monkeypatch.setattr(paddle.Tensor, "register_hook", recording)
    losses, shared = make_losses(fc_net), [fc_net.get_last_shared_layer()]
    if fails:
        losses[1].backward()
        with pytest.raises(RuntimeError):
            backward_by_loss(losses, paddle.ones([3]), shared, NAMES)
    else:
        backward_by_loss(losses, paddle.ones([3]), shared, NAMES)
    assert len(helpers) == 1 and not helpers[0].remove()  # it has been removed before


def test_gradients_alone_touch_no_gradient_and_no_graph(fc_net, make_losses):
    losses = make_losses(fc_net)
    shared = [fc_net.get_last_shared_layer()]
    rows = gradients_alone(losses, paddle.ones([3]), shared, NAMES)
    assert all(p.grad is None for p in fc_net.parameters())
    assert not any(loss.stop_gradient for loss in losses)
    np.testing.assert_array_equal(gradients_alone(losses, paddle.ones([3]), shared, NAMES), rows)


@passes
@pytest.mark.parametrize("independent", ["constant", "other parameter"])
def test_a_loss_that_misses_the_shared_parameters_has_a_row_of_zeros(
    fc_net, make_losses, independent, in_two_passes
):
    shared, ones = [fc_net.get_last_shared_layer()], paddle.ones([3])
    expected = rows_one_by_one(fc_net, make_losses(fc_net), shared)
    expected[1] = 0

    def losses():
        found = make_losses(fc_net)
        found[1] = fc_net.linears[0].weight.mean()
        return [found[0], paddle.ones([]), found[2]] if independent == "constant" else found

    for way in (backward_by_loss, gradients_alone):
        options = [in_two_passes] if way is backward_by_loss else []
        rows = way(losses(), ones, shared, NAMES, *options)
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-7)
    fc_net.clear_gradients()
    backward_of_sum(losses(), ones, NAMES)
    assert (fc_net.linears[0].weight.grad is not None) and shared[0].grad is not None


@passes
def test_losses_that_all_miss_the_shared_parameters_are_named(fc_net, in_two_passes):
    shared, weight = [fc_net.get_last_shared_layer()], fc_net.linears[0].weight
    message = "none of the losses 'pde', 'boundary' depends on the shared .*pass as shared="
    with pytest.raises(ValueError, match=message):
        losses = [weight.mean(), weight.square().mean()]
        backward_by_loss(losses, paddle.ones([2]), shared, NAMES[:2], in_two_passes)
    with pytest.raises(ValueError, match=message):
        losses = [weight.mean(), weight.square().mean()]
        gradients_alone(losses, paddle.ones([2]), shared, NAMES[:2])


def test_losses_that_all_lack_a_graph_are_named(fc_net):
    constants, shared = [paddle.ones([]), paddle.zeros([])], [fc_net.get_last_shared_layer()]
    message = "no loss has a graph to go backward through: 'pde', 'boundary'"
    with pytest.raises(ValueError, match=message):
        backward_of_sum(constants, paddle.ones([2]), NAMES[:2])
    with pytest.raises(ValueError, match=message):
        backward_by_loss(constants, paddle.ones([2]), shared, NAMES[:2])


def test_one_by_one_only_the_guilty_loss_is_named_and_the_sum_is_the_same(fc_net, make_losses):
    backward_of_sum(make_losses(fc_net), paddle.ones([3]), NAMES)
    expected = gradients(fc_net)
    fc_net.clear_gradients()
    backward_of_sum(make_losses(fc_net), paddle.ones([3]), NAMES, one_by_one=True)
    assert_same_gradients(fc_net, expected)
    losses = make_losses(fc_net)
    losses[1].backward()
    with pytest.raises(RuntimeError, match=r"loss 'boundary' is gone.*before the loop"):
        backward_of_sum(losses, paddle.ones([3]), NAMES, one_by_one=True)


@pytest.mark.usefixtures("place")
@passes
def test_a_sparse_gradient_is_measured_as_what_it_is(in_two_passes):
    numbers = paddle.to_tensor([[1, 4, 1], [0, 2, 4]])
    rows = {}
    for sparse in (False, True):
        paddle.seed(0)
        table, head = paddle.nn.Embedding(6, 3, sparse=sparse), paddle.nn.Linear(3, 1)
        mean = head(table(numbers).mean(1))
        losses, shared = [mean.square().mean(), (mean - 1).abs().mean()], [table.weight]
        rows[sparse] = backward_by_loss(losses, paddle.ones([2]), shared, NAMES[:2], in_two_passes)
        assert table.weight.grad.is_selected_rows() == sparse
    np.testing.assert_allclose(rows[True], rows[False], rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("place")
@passes
def test_a_complex_gradient_has_its_true_norm(in_two_passes):
    values = np.array([1 + 1j, 2 - 1j], "complex64")
    weight = _paddle.Parameter.from_tensor(paddle.to_tensor(values))
    weight.stop_gradient = False

    def losses():
        return [(weight.real() - 3).square().mean(), (weight.imag() - 30).square().mean()]

    rows = backward_by_loss(losses(), paddle.ones([2]), [weight], NAMES[:2], in_two_passes)
    norms = np.linalg.norm(np.asarray(rows), axis=1)
    np.testing.assert_allclose(norms, [np.hypot(2, 1), np.hypot(29, 31)], rtol=1e-6)
    by_paddle = [np.linalg.norm(paddle.grad(loss, weight)[0].numpy()) for loss in losses()]
    np.testing.assert_allclose(norms, by_paddle, rtol=1e-6)


def test_a_parameter_without_axes_is_measured():
    beta = paddle.create_parameter([], "float32")
    beta.set_value(paddle.to_tensor(2.0))
    losses = [3 * beta, beta.square()]
    assert backward_by_loss(losses, paddle.ones([2]), [beta], NAMES[:2]).tolist() == [[3], [4]]


@passes
def test_a_frozen_parameter_has_no_gradient_until_it_is_trained(in_two_passes):
    first, second = (paddle.create_parameter([2], "float32") for _ in range(2))
    first.stop_gradient = True

    def rows():
        losses = [(first + second).sum(), (2 * (first + second)).sum()]
        ones = paddle.ones([2])
        return backward_by_loss(losses, ones, [first, second], NAMES[:2], in_two_passes).tolist()

    assert rows() == [[0, 0, 1, 1], [0, 0, 2, 2]]
    first.stop_gradient = False
    assert rows() == [[1, 1, 1, 1], [2, 2, 2, 2]]


def test_a_static_program_of_several_losses_is_refused():
    net = paddle.jit.to_static(FCNet(2, 2, 2, 8), full_graph=True)
    one = net(paddle.rand([4, 2]))
    losses = [one[:, 0].square().mean(), one[:, 1].square().mean()]
    with pytest.raises(ValueError, match=r"losses 'pde', 'boundary' come from one run of a static"):
        refuse_a_static_program(losses, NAMES[:2])
    # Each of its own run is what Paddle can do.
    losses = [net(paddle.rand([4, 2])).square().mean() for _ in range(2)]
    refuse_a_static_program(losses, NAMES[:2])
    rows = backward_by_loss(losses, paddle.ones([2]), net.parameters(), NAMES[:2])
    assert (np.linalg.norm(rows, axis=1) > 0).all()


def test_where_paddle_cannot_be_asked_is_found_out():
    x = paddle.rand([6, 1])
    x.stop_gradient = False
    net = FCNet(1, 1, 2, 8)

    def curvature(u):
        slope = paddle.grad(u, x, create_graph=True)[0]
        return paddle.grad(slope, x, create_graph=True)[0].square().mean()

    assert can_ask_for_gradients([curvature(net(x))], net.parameters())
    loss = curvature(x**2 * net(x))  # Paddle's power has no such gradient
    assert not can_ask_for_gradients([loss], net.parameters())
    with pytest.raises(
        RuntimeError, match=r"loss 'pde' .* only a backward pass can: call backward"
    ):
        gradients_alone([loss], paddle.ones([1]), net.parameters(), NAMES[:1])
    backward_by_loss([loss], paddle.ones([1]), net.parameters(), NAMES[:1])
    assert (net.get_last_shared_layer().grad != 0).any()


@passes
def test_an_error_leaves_earlier_gradients_in_place(fc_net, in_two_passes):
    weight = fc_net.get_last_shared_layer()
    weight.grad = paddle.full_like(weight, 7.0)
    with pytest.raises(ValueError):
        backward_by_loss([paddle.ones([])], paddle.ones([1]), [weight], NAMES[:1], in_two_passes)
    with pytest.raises(ValueError):
        backward_of_sum([paddle.ones([])], paddle.ones([1]), NAMES[:1])
    assert (weight.grad == 7.0).all()


@pytest.mark.parametrize("way", ["one pass", "two passes", "of the sum", "alone"])
def test_a_graph_that_is_gone_is_explained(fc_net, make_losses, way):
    losses, ones, shared = make_losses(fc_net), paddle.ones([3]), [fc_net.get_last_shared_layer()]
    sum(losses).backward()
    with pytest.raises(RuntimeError, match=r"graph of .* is gone.*retain_graph=True"):
        if way == "of the sum":
            backward_of_sum(losses, ones, NAMES)
        elif way == "alone":
            gradients_alone(losses, ones, shared, NAMES)
        else:
            backward_by_loss(losses, ones, shared, NAMES, way == "two passes")


# What is measured.


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def rows_of(place, dtype):
    """Makes gradients of weighted losses in the form in which they arrive."""
    if place == "host":
        return lambda values: np.array(values, dtype)
    return lambda values: paddle.to_tensor(values, dtype)


def test_products_of_the_unweighted_gradients_are_measured(rows_of, dtype):
    weights = paddle.to_tensor(WEIGHTS, dtype)
    losses = paddle.to_tensor([3.0, np.nan, 5.0], dtype)
    unweighted = np.array([[1.0, -2.0, 3.0, 0.0], [4.0, 0.0, 0.0, 2.0], [0.5, 1.0, 1.5, 1.0]])
    rows = rows_of(unweighted * np.array(WEIGHTS)[:, None])
    found, acted = measured(losses, weights, rows, GRAM)
    assert set(found) == {"losses", "gram"}
    np.testing.assert_array_equal(found["losses"], [3.0, np.nan, 5.0])
    np.testing.assert_allclose(found["gram"], unweighted @ unweighted.T, rtol=1e-12)
    assert acted.tolist() == WEIGHTS
    assert all(array.dtype == np.float64 for array in (acted, *found.values()))


STATISTICS = {
    "largest": lambda g: np.abs(g).max(1),
    "mean": lambda g: np.abs(g).mean(1),
    "std": lambda g: g.std(1),
    "kurtosis": lambda g: (((g - g.mean(1)[:, None]) / g.std(1)[:, None]) ** 4).mean(1),
}


@pytest.mark.parametrize("needs", [*({name} for name in STATISTICS), {"gram", *STATISTICS}])
def test_statistics_of_the_entries_are_measured_if_a_rule_needs_them(rows_of, dtype, needs):
    unweighted = np.array([[1.0, -2.0, 3.0, 0.0], [4.0, 0.0, 0.0, -2.0]])
    rows = rows_of(unweighted * [[0.5], [-2.0]])
    weights, ones = paddle.to_tensor([0.5, -2.0], dtype), paddle.ones([2], dtype)
    found, _ = measured(ones, weights, rows, needs)
    assert set(found) == {"losses", "gram"} | needs
    for name in needs - {"gram"}:
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], STATISTICS[name](unweighted), rtol=1e-14)
    np.testing.assert_allclose(found["gram"], unweighted @ unweighted.T, rtol=1e-12)


@passes
def test_statistics_are_those_of_a_networks_gradients(place, fc_net, make_losses, in_two_passes):
    shared = fc_net.parameters()
    expected = rows_one_by_one(fc_net, make_losses(fc_net), shared)
    factors, losses = paddle.to_tensor(WEIGHTS), make_losses(fc_net)
    values = paddle.stack([loss.detach() for loss in losses])
    rows = backward_by_loss(losses, factors, shared, NAMES, in_two_passes)
    found, _ = measured(values, factors, rows, set(STATISTICS))
    for name, of in STATISTICS.items():
        np.testing.assert_allclose(found[name], of(expected), rtol=1e-5)


def test_entries_without_a_spread_have_no_kurtosis(rows_of, dtype):
    ones = paddle.ones([3], dtype)
    rows = rows_of([[2.0, 2.0], [np.inf, 1.0], [1.0, -1.0]])
    found, _ = measured(ones, ones, rows, set(STATISTICS))
    np.testing.assert_array_equal(found["std"], [0, np.nan, 1])
    np.testing.assert_array_equal(found["kurtosis"], [np.nan, np.nan, 1])


@pytest.mark.parametrize("needs", [frozenset(), {"gram", *STATISTICS}])
def test_an_accelerator_is_read_once(monkeypatch, needs):
    monkeypatch.setattr(paddle.base.core.Place, "is_cpu_place", lambda self: False)
    rows = paddle.rand([2, 5]) if needs else None
    values, weights, copies, numpy = paddle.ones([2]), paddle.ones([2]), [], paddle.Tensor.numpy
    monkeypatch.setattr(paddle.Tensor, "numpy", lambda self: copies.append(self) or numpy(self))
    measured(values, weights, rows, needs)
    assert len(copies) == 1


@pytest.mark.usefixtures("place")
def test_without_gradients_losses_alone_are_measured(dtype):
    losses, weights = paddle.to_tensor([1.0, 2.0], dtype), paddle.to_tensor([0.5, 1.5], dtype)
    found, acted = measured(losses, weights, None, frozenset())
    assert set(found) == {"losses"} and found["losses"].tolist() == [1, 2]
    assert acted.tolist() == [0.5, 1.5]


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_squares_that_float32_does_not_hold_are_measured(place, size):
    values = np.array([[size, 0.0], [size, size]], "float32")
    rows = values if place == "host" else paddle.to_tensor(values)
    found, _ = measured(paddle.ones([2]), paddle.ones([2]), rows, {"gram", "mean"})
    np.testing.assert_allclose(found["gram"] / size**2, [[1, 1], [1, 2]], rtol=1e-6)
    np.testing.assert_allclose(found["mean"] / size, [0.5, 1], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_gradient_spoils_no_product_of_others(rows_of, dtype, bad):
    rows = rows_of([[1.0, 2.0], [bad, 1.0], [3.0, 4.0]])
    ones = paddle.ones([3], dtype)
    gram = measured(ones, ones, rows, GRAM)[0]["gram"]
    assert gram[::2, ::2].tolist() == [[5, 11], [11, 25]]
    assert not np.isfinite(gram[1]).any() and not np.isfinite(gram[:, 1]).any()


def test_what_was_measured_does_not_change_with_the_weights(dtype):
    weights, losses = paddle.to_tensor([0.5, 1.5], dtype), paddle.to_tensor([1.0, 2.0], dtype)
    found, acted = measured(losses, weights, None, frozenset())
    weights.fill_(7.0)
    losses.fill_(7.0)
    assert acted.tolist() == [0.5, 1.5] and found["losses"].tolist() == [1, 2]


@pytest.mark.usefixtures("place")
def test_a_tensor_is_overwritten_in_place_in_its_dtype(dtype):
    tensor = paddle.zeros([3], dtype)
    same = tensor
    overwrite(tensor, np.array([0.1, 1e-3, 2.0]))
    assert same.dtype == getattr(paddle, dtype)
    assert same.tolist() == np.array([0.1, 1e-3, 2.0], dtype).tolist()
    overwrite(tensor, [1, 2, 3])
    assert tensor.tolist() == [1, 2, 3]


# The choice between one pass and two.


@pytest.fixture
def net():
    return FCNet(2, 3, 4, 8)


def square_means(columns):
    return [column.square().mean() for column in columns]


def residuals(net, points):
    """Three losses in derivatives at the same points."""
    derivatives = net.partial_derivatives(points, [(0,), (1,), (0, 0)])
    return square_means(d[:, k : k + 1] for k, d in enumerate(derivatives))


@pytest.mark.usefixtures("both_operators")
def test_losses_that_share_parameters_only_take_one_pass(net):
    losses = [loss for _ in range(3) for loss in residuals(net, paddle.rand([5, 2]))[:1]]
    assert not two_passes_are_cheaper(losses, [net.linears[-1].weight])


@pytest.mark.usefixtures("both_operators")
@pytest.mark.parametrize("make", [residuals, lambda net, x: square_means(net(x).split(3, 1))])
def test_losses_at_the_same_points_take_two_to_the_last_layer_and_one_to_the_first(net, make):
    losses = make(net, paddle.rand([5, 2]))
    assert two_passes_are_cheaper(losses, [net.linears[-1].weight])
    assert two_passes_are_cheaper(losses, list(net.linears[-1].parameters()))
    # Two would go through everything four times, one does three times.
    assert not two_passes_are_cheaper(losses, [net.linears[0].weight])


def test_a_little_that_is_shared_does_not_matter(net):
    scale = paddle.ones([1])
    scale.stop_gradient = False
    losses = [(net(paddle.rand([5, 2])) * scale.exp()).square().mean() for _ in range(2)]
    assert not two_passes_are_cheaper(losses, [net.linears[-1].weight])


class Hook:
    """Lives as long as the graph that holds it."""

    def __call__(self, gradient):
        return gradient


def test_to_look_at_graphs_does_not_keep_them(net):
    def look():
        hook = Hook()
        prediction = net(paddle.rand([5, 2]))
        prediction.register_hook(hook)
        two_passes_are_cheaper(square_means(prediction.split(3, 1)), [net.linears[-1].weight])
        return weakref.ref(hook)

    alive = look()
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("way", ["one pass", "two passes", "of the sum"])
def test_a_backward_pass_uses_up_the_graph_of_a_prediction_that_is_kept(net, way):
    prediction = net(paddle.rand([5, 2]))
    losses, shared = square_means(prediction.split(3, 1)), [net.linears[-1].weight]
    if way == "of the sum":
        backward_of_sum(losses, paddle.ones([3]), NAMES)
    else:
        backward_by_loss(losses, paddle.ones([3]), shared, NAMES, way == "two passes")
    with pytest.raises(SystemError, match="retain_graph"):
        prediction.sum().backward()


@pytest.mark.parametrize("way", ["one pass", "two passes", "of the sum"])
def test_a_backward_pass_frees_the_graphs_of_losses_that_are_kept(net, way):
    hook = Hook()
    prediction = net(paddle.rand([5, 2]))
    prediction.register_hook(hook)
    losses, shared = square_means(prediction.split(3, 1)), [net.linears[-1].weight]
    if way == "of the sum":
        backward_of_sum(losses, paddle.ones([3]), NAMES)
    else:
        backward_by_loss(losses, paddle.ones([3]), shared, NAMES, way == "two passes")
    alive = weakref.ref(hook)
    del hook, prediction
    gc.collect()
    assert alive() is None and len(losses) == 3
