import errno
import fcntl
import gc
import os
import socket

import pytest

from paddlescience_gradnorm.training._lock import NAME, FolderLock


def test_another_process_is_refused_and_told_whose_the_folder_is(tmp_path, elsewhere):
    with FolderLock(tmp_path):
        told = elsewhere(lambda: FolderLock(tmp_path))
        assert told.startswith(f"CheckpointError: {str(tmp_path)!r} is in use by process ")
        assert f"process {os.getpid()} on {socket.gethostname()}: let that end" in told
        # And that attempt has not taken it away.
        assert "in use" in elsewhere(lambda: FolderLock(tmp_path))
    assert not list(tmp_path.iterdir())
    assert "FolderLock object" in elsewhere(lambda: FolderLock(tmp_path))


def test_a_killed_process_leaves_a_file_that_locks_nothing(tmp_path, elsewhere):
    elsewhere(lambda: setattr(os, "kept", FolderLock(tmp_path)))  # it ends without freeing it
    assert (tmp_path / NAME).exists()
    with FolderLock(tmp_path):
        assert (tmp_path / NAME).read_text().startswith(f"process {os.getpid()} on ")


def test_a_fork_neither_holds_nor_frees_it(tmp_path, elsewhere):
    lock = FolderLock(tmp_path)
    elsewhere(lock.free)
    assert "in use" in elsewhere(lambda: FolderLock(tmp_path))
    lock.free()
    lock.free()  # once is enough


def test_it_ends_with_the_object(tmp_path):
    lock = FolderLock(tmp_path)
    del lock
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / NAME).symlink_to("precious")
    with pytest.raises(OSError) as info:
        FolderLock(tmp_path)
    assert info.value.errno == errno.ELOOP and (tmp_path / "precious").read_text() == "mine"


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with pytest.warns(RuntimeWarning, match="cannot be locked .No locks available.: see to it"):
        FolderLock(tmp_path).free()
