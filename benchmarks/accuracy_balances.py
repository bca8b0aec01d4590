"""What accuracy.py compares: the rules of the package, and PaddleScience's loss aggregators."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import paddle

from paddlescience_gradnorm import GradNorm
from paddlescience_gradnorm.balancing import DualBalance, Fixed, PinnRule, find_rule
from paddlescience_gradnorm.balancing.rules import RULES
from paddlescience_gradnorm.command_line import ALPHA

FIXED = 50.0  # what a user might guess
OF_PPSCI = {"ppsci_relobralo": "Relobralo", "ppsci_gradnorm": "GradNorm", "ppsci_ntk": "NTK"}
# What DB-PINN compares the gradients by, and the intervals of its authors where they are not 10.
DUAL_BALANCE = {
    "dual_balance": "mean",
    "dual_balance_std": "std",
    "dual_balance_kurtosis": "kurtosis",
}
DB_PINN_EVERY = {"wave": 50, "allen_cahn": 100, "klein_gordon": 100}
BALANCES = list(dict.fromkeys([*RULES, *DUAL_BALANCE, *OF_PPSCI]))
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
    "dual_balance_std": "DB-PINN, std",
    "dual_balance_kurtosis": "DB-PINN, kurtosis",
    "directed": "PINN rule, then ConFIG",
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
    name: str, options: Mapping[str, Any], net: Any, kinds: Mapping[str, str], problem: str
) -> tuple[paddle.nn.Layer, OfPaddleScience | None]:
    """The network to train, and what balances it if it does not do so itself.

    Args:
        name: Of ``BALANCES``, or of a PINN rule with options.
        options: Of ``PinnRule``; ``lr`` is the weights' rate, ``update_every`` the balancer's, and
            ``shared="last"`` the last layer.
        net: The network.
        kinds: Loss -> its kind, in the order of the losses.
        problem: Its name.
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
        rule = Fixed([1.0 if loss in equations else FIXED for loss in kinds])
    elif name in DUAL_BALANCE:
        more["update_every"] = DB_PINN_EVERY.get(problem)
        rule = DualBalance(DUAL_BALANCE[name])
    else:
        rule = find_rule(name, ALPHA if name == "published" else None)
    return GradNorm(net, len(kinds), rule=rule, **more), None


def usual(names: Sequence[str]) -> list[str]:
    """Those that need no PaddleScience, without DB-PINN's other statistics."""
    variants = set(DUAL_BALANCE) - {"dual_balance"}
    return [name for name in names if name not in OF_PPSCI and name not in variants]
