import json

import numpy as np
import paddle
import pytest

pytest.importorskip("safetensors")

from safetensors.numpy import load_file, save_file

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer
from paddlescience_gradnorm.training import export_safetensors, import_safetensors


def make(n_loss=2, **options):
    return GradNorm(FCNet(2, 1, 2, 8), n_loss, **{"alpha": 1.0, "weight_lr": 0.1, **options})


@pytest.fixture
def points():
    return paddle.rand([16, 2])


def losses(net, x, names=("pde", "bc")):
    found = {"pde": net(x).square().mean(), "bc": 50 * (net(x) - 1).square().mean()}
    return {name: found[name] for name in names}


def trained(points, net=None, names=("pde", "bc")):
    net = make() if net is None else net
    adam = paddle.optimizer.Adam(1e-2, parameters=net.net.parameters())
    for _ in range(3):
        net.backward(losses(net, points, names))
        adam.step()
        adam.clear_grad()
    return net


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def test_other_programs_find_the_bare_network_and_the_weights(points, path):
    net = trained(points)
    export_safetensors(path, net)
    arrays = load_file(path)
    assert set(arrays) == {*net.net.state_dict(), "gradnorm.loss_weights"}
    for name, tensor in net.net.state_dict().items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
    np.testing.assert_array_equal(arrays["gradnorm.loss_weights"], net.get_weights())
    length = int.from_bytes(path.read_bytes()[:8], "little")
    metadata = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    assert metadata == {"paddlescience_gradnorm": "1", "losses": '["pde", "bc"]'}


def test_everything_comes_back(points, path):
    net, other = trained(points), make()
    export_safetensors(path, net)
    weights = import_safetensors(path, other)
    assert weights == dict(zip(("pde", "bc"), net.get_weights().tolist()))
    np.testing.assert_array_equal(other(points).numpy(), net(points).numpy())
    np.testing.assert_array_equal(other.get_weights(), net.get_weights())
    assert weights["bc"] < weights["pde"]
    trained(points, other)  # and it goes on


def test_the_weights_go_by_the_names_of_the_losses(points, path):
    net = trained(points)
    export_safetensors(path, net)
    pde, bc = net.get_weights()
    # A balancer that knows its losses in another order,
    known = trained(points, names=("bc", "pde"))
    import_safetensors(path, known)
    assert known.get_weights().tolist() == [bc, pde]
    # and one that is told them later.
    for other in (make(), make(n_loss=None)):
        import_safetensors(path, other)
        assert other.get_weights().tolist() == [pde, bc]
        other.freeze()
        found = losses(other, points, ("bc", "pde"))
        total = other.backward(found)
        assert total.item() == pytest.approx(
            pde * found["pde"].item() + bc * found["bc"].item(), rel=1e-5
        )


def test_a_bare_network_needs_no_weights(points, path):
    net, bare = trained(points), FCNet(2, 1, 2, 8)
    export_safetensors(path, net)
    assert import_safetensors(path, bare)["pde"] == net.get_weights()[0]
    np.testing.assert_array_equal(bare(points).numpy(), net(points).numpy())
    export_safetensors(path, bare)
    other = make(weight_attr=[0.5, 1.5])
    assert import_safetensors(path, other) == {}
    assert other.get_weights().tolist() == [0.5, 1.5]
    np.testing.assert_array_equal(other(points).numpy(), net(points).numpy())


def test_a_balancer_may_stand_beside_the_network(points, path):
    net = FCNet(2, 1, 2, 8)
    balancer = LossBalancer(net.get_last_shared_layer(), 2, alpha=1.0, weight_attr=[0.25, 1.75])
    export_safetensors(path, net, balancer)
    other = LossBalancer(net.get_last_shared_layer(), 2, alpha=1.0)
    assert import_safetensors(path, net, other) == {"losses[0]": 0.25, "losses[1]": 1.75}
    assert other.get_weights().tolist() == [0.25, 1.75]


def changed(path, metadata=None, **arrays):
    """The file with these arrays, ``None`` for none, and this metadata."""
    found = {**load_file(path), **arrays}
    length = int.from_bytes(path.read_bytes()[:8], "little")
    own = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    kept = {name: array for name, array in found.items() if array is not None}
    save_file(kept, path, {**own, **(metadata or {})})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda p: p.write_bytes(b""), "is damaged, or no safetensors file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is damaged, or no safetensors file"),
        (lambda p: p.write_bytes(b"\x80\x04K\x01." * 20), "is damaged, or no safetensors file"),
        (lambda p: changed(p, more=np.ones(2)), "'more' not known here; nothing has been loaded"),
        (lambda p: changed(p, {"losses": "["}), "without a name for each"),
        (lambda p: changed(p, {"losses": '["a"]'}), "without a name for each"),
        (lambda p: changed(p, {"losses": '["a", "b"]'}), "'a', 'b', but here they are 'pde', 'bc'"),
        (lambda p: changed(p, {"paddlescience_gradnorm": "2"}), "by a newer .* update it"),
        (
            lambda p: changed(p, **{"gradnorm.loss_weights": np.array([1, np.nan], "f")}),
            "that are no numbers",
        ),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(points, path, spoil, message):
    net = trained(points)
    export_safetensors(path, net)
    spoil(path)
    before = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=message) as info:
        import_safetensors(path, net)
    assert str(path) in str(info.value)
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])


def test_another_network_is_named(points, path):
    export_safetensors(path, trained(points))
    with pytest.raises(ValueError, match=r"of shape \[2, 8\] and type float32, where \[2, 9\]"):
        import_safetensors(path, FCNet(2, 1, 2, 9))


@pytest.mark.parametrize("dtype", ["bfloat16", "complex128"])
def test_what_the_format_lacks_is_refused_and_the_old_file_stays(path, dtype):
    path.write_text("old")
    net = paddle.nn.Layer()
    net.register_buffer("scale", paddle.ones([2]).astype(dtype))
    with pytest.raises(TypeError, match=dtype):
        export_safetensors(path, net)
    assert path.read_text() == "old"


def test_without_the_package_it_says_which_extra_to_install(path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    match = "pip install safetensors"
    for act in (export_safetensors, import_safetensors):
        with pytest.raises(ImportError, match=match):
            act(path, FCNet(2, 1, 2, 8))
