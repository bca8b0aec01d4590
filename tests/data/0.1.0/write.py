"""How the files in this folder were made: by version 0.1.0 itself, on both Paddles.

    git archive 8b80559 paddlescience_gradnorm | tar -x -C FOLDER
    PYTHONPATH=FOLDER python write.py

Commit 8b80559 is the last one of 0.1.0. Each Paddle writes files that end with its version.
"""

import json
from pathlib import Path

import numpy as np

import paddlescience_gradnorm
from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer, RotoGradNorm
from paddlescience_gradnorm.training import RunState, Trainer

import paddle  # isort: skip, after the package that sees to its loading

FOLDER, PADDLE = Path(__file__).parent, paddle.__version__
POINTS = np.linspace(-1, 1, 8).reshape(4, 2).astype("float32")


def losses(net):
    u = net(paddle.to_tensor(POINTS))
    return {"pde": u.square().mean(), "boundary": (u - 1).square().mean()}


def adam(net):
    return paddle.optimizer.Adam(1e-2, parameters=net.parameters())


def result(net, weights):
    return {"output": net(paddle.to_tensor(POINTS)).numpy().ravel().tolist(), "weights": weights}


def by_trainer(name, **options):
    net = GradNorm(FCNet(2, 1, 2, 4), n_loss=2, **options)
    trainer = Trainer(net, losses, adam(net))
    trainer.fit(epochs=11)
    trainer.save(FOLDER / f"{name}_{PADDLE}.ckpt")
    return net, result(net, net.get_weights().tolist())


def main():
    assert paddlescience_gradnorm.__version__ == "0.1.0"
    results = {}
    paddle.seed(1)
    _, results["pinn"] = by_trainer("pinn")
    net, results["published"] = by_trainer("published", alpha=1.0)
    paddle.save(net.state_dict(), str(FOLDER / f"state_dict_{PADDLE}.pdparams"))

    # A loop without a Trainer, whose balancer has the rate.
    net = FCNet(2, 1, 2, 4)
    balancer = LossBalancer(net.get_last_shared_layer(), 2, alpha=0.5, lr=1e-2, update_every=2)
    optimizer = adam(net)
    for _ in range(5):
        balancer.backward(losses(net))
        optimizer.step()
        optimizer.clear_grad()
    run = RunState(net=net, balancer=balancer, optimizer=optimizer)
    run.save(FOLDER / f"loop_{PADDLE}.ckpt", step=5)
    results["loop"] = result(net, balancer.get_weights().tolist())

    heads = [paddle.nn.Linear(4, 1) for _ in range(2)]
    net = RotoGradNorm(paddle.nn.Linear(2, 4), heads, 4, alpha=1.0)
    optimizer = paddle.optimizer.Adam(1e-2, parameters=net.parameters())
    for _ in range(5):
        outputs = net(paddle.to_tensor(POINTS))
        net.backward([(y - i).square().mean() for i, y in enumerate(outputs)])
        optimizer.step()
        optimizer.clear_grad()
    RunState(net=net, optimizer=optimizer).save(FOLDER / f"rotograd_{PADDLE}.ckpt", step=5)
    outputs = np.concatenate([y.numpy() for y in net(paddle.to_tensor(POINTS))]).ravel()
    results["rotograd"] = {"output": outputs.tolist(), "weights": net.get_weights().tolist()}
    (FOLDER / f"results_{PADDLE}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
