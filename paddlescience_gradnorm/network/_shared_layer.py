"""Finds the shared parameters: those that the caller names, or the network's own."""

from __future__ import annotations

from typing import Any

import paddle

from paddlescience_gradnorm.balancing._faults import warn_the_caller
from paddlescience_gradnorm.balancing._options import shared_parameters
from paddlescience_gradnorm.balancing.rule import Rule

_HOOKS = ("get_last_shared_layer", "get_shared_layer")

# The last shared layer of PaddleScience's architectures (ppsci.arch): the last weights in each of
# these sublayers; * means all of a list. Classes whose outputs share no layer are left out.
_OF_PPSCI = {
    "afno.AFNONet": ["head"],
    "afno.PrecipNet": ["conv"],
    "amgnet.AMGNet": ["decoder"],
    "cfdgcn.CFDGCN": ["convs"],
    "chip_deeponets.ChipDeepONets": ["branch_net", "BCtype_net", "BC_net", "trunk_net"],
    "crystalgraphconvnet.CrystalGraphConvNet": ["fc_out"],
    "cuboid_transformer.CuboidTransformer": ["dec_final_proj"],
    "cvit.CVit": ["final_mlp"],
    "cvit.CVit1D": ["final_mlp"],
    "deeponet.DeepONet": ["branch_net", "trunk_net"],
    "dgmr.DGMR": ["sampler.conv_1x1"],
    "epnn.Epnn": ["layers"],
    "gan.Generator": ["blocks"],
    "geofno.FNO1d": ["fc2"],
    "graphcast.GraphCastNet": ["graphcast.decoder.grid_node_layer"],
    "he_deeponets.HEDeepONets": ["heat_net", "cold_net", "trunk_net"],
    "ifm_mlp.IFMMLP": ["model.output"],
    "lno.LNO": ["fc2"],
    "mlp.MLP": ["last_fc"],
    "mlp.ModifiedMLP": ["last_fc"],
    "mlp.PirateNet": ["last_fc"],
    "model_list.ModelList": ["model_list.*"],
    "nowcastnet.NowcastNet": ["gen_dec.conv_img"],
    "phycrnet.PhyCRNet": ["output_layer"],
    "phylstm.DeepPhyLSTM": ["lstm_model"],
    "physx_transformer.PhysformerGPT2": ["linear"],
    "regdgcnn.RegDGCNN": ["linear5"],
    "regpointnet.RegPointNet": ["final_linear"],
    "sfnonet.SFNONet": ["projection"],
    "spinn.SPINN": ["branch_nets.*"],
    "tfnonet.TFNO1dNet": ["projection"],
    "tfnonet.TFNO2dNet": ["projection"],
    "tfnonet.TFNO3dNet": ["projection"],
    "transformer.Transformer": ["last_layer"],
    "unetex.UNetEx": ["decoders"],
    "unonet.UNONet": ["projection"],
    "uscnn.USCNN": ["conv4"],
    "vae.AutoEncoder": ["_encoder_linear"],
    "velocitygan.VelocityDiscriminator": ["discriminator"],
    "velocitygan.VelocityGenerator": ["generator"],
}


def find_shared(
    net: paddle.nn.Layer, shared: Any = None, rule: Rule | None = None
) -> tuple[paddle.Tensor, ...]:
    """As ``_find_shared``, with a warning if a rule combines gradients of a part of the network.

    Warns:
        RuntimeWarning: The rule combines gradients, and ``shared`` lacks trained parameters.
    """
    found = _find_shared(net, shared, rule)
    if rule is not None and rule.acts_now:
        trained = [p for p in net.parameters() if not p.stop_gradient]
        held = len({id(p) for p in trained} & {id(p) for p in found})
        if held < len(trained):
            warn_the_caller(
                f"shared holds {held} of the network's {len(trained)} trained parameters, and "
                f"{rule} combines the gradients of these alone: the others get that of the plain "
                "sum of the losses. Unless each of them belongs to one loss only, pass shared='all'"
            )
    return found


