import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.network import _shared_layer as shared_layer
from paddlescience_gradnorm.network._shared_layer import find_shared


@pytest.mark.parametrize("hook", ["get_last_shared_layer", "get_shared_layer"])
def test_the_networks_own_hooks_are_asked(hook):
    net = paddle.nn.Linear(2, 1)
    setattr(net, hook, lambda: net.weight)
    assert find_shared(net) == (net.weight,)


def test_what_the_caller_names_comes_first(fc_net):
    first = fc_net.linears[0]
    assert find_shared(fc_net, first.bias) == (first.bias,)
    assert find_shared(fc_net, first) == (first.weight, first.bias)
    assert find_shared(fc_net, lambda net: net.linears[0].weight) == (first.weight,)
    assert len(find_shared(fc_net, "all")) == 6


def test_a_network_without_a_hook_needs_shared():
    with pytest.raises(ValueError, match=r"Linear has neither get_last_shared_layer.*shared="):
        find_shared(paddle.nn.Linear(2, 1))
    with pytest.raises(ValueError, match="can only be 'all', got 'last'"):
        find_shared(FCNet(2, 1, 3, 8), "last")


def _cube(*size):
    return paddle.rand([1, 1, *size])


def _xy():
    return {"x": paddle.rand([5, 1]), "y": paddle.rand([4, 1])}


def _points():
    return {"x": paddle.rand([5, 1]), "y": paddle.rand([5, 1])}


def _crystal():
    ends = [paddle.arange(3), paddle.arange(3, 6)]
    atoms, bonds = paddle.rand([6, 9]), paddle.rand([6, 3, 4])
    return {"i": [atoms, bonds, paddle.randint(0, 6, [6, 3]), ends]}


def _lno(arch):
    times = [paddle.linspace(0, 1, n).reshape([1, n]) for n in (5, 4, 3)]
    return arch.LNO(("x",), ("y",), 2, (2, 2, 2), times[0], tuple(times[1:]), use_norm=False)


def _afno(arch, kind, *first):
    image = ((16, 16), (8, 8), 2)
    return kind(("i",), ("o",), *first, *image, 2, embed_dim=16, depth=1, num_blocks=4)


