"""A training run in as many processes as the launcher starts, which tests stop and resume.

    python run_in_ranks.py FOLDER EPOCHS

Every process draws all points from the same generator and takes its share. With 8 processes some
have no point on the edge. Ends with all numbers in FOLDER/RANK.npz.
"""

import sys
from pathlib import Path

import numpy as np

import paddlescience_gradnorm as gradnorm
from paddlescience_gradnorm import ranks
from paddlescience_gradnorm.training import Checkpoints, Trainer

import paddle  # isort: skip, after the package that sees to its loading


def main(folder, epochs):
    several = paddle.distributed.get_world_size() > 1
    if several:
        paddle.distributed.init_parallel_env()
    paddle.set_default_dtype("float64")
    paddle.seed(1 + several)  # of a process that goes on, nothing depends on it
    net = gradnorm.FCNet(2, 1, 3, 8)
    model = gradnorm.GradNorm(
        paddle.DataParallel(net) if several else net, update_every=3, total_steps=20
    )
    points = np.random.default_rng(0)

    def losses(model):
        inside, edge = (paddle.to_tensor(points.random((n, 2))) for n in (13, 5))
        return {
            "pde": 100 * ranks.mean(lambda x: (model(x) - 1).square(), inside),
            "edge": ranks.mean(lambda x, u: (model(x) - u).square(), edge, edge[:, :1]),
        }

    schedule = paddle.optimizer.lr.ExponentialDecay(1e-2, 0.99)
    optimizer = paddle.optimizer.Adam(schedule, parameters=model.parameters())
    trainer = Trainer(model, losses, optimizer, extras={"points": points})
    trainer.fit(epochs=epochs, checkpoints=Checkpoints(folder, every=4), resume="latest")
    moments = sorted(name for name in optimizer.state_dict() if "moment" in name)
    np.savez(
        folder / f"{paddle.distributed.get_rank()}.npz",
        step=trainer.step,
        weights=model.get_weights(),
        leads=np.concatenate([x.ravel() for x in model.balancer.rule_state.values()]),
        parameters=np.concatenate([p.numpy().ravel() for p in net.parameters()]),
        moments=[abs(optimizer.state_dict()[name].numpy()).sum() for name in moments],
        rate=optimizer.get_lr(),
        drawn=points.random(),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
