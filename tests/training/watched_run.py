"""A run in several processes, one of which fails; tests kill them, and resume.

    python watched_run.py FOLDER EPOCHS EVERY [FAULT RANK STEP]

Prints its process number when it begins, and a line after every step. Ends with all numbers in
FOLDER/RANK.npz.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from paddlescience_gradnorm import FCNet, GradNorm, ranks
from paddlescience_gradnorm.training import Checkpoints, Trainer, Watchdog

import paddle  # isort: skip, after the package that sees to its loading


class PrintSteps(paddle.callbacks.Callback):
    def on_train_batch_end(self, step, logs=None):
        print("step", self.model.step, flush=True)


def have(fault):
    """What may happen to a process; the factor of a loss."""
    print("fault", flush=True)
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "raise":
        raise KeyError("of a program")
    while fault == "hang":
        pass
    return float("nan")


def main(folder, epochs, every, fault=None, in_rank=None, in_step=None):
    paddle.distributed.init_parallel_env()
    rank = paddle.distributed.get_rank()
    paddle.set_default_dtype("float64")
    paddle.seed(0)
    net = FCNet(2, 1, 3, 8)
    # The same plan in every run, however many steps it is asked for.
    model = GradNorm(paddle.DataParallel(net), update_every=2, total_steps=100)
    points = np.random.default_rng(0)

    def losses(model):
        inside, edge = (paddle.to_tensor(points.random((n, 2))) for n in (16, 6))
        failing = fault if (rank, trainer.step + 1) == (in_rank, in_step) else None
        factor = have(failing) if failing else 1.0
        pde = ranks.mean(lambda x: (model(x) - 1).square(), inside)
        if failing == "nan gradient":  # the derivative of a root at 0
            pde, factor = pde + (pde * 0).sqrt(), 1.0
        edge = ranks.mean(lambda x: (model(x) - x[:, :1]).square(), edge)
        return {"pde": factor * pde, "edge": edge}

    optimizer = paddle.optimizer.Adam(1e-2, parameters=model.parameters())
    checkpoints = Checkpoints(folder, every=every)
    # Without a fault on a busy machine a step may take as long as one that hangs.
    with Watchdog(checkpoints, seconds=6 if fault else 60) as watchdog:
        trainer = Trainer(
            model, losses, optimizer, callbacks=[watchdog, PrintSteps()], extras={"points": points}
        )
        print("process", os.getpid(), flush=True)
        trainer.fit(epochs=epochs, checkpoints=checkpoints, resume="latest")
    np.savez(
        folder / f"{rank}.npz",
        weights=trainer.history.to_numpy()["weights"],
        parameters=np.concatenate([p.numpy().ravel() for p in net.parameters()]),
    )


if __name__ == "__main__":
    folder, epochs, every, *fault = sys.argv[1:]
    fault = [fault[0], *map(int, fault[1:])] if fault else []
    main(Path(folder), int(epochs), int(every), *fault)
