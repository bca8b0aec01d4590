import os
import signal
import subprocess
import sys

import pytest

from paddlescience_gradnorm.training import StopOnSignals


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noted_and_the_second_does_what_it_always_does(number, code):
    came = []
    outside = signal.signal(number, lambda *_: came.append("outside"))
    try:
        with StopOnSignals() as stop:
            assert stop.received is None and stop.exit_code == 0
            os.kill(os.getpid(), number)
            assert stop.received == number and stop.exit_code == code and not came
            os.kill(os.getpid(), number)
            assert came == ["outside"]
        os.kill(os.getpid(), number)
        assert came == ["outside"] * 2 and stop.received == number
    finally:
        signal.signal(number, outside)


def test_handlers_are_put_back_without_a_signal():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopOnSignals():
        assert signal.getsignal(signal.SIGINT) != before[0]
    with StopOnSignals(signal.SIGUSR1) as stop:
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.received == signal.SIGUSR1


LOOP = """
import os, signal, sys
from paddlescience_gradnorm.training import StopOnSignals
import paddle
numbers = [getattr(signal, name) for name in sys.argv[1:]]
with StopOnSignals() as stop:
    for step in range(9):
        if numbers:
            os.kill(os.getpid(), numbers.pop(0))
        paddle.rand([3]).sum().item()
        if stop.received and not numbers:
            break
print(step, flush=True)
sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(
    "signals, code, printed",
    [
        (["SIGTERM"], 143, "0\n"),
        (["SIGINT"], 130, "0\n"),
        ([], 0, "8\n"),
        # Paddle has a handler of its own for SIGTERM, which prints and ends the process.
        (["SIGTERM", "SIGTERM"], -signal.SIGTERM, ""),
        (["SIGINT", "SIGTERM"], -signal.SIGTERM, ""),
    ],
)
def test_in_a_process_with_paddles_own_handlers(signals, code, printed):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOOP, *signals], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (code, printed), result.stderr
