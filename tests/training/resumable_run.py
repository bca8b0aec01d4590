"""A training run in a process of its own, which tests kill and resume.

    python resumable_run.py FOLDER EPOCHS EVERY [FUNCTION NUMBER SIGNAL ...]

Prints a line when it begins and one after every step. With the last arguments it sends itself
the signals at that call of a function of the module os, which may be within a save.

It draws from every kind of random generator, its batches come shuffled, the weights have an
optimizer and a schedule of their own, and a coefficient of the problem is in no layer. Ends
with all numbers in FOLDER/result.npz.
"""

import os
import random
import signal
import sys
from pathlib import Path

import numpy as np

from paddlescience_gradnorm import FCNet, LossBalancer
from paddlescience_gradnorm.training import Checkpoints, StopOnSignals, Trainer

import paddle  # isort: skip, after the package that sees to its loading


class PrintSteps(paddle.callbacks.Callback):
    def on_train_batch_end(self, step, logs=None):
        print(self.model.step, flush=True)


def signal_at(name, number, signals):
    """Have the process get the signals before the call of ``os.name`` of this number."""
    function, left = getattr(os, name), [number]

    def deadly(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            for each in signals:
                # To this thread. Two signals that wait for another would be one.
                signal.raise_signal(getattr(signal, each))
        return function(*args, **kwargs)

    setattr(os, name, deadly)


def main(folder, epochs, every):
    checkpoints = Checkpoints(Path(folder) / "checkpoints", every=every)
    seed = len(checkpoints.paths())
    for _ in range(seed):  # a resumed process gives the parameters other names,
        paddle.nn.Linear(3, 3)
    for generator in (paddle, np.random, random):  # and has drawn other numbers
        generator.seed(seed)
    net = paddle.nn.Sequential(FCNet(2, 8, 2, 8), paddle.nn.Dropout(0.2), paddle.nn.Linear(8, 1))
    balancer = LossBalancer(net[2], 3, alpha=1.0, weight_lr=None, update_every=2)
    coefficient = paddle.create_parameter([1], "float32")
    points = np.random.default_rng(seed)

    def losses(net, batch):
        noise = random.gauss(0, 0.1) + paddle.rand([1]) + np.random.rand()
        x = paddle.to_tensor(points.random((4, 2)), dtype="float32")
        return {
            "data": (net(batch) - batch.sum(1, keepdim=True)).square().mean(),
            "inside": 30 * (net(x) - coefficient * noise).square().mean(),
            "size": 1e-3 * (net(x) - 1).square().mean(),
        }

    schedule = paddle.optimizer.lr.LinearWarmup(
        paddle.optimizer.lr.CosineAnnealingDecay(1e-2, 500), 20, 0.0, 1e-2
    )
    groups = [
        {"params": net.parameters()},
        {"params": [coefficient], "learning_rate": 0.1},
    ]
    optimizers = [
        paddle.optimizer.AdamW(schedule, parameters=groups),
        paddle.optimizer.Momentum(
            paddle.optimizer.lr.ExponentialDecay(1e-4, 0.99), parameters=balancer.parameters()
        ),
    ]
    inputs = paddle.linspace(0, 1, 80).reshape([40, 2])
    data = paddle.io.TensorDataset([inputs])
    batches = paddle.io.DataLoader(
        data, batch_size=8, shuffle=True, use_buffer_reader=False, return_list=True
    )
    stop = StopOnSignals()
    trainer = Trainer(
        net, losses, optimizers, balancer, callbacks=[PrintSteps(), stop], extras={"points": points}
    )
    with stop:
        print("ready", flush=True)
        trainer.fit(batches, epochs, checkpoints=checkpoints, resume="latest")
    if stop.received:
        return stop.exit_code
    trained = net.state_dict().items()
    np.savez(
        Path(folder) / "result.npz",
        **trainer.history.to_numpy(),
        **{f"net.{name}": tensor.numpy() for name, tensor in trained},
        coefficient=coefficient.numpy(),
        loss_weights=balancer.get_weights(),
        initial_losses=balancer.initial_losses.numpy(),
        drawn=[paddle.rand([1]).item(), random.random(), np.random.rand(), points.random()],
        rate=[optimizer.get_lr() for optimizer in optimizers],
    )
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 4:
        signal_at(sys.argv[4], int(sys.argv[5]), sys.argv[6:])
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