def _find_shared(net: paddle.nn.Layer, shared: Any, rule: Rule | None) -> tuple[paddle.Tensor, ...]:
    """The trainable shared parameters W of a network.

    Args:
        net: The network.
        shared: A parameter, a layer, a list of either, a callable that picks one of
            these from the network, or ``"all"``. The rule sets the default: all parameters, or
            the last shared layer. That layer is what the network's ``get_last_shared_layer()``
            or else ``get_shared_layer()`` returns. A PaddleScience architecture needs neither.
        rule: The balancing rule.

    Raises:
        TypeError: ``shared`` holds something else.
        ValueError: No shared layer is found, or nothing in it is trainable.

    Examples:
        >>> from paddlescience_gradnorm import FCNet
        >>> [list(parameter.shape) for parameter in find_shared(FCNet(2, 1, 3, 16))]
        [[16, 1]]
    """
    net = unwrapped_of_ranks(net)
    if shared is None and rule is not None and rule.on_all_parameters:
        shared = "all"
    if shared is None:
        for hook in _HOOKS:
            if hasattr(net, hook):
                return shared_parameters(getattr(net, hook)())
        return shared_parameters(_last_weights(net))
    if isinstance(shared, str):
        if shared != "all":
            raise ValueError(
                f"shared as a string can only be 'all', got {shared!r}; pass the "
                "parameter or layer itself"
            )
        return shared_parameters(net)
    if callable(shared) and not isinstance(shared, (paddle.nn.Layer, paddle.Tensor)):
        shared = shared(net)
    return shared_parameters(shared)


def unwrapped_of_ranks(net: Any) -> Any:
    """The network within ``paddle.DataParallel``."""
    while isinstance(net, paddle.DataParallel):
        (net,) = net.children()
    return net


def _last_weights(net: paddle.nn.Layer) -> list[paddle.Tensor]:
    """The last weights of a PaddleScience architecture, or of a class derived from one."""
    for name in _names_in_ppsci(net):
        if name in _OF_PPSCI:
            layers = [layer for path in _OF_PPSCI[name] for layer in _sublayers(net, path)]
            return [weight for layer in layers for weight in _weights_of_the_last(layer)]
    raise ValueError(
        f"{type(net).__name__} has neither get_last_shared_layer() nor "
        "get_shared_layer(); pass shared=, the parameter or layer that all losses "
        "go through last (a parameter, a layer, a list of either, a callable on "
        "the network, or 'all')"
    )


def _names_in_ppsci(layer: paddle.nn.Layer) -> list[str]:
    """The layer's classes as named in the table; by name, so that nothing imports ppsci."""
    names = (f"{cls.__module__}.{cls.__name__}" for cls in type(layer).__mro__)
    return [name[len("ppsci.arch.") :] for name in names if name.startswith("ppsci.arch.")]


def _sublayers(layer: Any, path: str) -> list[paddle.nn.Layer]:
    name, _, rest = path.partition(".")
    if not name:
        return [layer]
    found = list(layer) if name == "*" else [getattr(layer, name)]
    return [sublayer for each in found for sublayer in _sublayers(each, rest)]


def _weights_of_the_last(layer: paddle.nn.Layer) -> list[paddle.Tensor]:
    """The weights, without bias, of the last sublayer that has any.

    There are several if a weight is stored in factors, as in weight normalisation.
    """
    if "base.Arch" in _names_in_ppsci(layer):
        return _last_weights(layer)  # a part that is an architecture itself
    for sublayer in reversed(layer.sublayers(include_self=True)):
        own = paddle.nn.Layer.named_parameters(sublayer, include_sublayers=False)
        weights = [p for name, p in own if "bias" not in name]
        if any(p.ndim >= 2 for p in weights):
            return weights
    raise ValueError(f"{type(layer).__name__} has no weights; pass shared=")
