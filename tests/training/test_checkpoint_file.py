import contextlib
import hashlib
import json
import os
import pickle
import resource
import signal
import stat

import numpy as np
import pytest

from paddlescience_gradnorm.training import CheckpointError, _checkpoint_file
from paddlescience_gradnorm.training._checkpoint_file import Values

STATE = {
    "plain": [None, True, 3, -(2**127), 0.1, float("inf"), "ü\n", {}, []],
    "nested": {"a.b": {"c": Values("float32", np.arange(6, dtype="float32").reshape(2, 3))}},
    "half": Values("bfloat16", np.array([16320, 32704, 1], "uint16")),
    "scalar": Values("int64", np.array(7)),
    "empty": Values("float64", np.zeros((0, 3))),
    "flags": Values("bool", np.array([True, False])),
}


def content(header, values=b""):
    """A file with a checksum that is right, whatever is in it."""
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    body = len(header).to_bytes(8, "little") + header + values
    return _checkpoint_file._MAGIC + hashlib.sha256(body).digest() + body


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            assert_equal(a, b)
    elif isinstance(one, Values):
        assert one.dtype == other.dtype and one.array.dtype == other.array.dtype
        assert one.array.shape == other.array.shape
        assert one.array.tobytes() == other.array.tobytes()
    else:
        assert one == other


def test_what_is_written_is_read(tmp_path):
    _checkpoint_file.write(tmp_path / "a.ckpt", STATE)
    read = _checkpoint_file.read(tmp_path / "a.ckpt")
    assert_equal(read, STATE)
    assert read["nested"]["a.b"]["c"].array.flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("dtype", sorted(_checkpoint_file._DTYPES))
def test_every_type_survives_with_its_bits(tmp_path, dtype):
    stored = np.dtype(_checkpoint_file._DTYPES[dtype])
    bits = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, 48, "uint8")
    _checkpoint_file.write(tmp_path / "a", {"x": Values(dtype, bits.view(stored).reshape(3, -1))})
    read = _checkpoint_file.read(tmp_path / "a")["x"]
    assert read.array.dtype == stored and read.array.tobytes() == bits.tobytes()


def test_the_file_is_open_to_whom_files_are(tmp_path):
    umask = os.umask(0o027)
    try:
        _checkpoint_file.write(tmp_path / "a.ckpt", STATE)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.ckpt").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "state, where",
    [
        ({"a": {"b": [1, object()]}}, r"state\['a'\]\['b'\]\[1\]"),
        ({"a": np.float64(1)}, "plain type, got float64"),
        ({3: 1}, "the key 3"),
        ({"$array": 1}, r"the key '\$array'"),
        ({"a": Values("float8_e4m3fn", np.zeros(1, "uint8"))}, "float8_e4m3fn"),
    ],
)
def test_what_it_cannot_hold_is_named(tmp_path, state, where):
    with pytest.raises(TypeError, match=where):
        _checkpoint_file.write(tmp_path / "a.ckpt", state)
    assert not list(tmp_path.iterdir())


# Writing.


