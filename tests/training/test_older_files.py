"""Files that other versions have written: of this package, and of Paddle."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer, RotoGradNorm
from paddlescience_gradnorm.training import CheckpointError, RunState, Trainer

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
PADDLES = ["2.6.2", "3.3.1"]
POINTS = np.linspace(-1, 1, 8).reshape(4, 2).astype("float32")


def losses(net):
    u = net(paddle.to_tensor(POINTS))
    return {"pde": u.square().mean(), "boundary": (u - 1).square().mean()}


def adam(net):
    return paddle.optimizer.Adam(1e-2, parameters=net.parameters())


def grad_norm(**options):
    net = GradNorm(FCNet(2, 1, 2, 4), n_loss=2, **options)
    return {"net": net, "optimizer": adam(net)}


def loop():
    net = FCNet(2, 1, 2, 4)
    layer = net.get_last_shared_layer()
    balancer = LossBalancer(layer, 2, alpha=0.5, weight_lr=1e-2, update_every=2)
    return {"net": net, "balancer": balancer, "optimizer": adam(net)}


def rotograd():
    heads = [paddle.nn.Linear(4, 1) for _ in range(2)]
    net = RotoGradNorm(paddle.nn.Linear(2, 4), heads, 4, alpha=1.0)
    return {"net": net, "optimizer": adam(net)}


RUNS_OF_0_1_0 = {
    "pinn": grad_norm,
    "published": lambda: grad_norm(alpha=1.0),
    "loop": loop,
    "rotograd": rotograd,
}


def step(parts):
    net, balancer = parts["net"], parts.get("balancer", parts["net"])
    if isinstance(net, RotoGradNorm):
        outputs = net(paddle.to_tensor(POINTS))
        balancer.backward([(y - i).square().mean() for i, y in enumerate(outputs)])
    else:
        balancer.backward(losses(net))
    parts["optimizer"].step()
    parts["optimizer"].clear_grad()


def output(net):
    outputs = net(paddle.to_tensor(POINTS))
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return np.concatenate([y.numpy() for y in outputs]).ravel()


def test_every_released_version_has_files_here():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for version in re.findall(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE):
        assert list((DATA / version).glob("*.ckpt")), version


@pytest.mark.parametrize("written_with", PADDLES)
@pytest.mark.parametrize("name", RUNS_OF_0_1_0)
def test_a_run_of_0_1_0_begins_anew_with_its_parameters(name, written_with):
    path = DATA / "0.1.0" / f"{name}_{written_with}.ckpt"
    expected = json.loads((DATA / "0.1.0" / f"results_{written_with}.json").read_text())[name]
    parts = RUNS_OF_0_1_0[name]()
    before = output(parts["net"])
    with pytest.raises(
        CheckpointError, match=r"was written by .* 0\.1\.0.*\.load_parameters\(path"
    ):
        RunState(**parts).load(path)
    np.testing.assert_array_equal(output(parts["net"]), before)
    RunState(**parts).load_parameters(path)
    np.testing.assert_allclose(output(parts["net"]), expected["output"], rtol=1e-5, atol=1e-7)
    weights = parts.get("balancer", parts["net"]).get_weights()
    # Those that the caller's optimizer had stepped are not scaled to their sum yet.
    shares = np.array(expected["weights"]) / sum(expected["weights"])
    np.testing.assert_allclose(weights / weights.sum(), shares, rtol=1e-6)
    for _ in range(11):
        step(parts)
    after = parts.get("balancer", parts["net"]).get_weights()
    assert np.isfinite(after).all() and (after != weights).any()


@pytest.mark.parametrize("written_with", PADDLES)
def test_a_state_dict_of_0_1_0_loads(written_with):
    state = paddle.load(str(DATA / "0.1.0" / f"state_dict_{written_with}.pdparams"))
    expected = json.loads((DATA / "0.1.0" / f"results_{written_with}.json").read_text())
    parts = grad_norm(alpha=1.0)
    net = parts["net"]
    missing, _ = net.set_state_dict(state)
    assert not missing
    np.testing.assert_allclose(output(net), expected["published"]["output"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(net.get_weights(), expected["published"]["weights"], rtol=1e-6)
    assert (net.initial_losses.numpy() > 0).all()
    step(parts)
    assert net.get_weights().sum() == pytest.approx(2)


@pytest.mark.parametrize("wrapped_by", ["", "_layers."])
def test_the_name_that_0_1_0_gave_to_data_parallel_is_left_out(tmp_path, wrapped_by):
    """Its files named the layers below ``paddle.DataParallel`` by its attribute."""
    from paddlescience_gradnorm.training import _checkpoint_file

    path = DATA / "0.1.0" / "pinn_3.3.1.ckpt"
    state = _checkpoint_file.read(path)
    net = state["parts"]["net"]
    for kind in ("parameters", "buffers"):
        net[kind] = {
            name.replace("net.", f"net.{wrapped_by}", 1): values
            for name, values in net[kind].items()
        }
    _checkpoint_file.write(tmp_path / "parallel.ckpt", state)
    one, other = grad_norm()["net"], grad_norm()["net"]
    RunState(net=one).load_parameters(path)
    RunState(net=other).load_parameters(tmp_path / "parallel.ckpt")
    np.testing.assert_array_equal(output(one), output(other))


TWO_PADDLES = runpy.run_path(str(DATA / "two_paddles" / "write.py"))


@pytest.mark.parametrize("written_with", PADDLES)
@pytest.mark.parametrize("name", TWO_PADDLES["RUNS"])
def test_a_run_goes_on_with_the_other_paddle(name, written_with):
    paddle.seed(5)
    trainer = TWO_PADDLES["make"](**TWO_PADDLES["RUNS"][name])
    assert isinstance(trainer, Trainer)
    trainer.load(DATA / "two_paddles" / f"{name}_{written_with}.ckpt")
    assert trainer.step == 8
    found = TWO_PADDLES["finished"](trainer)
    with np.load(DATA / "two_paddles" / f"{name}_{written_with}.npz") as expected:
        assert len(expected["losses"]) == 16 and (expected["weights"][15] != 1).any()
        for quantity in expected.files:
            np.testing.assert_allclose(
                found[quantity], expected[quantity], rtol=1e-10, err_msg=quantity
            )
