import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.balancing.task_gradients import (
    backward_by_task,
    measured,
    rows,
    task_gradients,
    weighed,
)

pytestmark = pytest.mark.usefixtures("both_operators")

NAMES = ["pde", "boundary", "data"]
WEIGHTS = [0.5, 2.0, 0.25]


def gradients(net):
    return {name: p.grad.numpy().copy() for name, p in net.named_parameters()}


def norms_of(losses, weight):
    ones = paddle.ones([len(losses)])
    gradients = backward_by_task(losses, ones, [weight], NAMES[: len(losses)])
    with paddle.no_grad():
        return measured(ones, ones, losses, gradients, memory(ones))[2]


def memory(weights):
    return weights.clone(), weights.clone()


def assert_same_gradients(net, expected):
    for name, gradient in gradients(net).items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(gradient, expected[name], rtol=2e-5, atol=2e-6 * scale)


@pytest.mark.parametrize("share", [False, True], ids=["disjoint", "shared graph"])
@pytest.mark.parametrize("accumulate", [False, True], ids=["fresh", "accumulated"])
def test_gradients_are_those_of_the_weighted_sum(fc_net, make_losses, share, accumulate):
    weights = paddle.to_tensor(WEIGHTS)

    def earlier():
        fc_net.clear_gradients()
        if accumulate:
            make_losses(fc_net, seed=1)[0].backward()

    earlier()
    sum(w * loss for w, loss in zip(WEIGHTS, make_losses(fc_net, share))).backward()
    expected = gradients(fc_net)

    earlier()
    shared = [fc_net.get_last_shared_layer()]
    backward_by_task(make_losses(fc_net, share), weights, shared, NAMES)
    assert_same_gradients(fc_net, expected)


def test_gradients_that_paddle_hands_on_unchanged_stay_what_they_were():
    # One gradient arrives at both parameters, which later losses add to.
    both = [paddle.create_parameter([3], "float32") for _ in range(2)]
    losses = [(k * (both[0] + both[1])).sum() for k in (1.0, 2.0, 3.0)]
    gradients = backward_by_task(losses, paddle.ones([3]), both, NAMES)
    assert [[g.tolist() for g in row] for row in gradients] == [[[k] * 3] * 2 for k in (1, 2, 3)]
    assert [p.grad.tolist() for p in both] == [[6.0] * 3] * 2


@pytest.mark.parametrize("share", [False, True], ids=["disjoint", "shared graph"])
@pytest.mark.parametrize("which", ["last weight", "all"])
def test_norms_are_those_of_each_loss_alone(fc_net, make_losses, share, which):
    shared = [fc_net.get_last_shared_layer()] if which == "last weight" else fc_net.parameters()
    expected = []
    for i in range(3):
        fc_net.clear_gradients()
        make_losses(fc_net, share)[i].backward()
        squares = [np.square(p.grad.numpy().astype("float64")).sum() for p in shared]
        expected.append(np.sqrt(sum(squares)))
    fc_net.clear_gradients()

    weights, ones = paddle.to_tensor(WEIGHTS), paddle.ones([3])
    losses = make_losses(fc_net, share)
    values = [loss.item() for loss in losses]
    apart = task_gradients(losses, shared, NAMES)
    one_pass = backward_by_task(losses, weights, shared, NAMES)

    with paddle.no_grad():
        for factors, gradients in ((weights, one_pass), (ones, apart)):
            total, measured_values, norms, products = measured(
                weights, factors, losses, gradients, memory(ones)
            )
            np.testing.assert_allclose(norms.numpy(), expected, rtol=1e-5)
            assert measured_values.tolist() == values
            np.testing.assert_allclose(total.item(), np.dot(WEIGHTS, values), rtol=1e-6)
            by_task = rows(factors, gradients, shared)
            assert by_task.shape == [3, sum(int(p.size) for p in shared)]
            np.testing.assert_allclose(by_task.norm(axis=1).numpy(), expected, rtol=1e-5)
            multiplied = by_task.numpy().astype("float64") * factors.numpy()[:, None]
            scale = np.outer(expected, expected).max()
            np.testing.assert_allclose(products, multiplied @ multiplied.T, atol=1e-5 * scale)


