import os
import platform
from pathlib import Path

import pytest

from paddlescience_gradnorm import _machine as machine


def test_finds_this_machine():
    here = machine.find_machine()
    assert here.system == platform.system()
    assert 1 <= here.cores <= (os.cpu_count() or 1)
    assert here.mkl is None or here.mkl.exists()
    if here.system == "Linux":
        assert here.model and here.flags


@pytest.mark.parametrize(
    "files, cores",
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_a_container_has_the_cores_of_its_quota(tmp_path, monkeypatch, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    moved = lambda path: tmp_path if path == "/sys/fs/cgroup" else Path(path)  # noqa: E731
    monkeypatch.setattr(machine, "Path", moved)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: range(64), raising=False)
    assert machine._count_cores() == cores
