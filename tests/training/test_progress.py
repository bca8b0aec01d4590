import io

import paddle
import pytest

from paddlescience_gradnorm import GradNorm
from paddlescience_gradnorm.training import ProgressBar, Trainer


@pytest.fixture
def fit(fc_net, make_losses):
    def run(file, epochs, data=None, **options):
        net = GradNorm(fc_net, n_loss=3, alpha=1.0, weight_lr=1e-3)
        optimizer = paddle.optimizer.SGD(1e-4, parameters=net.parameters())
        names = ["pde", "boundary", "data"]
        return Trainer(
            net,
            lambda net, seed=0: dict(zip(names, make_losses(net, seed=int(seed)))),
            optimizer,
            callbacks=[ProgressBar(file=file, **options)],
        ).fit(data, epochs)

    return run


def test_the_bar_ends_full_with_the_last_steps_losses_and_weights(fit):
    file = io.StringIO()
    history = fit(file, 3, data=[1, 2], ncols=200)
    last = file.getvalue().rpartition("\r")[2]
    assert "6/6" in last and "100%" in last
    loss, weight = (history.last()[q]["boundary"] for q in ("losses", "weights"))
    assert f"boundary {loss:.1e} (w {weight:.2g})" in last


def test_an_unknown_number_of_steps_is_counted(fit):
    class Batches:
        def __iter__(self):
            return iter([1, 2, 3])

    file = io.StringIO()
    fit(file, 2, data=Batches())
    assert "6step" in file.getvalue()


def test_a_disabled_bar_reads_nothing(fit, monkeypatch):
    reads = []
    monkeypatch.setattr(
        "paddlescience_gradnorm.training.history.History.last", lambda self: reads.append(self)
    )
    file = io.StringIO()
    fit(file, 3, disable=True)
    assert file.getvalue() == "" and reads == []
