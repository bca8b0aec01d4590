"""The Paddle side of step_cost.py; `--tune` calls tune_cpu(), `--build` too builds operators."""

from __future__ import annotations

import sys
from typing import Any, Callable

import sympy
from step_cost_worker import ALPHA, LEARNING_RATE, WEIGHT_LR, Case, Run, serve

import paddlescience_gradnorm
from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.balancing import RULES
from paddlescience_gradnorm.pde import Residual

import paddle  # isort: skip, after the package that sees to its loading

# What GradNorm is built with; the plain step has none.
OPTIONS: dict[str, dict[str, Any]] = {
    "gradnorm_pinn": {"equations": [0]},
    "gradnorm": {"alpha": ALPHA},
    "gradnorm_own": {"alpha": ALPHA, "weight_lr": WEIGHT_LR},
    "gradnorm_every_10": {"alpha": ALPHA, "update_every": 10},
    "gradnorm_pinn_every_30": {"equations": [0], "update_every": 30},
    "two_pass": {"alpha": ALPHA},
}


def build(case: Case, mode: str) -> Run:
    """The step of this mode, ready to run; a rule's name is a mode too."""
    paddle.seed(0)
    n_fields = 1 if case.equation == "laplace" else 3
    net: paddle.nn.Layer = FCNet(2, n_fields, case.layers, case.width)
    if mode in OPTIONS:
        net = GradNorm(net, n_loss=case.losses, **OPTIONS[mode])
    elif mode in RULES:
        # Rules that take statistics of gradients do so in every tenth step, whatever their default.
        own = RULES[mode]
        every = 10 if own.needs and not own.acts_now and not own.keeps_sum else 1
        options = {"equations": list(range(case.losses - 1)), "update_every": every}
        net = GradNorm(net, n_loss=case.losses, rule=mode, **options)
    optimizer = paddle.optimizer.Adam(LEARNING_RATE, parameters=net.parameters())
    losses_of = laplace(case) if case.equation == "laplace" else navier_stokes(case)

    def run(steps: int) -> None:
        for _ in range(steps):
            # Behind a lambda a network cannot be asked for its derivatives.
            losses = losses_of((lambda points: net(points)) if mode == "nested" else net)
            if mode in ("plain", "nested"):
                sum(losses).backward()
            elif mode == "two_pass":
                weighted = (net.loss_weights * paddle.stack(losses)).sum()
                weighted.backward(retain_graph=True)
                net.get_grad_norm_loss(losses)
            else:
                net.backward(losses)
            optimizer.step()
            optimizer.clear_grad()
            # Else the plain step's graph would still stand while the next one is built.
            # GradNorm.backward detaches its losses; nobody shall win by that here.
            losses = weighted = None

    return run


Losses = Callable[[paddle.nn.Layer], "list[paddle.Tensor]"]


def laplace(case: Case) -> Losses:
    x, y = sympy.symbols("x y")
    u = sympy.Function("u")
    residual = Residual(u(x, y).diff(x, 2) + u(x, y).diff(y, 2), inputs=(x, y), outputs=(u,))
    parts = [paddle.to_tensor(points) for points in case.interior()]
    edge, values = (paddle.to_tensor(array) for array in case.boundary())

    def losses(net: paddle.nn.Layer) -> list[paddle.Tensor]:
        inside = [residual(net, points).square().mean() for points in parts]
        return [*inside, (net(edge) - values).square().mean()]

    return losses


def navier_stokes(case: Case) -> Losses:
    """Steady flow in two dimensions: continuity and two momenta."""
    x, y = sympy.symbols("x y")
    u, v, p = (sympy.Function(name) for name in "uvp")
    fields = (u(x, y), v(x, y))

    def momentum(field: sympy.Expr, axis: sympy.Symbol) -> sympy.Expr:
        convection = fields[0] * field.diff(x) + fields[1] * field.diff(y)
        return convection + p(x, y).diff(axis) - (field.diff(x, 2) + field.diff(y, 2)) / 100

    system = [
        fields[0].diff(x) + fields[1].diff(y),
        momentum(fields[0], x),
        momentum(fields[1], y),
    ]
    residual = Residual(system, inputs=(x, y), outputs=(u, v, p))
    (points,) = (paddle.to_tensor(points) for points in case.interior())
    return lambda net: [r.square().mean() for r in residual(net, points)]


if __name__ == "__main__":
    settings = "as installed"
    if "--tune" in sys.argv:
        from paddlescience_gradnorm.runtime import tune_cpu

        lines = str(tune_cpu(build="--build" in sys.argv)).splitlines()
        settings = "tune_cpu(): " + "; ".join(" ".join(line.split()) for line in lines)
    versions = {
        "paddle": paddle.__version__,
        "paddlescience_gradnorm": paddlescience_gradnorm.__version__,
    }
    serve(build, {"versions": versions, "settings": settings})