XY, UV = ("x", "y"), ("u", "v")
# Every class of ppsci.arch: how to build it, what to feed it, and where its shared weights are.
# Without an input: its forward pass does not run here, see NOT_RUN.
FOUND = {
    "MLP": (lambda a: a.MLP(XY, UV, 2, 8), _points, ["last_fc.weight"]),
    "ModifiedMLP": (lambda a: a.ModifiedMLP(XY, UV, 2, 8), _points, ["last_fc.weight"]),
    "PirateNet": (
        lambda a: a.PirateNet(XY, UV, 1, 8, fourier={"dim": 8, "scale": 1.0}),
        _points,
        ["last_fc.weight"],
    ),
    "ModelList": (
        lambda a: a.ModelList((a.MLP(XY, ("u",), 2, 8), a.ModifiedMLP(XY, ("v",), 2, 8))),
        _points,
        ["model_list.0.last_fc.weight", "model_list.1.last_fc.weight"],
    ),
    "SPINN": (
        lambda a: a.SPINN(XY, UV, 4, 2, 8),
        _xy,
        ["branch_nets.0.last_fc.weight", "branch_nets.1.last_fc.weight"],
    ),
    "DeepONet": (
        lambda a: a.DeepONet("x", "y", "G", 1, 6, 1, 1, 8, 8),
        _points,
        ["branch_net.last_fc.weight", "trunk_net.last_fc.weight"],
    ),
    "ChipDeepONets": (
        lambda a: a.ChipDeepONets(("b",), ("t",), ("c",), XY, ("T",), 6, 1, 5, 7, 1, 1, 1, 8, 8, 8),
        lambda: {
            **_points(),
            "b": paddle.rand([5, 6]),
            "t": paddle.rand([5, 1]),
            "c": paddle.rand([5, 5]),
        },
        [f"{part}.last_fc.weight" for part in ("branch_net", "BCtype_net", "BC_net", "trunk_net")],
    ),
    "HEDeepONets": (
        lambda a: a.HEDeepONets(("h",), ("c",), XY, ("Th", "Tc", "Tw"), 1, 1, 4, 1, 1, 8, 8),
        lambda: {**_points(), "h": paddle.rand([5, 1]), "c": paddle.rand([5, 1])},
        [f"{part}.last_fc.weight" for part in ("heat_net", "cold_net", "trunk_net")],
    ),
    "AFNONet": (
        lambda a: _afno(a, a.AFNONet),
        lambda: {"i": paddle.rand([2, 2, 16, 16])},
        ["head.weight"],
    ),
    "PrecipNet": (
        lambda a: _afno(a, a.PrecipNet, _afno(a, a.AFNONet)),
        lambda: {"i": paddle.randn([2, 2, 16, 16])},
        ["conv.weight"],
    ),
    "AMGNet": (
        lambda a: a.AMGNet(("i",), ("p",), 5, 3, 8, 1, "sum", 1, "norm"),
        None,
        ["decoder.model.layers.linear_1.weight"],
    ),
    "AutoEncoder": (
        lambda a: a.AutoEncoder(("i",), ("mu", "log_sigma", "z"), 10, 3, 6),
        lambda: {"i": paddle.rand([5, 10])},
        ["_encoder_linear.0.weight"],
    ),
    "CrystalGraphConvNet": (
        lambda a: a.CrystalGraphConvNet(9, 4, 8, 1, 8, 1),
        _crystal,
        ["fc_out.weight"],
    ),
    "CuboidTransformer": (
        lambda a: a.CuboidTransformer(
            ("i",),
            ("o",),
            (2, 8, 8, 1),
            (2, 8, 8, 1),
            base_units=16,
            num_heads=2,
            enc_depth=[1, 1],
            dec_depth=[1, 1],
            enc_attn_patterns="axial",
            dec_self_attn_patterns="axial",
            dec_cross_attn_patterns="cross_1x1",
            num_global_vectors=0,
            initial_downsample_scale=[1, 1, 1],
            initial_downsample_activation="leaky_relu",
            ffn_activation="gelu",
        ),
        None,
        ["dec_final_proj.weight"],
    ),
    "CVit": (
        lambda a: a.CVit(
            ("u", "y"), ("s",), 2, 2, (2, 16, 16), (1, 8, 8), (4, 4), 8, 8, 1, 2, 8, 2, out_dim=3
        ),
        lambda: {"u": paddle.rand([2, 2, 16, 16, 2]), "y": paddle.rand([2, 6, 2])},
        ["final_mlp.linear_out.weight"],
    ),
    "CVit1D": (
        lambda a: a.CVit1D(("u", "y"), ("s",), 16, 1, 1, (4,), (8,), 8, 8, 1, 2, 8, 2),
        lambda: {"u": paddle.rand([2, 16, 1]), "y": paddle.rand([2, 6, 1])},
        ["final_mlp.linear_out.weight"],
    ),
    "DeepPhyLSTM": (lambda a: a.DeepPhyLSTM(1, 2, 4, 2), None, ["lstm_model.7.weight"]),
    "DGMR": (
        lambda a: a.DGMR(
            ("i",), ("o",), 1, 1, 64, latent_channels=320, context_channels=160, num_samples=1
        ),
        lambda: {"i": paddle.rand([1, 4, 1, 64, 64])},
        ["sampler.conv_1x1.weight_orig"],
    ),
    "Epnn": (
        lambda a: a.Epnn(("x",), UV, [5, 4, 2], ["tanh", "tanh"], 0.0),
        lambda: {"x": paddle.rand([3, 5])},
        ["layers.1.weight"],
    ),
    "FNO1d": (
        lambda a: a.FNO1d(modes=3, width=4, padding=2, output_np=9),
        lambda: {"input": paddle.rand([2, 9, 2])},
        ["fc2.weight"],
    ),
    "Generator": (
        lambda a: a.Generator(
            ("i",),
            ("o",),
            1,
            ((2, 4, 4), (2, 1, 1)),
            (((3, 3), (3, 3), (1, 1)),) * 2,
            ((1, 1, 1),) * 2,
            ((False,) * 3,) * 2,
            (("relu", None, None),) * 2,
        ),
        lambda: {"i": paddle.rand([2, 1, 8, 8])},
        ["blocks.1.conv_2d_2.conv_2d.weight"],
    ),
    "GraphCastNet": (
        lambda a: a.GraphCastNet(("i",), ("o",), 4, 3, 8, 4, 3, 8, 2, 8, 2, 8, 2, 8, 1, 3),
        None,
        ["graphcast.decoder.grid_node_layer.mlp.2.weight"],
    ),
    "LNO": (_lno, lambda: {"x": paddle.rand([1, 5, 4, 3, 1])}, ["fc2.weight"]),
    "NowcastNet": (
        lambda a: a.NowcastNet(("i",), ("o",), 9, 29, 64, 64, 2, 32),
        None,
        ["gen_dec.conv_img.weight"],
    ),
    "PhyCRNet": (
        lambda a: a.PhyCRNet(
            2, [8, 16, 32, 128], [4, 4, 4, 3], [2, 2, 2, 1], [1, 1, 1, 1], 0.002, [3, 1], 8
        ),
        None,
        ["output_layer.weight"],
    ),
    "PhysformerGPT2": (
        lambda a: a.PhysformerGPT2(("e",), ("p",), 1, 8, 8, 2),
        lambda: {"e": paddle.rand([2, 4, 8])},
        ["linear.weight"],
    ),
    "SFNONet": (
        lambda a: a.SFNONet(("x",), ("y",), (4, 4), 8, 1, 1, 8, 8, 1, factorization="dense"),
        lambda: {"x": _cube(8, 8)},
        ["projection.fcs.1.weight"],
    ),
    "TFNO1dNet": (
        lambda a: a.TFNO1dNet(("x",), ("y",), 4, 8, 1, 1, 8, 8, 1),
        None,
        ["projection.fcs.1.weight"],
    ),
    "TFNO2dNet": (
        lambda a: a.TFNO2dNet(("x",), ("y",), 4, 4, 8, 1, 1, 8, 8, 1),
        lambda: {"x": _cube(8, 8)},
        ["projection.fcs.1.weight"],
    ),
    "TFNO3dNet": (
        lambda a: a.TFNO3dNet(("x",), ("y",), 4, 4, 4, 8, 1, 1, 8, 8, 1),
        None,
        ["projection.fcs.1.weight"],
    ),
    "Transformer": (
        lambda a: a.Transformer(("i", "t"), ("o",), 3, 6, 5, 8, 2, 1, 1),
        lambda: {"i": paddle.rand([2, 4, 3, 1]), "t": paddle.randint(1, 6, [2, 5])},
        ["last_layer.weight"],
    ),
    "UNetEx": (
        lambda a: a.UNetEx(
            "i", "o", 2, 3, 3, (4, 8), 1, weight_norm=False, batch_norm=False, activation=None
        ),
        lambda: {"i": paddle.rand([2, 2, 8, 8])},
        ["decoders.2.1.0.0.weight"],
    ),
    "UNONet": (
        lambda a: a.UNONet(
            ("x",), ("y",), 1, 1, 4, 4, 4, 2, (4, 4), ((4, 4),) * 2, ((1.0, 1.0),) * 2
        ),
        lambda: {"x": _cube(8, 8)},
        ["projection.fcs.1.weight"],
    ),
    "USCNN": (
        lambda a: a.USCNN(["c"], ["o"], [4, 4, 4], h=0.01, ny=9, nx=12, nvar_in=2),
        lambda: {"c": paddle.rand([1, 2, 7, 10])},
        ["conv4.weight"],
    ),
    "VelocityDiscriminator": (
        lambda a: a.VelocityDiscriminator(("i",), ("o",), 2, 2, 2, 2),
        lambda: {"i": _cube(70, 70)},
        ["discriminator.convblock5.layers.0.weight"],
    ),
    "VelocityGenerator": (
        lambda a: a.VelocityGenerator(("i",), ("o",), 2, 2, 2, 2, 2),
        lambda: {"i": paddle.rand([1, 5, 1000, 70])},
        ["generator.deconv6.layers.0.weight"],
    ),
    "RegDGCNN": (
        lambda a: a.RegDGCNN(("v",), ("c",), ("w",), {"k": 3, "emb_dims": 8, "dropout": 0.0}),
        lambda: {"v": paddle.rand([2, 6, 3])},
        ["linear5.weight"],
    ),
    "RegPointNet": (
        lambda a: a.RegPointNet(("v",), ("c",), ("w",), {"emb_dims": 8, "dropout": 0.0}),
        lambda: {"v": paddle.rand([2, 6, 3])},
        ["final_linear.weight"],
    ),
    "IFMMLP": (
        lambda a: a.IFMMLP(("x",), ("y",), [8, 8, 8], "IFM", 4, 2, 3, 0.1, 0.0, False, 1.0, 1.0),
        lambda: {"x": paddle.rand([3, 4])},
        ["model.output.weight"],
    ),
}
NOT_RUN = {
    "AMGNet": "needs a graph of pgl",
    "CuboidTransformer": "multiplies floats by booleans, which Paddle 3.3 refuses",
    "DeepPhyLSTM": "passes an LSTM's tuple to ReLU",
    "GraphCastNet": "needs its weather data",
    "NowcastNet": "runs on a GPU only",
    "PhyCRNet": "runs on a GPU only",
    "TFNO1dNet": "fails in ppsci 1.4.0",
    "TFNO3dNet": "fails in ppsci 1.4.0",
}
NOT_BUILT = {"CFDGCN"}  # needs pgl and SU2
NEEDS_SHARED = {
    "CylinderEmbedding",
    "Discriminator",
    "ExtFormerMoECuboid",
    "LorenzEmbedding",
    "MoFlowNet",
    "MoFlowProp",
    "RosslerEmbedding",
}


