"""The file of a checkpoint: arrays and plain types, from which no code is ever run.

Bytes, in this order: the magic line; the SHA-256 of all that follows; the header's length, 8
bytes; the header, JSON; the arrays' values, one after the other. Numbers are little-endian.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np

PathLike = Union[str, "os.PathLike[str]"]

# The name of a file ends with this while the file is being written.
TEMPORARY = ".tmp"

_MAGIC = b"paddlescience_gradnorm checkpoint 1\n"
_DIGEST = hashlib.sha256().digest_size
_LENGTH = 8
_START = len(_MAGIC) + _DIGEST
# In the header {"$array": number} stands for an array.
_ARRAY = "$array"
# The bits of bfloat16 are kept as integers, because numpy does not have that type.
_DTYPES = {
    **{name: name for name in "bool uint8 int8 int16 int32 int64 uint32 uint64".split()},
    **{name: name for name in "float16 float32 float64 complex64 complex128".split()},
    "bfloat16": "uint16",
}


class CheckpointError(ValueError):
    """A file is no checkpoint, is damaged, or does not fit what it is to be loaded into."""


class Values(NamedTuple):
    """An array, and the name of its type, which numpy may not have.

    ``array`` holds bfloat16 as the uint16 of its bits.
    """

    dtype: str
    array: np.ndarray


def write(path: PathLike, state: Any) -> None:
    """Write a state to a file, so that there is always either the old file or the new one.

    The new file is written under another name beside the path, flushed to the disk, and renamed.

    Args:
        path: The file; its folder must exist.
        state: Dicts with strings for keys and lists, of ``Values``, ``None``, booleans,
            integers, floats and strings.

    Raises:
        TypeError: Something else is in the state.
        OSError: The file cannot be written, because the disk is full, say. What was in it is
            still there.

    Examples:
        >>> import os, tempfile
        >>> import numpy as np
        >>> path = os.path.join(tempfile.mkdtemp(), "state.ckpt")
        >>> write(path, {"step": 3, "u": Values("float32", np.ones(2, "float32"))})
        >>> read(path)
        {'step': 3, 'u': Values(dtype='float32', array=array([1., 1.], dtype=float32))}
    """
    path = Path(path)
    arrays: list[Values] = []
    tree = _encoded(state, arrays, "state")
    described = [[dtype, list(array.shape)] for dtype, array in arrays]
    header = json.dumps({"arrays": described, "state": tree}, separators=(",", ":")).encode()
    parts = [len(header).to_bytes(_LENGTH, "little"), header]
    parts += [np.ascontiguousarray(array, _numpy_dtype(dtype)).tobytes() for dtype, array in arrays]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    try:
        _replace(path, [_MAGIC, digest.digest(), *parts])
    except OSError as error:
        raise OSError(
            error.errno,
            f"the checkpoint could not be written ({error.strerror}); earlier ones are as "
            "they were. Free space, or choose another folder",
            str(path),
        ) from error


def read(path: PathLike) -> Any:
    """Read what ``write`` has written.

    Args:
        path: The file.

    Returns:
        The state.

    Raises:
        CheckpointError: The file is no checkpoint, or is cut off or altered.
        OSError: The file cannot be opened.
    """
    path = Path(path)
    if not path.is_file():
        if path.exists():
            raise CheckpointError(f"{path} is no file, so no checkpoint")
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        return parse(path.read_bytes())
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None


def parse(content: bytes) -> Any:
    """The state in a file's content. Raises a ``CheckpointError`` as ``read`` does."""
    if not content.startswith(_MAGIC):
        raise CheckpointError("is no checkpoint of paddlescience_gradnorm, or its start is damaged")
    body = memoryview(content)[_START:]
    if hashlib.sha256(body).digest() != content[len(_MAGIC) : _START]:
        raise CheckpointError("is damaged: cut off or altered, for its checksum is wrong")
    length = int.from_bytes(body[:_LENGTH], "little")
    if len(body) < _LENGTH or length > len(body) - _LENGTH:
        raise CheckpointError(f"is cut off: its header should have {length} bytes")
    header = _header(bytes(body[_LENGTH : _LENGTH + length]))
    arrays = list(_arrays(header["arrays"], body[_LENGTH + length :]))
    try:
        state = _decoded(header["state"], arrays)
    except RecursionError:
        raise CheckpointError("has a header that is nested too deeply") from None
    if any(array is not None for array in arrays):
        raise CheckpointError("has values in it that belong to nothing")
    return state


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[tuple[int, str]]:
    """A new file beside the path, open for writing, and its name. An error removes it."""
    name = str(path.parent / f".{path.name}.{os.getpid()}{TEMPORARY}")
    # A link of that name would lead elsewhere.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open(name, flags, 0o666)
    try:
        yield descriptor, name
    except BaseException:
        os.unlink(name)
        raise
    finally:
        os.close(descriptor)


