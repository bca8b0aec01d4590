"""Settings that make Paddle faster on a CPU.

``python -m paddlescience_gradnorm.runtime`` prints this machine, the settings, and the
speed of a PINN step before and after. It measures both in fresh processes. With
``--repetitions 0`` it measures nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import paddle

from paddlescience_gradnorm import _arguments, _operators, _paddle
from paddlescience_gradnorm._machine import Machine, find_machine
from paddlescience_gradnorm.command_line import at_least, non_negative
from paddlescience_gradnorm.network import FCNet

# Option numbers from glibc's malloc.h, with values that keep freed memory in the process.
_MALLOPT = {
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_TOP_PAD": (-2, 64 * 2**20),
}
_MKL_VARIABLES = ("MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
_MALLOC_VARIABLES = (
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)
_AVX2 = 5  # MKL's number for these kernels
_POINTS = (500, 2000, 10000)

_HOW_TO_BUILD = "tune_cpu(build=True), or python -m paddlescience_gradnorm.runtime --build,"
# What is said of operators that are not there, after the reason.
_WHAT_TO_DO = {
    "building": "; processes that begin after that use them",
    "failed": f"; {_HOW_TO_BUILD} tries again",
    "not built": f"tune_cpu() builds them in the background; {_HOW_TO_BUILD} now, in about 25 s",
}

# The settings made in this process, because malloc cannot be asked for its own.
_done: set[str] = set()

__all__ = ["Report", "Setting", "tune_cpu"]


class Setting(NamedTuple):
    """One setting: what was done about it, and why.

    ``outcome`` is one of ``done``, ``already`` (by an earlier call), ``yours`` (chosen by
    the user, left as it is), ``too late``, and ``not here`` (no use on this machine). Operators
    may also be ``building``, ``failed`` or ``not built``.
    """

    name: str
    outcome: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name:<9} {self.outcome:<9} {self.reason}"


class Report(NamedTuple):
    """What ``tune_cpu`` did; prints as one line for each setting."""

    kernels: Setting
    memory: Setting
    threads: Setting
    operators: Setting

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def tune_cpu(threads: int | None = None, build: bool | None = None) -> Report:
    """Apply the settings that make Paddle faster on this machine.

    - kernels: Paddle multiplies matrices with Intel MKL, which uses its SSE2 kernels on AMD
      processors. ``MKL_DEBUG_CPU_TYPE=5`` makes it use AVX2. MKL reads this once, at the
      process's first matrix product, so call ``tune_cpu`` before.
    - memory: glibc returns every large temporary to the system, so each step spends its time
      in page faults. ``mallopt`` makes it keep them. The process then stays at its peak size.
    - threads: Paddle multiplies with one thread by default. This uses one for each core that
      the process may use. On a shared machine fewer can be faster.
    - operators: this package's own C++ operators, on Linux with g++. One operator computes an
      ``FCNet``'s derivatives. If they have not been built on this machine, they are built in the
      background, at the lowest priority, and processes that begin after that use them. The first
      call decides whether this process does.

    Results change by rounding only. A run that is resumed goes on with the operators, or without
    them, as it began. Settings in the environment (``MKL_...``, ``MALLOC_...``,
    ``GLIBC_TUNABLES``, ``OMP_NUM_THREADS``, ``GRADNORM_OPERATORS=off``) win. Child processes
    inherit only ``MKL_DEBUG_CPU_TYPE``. Calling it twice is safe.

    Args:
        threads: Number of threads, at least 1, instead of all cores, such as for several runs
            on one machine. It overrides ``OMP_NUM_THREADS``.
        build: Whether to build operators that are missing now and wait for them, about 25 s. With
            False they are not built at all. Those that are there are used in any case.

    Returns:
        What was done about each setting and why; ``print`` it.

    Raises:
        TypeError: ``threads`` is not an integer.
        ValueError: ``threads`` is below 1, or ``GRADNORM_OPERATORS`` is neither on nor off.
        RuntimeError: The operators cannot be built, and ``build`` is True.

    Examples:
        >>> print(tune_cpu())  # doctest: +SKIP
        kernels   done      MKL_DEBUG_CPU_TYPE=5: Intel MKL uses AVX2 on this AMD processor
        memory    done      mallopt: freed memory stays in the process
        threads   done      2 instead of 1 for matrix products
        operators done      loaded
    """
    if threads is not None:
        _arguments.integer("threads", threads, at_least=1)
    machine = find_machine()
    # Kernels before threads, because setting threads also calls MKL.
    return Report(
        _choose_kernels(machine),
        _keep_memory(machine),
        _use_cores(machine, threads),
        _load_operators(machine, build),
    )


def _choose_kernels(machine: Machine) -> Setting:
    name = "kernels"
    if machine.system != "Linux":
        return Setting(name, "not here", f"known to help on Linux only, this is {machine.system}")
    if machine.mkl is None:
        return Setting(name, "not here", "this Paddle does not carry Intel MKL")
    if machine.vendor != "AuthenticAMD":
        vendor = machine.vendor or "of an unknown vendor"
        return Setting(name, "not here", f"MKL slows down AMD processors, this one is {vendor}")
    if not machine.flags >= {"avx2", "fma"}:
        return Setting(name, "not here", "the processor has no AVX2")
    if name in _done:
        return Setting(name, "already", "MKL_DEBUG_CPU_TYPE=5 was set by an earlier call")
    chosen = _in_environment(_MKL_VARIABLES)
    if chosen:
        return Setting(name, "yours", f"{chosen} is in the environment")
    used_before = _is_loaded(machine.mkl)
    # Set before asking, because asking makes MKL choose its kernels until the process ends,
    # unless a matrix product has already made it choose.
    os.environ["MKL_DEBUG_CPU_TYPE"] = str(_AVX2)
    if _ask_mkl_kernels(machine.mkl) == _AVX2:
        _done.add(name)
        reason = "MKL_DEBUG_CPU_TYPE=5: Intel MKL uses AVX2 on this AMD processor"
        return Setting(name, "done", reason)
    del os.environ["MKL_DEBUG_CPU_TYPE"]
    if used_before:
        reason = "a matrix product came first, and Intel MKL has chosen its slow kernels"
        return Setting(name, "too late", f"{reason}: call tune_cpu() before, in a new process")
    return Setting(name, "not here", "this Intel MKL does not follow MKL_DEBUG_CPU_TYPE")


def _keep_memory(machine: Machine) -> Setting:
    name = "memory"
    if machine.system != "Linux" or not machine.libc.startswith("glibc"):
        library = machine.libc or "unknown"
        return Setting(name, "not here", f"needs glibc on Linux, the C library is {library}")
    if name in _done:
        return Setting(name, "already", "mallopt was called by an earlier call")
    chosen = _in_environment(_MALLOC_VARIABLES)
    if not chosen and "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        chosen = _in_environment(["GLIBC_TUNABLES"])
    if chosen:
        return Setting(name, "yours", f"{chosen} is in the environment")
    if not _is_malloc_of_glibc():
        return Setting(name, "not here", "another allocator was loaded in place of glibc's")
    refused = [
        option for option, (number, value) in _MALLOPT.items() if _mallopt(number, value) != 1
    ]
    if refused:
        return Setting(name, "not here", f"mallopt refused {', '.join(refused)}")
    _done.add(name)
    return Setting(name, "done", "mallopt: freed memory stays in the process")


def _use_cores(machine: Machine, threads: int | None) -> Setting:
    name = "threads"
    if machine.system != "Linux" or machine.mkl is None:
        # Paddle warns that more than one thread fails with OpenBLAS.
        return Setting(name, "not here", "needs Linux and a Paddle that carries Intel MKL")
    before = _count_threads(machine.mkl)
    if threads is None:
        if name in _done:
            return Setting(name, "already", f"{before}, by an earlier call")
        chosen = _own_omp_num_threads()
        if chosen:
            return Setting(name, "yours", f"OMP_NUM_THREADS={chosen} is in the environment")
        if before != 1:  # Paddle's default
            return Setting(name, "yours", f"{before}, set by other code")
        if machine.cores == 1:
            return Setting(name, "not here", "there is one core")
    wanted = threads or machine.cores
    if before == wanted:
        return Setting(name, "already", f"{before}, as asked for")
    _paddle.set_num_threads(wanted)
    _done.add(name)
    after = _count_threads(machine.mkl)
    asked = "" if after == wanted else f"; {wanted} asked for, MKL takes one for each real core"
    return Setting(name, "done", f"{after} instead of {before} for matrix products{asked}")


def _load_operators(machine: Machine, build: bool | None) -> Setting:
    name = "operators"
    if machine.system != "Linux":
        return Setting(name, "not here", f"known to help on Linux only, this is {machine.system}")
    if _operators.choice() == "off":
        return Setting(name, "yours", f"{_operators.CHOICE}=off is in the environment")
    if name in _done and _operators.loaded:
        return Setting(name, "already", "loaded by an earlier call")
    if build:
        _operators.build()
    try:
        # After the first call only if asked to: a run that this process has begun goes on as it
        # was, to the last bit.
        if (build or name not in _done) and _operators.load():
            return Setting(name, "done", "loaded")
    except RuntimeError as error:
        if build:
            raise
        return Setting(name, "failed", str(error))
    finally:
        _done.add(name)
    now = _operators.building(machine) if build is False else _operators.begin_building(machine)
    if now.outcome == "built":
        reason = "this process has begun without them: a new one, or tune_cpu(build=True), uses"
        return Setting(name, "too late", f"{reason} them")
    return Setting(name, now.outcome, now.reason + _WHAT_TO_DO.get(now.outcome, ""))


def _in_environment(variables: Sequence[str]) -> str:
    return ", ".join(f"{v}={os.environ[v]}" for v in variables if v in os.environ)


def _own_omp_num_threads() -> str | None:
    """OMP_NUM_THREADS if the user has set it. Paddle itself sets it to 1 on import."""
    value = os.environ.get("OMP_NUM_THREADS")
    try:
        at_start = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        at_start = []
    if value == "1" and not any(v.startswith(b"OMP_NUM_THREADS=") for v in at_start):
        return None
    return value


def _is_loaded(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True


def _ask_mkl_kernels(library: Path) -> int | None:
    detect = getattr(ctypes.CDLL(str(library)), "mkl_serv_cpu_detect", None)
    return int(detect()) if detect else None


def _count_threads(library: Path) -> int:
    return int(ctypes.CDLL(str(library)).MKL_Get_Max_Threads())


def _is_malloc_of_glibc() -> bool:
    ours, glibc = (ctypes.CDLL(name).malloc for name in (None, "libc.so.6"))
    address = ctypes.c_void_p
    return ctypes.cast(ours, address).value == ctypes.cast(glibc, address).value


def _mallopt(number: int, value: int) -> int:
    return int(ctypes.CDLL("libc.so.6").mallopt(number, value))


def build_laplace_step(points: int) -> Callable[[], paddle.Tensor]:
    """A training step of a PINN for timing; it returns the loss before the step.

    It trains an ``FCNet`` with 4 hidden layers of 50 with Adam, on Laplace's equation at
    ``points`` collocation points and on boundary values at a fifth as many.
    """
    import sympy  # here, because nothing else in this file needs it

    from paddlescience_gradnorm.pde import Residual

    x, y = sympy.symbols("x y")
    u = sympy.Function("u")
    laplace = Residual(u(x, y).diff(x, 2) + u(x, y).diff(y, 2), (x, y), (u,))
    paddle.seed(0)
    net = FCNet(num_ins=2, num_outs=1, num_layers=5, hidden_size=50)
    optimizer = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
    inside, boundary = paddle.rand([points, 2]), paddle.rand([max(1, points // 5), 2])
    values = boundary[:, :1] * boundary[:, 1:]

    def step() -> paddle.Tensor:
        loss = laplace(net, inside).square().mean() + (net(boundary) - values).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return loss

    return step


def _time_steps(points: int, seconds: float) -> float:
    """Median time of a step in ms, over at least 5 steps."""
    step = build_laplace_step(points)
    for _ in range(2):
        float(step())
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        start = time.perf_counter()
        float(step())
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def _measure(tuned: bool, points: Sequence[int], seconds: float) -> None:
    """Run in a fresh process: tune or not, time the steps, and print both as JSON."""
    # No operators are built meanwhile, which would disturb the measurement.
    report = str(tune_cpu(build=False)) if tuned else ""
    print(json.dumps({"report": report, "ms": [_time_steps(n, seconds) for n in points]}))


def _measure_in_fresh_process(tuned: bool, points: Sequence[int], seconds: float) -> Any:
    code = (
        "from paddlescience_gradnorm import runtime; "
        f"runtime._measure({tuned}, {list(points)}, {seconds})"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=_environment_of_user(os.environ),
    )
    if result.returncode:
        # Of Paddle's many lines. A signal that has killed the process leaves none.
        errors = re.findall(r"^\w+Error: .+$", result.stderr, re.MULTILINE)
        why = errors[-1] if errors else f"exit code {result.returncode}"
        raise RuntimeError(
            f"the measurement with --points {' '.join(map(str, points))} failed ({why}); "
            "--repetitions 0 prints the settings without it"
        )
    return json.loads(result.stdout.splitlines()[-1])


def _environment_of_user(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without an OMP_NUM_THREADS that Paddle itself has set."""
    own = dict(environment)
    if _own_omp_num_threads() is None:
        own.pop("OMP_NUM_THREADS", None)
    return own


