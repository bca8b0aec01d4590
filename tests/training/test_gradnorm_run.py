import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import LossBalancer
from paddlescience_gradnorm.training import train_gradnorm


class Losses(paddle.nn.Layer):
    """A shared layer and two heads, whose outputs differ in scale by 50."""

    def __init__(self, form=list):
        super().__init__()
        self.shared = paddle.nn.Linear(3, 8)
        self.norm = paddle.nn.BatchNorm1D(8)
        self.heads = paddle.nn.LayerList([paddle.nn.Linear(8, 2) for _ in range(2)])
        self.form = form

    def forward(self, x, y):
        hidden = self.norm(self.shared(x)).tanh()
        return self.form(
            (head(hidden) - y).square().mean() * s for head, s in zip(self.heads, (1, 50))
        )


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    return [
        [paddle.to_tensor(rng.random((16, n)), dtype="float32") for n in (3, 2)] for _ in range(5)
    ]


FORMS = {
    "list": list,
    "tuple": tuple,
    "dict": lambda losses: dict(zip("ab", losses)),
    "tensor": lambda losses: paddle.stack(list(losses)),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_loop_a_user_would_write(batches, form):
    paddle.seed(1)
    net = Losses(FORMS[form])
    log_weights, log_loss = train_gradnorm(net, net.shared, 0.5, batches, 3, 1e-3, 1e-2)

    paddle.seed(1)
    twin = Losses()
    balancer = LossBalancer(twin.shared, n_loss=2, alpha=0.5, weight_lr=None)
    optimizer = paddle.optimizer.Adam(1e-3, parameters=twin.parameters())
    stepping = paddle.optimizer.Adam(1e-2, parameters=balancer.parameters())
    weights, values = [], []
    for _ in range(3):
        for batch in batches:
            losses = twin(*batch)
            weights.append(balancer.get_weights())
            values.append([loss.item() for loss in losses])
            balancer.backward(losses)
            for each in (optimizer, stepping):
                each.step()
                each.clear_grad()
    np.testing.assert_allclose(log_weights, weights, rtol=1e-5)
    np.testing.assert_allclose(log_loss, values, rtol=1e-4)
    # Counting the losses beforehand has left no trace in the statistics.
    np.testing.assert_allclose(net.norm._mean.numpy(), twin.norm._mean.numpy(), rtol=1e-4)
    np.testing.assert_allclose(log_weights.sum(axis=1), 2, atol=1e-5)
    assert log_weights[-1, 0] > log_weights[-1, 1]


def test_without_log_it_trains_and_returns_nothing(batches):
    net = Losses()
    before = net.shared.weight.numpy()
    assert train_gradnorm(net, net.shared, 0.5, batches, 1, 1e-3, 1e-2, log=False) is None
    assert (net.shared.weight.numpy() != before).any()


def test_it_takes_a_dataloader():
    net = Losses()
    x, y = paddle.rand([20, 3]), paddle.rand([20, 2])
    loader = paddle.io.DataLoader(paddle.io.TensorDataset([x, y]), batch_size=8)
    log_weights, log_loss = train_gradnorm(net, net.shared, 0.12, loader, 2, 1e-3, 1e-2)
    assert log_weights.shape == log_loss.shape == (6, 2)


def test_data_that_runs_out_is_refused(batches):
    net = Losses()
    with pytest.raises(TypeError, match="dataloader must start anew in every epoch, got generator"):
        train_gradnorm(net, net.shared, 0.12, (batch for batch in batches), 2, 1e-3, 1e-2)
    with pytest.raises(ValueError, match=r"dataloader has no batch: \[\]"):
        train_gradnorm(net, net.shared, 0.12, [], 2, 1e-3, 1e-2)
