import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddlescience_gradnorm.training import CheckpointError, Checkpoints, RunState, _rank_files

ROOT = Path(__file__).parents[2]
RUN = Path(__file__).parent / "run_in_ranks.py"


def run(folder, epochs, ranks):
    """Train in so many processes; what each of them ends with."""
    folder.mkdir(exist_ok=True)
    launch = ["-m", "paddle.distributed.launch", "--backend", "gloo"]
    launch += ["--nproc_per_node", str(ranks), "--log_dir", str(folder / "log")]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, *(launch if ranks > 1 else []), str(RUN), str(folder), str(epochs)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    logs = [log.read_text()[-3000:] for log in folder.glob("log/workerlog.*")]
    assert result.returncode == 0, "\n".join([result.stderr, *logs])
    found = []
    for rank in range(ranks):
        with np.load(folder / f"{rank}.npz") as arrays:
            found.append({name: arrays[name] for name in arrays.files})
    return found


def assert_moves(folder, first, *others):
    """One run that goes from one number of processes to others, against one that does not move."""
    (whole, *_) = run(folder / "whole", 20, first)
    assert whole["step"] == 20 and abs(whole["weights"] - 1).max() > 1e-3
    run(folder / "moved", 8, first)
    for ranks in others:
        shutil.copytree(folder / "moved", folder / f"on_{ranks}")
        for rank in run(folder / f"on_{ranks}", 20, ranks):
            for name, expected in whole.items():
                what = f"{ranks}: {name}"
                np.testing.assert_allclose(rank[name], expected, rtol=0, atol=1e-10, err_msg=what)


def test_a_run_of_two_processes_goes_on_with_one_and_with_three(tmp_path):
    assert_moves(tmp_path, 2, 1, 3)
    # What the two have written is gone, because two checkpoints stay.
    names = [path.name for path in Checkpoints(tmp_path / "on_3").paths()]
    assert names == ["step_00000016.rank_0_of_3.ckpt", "step_00000020.rank_0_of_3.ckpt"]
    assert len(list((tmp_path / "on_3").glob("*.ckpt"))) == 6
    assert len(list((tmp_path / "on_1").glob("*.ckpt"))) == 2


@pytest.mark.slow
def test_a_run_of_four_processes_goes_on_with_two_one_and_eight(tmp_path):
    assert_moves(tmp_path, 4, 2, 1, 8)


# In one process, with files as several would write them.


def write_as(monkeypatch, folder, step, ranks, generators):
    """A checkpoint of so many processes."""
    with monkeypatch.context() as patch:
        patch.setattr(_rank_files._ranks, "number", lambda: ranks)
        for rank in range(ranks):
            patch.setattr(_rank_files._ranks, "rank", lambda rank=rank: rank)
            random.seed(rank)
            np.random.seed(0)
            RunState(points=generators[rank]).save(folder / _rank_files.name(step), step=step)


def generators(*seeds):
    return [np.random.default_rng(seed) for seed in seeds]


def test_the_last_step_that_all_have_written_counts(tmp_path, monkeypatch):
    for step in (5, 10, 15):
        write_as(monkeypatch, tmp_path, step, 3, generators(step, step, step))
    (tmp_path / "step_00000015.rank_1_of_3.ckpt").unlink()
    checkpoints = Checkpoints(tmp_path)
    assert [path.name for path in checkpoints.paths()] == [
        "step_00000005.rank_0_of_3.ckpt",
        "step_00000010.rank_0_of_3.ckpt",
    ]
    points = np.random.default_rng(99)
    with pytest.warns(RuntimeWarning, match="different random numbers of Python") as record:
        assert checkpoints.load_latest(RunState(points=points)) == {"step": 10}
    assert "numpy" not in str(record[0].message)
    assert points.random() == np.random.default_rng(10).random()


def test_a_damaged_file_of_any_process_counts_for_all(tmp_path, monkeypatch):
    for step in (5, 10):
        write_as(monkeypatch, tmp_path, step, 2, generators(step, step))
    damaged = tmp_path / "step_00000010.rank_1_of_2.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match=r"rank_1_of_2\.ckpt is damaged.* before it is taken"):
        assert Checkpoints(tmp_path).load_latest(RunState(points=generators(0)[0]))["step"] == 5


@pytest.mark.parametrize("as_list", [False, True])
def test_points_of_each_processs_own_stay_with_that_number(tmp_path, monkeypatch, as_list):
    wrap = (lambda x: [x]) if as_list else (lambda x: x)
    own = generators(0, 1)
    write_as(monkeypatch, tmp_path, 5, 2, [wrap(x) for x in own])
    points = np.random.default_rng(2)
    before = points.bit_generator.state
    with pytest.raises(CheckpointError, match=r"rank_0.* states of points.* differ.*as many proc"):
        Checkpoints(tmp_path).load_latest(RunState(points=wrap(points)))
    assert points.bit_generator.state == before
    # Each of as many processes takes its own.
    monkeypatch.setattr(_rank_files._ranks, "number", lambda: 2)
    monkeypatch.setattr(_rank_files._ranks, "rank", lambda: 1)
    RunState(points=wrap(points)).load(tmp_path / "step_00000005.rank_0_of_2.ckpt")
    assert points.random() == np.random.default_rng(1).random()


def test_global_generators_that_differ_stay_as_they_are_seeded(tmp_path, monkeypatch):
    write_as(monkeypatch, tmp_path, 5, 2, generators(0, 0))
    random.seed(7)
    expected = random.Random(7).random()
    np.random.seed(3)
    with pytest.warns(RuntimeWarning, match="different random numbers of Python, so these stay"):
        Checkpoints(tmp_path).load_latest(RunState(points=generators(1)[0]))
    assert random.random() == expected
    assert np.random.random() == np.random.RandomState(0).random()  # the same in both files