@pytest.fixture
def arch():
    pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")
    import ppsci

    return ppsci.arch


def test_every_architecture_is_accounted_for(arch):
    classes = {name for name in arch.__all__ if isinstance(getattr(arch, name), type)} - {"Arch"}
    assert classes == {*FOUND, *NOT_BUILT, *NEEDS_SHARED}
    assert {name for name, (_, data, _) in FOUND.items() if data is None} == set(NOT_RUN)
    in_table = {name.rpartition(".")[2] for name in shared_layer._OF_PPSCI}
    assert in_table == {*FOUND, *NOT_BUILT}


@pytest.mark.parametrize("name", FOUND)
def test_the_shared_layer_of_an_architecture_is_found(arch, name):
    build, data, expected = FOUND[name]
    net = build(arch)
    shared = find_shared(net)
    names = {id(parameter): key for key, parameter in net.named_parameters()}
    assert [names[id(parameter)] for parameter in shared] == expected
    assert [id(p) for p in GradNorm(net, 2, 1.0).balancer.shared] == [id(p) for p in shared]
    if data is None:
        return
    ran = []
    hooks = [
        layer.register_forward_post_hook(lambda layer, ins, outs: ran.append(layer))
        for layer in net.sublayers()
    ]
    outputs = net(data())
    for hook in hooks:  # PaddleScience's networks have their activations in common
        hook.remove()
    for key, output in outputs.items():
        gradients = paddle.grad(
            output.square().sum(), list(shared), retain_graph=True, allow_unused=True
        )
        assert any(g is not None and (g != 0).any() for g in gradients), key
    # And it is the last one: none with weights ran after it, but in the autoencoder, whose
    # first two outputs do not go through the decoder.
    with_weights = [layer for layer in ran if any(w.ndim > 1 for w in layer._parameters.values())]
    last = {id(p) for p in with_weights[-1]._parameters.values()}
    assert (id(shared[-1]) in last) == (name != "AutoEncoder")


def test_factors_of_a_weight_are_shared_together(arch):
    net = arch.MLP(XY, UV, 2, 8, random_weight={"mean": 0.5, "std": 0.1})
    assert find_shared(net) == (net.last_fc.weight_v, net.last_fc.weight_g)


def test_a_class_derived_from_an_architecture_is_known(arch):
    class Mine(arch.MLP):
        pass

    net = Mine(XY, UV, 2, 8)
    assert find_shared(net) == (net.last_fc.weight,)
    assert find_shared(arch.ModelList((net,))) == (net.last_fc.weight,)


def test_an_architecture_without_one_says_what_to_pass(arch):
    net = arch.LorenzEmbedding(("s",), ("p", "r", "k"))
    for net_ in (net, arch.ModelList((net,))):
        with pytest.raises(ValueError, match=r"LorenzEmbedding has neither .* pass shared="):
            find_shared(net_)
