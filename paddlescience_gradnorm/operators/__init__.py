"""Operators in C++, compiled on the user's machine for its processor; an option.

Without them everything works, in Paddle's own operators. ``build`` compiles them once,
``load`` makes this process use them; ``tune_cpu`` does both.
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
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Callable

import paddle
from paddle.utils import cpp_extension

from paddlescience_gradnorm.machine import LIBRARIES, Machine, find_machine
from paddlescience_gradnorm.operators import balancing

_NAME = "gradnorm_operators"
_SOURCES = tuple(
    Path(__file__).with_name(name) for name in ("balancing.cc", "tanh_jet.cc", "tanh_jet.h")
)
MOST_FIRSTS = 16  # that tanh_jet has room for

_DTYPES = (paddle.float32, paddle.float64)
_NOTHING_BUT_CPU = paddle.device.get_all_device_type() == ["cpu"]


def build(machine: Machine | None = None) -> Path:
    """Compile the operators, which takes about 25 s, unless that has been done.

    The library is kept where Paddle keeps such extensions (``PADDLE_EXTENSION_DIR``, or a
    folder in ``~/.cache``), one for each Paddle, processor and version of the sources.

    Returns:
        The library's path.

    Raises:
        RuntimeError: This is not Linux, setuptools or a C++ compiler is missing, or the
            compiler fails; the message says what it had to say.
    """
    library = built_library(machine)
    if library.exists():
        return library
    missing = _missing(machine or find_machine())
    if missing:
        raise RuntimeError(f"the operators cannot be built: {missing}")
    root = library.parents[1]
    root.mkdir(parents=True, exist_ok=True)
    # Under another name, so that nobody loads half a library, and renamed when it is whole.
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
    """Use the operators from now on, if they have been built for this machine.

    Returns:
        Whether this process has them.
    """
    if balancing.module is None:
        library = built_library()
        if library.exists():
            cpp_extension.load_op_meta_info_and_register_op(str(library))
            loader = ExtensionFileLoader(_NAME, str(library))
            spec = importlib.util.spec_from_loader(_NAME, loader, origin=str(library))
            assert spec is not None  # there is always one for a loader
            balancing.module = importlib.util.module_from_spec(spec)
            loader.exec_module(balancing.module)
    return balancing.module is not None


def apply_to(*tensors: paddle.Tensor) -> bool:
    """Whether the operators are there and made for these tensors, all of the same dtype."""
    if balancing.module is None or not paddle.in_dynamic_mode():
        return False
    # `in` a tuple, for it looks first whether they are the same object: == takes 1 us.
    dtype = (tensors[0].dtype,)
    if dtype[0] not in _DTYPES:
        return False
    for x in tensors:
        if x.dtype not in dtype or not (_NOTHING_BUT_CPU or x.place.is_cpu_place()):
            return False
    return True


def tanh_jet(
    points: paddle.Tensor,
    weights: Sequence[paddle.Tensor],
    biases: Sequence[paddle.Tensor],
    firsts: Sequence[int],
    pairs: Sequence[tuple[int, int]],
) -> paddle.Tensor:
    """Value and derivatives of tanh layers in their inputs, all layers and parts in one.

    Differentiable once, with respect to weights and biases; a second time is an error.

    Args:
        points: Inputs, shape [N, d], float32 or float64, on the CPU.
        weights: Of each layer, shape [ins, outs].
        biases: Of each layer, shape [outs].
        firsts: Coordinates of the first derivatives, at most ``MOST_FIRSTS``.
        pairs: Second derivatives, each as two numbers of entries of ``firsts``.

    Returns:
        Shape [outs, S * N], the S = 1 + len(firsts) + len(pairs) parts one after another.
    """
    flat = [k for pair in pairs for k in pair]
    arguments = (points, list(weights), list(biases), list(firsts), flat)
    return _run_custom_op("gradnorm_tanh_jet", *arguments)[0]


def _find_runner() -> Callable[..., list[paddle.Tensor]]:
    if hasattr(paddle._C_ops, "_run_custom_op"):
        return paddle._C_ops._run_custom_op
    return paddle.base.core.eager._run_custom_op  # Paddle 2.6


_run_custom_op = _find_runner()


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
    # The OpenMP of Paddle's MKL, where there is one: two of them in a process would each
    # have threads waiting for work and keeping the other's from it.
    if (LIBRARIES / "libiomp5.so").exists():
        return [f"-L{LIBRARIES}", "-l:libiomp5.so", f"-Wl,-rpath,{LIBRARIES}"]
    return ["-fopenmp"]
