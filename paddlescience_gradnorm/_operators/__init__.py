"""An operator in C++ for a network's derivatives, compiled on the user's machine.

Without it everything works in Paddle's own operators. ``begin_building`` compiles it once, beside
the process, ``build`` waits for that, and ``load`` makes this process use it. ``tune_cpu`` calls
them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import paddle
from paddle.utils import cpp_extension

from paddlescience_gradnorm import _paddle
from paddlescience_gradnorm._machine import LIBRARIES, Machine, find_machine
from paddlescience_gradnorm._operators import _compile

_log = logging.getLogger("paddlescience_gradnorm")

CHOICE = "GRADNORM_OPERATORS"  # of the environment
# That the operator knows, in the order of taylor_jet.h.
ACTIVATIONS = ("tanh", "sin", "sigmoid", "silu", "gelu", "softplus")
# Whether this process uses the operator, and whether Paddle knows it, which aborts the process if
# it is told of an operator twice.
loaded = False
_is_registered = False

_NAME = "gradnorm_operators"
_SOURCES = tuple(Path(__file__).with_name(name) for name in ("taylor_jet.cc", "taylor_jet.h"))

_DTYPES = (paddle.float32, paddle.float64)
_NOTHING_BUT_CPU = paddle.device.get_all_device_type() == ["cpu"]


class Building(NamedTuple):
    """How it stands with the library.

    ``outcome`` is ``built``, ``building``, ``failed``, ``not here`` (nothing to build it with)
    or ``not built``; ``reason`` says by whom, or why.
    """

    outcome: str
    reason: str


def build(machine: Machine | None = None) -> Path:
    """Compile the operator and wait for it, about 25 s, unless that has been done.

    The library is kept where Paddle keeps such extensions: in ``PADDLE_EXTENSION_DIR``, or in a
    folder of ``~/.cache``. There is one for each Paddle, processor and version of the sources.
    If another process compiles it in the background, this one ends that and compiles it itself,
    which is faster. It waits for one that does not, and says so.

    Returns:
        The library's path.

    Raises:
        RuntimeError: This is not Linux, setuptools or a C++ compiler is missing, the folder
            cannot be written to, or the compiler fails. The message holds what the compiler has
            printed.
    """
    machine = machine or find_machine()
    try:
        library = built_library(machine)
        if os.path.exists(library):
            return library
        missing = _missing(machine)
        if missing:
            raise RuntimeError(missing)
        by = _compile.holder(library.parent)
        if by and not _compile.end_background(library.parent):
            _log.info("waiting for %s, which compiles the operators in C++", by)
        with _compile.locked(library.parent, waits=True):
            if not library.exists():
                said = _compile.compile_library(library, _code())
                if said:
                    raise RuntimeError(said)
    except (RuntimeError, OSError) as error:
        separator = "\n" if "\n" in str(error) else " "
        raise RuntimeError(f"the operators cannot be built:{separator}{error}") from error
    return library


def begin_building(machine: Machine) -> Building:
    """Have the operator compiled beside this process, unless it is there or has failed before.

    The process that compiles does not end with this one. It takes what others leave of the
    processor. Nothing is loaded here: that is up to processes to come.

    Returns:
        How it stands.
    """
    now = building(machine)
    if now.outcome != "not built":
        return now
    library = built_library(machine)
    script = [sys.executable, os.path.abspath(_compile.__file__)]
    try:
        with _compile.locked(library.parent, waits=False) as lock:
            if library.exists():  # since a moment ago
                return building(machine)
            # A shell, which ends at once: the compiling process is no child of this one, which
            # would have to look after it.
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "sh", *script, str(lock.fileno()), library, _code()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C and a terminal that closes are not for it
                pass_fds=[lock.fileno()],
                check=True,
            )
    except BlockingIOError:  # another process was faster
        return building(machine)
    except (OSError, subprocess.SubprocessError) as error:
        return Building("failed", str(error))
    _log.info(
        "the operators in C++ are compiled in the background, in %s: processes that begin after "
        "that use them",
        library.parent,
    )
    return Building("building", "in the background")


def building(machine: Machine | None = None) -> Building:
    """How it stands with the library of this machine; nothing is changed."""
    machine = machine or find_machine()
    try:
        library = built_library(machine)
    except RuntimeError as error:
        return Building("not here", str(error))
    if os.path.exists(library):
        return Building("built", "")
    missing = _missing(machine)
    if missing:
        return Building("not here", missing)
    by = _compile.holder(library.parent)
    if by:
        return Building("building", f"by {by}")
    failure = library.with_name(_compile.FAILURE)
    try:
        lines = failure.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Building("not built", "")
    why = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
    return Building("failed", f"{why.strip()} (all of it: {failure})")


def built_library(machine: Machine | None = None) -> Path:
    """Where the library for this Paddle, processor and source is, or would be.

    Raises:
        RuntimeError: There is neither ``PADDLE_EXTENSION_DIR`` nor a home directory.
    """
    machine = machine or find_machine()
    key = hashlib.sha256()
    for source in _SOURCES:
        key.update(source.read_bytes())
    paddle_here = (paddle.__version__, paddle.version.commit, paddle.__file__)
    for part in (*paddle_here, machine.libc, machine.model, *sorted(machine.flags)):
        key.update(part.encode() + b"\0")
    given = os.environ.get("PADDLE_EXTENSION_DIR")
    try:  # Paddle's own default
        root = Path(given).absolute() if given else Path.home() / ".cache" / "paddle_extensions"
    except RuntimeError as error:
        raise RuntimeError("there is no home directory; set PADDLE_EXTENSION_DIR") from error
    return root / f"{_NAME}-{key.hexdigest()[:16]}" / f"{_NAME}.so"


def load() -> bool:
    """Use the operator from now on, if it has been built for this machine.

    Returns:
        Whether this process uses it.

    Raises:
        RuntimeError: The library cannot be loaded.
    """
    global loaded, _is_registered
    library = built_library()
    if not loaded and os.path.exists(library):
        if not _is_registered:
            try:
                cpp_extension.load_op_meta_info_and_register_op(str(library))
            except (RuntimeError, OSError, ValueError) as error:
                # Paddle's own text fills a screen.
                raise RuntimeError(
                    f"{library} cannot be loaded; delete it, and it is built again"
                ) from error
        loaded = _is_registered = True
    return loaded


def choice() -> str:
    """``"on"`` or ``"off"`` from the environment variable ``GRADNORM_OPERATORS``, else empty.

    Raises:
        ValueError: It is neither.
    """
    chosen = os.environ.get(CHOICE, "")
    if chosen not in ("", "on", "off"):
        raise ValueError(f"{CHOICE} must be 'on' or 'off', got {chosen!r}")
    return chosen


def go_on(as_before: bool) -> None:
    """Go on with a run that was computed with or without the operator, in the same way.

    That keeps its numbers the same to the last bit. ``GRADNORM_OPERATORS`` in the environment
    wins.

    Args:
        as_before: Whether the run has used it.

    Warns:
        RuntimeWarning: The run goes on in the other way.
    """
    global loaded
    if loaded == as_before:
        return
    why = ""
    if choice() == ("off" if as_before else "on"):
        why = f"as {CHOICE}={choice()} in the environment asks"
    elif as_before:
        try:
            if not load():
                why = "which are not built here; tune_cpu(build=True) builds them"
        except RuntimeError as error:
            why = f"because {error}"
    else:
        loaded = False
        _log.info(
            "the run began without the operators in C++ and goes on without them, because its "
            "numbers would not be the same to the last bit; %s=on goes on with them",
            CHOICE,
        )
    if why:
        ways = ("with", "without") if as_before else ("without", "with")
        warnings.warn(
            f"the run began {ways[0]} the operators in C++ and goes on {ways[1]} them, {why}. "
            "From here on its numbers differ by rounding from those of a run that was not stopped",
            RuntimeWarning,
            stacklevel=3,
        )


def apply_to(*tensors: paddle.Tensor) -> bool:
    """Whether the operator is loaded and made for these tensors, all of the same dtype."""
    if not loaded or not paddle.in_dynamic_mode():
        return False
    # `in` a tuple looks first whether they are the same object, because == takes 1 us.
    dtype = (tensors[0].dtype,)
    if dtype[0] not in _DTYPES:
        return False
    for x in tensors:
        if x.dtype not in dtype or not (_NOTHING_BUT_CPU or x.place.is_cpu_place()):
            return False
    return True


def taylor_jet(
    points: paddle.Tensor,
    weights: Sequence[paddle.Tensor],
    biases: Sequence[paddle.Tensor],
    activations: Sequence[str],
    coordinates: Sequence[int],
    terms: Sequence[int],
) -> paddle.Tensor:
    """Value and derivatives of hidden layers in their inputs, all layers and parts in one.

    The result can be differentiated once, with respect to weights and biases. A second time is
    an error.

    Args:
        points: Inputs, shape [N, d], float32 or float64, on the CPU. With shape [S, N, d] they
            are all parts of what the first layer takes, which is then no input itself; the result
            cannot be differentiated with respect to them.
        weights: Of each layer, shape [ins, outs].
        biases: Of each layer, shape [outs].
        activations: Of each layer, out of ``ACTIVATIONS``.
        coordinates: For each part, the value and S - 1 derivatives, the coordinate if it is a
            first derivative, else -1.
        terms: The chain rule for each part after the value: the number of terms, then of each term
            the coefficient, the order k of the activation's derivative, and k numbers of parts.

    Returns:
        Shape [outs, S * N], the parts one after another.
    """
    numbers = [ACTIVATIONS.index(name) for name in activations]
    arguments = (points, list(weights), list(biases), numbers, list(coordinates), list(terms))
    return _paddle.run_custom_op("gradnorm_taylor_jet", *arguments)[0]


def _missing(machine: Machine) -> str:
    if machine.system != "Linux":
        return f"they are known to build on Linux only, this is {machine.system}"
    if importlib.util.find_spec("setuptools") is None:
        return "setuptools is missing; pip install setuptools"
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "there is no C++ compiler; install g++"
    return ""


def _code() -> str:
    """Python that compiles in the folder given as its first argument."""
    sources = [os.path.abspath(source) for source in _SOURCES if source.suffix == ".cc"]
    # It finds what this process has found, from another folder too.
    path = [os.path.abspath(entry) for entry in sys.path]
    return (
        f"import sys; sys.path[:] = {path}; "
        "from paddle.utils.cpp_extension import load; "
        f"load({_NAME!r}, {sources}, extra_cxx_cflags={_compiler_flags()}, "
        f"extra_ldflags={_linker_flags()}, build_directory=sys.argv[1], verbose=True)"
    )


def _compiler_flags() -> list[str]:
    return ["-O3", "-march=native", "-std=c++17", "-fopenmp"]


def _linker_flags() -> list[str]:
    # The OpenMP of Paddle's MKL, where there is one. Of two in one process each would have
    # threads that wait for work and keep the other's threads from theirs.
    if (LIBRARIES / "libiomp5.so").exists():
        return [f"-L{LIBRARIES}", "-l:libiomp5.so", f"-Wl,-rpath,{LIBRARIES}"]
    return ["-fopenmp"]