def replace(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file so that there is always either the old one or the new one.

    Raises an ``OSError`` that names the path.
    """
    try:
        _replace(path, parts)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, parts: Iterable[bytes]) -> None:
    with temporary(path) as (descriptor, name):
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        os.replace(name, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that the names in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(_DTYPES[name]).newbyteorder("<")


def _encoded(state: Any, arrays: list[Values], where: str) -> Any:
    """The state as JSON can hold it. Its arrays are added to the list."""
    if isinstance(state, Values):
        if state.dtype not in _DTYPES:
            raise TypeError(f"{where} has the type {state.dtype}, which a checkpoint cannot hold")
        arrays.append(state)
        return {_ARRAY: len(arrays) - 1}
    if isinstance(state, dict):
        for key in state:
            if not isinstance(key, str) or key == _ARRAY:
                raise TypeError(f"{where} has the key {key!r}; a checkpoint needs other names")
        return {key: _encoded(x, arrays, f"{where}[{key!r}]") for key, x in state.items()}
    if isinstance(state, list):
        return [_encoded(x, arrays, f"{where}[{i}]") for i, x in enumerate(state)]
    # numpy's float64 is a float too, but would come back as one of Python's.
    if type(state) in (bool, int, float, str) or state is None:
        return state
    raise TypeError(f"{where} must be of a plain type, got {type(state).__name__} {state!r}")


def _header(encoded: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise CheckpointError("has a header that gives a name twice")
        return dict(pairs)

    try:
        header = json.loads(encoded.decode(), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"has a header that is no JSON: {type(error).__name__}") from None
    if not isinstance(header, dict) or set(header) != {"arrays", "state"}:
        raise CheckpointError("has a header without arrays and state")
    return header


def _arrays(described: Any, values: memoryview) -> Iterator[Values]:
    sizes = []
    for entry in described if isinstance(described, list) else [described]:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise CheckpointError("has a header that describes an array wrongly")
        dtype, shape = entry
        if dtype not in _DTYPES:
            raise CheckpointError("has an array of an unknown type")
        # numpy 1 takes at most 32 dimensions.
        if not isinstance(shape, list) or len(shape) > 32:
            raise CheckpointError("has an array without a shape")
        if not all(type(n) is int and 0 <= n < 2**63 for n in shape):
            raise CheckpointError("has an array with an impossible shape")
        if 0 in shape and math.prod(n for n in shape if n) >= 2**40:
            raise CheckpointError("has an empty array with an impossible shape")
        sizes.append(math.prod(shape) * _numpy_dtype(dtype).itemsize)
    if sum(sizes) != len(values):
        raise CheckpointError("has arrays of another size than its header says")
    start = 0
    for (dtype, shape), size in zip(described, sizes):
        flat = np.frombuffer(values[start : start + size], _numpy_dtype(dtype))
        if dtype == "bool" and (flat.view(np.uint8) > 1).any():
            raise CheckpointError("has booleans that are neither true nor false")
        # This makes a copy that may be written to, in the machine's order of bytes.
        yield Values(dtype, flat.astype(_DTYPES[dtype]).reshape(shape))
        start += size


def _decoded(tree: Any, arrays: list[Any]) -> Any:
    """The state from JSON. In the list, ``None`` takes the place of an array that is used."""
    if isinstance(tree, dict) and _ARRAY in tree:
        index = tree[_ARRAY]
        if len(tree) != 1 or type(index) is not int or not 0 <= index < len(arrays):
            raise CheckpointError("has a header that names an array which is not there")
        values, arrays[index] = arrays[index], None
        if values is None:
            raise CheckpointError("has a header that names an array twice")
        return values
    if isinstance(tree, dict):
        return {key: _decoded(x, arrays) for key, x in tree.items()}
    if isinstance(tree, list):
        return [_decoded(x, arrays) for x in tree]
    return tree
