import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.balancing.task_gradients import (
    backward_by_task,
    task_gradient_norms,
)

pytestmark = pytest.mark.usefixtures("both_operators")

NAMES = ["pde", "boundary", "data"]
WEIGHTS = [0.5, 2.0, 0.25]


def gradients(net):
    return {name: p.grad.numpy().copy() for name, p in net.named_parameters()}


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

    weights = paddle.to_tensor(WEIGHTS)
    one_pass = backward_by_task(make_losses(fc_net, share), weights, shared, NAMES)
    apart = task_gradient_norms(make_losses(fc_net, share), shared, NAMES, weights.dtype)

    np.testing.assert_allclose(one_pass.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(apart.numpy(), expected, rtol=1e-5)


def test_a_small_gradient_survives_beside_a_large_one(fc_net):
    weight = fc_net.get_last_shared_layer()
    losses = [1e6 * weight.sum(), 1e-6 * weight.sum()]
    norms = backward_by_task(losses, paddle.ones([2]), [weight], NAMES[:2])
    np.testing.assert_allclose(norms.numpy(), [4e6, 4e-6], rtol=1e-6)  # sqrt(16 weights)


def test_the_same_loss_may_stand_twice(fc_net, make_losses):
    loss = make_losses(fc_net)[0]
    weight = fc_net.get_last_shared_layer()
    norms = backward_by_task([loss, loss], paddle.ones([2]), [weight], NAMES[:2])
    assert norms[0].item() == norms[1].item() > 0


def test_norms_apart_touch_no_gradient(fc_net, make_losses):
    losses = make_losses(fc_net)
    task_gradient_norms(losses, [fc_net.get_last_shared_layer()], NAMES, paddle.float32)
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
        task_gradient_norms(losses[1:], shared, NAMES[1:], paddle.float32)


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
        task_gradient_norms(losses, [fc_net.get_last_shared_layer()], NAMES, paddle.float32)