@contextlib.contextmanager
def files_up_to(size):
    """The disk is full from this size on: writing fails with EFBIG, as it does with ENOSPC."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 10, 1000, 4096])
def test_where_there_is_no_room_the_old_file_stays(tmp_path, size):
    path = tmp_path / "a.ckpt"
    _checkpoint_file.write(path, STATE)
    large = {"x": Values("float64", np.zeros(10_000))}
    with files_up_to(size), pytest.raises(OSError, match=r"could not be written.*a\.ckpt") as info:
        _checkpoint_file.write(path, large)
    assert info.value.errno and "earlier ones are as they were" in str(info.value)
    assert_equal(_checkpoint_file.read(path), STATE)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    _checkpoint_file.write(path, large)
    assert_equal(_checkpoint_file.read(path), large)


def test_a_link_of_the_temporary_name_is_not_followed(tmp_path):
    _checkpoint_file.write(tmp_path / "a.ckpt", STATE)
    temporary = tmp_path / f".a.ckpt.{os.getpid()}{_checkpoint_file.TEMPORARY}"
    temporary.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="could not be written"):
        _checkpoint_file.write(tmp_path / "a.ckpt", STATE)
    assert_equal(_checkpoint_file.read(tmp_path / "a.ckpt"), STATE)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="could not be written"):
        _checkpoint_file.write(tmp_path / "file" / "a.ckpt", STATE)
    with pytest.raises(FileNotFoundError, match="choose another folder"):
        _checkpoint_file.write(tmp_path / "none" / "a.ckpt", STATE)


# Reading.


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*none"):
        _checkpoint_file.read(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is no file"):
        _checkpoint_file.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is no file"):  # and nobody waits for a writer
        _checkpoint_file.read(tmp_path / "pipe")


def test_every_cut_and_every_flipped_byte_is_found(tmp_path):
    path = tmp_path / "a.ckpt"
    _checkpoint_file.write(path, STATE)
    whole = path.read_bytes()
    for length in range(len(whole)):
        with pytest.raises(CheckpointError):
            _checkpoint_file.parse(whole[:length])
        flipped = bytearray(whole)
        flipped[length] ^= 1 << length % 8
        with pytest.raises(CheckpointError):
            _checkpoint_file.parse(bytes(flipped))
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"a\.ckpt is damaged: cut off or altered"):
        _checkpoint_file.read(path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    "hostile",
    [pickle.dumps(Bomb()), content(pickle.dumps(Bomb())), content({}, pickle.dumps(Bomb()))],
    ids=["bare", "as the header", "as values"],
)
def test_a_pickle_is_not_loaded(tmp_path, monkeypatch, hostile):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ckpt").write_bytes(hostile)
    with pytest.raises(CheckpointError, match=r"a\.ckpt (is no checkpoint|has)"):
        _checkpoint_file.read(tmp_path / "a.ckpt")
    assert not (tmp_path / "exploded").exists()


LEAF = {"$array": 0}


@pytest.mark.parametrize(
    "header, values, match",
    [
        (b"[" * 100_000, b"", "no JSON"),
        (b"\xff", b"", "no JSON"),
        (b'{"arrays": [], "state": {"a": 1, "a": 2}}', b"", "gives a name twice"),
        (b'{"arrays": [], "state": ' + b"9" * 10_000 + b"}", b"", "no JSON"),
        ([], b"", "without arrays and state"),
        ({"arrays": []}, b"", "without arrays and state"),
        ({"arrays": {}, "state": 0}, b"", "describes an array wrongly"),
        ({"arrays": [["float32"]], "state": LEAF}, b"", "describes an array wrongly"),
        ({"arrays": [["object", [1]]], "state": LEAF}, b"12345678", "unknown type"),
        ({"arrays": [["<f4", [1]]], "state": LEAF}, b"1234", "unknown type"),
        ({"arrays": [["float32", 1]], "state": LEAF}, b"1234", "without a shape"),
        ({"arrays": [["float32", [1] * 99]], "state": LEAF}, b"1234", "without a shape"),
        ({"arrays": [["float32", [-1]]], "state": LEAF}, b"", "impossible shape"),
        ({"arrays": [["float32", [1.0]]], "state": LEAF}, b"1234", "impossible shape"),
        ({"arrays": [["float32", [True]]], "state": LEAF}, b"1234", "impossible shape"),
        ({"arrays": [["float32", [10**18]]], "state": LEAF}, b"1234", "another size"),
        ({"arrays": [["float32", [2**62, 4]]], "state": LEAF}, b"", "another size"),
        ({"arrays": [["float32", [0, 2**62, 2**62]]], "state": LEAF}, b"", "impossible shape"),
        ({"arrays": [["float32", [1]]], "state": LEAF}, b"12345", "another size"),
        ({"arrays": [["bool", [1]]], "state": LEAF}, b"\x02", "neither true nor false"),
        ({"arrays": [["int8", [1]]], "state": {"$array": 1}}, b"1", "which is not there"),
        ({"arrays": [["int8", [1]]], "state": {"$array": -1}}, b"1", "which is not there"),
        ({"arrays": [["int8", [1]]], "state": {"$array": True}}, b"1", "which is not there"),
        ({"arrays": [["int8", [1]]], "state": {"$array": 0, "b": 0}}, b"1", "which is not there"),
        ({"arrays": [["int8", [1]]], "state": [LEAF, LEAF]}, b"1", "twice"),
        ({"arrays": [["int8", [1]]], "state": []}, b"1", "belong to nothing"),
    ],
)
def test_a_header_that_lies_is_an_error(header, values, match):
    with pytest.raises(CheckpointError, match=match):
        _checkpoint_file.parse(content(header, values))


def test_a_header_longer_than_the_file():
    for length in (100, 10**18, 2**64 - 1):
        body = length.to_bytes(8, "little") + b"{}"
        damaged = _checkpoint_file._MAGIC + hashlib.sha256(body).digest() + body
        with pytest.raises(CheckpointError, match=f"header should have {length} bytes"):
            _checkpoint_file.parse(damaged)
