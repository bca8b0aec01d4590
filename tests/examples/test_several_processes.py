"""The example, in two processes started by its launch command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]


def test_two_processes_print_the_same_weights(tmp_path):
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    script = str(ROOT / "examples/several_processes/several_processes.py")
    result = subprocess.run(
        [sys.executable, *launch, "--log_dir", str(tmp_path), script, "--steps", "30"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    printed = []
    for rank in range(2):
        log = (tmp_path / f"workerlog.{rank}").read_text()
        weights, error = re.search(
            rf"rank {rank} of 2: weights \[(.*?)\], errors {{'u': (.*?)}}", log, re.DOTALL
        ).groups()
        printed.append((np.array(weights.split(), dtype=float), float(error)))
    (weights, error), (others, other_error) = printed
    np.testing.assert_array_equal(weights, others)
    np.testing.assert_allclose(error, other_error, rtol=1e-5)
    assert np.ptp(weights) > 0.01