def test_a_parameter_that_a_loss_misses_counts_zero(fc_net):
    first, last = fc_net.linears[0].weight, fc_net.get_last_shared_layer()
    losses = [first.sum() + 2 * last.sum(), 3 * last.sum()]
    weights = paddle.to_tensor([0.5, 1.5])
    gradients = backward_by_task(losses, weights, [first, last], NAMES[:2])
    with paddle.no_grad():
        _, _, norms, products = measured(weights, weights, losses, gradients, memory(weights))
        by_task = rows(weights, gradients, [first, last]).numpy()
    expected = [np.sqrt(first.size + 4 * last.size), np.sqrt(9 * last.size)]
    np.testing.assert_allclose(norms.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(products[0, 1], (0.5 * 2) * (1.5 * 3) * last.size, rtol=1e-6)
    np.testing.assert_array_equal(by_task[1], [0] * int(first.size) + [3] * int(last.size))


def test_losses_of_other_types_are_measured_in_that_of_the_weights(fc_net, make_losses):
    shared = [fc_net.get_last_shared_layer()]
    losses = [loss.astype("float64") for loss in make_losses(fc_net)]
    weights = paddle.to_tensor(WEIGHTS)
    values = [loss.item() for loss in losses]
    gradients = backward_by_task(losses, weights, shared, NAMES)
    with paddle.no_grad():
        results = measured(weights, weights, losses, gradients, memory(weights))
    assert all(result.dtype == paddle.float32 for result in results[:3])
    np.testing.assert_allclose(results[1].numpy(), values, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("second", [0.0, 2.0, -1.0, np.nan, np.inf])
def test_without_gradients_there_is_the_sum_and_whether_losses_are_any(dtype, second):
    weights = paddle.to_tensor([0.5, 2.0], "float32")
    losses = [paddle.to_tensor(value, dtype) for value in (3.0, second)]
    total, usable = weighed(weights, losses)
    np.testing.assert_array_equal(total.item(), 1.5 + 2 * second)
    assert total.shape == [] and total.dtype == paddle.float32
    assert bool(usable) == (second in (0.0, 2.0))
    assert losses[0].item() == 3.0


def test_a_small_gradient_survives_beside_a_large_one(fc_net):
    weight = fc_net.get_last_shared_layer()
    losses = [1e6 * weight.sum(), 1e-6 * weight.sum()]
    norms = norms_of(losses, weight)
    np.testing.assert_allclose(norms.numpy(), [4e6, 4e-6], rtol=1e-6)  # sqrt(16 weights)


def test_the_same_loss_may_stand_twice(fc_net, make_losses):
    loss = make_losses(fc_net)[0]
    weight = fc_net.get_last_shared_layer()
    norms = norms_of([loss, loss], weight)
    assert norms[0].item() == norms[1].item() > 0


def test_gradients_apart_touch_no_gradient(fc_net, make_losses):
    losses = make_losses(fc_net)
    task_gradients(losses, [fc_net.get_last_shared_layer()], NAMES)
    assert all(p.grad is None for p in fc_net.parameters())


@pytest.mark.parametrize("independent", ["constant", "other parameter"])
def test_a_loss_that_misses_the_shared_layer_is_named(fc_net, make_losses, independent):
    shared = [fc_net.get_last_shared_layer()]
    losses = make_losses(fc_net)
    losses[1] = paddle.ones([]) if independent == "constant" else fc_net.linears[0].weight.mean()
    message = "'boundary' does not depend on the shared parameters .*pass as shared="
    with pytest.raises(ValueError, match=message):
        backward_by_task(losses, paddle.ones([3]), shared, NAMES)
    with pytest.raises(ValueError, match=message):
        task_gradients(losses[1:], shared, NAMES[1:])


def test_an_error_leaves_earlier_gradients_in_place(fc_net, make_losses):
    weight = fc_net.get_last_shared_layer()
    weight.grad = paddle.full_like(weight, 7.0)
    with pytest.raises(ValueError):
        backward_by_task([paddle.ones([])], paddle.ones([1]), [weight], NAMES[:1])
    assert (weight.grad == 7.0).all()


def test_a_graph_that_is_gone_is_explained(fc_net, make_losses):
    losses = make_losses(fc_net)
    sum(losses).backward()
    with pytest.raises(RuntimeError, match=r"graph of loss 'pde' is gone.*retain_graph=True"):
        task_gradients(losses, [fc_net.get_last_shared_layer()], NAMES)
