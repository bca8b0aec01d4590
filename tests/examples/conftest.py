"""An example in a process of its own, which may get a signal.

Runs that are compared to the last bit are all made so: in the tests' own process it can be too
late for what ``tune_cpu`` sets, and other kernels round in another way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def begun(script: Path, output: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), *arguments, "--output", str(output)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the bar
        text=True,
    )


@pytest.fixture
def finished():
    """Runs a script to its end: its metrics."""

    def run(script: Path, output: Path, *arguments: str):
        process = begun(script, output, *arguments)
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        return json.loads((output / "metrics.json").read_text())

    return run


@pytest.fixture
def signalled():
    """Starts a script, sends it a signal once a checkpoint is there: exit code and output."""
    started = []

    def run(script: Path, output: Path, number: signal.Signals, *arguments: str):
        process = begun(script, output, *arguments)
        started.append(process)
        while not list((output / "checkpoints").rglob("step_*.ckpt")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed

    yield run
    for process in started:
        process.kill()
        process.wait()
