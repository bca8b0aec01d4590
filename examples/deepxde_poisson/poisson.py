"""Poisson's equation on the unit square in DeepXDE, on Paddle.

-(u_xx + u_yy) = 2 pi^2 sin(pi x) sin(pi y), and u = 0 on the edge.
"""

import os

os.environ.setdefault("DDE_BACKEND", "paddle")

import deepxde as dde
import numpy as np
import paddle

from paddlescience_gradnorm.deepxde import balance


def pde(x, u):
    u_xx = dde.grad.hessian(u, x, i=0, j=0)
    u_yy = dde.grad.hessian(u, x, i=1, j=1)
    source = 2 * np.pi**2 * paddle.sin(np.pi * x[:, :1]) * paddle.sin(np.pi * x[:, 1:])
    return -u_xx - u_yy - source


def exact(x):
    return np.sin(np.pi * x[:, :1]) * np.sin(np.pi * x[:, 1:])


dde.config.set_random_seed(0)
square = dde.geometry.Rectangle([0, 0], [1, 1])
edge = dde.icbc.DirichletBC(square, lambda x: 0, lambda x, on_boundary: on_boundary)
data = dde.data.PDE(square, pde, edge, num_domain=300, num_boundary=60, solution=exact)
net = dde.nn.FNN([2] + [32] * 3 + [1], "tanh", "Glorot uniform")

model = dde.Model(data, net)
model.compile("adam", lr=1e-3, metrics=["l2 relative error"])
balance(model)
model.train(iterations=2000)
dde.optimizers.set_LBFGS_options(maxiter=1000)
model.compile("L-BFGS", metrics=["l2 relative error"])
losshistory, train_state = model.train()

x = square.uniform_points(10000)
print("L2 relative error:", dde.metrics.l2_relative_error(exact(x), model.predict(x)))
