"""Two real processes, each with half of the points, against one with all of them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
RUN = """
import sys
import numpy as np
import paddlescience_gradnorm as gradnorm
import paddle

output, way = sys.argv[1:]
paddle.set_device("cpu")
rank, ranks = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
if ranks > 1:
    paddle.distributed.init_parallel_env()
paddle.set_default_dtype("float64")
paddle.seed(0)
net = gradnorm.FCNet(2, 1, 3, 8)
balancer = gradnorm.LossBalancer(net.linears[-1].weight, n_loss=2, alpha=1.0, lr=1e-3)
optimizer = paddle.optimizer.SGD(1e-2, parameters=net.parameters())
rng = np.random.default_rng(0)
weights = []
for _ in range(5):
    inside, edge = paddle.to_tensor(rng.random((2, 12, 2)))[:, rank::ranks]
    losses = [(net(inside) - 1).square().mean(), 9 * (net(edge) + 1).square().mean()]
    if way == "backward":
        balancer.backward(losses)
    else:
        w = balancer.loss_weights
        (w[0] * losses[0] + w[1] * losses[1]).backward(retain_graph=True)
        balancer.step(losses)
    for parameter in net.parameters() if ranks > 1 else []:
        gradient = parameter.grad.clone()
        paddle.distributed.all_reduce(gradient)
        parameter.grad = gradient / ranks
    optimizer.step()
    optimizer.clear_grad()
    weights.append(balancer.get_weights())
np.save(f"{output}/{ranks}_{rank}.npy", weights)
"""


@pytest.mark.parametrize("way", ["backward", "step"])
def test_two_processes_hold_the_weights_of_one(tmp_path, way):
    script = tmp_path / "run.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + RUN)
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    log = ["--log_dir", str(tmp_path / "log")]
    for options in ([], [*launch, *log]):
        command = [sys.executable, "-W", "ignore", *options, str(script), str(tmp_path), way]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0, result.stderr + result.stdout
    one, *two = (np.load(tmp_path / f"{name}.npy") for name in ("1_0", "2_0", "2_1"))
    assert np.abs(np.diff(one, axis=0)).max() > 1e-4
    for weights in two:
        np.testing.assert_allclose(weights, one, rtol=0, atol=1e-12)
    assert (two[0] == two[1]).all()
