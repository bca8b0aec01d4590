import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.training import CheckpointError, Checkpoints, RunState, Trainer


@pytest.fixture
def net():
    return paddle.nn.Linear(2, 1)


@pytest.fixture
def state(net):
    return RunState(net=net)


def names(checkpoints):
    return [path.name for path in checkpoints.paths()]


def test_the_last_ones_stay(tmp_path, state):
    checkpoints = Checkpoints(tmp_path / "a" / "b", every=3, keep=2)
    assert checkpoints.paths() == [] and checkpoints.load_latest(state) is None
    for step in range(1, 11):
        checkpoints.step(state, step, epoch=step // 2)
        assert len(checkpoints.paths()) == min(2, step // 3)
    assert names(checkpoints) == ["step_00000006.ckpt", "step_00000009.ckpt"]
    checkpoints.save(state, 10)
    assert names(checkpoints) == ["step_00000009.ckpt", "step_00000010.ckpt"]
    assert checkpoints.load_latest(state) == {"step": 10}
    assert state.load(checkpoints.paths()[0]) == {"step": 9, "epoch": 4}


def test_without_a_number_of_steps_only_save_writes(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, every=None)
    checkpoints.step(state, 1000)
    assert checkpoints.paths() == []
    checkpoints.save(state, 123_456_789)  # longer than the names are wide
    checkpoints.save(state, 1_000_000_000)
    assert [int(name[5:-5]) for name in names(checkpoints)] == [123_456_789, 1_000_000_000]


def test_a_folder_has_other_files_too(tmp_path, state):
    for name in ("notes.txt", "step_3.ckpt.bak", "step_x.ckpt", ".step_00000002.ckpt.7.tmp"):
        (tmp_path / name).touch()
    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    checkpoints.begin(0)
    for step in (1, 2, 3):
        checkpoints.step(state, step)
    checkpoints.end()
    left = {path.name for path in tmp_path.iterdir()}
    # What a killed process had begun to write is gone.
    assert left == {"notes.txt", "step_3.ckpt.bak", "step_x.ckpt", "step_00000003.ckpt"}


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:900] + b"x" + b[901:], bytes])
def test_a_damaged_file_is_passed_over_and_named(tmp_path, net, state, damage):
    checkpoints = Checkpoints(tmp_path, every=1, keep=3)
    for step in (1, 2, 3):
        net.weight.set_value(np.full((2, 1), step, dtype="float32"))
        checkpoints.step(state, step)
    last = tmp_path / "step_00000003.ckpt"
    content = damage(last.read_bytes()) if damage is not bytes else b""
    last.write_bytes(content)
    again = Checkpoints(tmp_path, every=1, keep=2)
    match = r"step_00000003\.ckpt is .*; the checkpoint before it is taken"
    with pytest.warns(RuntimeWarning, match=match):
        assert again.load_latest(state) == {"step": 2}
    assert net.weight.tolist() == [[2], [2]]
    again.begin(2)
    # The damaged one counts for none, until it has been written again.
    again.save(state, 4)
    assert names(again) == [f"step_0000000{n}.ckpt" for n in (2, 3, 4)]
    again.save(state, 5)
    assert names(again) == [f"step_0000000{n}.ckpt" for n in (3, 4, 5)]
    assert last.read_bytes() == content


def test_all_damaged(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, every=1)
    for step in (1, 2):
        checkpoints.step(state, step)
    for path in checkpoints.paths():
        path.write_bytes(path.read_bytes()[:-1])
    error = pytest.raises(CheckpointError, match=r"no checkpoint in .* all are damaged")
    with pytest.warns(RuntimeWarning, match="is damaged"), error:
        Checkpoints(tmp_path).load_latest(state)


def test_another_networks_checkpoint_is_not_passed_over(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, every=1)
    checkpoints.step(state, 1)
    checkpoints.step(RunState(net=paddle.nn.Linear(3, 1)), 2)
    with pytest.raises(CheckpointError, match=r"step_00000002\.ckpt does not fit net"):
        checkpoints.load_latest(state)


def test_checkpoints_of_another_run_are_not_overwritten(tmp_path, state):
    Checkpoints(tmp_path, every=1).save(state, 7)
    with pytest.raises(CheckpointError, match=r"at step 3, but .* later steps, .*00000007"):
        Checkpoints(tmp_path).begin(3)
    Checkpoints(tmp_path).begin(7)


