"""An operator in C++ for a network's derivatives, compiled on the user's machine.

It is an option: without it everything works in Paddle's own operators. ``build`` compiles it
once, ``load`` makes this process use it, and ``tune_cpu`` does both.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import paddle
from paddle.utils import cpp_extension

from paddlescience_gradnorm import _paddle
from paddlescience_gradnorm._machine import LIBRARIES, Machine, find_machine

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


def build(machine: Machine | None = None) -> Path:
    """Compile the operator, which takes about 25 s, unless that has been done.

    The library is kept where Paddle keeps such extensions: in ``PADDLE_EXTENSION_DIR``, or in a
    folder of ``~/.cache``. There is one for each Paddle, processor and version of the sources.

    Returns:
        The library's path.

    Raises:
        RuntimeError: This is not Linux, setuptools or a C++ compiler is missing, or the
            compiler fails. The message holds what the compiler has printed.
    """
    library = built_library(machine)
    if library.exists():
        return library
    missing = _missing(machine or find_machine())
    if missing:
        raise RuntimeError(f"the operators cannot be built: {missing}")
    root = library.parents[1]
    root.mkdir(parents=True, exist_ok=True)
    # It is built under another name and then renamed, so that nobody loads half a library.
    with tempfile.TemporaryDirectory(prefix="building-", dir=root) as folder:
        sources = [str(source) for source in _SOURCES if source.suffix == ".cc"]
        code = (
            "from paddle.utils.cpp_extension import load; "
            f"load({_NAME!r}, {sources}, extra_cxx_cflags={_compiler_flags()}, "
            f"extra_ldflags={_linker_flags()}, build_directory={folder!r}, verbose=True)"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, errors="replace"
        )
        made = Path(folder, _NAME, library.name)
        if result.returncode or not made.exists():
            said = (result.stdout + result.stderr).strip().splitlines()[-60:]
            raise RuntimeError("the operators cannot be built:\n" + "\n".join(said))
        library.parent.mkdir(exist_ok=True)
        os.replace(made, library)
    return library


def built_library(machine: Machine | None = None) -> Path:
    """Where the library for this Paddle, processor and source is, or would be."""
    machine = machine or find_machine()
    key = hashlib.sha256()
    for source in _SOURCES:
        key.update(source.read_bytes())
    for part in (paddle.__version__, paddle.__file__, machine.model, *sorted(machine.flags)):
        key.update(part.encode() + b"\0")
    cache = Path.home() / ".cache" / "paddle_extensions"  # Paddle's own default
    root = Path(os.environ.get("PADDLE_EXTENSION_DIR") or cache)
    return root / f"{_NAME}-{key.hexdigest()[:16]}" / f"{_NAME}.so"


def load() -> bool:
    """Use the operator from now on, if it has been built for this machine.

    Returns:
        Whether this process uses it.
    """
    global loaded, _is_registered
    library = built_library()
    if not loaded and library.exists():
        if not _is_registered:
            cpp_extension.load_op_meta_info_and_register_op(str(library))
        loaded = _is_registered = True
    return loaded


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
        points: Inputs, shape [N, d], float32 or float64, on the CPU.
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


def _compiler_flags() -> list[str]:
    return ["-O3", "-march=native", "-std=c++17", "-fopenmp"]


def _linker_flags() -> list[str]:
    # The OpenMP of Paddle's MKL, where there is one. Of two in one process each would have
    # threads that wait for work and keep the other's threads from theirs.
    if (LIBRARIES / "libiomp5.so").exists():
        return [f"-L{LIBRARIES}", "-l:libiomp5.so", f"-Wl,-rpath,{LIBRARIES}"]
    return ["-fopenmp"]
