"""An example in a process of its own that gets a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def signalled():
    """Starts a script, sends it a signal once a checkpoint is there: exit code and output."""
    started = []

    def run(script: Path, output: Path, number: signal.Signals, *arguments: str):
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), *arguments, "--output", str(output)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the bar
            text=True,
        )
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
