"""A user's program, as strict type checkers see it: `make lint` checks it, a test runs it.

`assert_type` fails where a public signature has become less than what it says here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sympy
from numpy.typing import NDArray

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer, RotateOnly, cached
from paddlescience_gradnorm.balancing import PinnRule
from paddlescience_gradnorm.pde import Residual, sample_boundary, sample_interior
from paddlescience_gradnorm.pde.problems import PROBLEMS, Problem, SampledProblem, problem
from paddlescience_gradnorm.runtime import Report, tune_cpu
from paddlescience_gradnorm.training import (
    Checkpoints,
    History,
    LiveView,
    ProgressBar,
    RunState,
    StopOnSignals,
    Trainer,
    train_gradnorm,
    write_report,
)

import paddle  # isort: skip, after the package that sees to its loading

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:

    def assert_type(value: object, kind: object) -> object:
        return value


assert_type(tune_cpu(), Report)

x, y = sympy.symbols("x y")
u = sympy.Function("u")
residual = Residual(u(x, y).diff(x, 2) + u(x, y).diff(y, 2), inputs=(x, y), outputs=(u,))
inside = sample_interior(16, (0.0, 0.0), (1.0, 1.0), seed=0)
edge = sample_boundary(8, (0.0, 0.0), (1.0, 1.0), seed=1)
assert_type(inside, np.ndarray)
points, walls = (paddle.to_tensor(p, dtype="float32") for p in (inside, edge))


def losses(net: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    return {"pde": residual(net, points).square().mean(), "bc": net(walls).square().mean()}


net = GradNorm(
    FCNet(num_ins=2, num_outs=1, num_layers=3, hidden_size=8),
    n_loss=2,
    rule=PinnRule(strength=0.5),
    equations=["pde"],
)
adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
assert_type(net.balancer, LossBalancer)
assert_type(net.backward(losses(net)), paddle.Tensor)
assert_type(net.get_weights(), np.ndarray)
assert_type(net.balancer.gradient_norms, np.ndarray)
assert_type(net.balancer.training_rates, np.ndarray)
assert_type(net.balancer.cosines, np.ndarray)
assert_type(net.balancer.diagnose(), list[str])
adam.step()
adam.clear_grad()

folder = Path(tempfile.mkdtemp())
with StopOnSignals() as stop:
    trainer = Trainer(net, losses, adam, callbacks=[ProgressBar(disable=True), stop])
    history = trainer.fit(epochs=3, checkpoints=Checkpoints(folder / "checkpoints", every=2))
assert_type(stop.exit_code, int)
assert_type(trainer.step, int)
assert_type(history, History)
assert_type(history.losses, dict[str, NDArray[np.float64]])
assert_type(history.weights["pde"], NDArray[np.float64])
assert_type(history.steps, NDArray[np.int64])
assert_type(history.last(), dict[str, dict[str, float]])
assert_type(history.diagnose(), list[str])
history.save(folder / "history.npz")
assert_type(History.load(folder / "history.npz"), History)
assert_type(write_report(folder), Path)
RunState(net=net, optimizer=adam).save(folder / "state.ckpt", step=3)
LiveView(unit="epoch")

heat = problem("heat")
assert_type(heat, Problem)
assert_type(list(PROBLEMS), list[str])
training = heat.sample(16, seed=0)
assert_type(training, SampledProblem)
assert_type(training.losses(net), dict[str, paddle.Tensor])
assert_type(heat.relative_errors(net), dict[str, float])
assert_type(heat.solution(inside), np.ndarray)
assert_type(heat.evaluate(net, inside), np.ndarray)

two = RotateOnly(paddle.nn.Linear(2, 4), [paddle.nn.Linear(4, 1), paddle.nn.Linear(4, 1)], 4)
with cached():
    first, second = two(points)
assert_type(two.backward([first.square().mean(), second.square().mean()]), paddle.Tensor)


class Both(paddle.nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = paddle.nn.Linear(2, 4)

    def forward(self, ins: paddle.Tensor) -> list[paddle.Tensor]:
        hidden = self.trunk(ins)
        return [hidden.square().mean(), (hidden - 1).square().mean()]


both = Both()
log = train_gradnorm(both, both.trunk, 0.5, [points], 2, 1e-3, 1e-2)
assert log is not None
assert_type(log[0], NDArray[np.float64])
