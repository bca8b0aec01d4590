"""How the memory of the Laplace example's training grows, in a process of its own.

    python memory_of_laplace.py STEPS POINTS LAYERS HIDDEN_SIZE

Prints the resident memory in MB after every 1,000 steps.
"""

import importlib.util
import resource
import sys
import tempfile
from pathlib import Path

PATH = Path(__file__).parents[2] / "examples/pinn_laplace/pinn_laplace.py"
spec = importlib.util.spec_from_file_location("pinn_laplace", PATH)
pinn_laplace = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pinn_laplace)

import paddle  # noqa: E402  after the package that sees to its loading

from paddlescience_gradnorm import FCNet, GradNorm  # noqa: E402


class PrintMemory(paddle.callbacks.Callback):
    """Among the views of the run."""

    def on_train_batch_end(self, step, logs=None):
        if self.model.step % 1000 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(pages * resource.getpagesize() / 2**20, flush=True)


def main(steps, points, layers, hidden_size):
    paddle.seed(0)
    problem = pinn_laplace.Problem(points, seed=0)
    net = GradNorm(FCNet(2, 1, layers, hidden_size), n_loss=3, alpha=0.12)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = pinn_laplace.Checkpoints(folder, every=None)
        pinn_laplace.train(net, problem, steps, 1e-2, checkpoints, None, [PrintMemory()])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
