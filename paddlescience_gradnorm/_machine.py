"""The properties of this machine that affect speed on a CPU."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import paddle

LIBRARIES = Path(paddle.__file__).parent / "libs"  # bundled with Paddle


class Machine(NamedTuple):
    """What decides which settings help: processor, C library, and Paddle's BLAS."""

    system: str
    vendor: str
    model: str
    flags: frozenset[str]  # instruction sets, as Linux calls them
    cores: int  # available to this process
    libc: str  # name and version; empty if unknown
    mkl: Path | None  # Paddle's Intel MKL, if it carries one

    def __str__(self) -> str:
        blas = "Intel MKL" if self.mkl else "no Intel MKL"
        return (
            f"{self.model or 'unknown processor'} ({self.vendor or 'unknown vendor'}), "
            f"{self.cores} cores; {self.system}, {self.libc or 'unknown C library'}; "
            f"Paddle {paddle.__version__} with {blas}"
        )


def find_machine() -> Machine:
    """The machine and the Paddle that this process runs on."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        text = ""
    first = text.partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    processor = {key.strip(): value.strip() for key, _, value in pairs}
    mkl = LIBRARIES / "libmklml_intel.so"
    return Machine(
        system=platform.system(),
        vendor=processor.get("vendor_id", ""),
        model=processor.get("model name", platform.machine()),
        flags=frozenset(processor.get("flags", processor.get("Features", "")).split()),
        cores=_count_cores(),
        libc=" ".join(platform.libc_ver()).strip(),
        mkl=mkl if mkl.exists() else None,
    )


def _count_cores() -> int:
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return os.cpu_count() or 1
    return min([len(os.sched_getaffinity(0)), *_quotas()])


def _quotas() -> Iterator[int]:
    """Core limits of a container, in both versions of control groups."""
    root = Path("/sys/fs/cgroup")
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((root / file).read_text() for file in files).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            yield max(1, math.ceil(int(quota) / int(period)))
