"""What accuracy.py compares: the rules of the package, and PaddleScience's loss aggregators."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import paddle

from paddlescience_gradnorm import GradNorm
from paddlescience_gradnorm.balancing import Fixed, PinnRule, find_rule
from paddlescience_gradnorm.balancing.rules import RULES

ALPHA = 1.0  # of the published rule
FIXED = 50.0  # what a user might guess
OF_PPSCI = {"ppsci_relobralo": "Relobralo", "ppsci_gradnorm": "GradNorm", "ppsci_ntk": "NTK"}
BALANCES = [*RULES, *OF_PPSCI]
TITLES = {
    **{name: rule.__name__ for name, rule in RULES.items()},
    "equal": "equal weights",
    "fixed": f"conditions x {FIXED:g}",
    "pinn": "GradNorm, PINN rule",
    "published": "GradNorm as published",
    "uncertainty": "uncertainty (Kendall 2018)",
    "augmented_lagrangian": "PECANN-CAPU",
    "lr_annealing": "max/mean (Wang 2021)",
    "inverse_norm": "inverse norm, as in jaxpi",
    "ntk": "NTK, estimated trace",
    "dual_balance": "DB-PINN (Zhou 2025)",
    "imtl_g": "IMTL-G",
    "aligned_mtl": "Aligned-MTL",
    **{name: f"{of_ppsci} (ppsci)" for name, of_ppsci in OF_PPSCI.items()},
}


class OfPaddleScience:
    """A loss aggregator of the ppsci package."""

    def __init__(self, name: str, net: paddle.nn.Layer, n_loss: int) -> None:
        mtl = importlib.import_module("ppsci.loss.mtl")
        build = getattr(mtl, OF_PPSCI[name])
        self.aggregator = build(n_loss) if name == "ppsci_relobralo" else build(net, n_loss)
        self.steps = 0

    def backward(self, losses: Mapping[str, paddle.Tensor]) -> paddle.Tensor:
        total = self.aggregator(dict(losses), self.steps)
        total.backward()
        self.steps += 1
        return total


def balanced(
    name: str, options: Mapping[str, Any], net: Any, kinds: Mapping[str, str]
) -> tuple[paddle.nn.Layer, OfPaddleScience | None]:
    """The network to train, and what balances it if it does not do so itself.

    Args:
        name: Of ``BALANCES``, or of a PINN rule with options.
        options: Of ``PinnRule``; ``lr`` is the weights' rate, ``update_every`` the balancer's, and
            ``shared="last"`` the last layer.
        net: The network.
        kinds: Loss -> its kind, in the order of the losses.
    """
    if name in OF_PPSCI:
        return net, OfPaddleScience(name, net, len(kinds))
    equations = [loss for loss, kind in kinds.items() if kind == "pde"]
    more: dict[str, Any] = {"equations": equations}
    if options:
        left = dict(options)
        more["weight_lr"] = left.pop("lr", 0.01)
        more["update_every"] = left.pop("update_every", None)
        if left.pop("shared", "all") == "last":
            more["shared"] = net.get_last_shared_layer()
        rule = PinnRule(**left)
    elif name == "fixed":
        # From the first step on, in which a rule has not acted yet.
        more["weight_attr"] = [1.0 if loss in equations else FIXED for loss in kinds]
        rule = Fixed(more["weight_attr"])
    else:
        rule = find_rule(name, ALPHA if name == "published" else None)
    return GradNorm(net, len(kinds), rule=rule, **more), None


def without_aggregators(names: Sequence[str]) -> list[str]:
    """Those that need no PaddleScience."""
    return [name for name in names if name not in OF_PPSCI]
