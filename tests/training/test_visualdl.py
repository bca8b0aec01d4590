import itertools
import struct
import sys

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import GradNorm
from paddlescience_gradnorm.training import Checkpoints, TensorBoard, Trainer, VisualDL

NAMES = ["pde", "bc", "data"]
QUANTITIES = {
    "losses": "loss",
    "weights": "weight",
    "gradient_norms": "gradient_norm",
    "training_rates": "training_rate",
}


@pytest.fixture
def LogReader():
    visualdl = pytest.importorskip(
        "visualdl", reason="needs visualdl: pip install -e '.[visualdl]'"
    )
    return visualdl.LogReader


@pytest.fixture
def make_trainer(fc_net, make_losses):
    def make(net, *callbacks):
        optimizer = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
        losses = lambda net: dict(zip(NAMES, make_losses(net)))  # noqa: E731
        return Trainer(net, losses, optimizer, callbacks=callbacks)

    return make


def logged(LogReader, folder):
    """Tag -> row -> number, of all files in a folder."""
    found = {}
    for path in sorted(folder.iterdir()):
        reader = LogReader(file_path=str(path))
        for tag in reader.get_tags().get("scalar", []):
            points = {point.id: point.value for point in reader.get_data("scalar", tag)}
            found.setdefault(tag, {}).update(points)
    return found


def test_the_log_holds_the_history_and_the_cosines(LogReader, tmp_path, fc_net, make_trainer):
    net = GradNorm(fc_net, n_loss=3, update_every=2)
    cosines = []

    class KeepCosines(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            cosines.append(self.model.balancer.cosines)

    history = make_trainer(net, VisualDL(tmp_path / "log", every=3), KeepCosines()).fit(epochs=11)
    found = logged(LogReader, tmp_path / "log")
    rows = [0, 3, 6, 9]
    for quantity, tag in QUANTITIES.items():
        for name, values in getattr(history, quantity).items():
            curve = found.pop(f"{tag}/{name}")
            assert list(curve) == rows
            np.testing.assert_allclose(list(curve.values()), values[rows], rtol=1e-6)
    for i, j in itertools.combinations(range(3), 2):
        curve = found.pop(f"cosine/{NAMES[i]} and {NAMES[j]}")
        assert list(curve) == rows
        expected = [cosines[row][i, j] for row in rows]
        np.testing.assert_allclose(list(curve.values()), expected, rtol=1e-5, atol=1e-7)
    assert set(found) <= {"meta_data_tag"}


def test_what_is_not_measured_is_left_out(LogReader, tmp_path, fc_net, make_trainer):
    make_trainer(fc_net, VisualDL(tmp_path / "equal", every=1)).fit(epochs=2)
    tags = {f"{tag}/{name}" for tag in ("loss", "weight") for name in NAMES}
    assert set(logged(LogReader, tmp_path / "equal")) - {"meta_data_tag"} == tags

    net = GradNorm(fc_net, n_loss=3)
    trainer = make_trainer(net, VisualDL(tmp_path / "lbfgs", every=1))
    trainer.fit(epochs=2)
    trainer.fit_lbfgs(epochs=2)
    found = logged(LogReader, tmp_path / "lbfgs")
    assert list(found["loss/pde"]) == [0, 1, 2, 3]
    assert list(found["cosine/pde and bc"]) == list(found["gradient_norm/pde"]) == [0, 1]


def test_a_resumed_run_goes_on_in_the_same_curves(LogReader, tmp_path, fc_net, make_trainer):
    folder, checkpoints = tmp_path / "log", Checkpoints(tmp_path / "checkpoints", every=4)
    make_trainer(fc_net, VisualDL(folder, every=2)).fit(epochs=4, checkpoints=checkpoints)
    trainer = make_trainer(fc_net, VisualDL(folder, every=2))
    history = trainer.fit(epochs=8, checkpoints=checkpoints, resume="latest")
    curve = logged(LogReader, folder)["loss/bc"]
    assert sorted(curve) == [0, 2, 4, 6]
    for row, value in curve.items():
        assert value == pytest.approx(history.losses["bc"][row], rel=1e-6)


def test_tensorboard_gets_the_same_curves(tmp_path, fc_net, make_trainer):
    pytest.importorskip(
        "tensorboardX", reason="needs tensorboardX: pip install -e '.[tensorboard]'"
    )
    from tensorboardX.proto.event_pb2 import Event

    net = GradNorm(fc_net, n_loss=3)
    history = make_trainer(net, TensorBoard(tmp_path, every=2)).fit(epochs=5)
    (path,) = tmp_path.iterdir()
    found = {}
    for record in records(path.read_bytes()):
        event = Event.FromString(record)
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    for quantity, tag in QUANTITIES.items():
        for name, values in getattr(history, quantity).items():
            curve = found.pop(f"{tag}/{name}")
            assert list(curve) == [0, 2, 4]
            np.testing.assert_allclose(list(curve.values()), values[[0, 2, 4]], rtol=1e-6)
    assert set(found) == {"cosine/pde_and_bc", "cosine/pde_and_data", "cosine/bc_and_data"}


def records(content):
    """Those of a file: each has its length, and checksums of length and data."""
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield content[at + 12 : at + 12 + length]
        at += 16 + length


@pytest.mark.parametrize("log", [VisualDL, TensorBoard])
def test_every_is_checked(tmp_path, log):
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        log(tmp_path, every=0)


def test_without_tensorboardx_it_says_which_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match="pip install tensorboardX"):
        TensorBoard(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_visualdl_it_says_which_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "visualdl", None)
    with pytest.raises(ImportError, match="pip install visualdl"):
        VisualDL(tmp_path)
    assert not list(tmp_path.iterdir())
