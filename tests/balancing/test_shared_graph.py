import gc
import weakref

import paddle
import pytest

from paddlescience_gradnorm import FCNet
from paddlescience_gradnorm.balancing.shared_graph import two_passes_are_cheaper

pytestmark = pytest.mark.usefixtures("both_operators")


@pytest.fixture
def net():
    return FCNet(2, 3, 4, 8)


def square_means(columns):
    return [column.square().mean() for column in columns]


def residuals(net, points):
    """Three losses in derivatives at the same points."""
    derivatives = net.partial_derivatives(points, [(0,), (1,), (0, 0)])
    return square_means(d[:, k : k + 1] for k, d in enumerate(derivatives))


def test_losses_that_share_parameters_only_take_one_pass(net):
    losses = [loss for _ in range(3) for loss in residuals(net, paddle.rand([5, 2]))[:1]]
    assert not two_passes_are_cheaper(losses, [net.linears[-1].weight])


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


def test_the_graphs_are_let_go(net):
    class Hook:
        """Lives as long as the graph that holds it."""

        def __call__(self, gradient):
            return gradient

    def look():
        hook = Hook()
        prediction = net(paddle.rand([5, 2]))
        prediction.register_hook(hook)
        two_passes_are_cheaper(square_means(prediction.split(3, 1)), [net.linears[-1].weight])
        return weakref.ref(hook)

    alive = look()
    gc.collect()
    assert alive() is None