def test_a_folder_that_cannot_be_written_to_is_an_error_at_once(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "folder", Path("/proc/checkpoints")):
        with pytest.raises(OSError, match=r"checkpoints cannot be written .*; choose another"):
            Checkpoints(folder).begin(0)


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 0.5}, TypeError, "every must be an integer, got 0.5"),
        ({"keep": 0}, ValueError, "keep must be at least 1, got 0"),
    ],
)
def test_bad_arguments(tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        Checkpoints(tmp_path, **options)


# Processes that are killed.

RUN = Path(__file__).parent / "resumable_run.py"


def start(folder, epochs, every, *signal_at):
    command = [sys.executable, "-W", "ignore", str(RUN), str(folder)]
    return subprocess.Popen(
        [*command, str(epochs), str(every), *map(str, signal_at)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder, epochs, every):
    process = start(folder, epochs, every)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    with np.load(folder / "result.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def assert_same_bits(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].shape == other[name].shape, name
        assert one[name].tobytes() == other[name].tobytes(), name


def stop_by(process, number, lines, seconds=0.0):
    """Send the signal some seconds after the process has printed so many lines."""
    for _ in range(1 + lines):
        process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(number)
    _, errors = process.communicate()
    return process.returncode, errors


def test_a_run_that_was_stopped_or_killed_ends_with_the_same_bits(tmp_path):
    whole = finish(tmp_path / "whole", 9, 7)
    folder = tmp_path / "stopped"
    for number, lines, code in ((signal.SIGTERM, 12, 143), (signal.SIGKILL, 9, -9)):
        returned, errors = stop_by(start(folder, 9, 7), number, lines)
        assert returned == code, errors
    assert_same_bits(finish(folder, 9, 7), whole)
    assert len(whole["losses"]) == 9 * 5


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_bits(tmp_path):
    epochs, every = 120, 2
    whole = finish(tmp_path / "whole", epochs, every)
    folder = tmp_path / "killed"
    rng = random.Random(0)
    for _ in range(20):
        process = start(folder, epochs, every)
        returned, errors = stop_by(process, signal.SIGKILL, rng.randrange(25), 0.02 * rng.random())
        assert returned == -signal.SIGKILL, errors
    assert_same_bits(finish(folder, epochs, every), whole)


@pytest.mark.slow
def test_a_run_killed_within_a_save_ends_with_the_same_bits(tmp_path):
    whole = finish(tmp_path / "whole", 8, 2)
    folder = tmp_path / "killed"
    for function, number in (("write", 7), ("fsync", 5), ("replace", 4), ("fsync", 8)):
        process = start(folder, 8, 2, function, number, "SIGKILL")
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        unfinished = list((folder / "checkpoints").glob(".*.tmp"))
        assert unfinished or function == "fsync"
    assert_same_bits(finish(folder, 8, 2), whole)
    assert not list((folder / "checkpoints").glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint_of_it(tmp_path, number, code):
    process = start(tmp_path, 200, 10**6)
    returned, errors = stop_by(process, number, 17)
    assert returned == code, errors
    (path,) = Checkpoints(tmp_path / "checkpoints").paths()
    assert int(path.name[5:-5]) >= 17


def test_unlinking_comes_last(tmp_path, state, monkeypatch):
    """While the new file is being written the one before is there, however few may stay."""
    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    checkpoints.save(state, 1)
    replace, seen = os.replace, []

    def recorded(source, target):
        seen.append(names(checkpoints))
        replace(source, target)

    monkeypatch.setattr(os, "replace", recorded)
    checkpoints.save(state, 2)
    assert seen == [["step_00000001.ckpt"]] and names(checkpoints) == ["step_00000002.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals, codes, saved",
    [
        (["SIGTERM"], [143], True),
        (["SIGINT"], [130], True),
        (["SIGINT", "SIGINT"], [1, -signal.SIGINT], False),
        (["SIGTERM", "SIGTERM"], [-signal.SIGTERM], False),
    ],
)
def test_signals_within_a_save_lose_nothing(tmp_path, signals, codes, saved):
    """One lets the save and the step come to their end; two end the process at once."""
    whole = finish(tmp_path / "whole", 4, 2)
    folder = tmp_path / "stopped"
    process = start(folder, 4, 2, "fsync", 5, *signals)  # of the third save: a file, its folder
    _, errors = process.communicate()
    assert process.returncode in codes, errors
    last = names(Checkpoints(folder / "checkpoints"))[-1]
    # The step of the save is over when the signal comes, so the next one is the last.
    assert last == ("step_00000007.ckpt" if saved else "step_00000004.ckpt")
    assert_same_bits(finish(folder, 4, 2), whole)
    assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_has_ended_or_is_killed(tmp_path):
    whole = finish(tmp_path / "whole", 60, 2)
    folder = tmp_path / "run"
    first = start(folder, 60, 2)
    for _ in range(8):
        first.stdout.readline()
    first.send_signal(signal.SIGSTOP)  # or it would come to its end meanwhile
    second = start(folder, 60, 2)
    _, errors = second.communicate()
    assert second.returncode == 1, errors
    assert f"is in use by process {first.pid} on " in errors.splitlines()[-1]
    first.kill()
    first.communicate()
    assert (folder / "checkpoints" / ".lock").exists()
    assert_same_bits(finish(folder, 60, 2), whole)
    assert not (folder / "checkpoints" / ".lock").exists()


def test_the_names_tell_which_is_the_last_whatever_the_clock_says(tmp_path, net, state):
    checkpoints = Checkpoints(tmp_path, every=1, keep=3)
    for step, year in ((1, 2100), (2, 1970), (3, 2000)):
        net.weight.set_value(np.full((2, 1), step, dtype="float32"))
        checkpoints.step(state, step)
        os.utime(checkpoints.paths()[-1], ((year - 1970) * 31_557_600,) * 2)
    assert Checkpoints(tmp_path).load_latest(state) == {"step": 3}
    checkpoints.step(state, 4)
    assert names(checkpoints) == [f"step_0000000{n}.ckpt" for n in (2, 3, 4)]


# A small disk.


def trained(folder, on_step=lambda step: None, steps=12):
    """The parameters after these steps, with a checkpoint after every second."""
    paddle.seed(0)
    net = GradNorm(FCNet(1, 1, 2, 8), n_loss=2, alpha=1.0)
    x = paddle.linspace(0, 1, 8).reshape([-1, 1])

    def losses(net):
        noise = 0.1 * paddle.rand([8, 1])
        return {"data": (net(x) - x + noise).square().mean(), "end": (net(x)[-1] - 1).abs().sum()}

    class Callback(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            on_step(self.model.step)

    adam = paddle.optimizer.Adam(1e-2, parameters=net.parameters())
    trainer = Trainer(net, losses, adam, callbacks=[Callback()])
    checkpoints = Checkpoints(folder, every=2)
    resume = "latest" if checkpoints.paths() else None
    trainer.fit(epochs=steps, checkpoints=checkpoints, resume=resume)
    state = {"rows": trainer.history.to_numpy()["losses"], "weights": net.get_weights()}
    return {**state, **{name: p.numpy() for name, p in net.net.state_dict().items()}}


def test_a_full_disk_loses_nothing_but_the_steps_since_the_last_checkpoint(tmp_path, mount):
    whole = trained(tmp_path / "whole")
    folder = tmp_path / "disk"
    mount(folder, "size=1m")
    with pytest.raises(OSError, match=r"No space left on device.*earlier ones are as they") as info:
        trained(folder / "run", lambda step: mount.fill(folder) if step == 7 else None)
    assert info.value.errno == errno.ENOSPC and info.value.filename.endswith("step_00000008.ckpt")
    left = ["step_00000004.ckpt", "step_00000006.ckpt"]
    assert [path.name for path in sorted((folder / "run").iterdir())] == left
    mount.fill(folder)
    with pytest.raises(OSError, match=r"checkpoints cannot be written \(No space left"):
        trained(folder / "run")  # before the first step
    assert [path.name for path in sorted((folder / "run").iterdir())] == left
    (folder / "filler").unlink()
    assert_same_bits(trained(folder / "run"), whole)


def test_a_folder_that_becomes_read_only_loses_nothing_either(tmp_path, mount):
    whole = trained(tmp_path / "whole")
    folder = tmp_path / "run"
    with pytest.raises(OSError, match="Read-only file system") as info:
        trained(folder, lambda step: mount(folder, "ro") if step == 7 else None)
    assert info.value.errno == errno.EROFS
    with pytest.raises(OSError, match=r"checkpoints cannot be written \(Read-only file system\)"):
        trained(folder)
    mount.off()
    assert_same_bits(trained(folder), whole)


def test_a_run_goes_on_in_another_place(tmp_path):
    whole = trained(tmp_path / "whole")

    def stop(step):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "here", stop)
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "moved")
    shutil.rmtree(tmp_path / "here")
    assert_same_bits(trained(tmp_path / "there" / "moved"), whole)


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole")
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(-1e9, 4e9))

    def stop(step):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "jumps", stop)
    assert_same_bits(trained(tmp_path / "jumps"), whole)