def main(argv: Sequence[str] | None = None) -> None:
    """Print machine, settings and speed; see ``--help`` for the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m paddlescience_gradnorm.runtime",
        description="The speed of a PINN step on this machine, before and after tune_cpu().",
    )
    add_options(parser)
    report(parser.parse_args(argv), parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``report``."""
    parser.add_argument(
        "--repetitions",
        type=at_least(0),
        default=3,
        help="fresh processes of each kind; 0: no speed",
    )
    parser.add_argument("--points", type=at_least(1), nargs="+", default=_POINTS)
    parser.add_argument(
        "--seconds", type=non_negative, default=0.7, help="for each size and process"
    )
    parser.add_argument("--build", action="store_true", help="build the operators first")


def check_environment(parser: argparse.ArgumentParser) -> None:
    """Let the parser report a variable of the environment that says something unknown."""
    try:
        _operators.choice()
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def report(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Print machine, settings and speed; the parser reports what goes wrong."""
    check_environment(parser)
    print(find_machine(), end="\n\n", flush=True)
    if options.build:
        try:
            _operators.build()
        except RuntimeError as error:
            parser.exit(1, f"{error}\n")
    if not options.repetitions:
        print(tune_cpu(build=False))
        return
    before, after = [], []
    try:
        for _ in range(options.repetitions):  # in turn, so that both see the same machine
            before.append(_measure_in_fresh_process(False, options.points, options.seconds))
            after.append(_measure_in_fresh_process(True, options.points, options.seconds))
    except RuntimeError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(after[0]["report"], end="\n\n")
    print("ms a step, median (lowest to highest process): Laplace, 4 hidden layers of 50, Adam")
    print(f"{'points':>8}{'before':>26}{'after':>26}{'ratio':>8}")
    for k, points in enumerate(options.points):
        columns = [[run["ms"][k] for run in runs] for runs in (before, after)]
        ratio = statistics.median(columns[0]) / statistics.median(columns[1])
        cells = "".join(
            f"{f'{statistics.median(c):.1f} ({min(c):.1f} to {max(c):.1f})':>26}" for c in columns
        )
        print(f"{points:>8}{cells}{ratio:>8.1f}")


if __name__ == "__main__":
    main()
