"""The PyTorch side of step_cost.py: a plain step, gradnorm-pytorch and TorchJD from PyPI."""

from __future__ import annotations

import os
from importlib.metadata import version

import torch
from gradnorm_pytorch import GradNormLossWeighter
from step_cost_worker import ALPHA, LAYERS, LEARNING_RATE, WEIGHT_LR, WIDTH, Case, Run, serve
from torchjd.aggregation import ConFIG, UPGrad
from torchjd.autojac import backward, jac_to_grad

PACKAGES = ("gradnorm-pytorch", "torchjd")
DIRECTIONS = {"config": ConFIG, "upgrad": UPGrad}


def build(case: Case, mode: str) -> Run:
    """The step of this mode, ready to run."""
    torch.manual_seed(0)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    weighter = GradNormLossWeighter(
        num_losses=case.losses,
        learning_rate=WEIGHT_LR,
        restoring_force_alpha=ALPHA,
        grad_norm_parameters=net[-1].weight,
    )
    direction = DIRECTIONS[mode]() if mode in DIRECTIONS else None
    parameters = list(net.parameters())
    parts = [torch.from_numpy(points).requires_grad_() for points in case.interior()]
    edge, values = (torch.from_numpy(array) for array in case.boundary())

    def run(steps: int) -> None:
        for _ in range(steps):
            losses = [laplacian(net, points).square().mean() for points in parts]
            losses.append((net(edge) - values).square().mean())
            if mode == "plain":
                # Into the parameters alone, as the other frameworks do; the points need none.
                sum(losses).backward(inputs=parameters)
            elif direction is not None:
                # One loss after the other, because on a CPU vmap takes longer.
                backward(losses, inputs=parameters, parallel_chunk_size=1)
                jac_to_grad(parameters, direction)
            else:
                weighter.backward(losses)
                for points in parts:
                    points.grad = None
            optimizer.step()
            optimizer.zero_grad()
            losses = None  # as on the Paddle side

    return run


def network() -> torch.nn.Sequential:
    sizes = [2] + [WIDTH] * (LAYERS - 1) + [1]
    layers: list[torch.nn.Module] = []
    for fan_in, fan_out in zip(sizes, sizes[1:]):
        linear = torch.nn.Linear(fan_in, fan_out)
        torch.nn.init.xavier_uniform_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        layers += [linear, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


def laplacian(net: torch.nn.Module, points: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(net(points).sum(), points, create_graph=True)
    seconds = [
        torch.autograd.grad(gradient[:, k].sum(), points, create_graph=True)[0][:, k : k + 1]
        for k in range(2)
    ]
    return seconds[0] + seconds[1]


if __name__ == "__main__":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    versions = {"torch": torch.__version__, **{n: version(n) for n in PACKAGES}}
    serve(build, {"versions": versions, "settings": f"{torch.get_num_threads()} threads"})
