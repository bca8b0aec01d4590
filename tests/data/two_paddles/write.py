"""How the files in this folder were made: a run to step 8 on each Paddle, and its next steps.

    PYTHONPATH=ROOT python write.py

Each Paddle writes files that end with its version. The test loads those of both.
"""

from pathlib import Path

import numpy as np

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.training import Trainer

import paddle  # isort: skip, after the package that sees to its loading

FOLDER = Path(__file__).parent


def make(**options):
    """A run that draws from Paddle and from numpy, in float64."""
    paddle.set_default_dtype("float64")
    net = GradNorm(FCNet(2, 1, 3, 6), **options)
    points = np.random.default_rng(0)

    def losses(net):
        inside, edge = paddle.to_tensor(points.random((6, 2))), paddle.rand([4, 2])
        return {
            "pde": (net(inside) - 1).square().mean(),
            "edge": (net(edge) - edge[:, :1]).square().mean(),
        }

    schedule = paddle.optimizer.lr.LinearWarmup(
        paddle.optimizer.lr.CosineAnnealingDecay(1e-2, 50), 10, 0.0, 1e-2
    )
    optimizers = [paddle.optimizer.AdamW(schedule, parameters=net.net.parameters())]
    if options.get("weight_lr", 0.01) is None:
        optimizers.append(paddle.optimizer.Adam(1e-2, parameters=[net.loss_weights]))
    return Trainer(net, losses, optimizers, extras={"points": points})


RUNS = {
    "pinn": {"update_every": 2},
    "published": {"n_loss": 2, "alpha": 1.0, "weight_lr": None},
}


def finished(trainer):
    """The numbers of a run after 8 steps more."""
    history = trainer.fit(epochs=8).to_numpy()
    parameters = [p.numpy().ravel() for p in trainer.net.net.parameters()]
    return {
        "losses": history["losses"],
        "weights": history["weights"],
        "parameters": np.concatenate(parameters),
        "drawn": paddle.rand([2]).numpy(),
    }


if __name__ == "__main__":
    for name, options in RUNS.items():
        paddle.seed(0)
        trainer = make(**options)
        trainer.fit(epochs=8)
        trainer.save(FOLDER / f"{name}_{paddle.__version__}.ckpt")
        np.savez(FOLDER / f"{name}_{paddle.__version__}.npz", **finished(trainer))
