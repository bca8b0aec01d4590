import errno

import pytest

from paddlescience_gradnorm.training._lock import FolderLock
from paddlescience_gradnorm.training._runs import RUNS, _add, read_runs, run_all

PLAN = [{"balance": name, "seed": 0} for name in ("equal", "pinn")]


def made(run, checkpoints, say, stop):
    return {"result": len(run["balance"])}


def test_a_line_is_written_whole_or_not_at_all(tmp_path, mount):
    folder = tmp_path / "disk"
    mount(folder, "size=64k")
    with (folder / RUNS).open("ab", buffering=0) as lines:
        _add(lines, {"seed": 0})
        mount.fill(folder)
        with pytest.raises(OSError) as info:
            _add(lines, {"seed": 1, "curve": "x" * 10_000})  # of which a part has room
        assert info.value.errno == errno.ENOSPC and info.value.filename == str(folder / RUNS)
        assert read_runs(folder) == [{"seed": 0}]
        (folder / "filler").unlink()
        _add(lines, {"seed": 2})
    assert read_runs(folder) == [{"seed": 0}, {"seed": 2}]


def test_a_second_process_is_refused_and_makes_no_run(tmp_path, elsewhere):
    def run(folder):
        return run_all(PLAN, read_runs(folder), folder, made, 0, str, progress=False)

    with FolderLock(tmp_path):
        assert "CheckpointError" in elsewhere(lambda: run(tmp_path))
        assert not (tmp_path / RUNS).exists()
    assert [each["result"] for each in run(tmp_path)] == [5, 4] and len(read_runs(tmp_path)) == 2
    assert not (tmp_path / ".lock").exists()
