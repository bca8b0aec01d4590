"""The state of random number generators, in plain types: Paddle's, Python's and numpy's."""

from __future__ import annotations

import ctypes
import random
from typing import Any, Callable

import numpy as np
import paddle

from paddlescience_gradnorm.training.checkpoint_file import CheckpointError, Values

core: Any = paddle.base.core

_WORDS = 312  # of Mersenne twister's 64-bit state, which the position follows


def global_state() -> dict[str, Any]:
    """The state of the generators that everybody shares.

    They are Paddle's, on the host and on all accelerators of the current kind, Python's
    ``random`` and numpy's.

    Examples:
        >>> import paddle
        >>> state = global_state()
        >>> first = paddle.rand([3])
        >>> prepare_global(state)()
        >>> bool((paddle.rand([3]) == first).all())
        True
    """
    return {
        "paddle": [_paddle_state(generator) for generator in _paddle_generators()],
        "python": python_state(random),
        "numpy": numpy_state(np.random),
    }


def prepare_global(state: Any) -> Callable[[], None]:
    """What puts the generators into this state.

    Args:
        state: From ``global_state``, perhaps from a file that nobody has checked.

    Returns:
        A function without arguments; nothing has been changed before it is called.

    Raises:
        CheckpointError: It is no such state, or of another number of accelerators.
    """
    if not isinstance(state, dict) or set(state) != {"paddle", "python", "numpy"}:
        raise CheckpointError("has no random state of paddle, python and numpy")
    generators = _paddle_generators()
    if not isinstance(state["paddle"], list) or len(state["paddle"]) != len(generators):
        raise CheckpointError(
            f"has no random state of Paddle for {len(generators)} generators, as on this device"
        )
    applied = [_prepare_paddle(g, s) for g, s in zip(generators, state["paddle"])]
    applied.append(prepare_python(random, state["python"]))
    applied.append(prepare_numpy(np.random, state["numpy"]))

    def apply() -> None:
        for part in applied:
            part()

    return apply


def python_state(generator: Any) -> dict[str, Any]:
    """The state of a ``random.Random``, or of the module ``random``."""
    version, words, gauss = generator.getstate()
    return {
        "version": version,
        "words": Values("uint32", np.array(words, "uint32")),
        "gauss": gauss,
    }


def prepare_python(generator: Any, state: Any) -> Callable[[], None]:
    """As ``prepare_global``, for a state from ``python_state``."""
    try:
        words = tuple(_checked_words(state["words"], "uint32", 625).tolist())
        if not (state["gauss"] is None or type(state["gauss"]) is float) or words[-1] > 624:
            raise ValueError
        taken = (state["version"], words, state["gauss"])
        random.Random().setstate(taken)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise CheckpointError("has no state of Python's random numbers") from None
    return lambda: generator.setstate(taken)


def numpy_state(generator: Any) -> dict[str, Any]:
    """The state of a numpy ``Generator`` or ``RandomState``, or of the module ``np.random``."""
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    return _plain(generator.get_state(legacy=False))


def prepare_numpy(generator: Any, state: Any) -> Callable[[], None]:
    """As ``prepare_global``, for a state from ``numpy_state``."""
    if not _alike(numpy_state(generator), state):
        raise CheckpointError(
            f"has no state of random numbers for {_name_of(generator)}, or of another kind"
        )
    taken = _from_plain(state)
    is_new = isinstance(generator, np.random.Generator)
    try:
        if taken.get("bit_generator") == "MT19937" and not 0 <= taken["state"]["pos"] <= 624:
            raise ValueError
        if is_new:
            type(generator.bit_generator)().state = taken
        else:
            np.random.RandomState(_fresh(generator)).set_state(taken)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise CheckpointError("has an impossible state of numpy's random numbers") from None

    def apply() -> None:
        if is_new:
            generator.bit_generator.state = taken
        else:
            generator.set_state(taken)

    return apply


def _name_of(generator: Any) -> str:
    return getattr(generator, "__name__", type(generator).__name__)


def _fresh(generator: Any) -> Any:
    """A bit generator of the kind that a RandomState, or the global one, has."""
    state = generator.get_state(legacy=False)
    return getattr(np.random, state["bit_generator"])()


def _plain(state: Any) -> Any:
    """With arrays as ``Values`` and numpy's numbers as Python's."""
    if isinstance(state, dict):
        return {key: _plain(x) for key, x in state.items()}
    if isinstance(state, np.ndarray):
        return Values(str(state.dtype), state.copy())
    return state.item() if isinstance(state, np.generic) else state


def _from_plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _from_plain(x) for key, x in state.items()}
    return state.array if isinstance(state, Values) else state


def _alike(own: Any, other: Any) -> bool:
    if type(own) is not type(other):
        return False
    if isinstance(own, dict):
        return set(own) == set(other) and all(_alike(own[k], other[k]) for k in own)
    if isinstance(own, Values):
        return own.dtype == other.dtype and own.array.shape == other.array.shape
    return own == other if isinstance(own, str) else True


def _checked_words(values: Any, dtype: str, number: int) -> np.ndarray:
    if not isinstance(values, Values) or values.dtype != dtype or values.array.shape != (number,):
        raise ValueError(f"no {number} words of {dtype}")
    return values.array


def _paddle_generators() -> list[Any]:
    place = paddle.framework._current_expected_place_()
    generators = [core.default_cpu_generator()]
    if isinstance(place, paddle.CUDAPlace):
        number = core.get_cuda_device_count()
        generators += [core.default_cuda_generator(i) for i in range(number)]
    elif isinstance(place, paddle.XPUPlace):
        number = core.get_xpu_device_count()
        generators += [core.default_xpu_generator(i) for i in range(number)]
    return generators


def _paddle_state(generator: Any) -> dict[str, Any]:
    state = generator.get_state()
    device, seed, offset = state.__getstate__()[:3]
    return {
        "device": device,
        "seed": seed,
        "offset": offset,
        "words": Values("uint64", np.array(_engine(state), "uint64")),
    }


def _engine(state: Any) -> list[int]:
    """The words of the engine, and its position: the end of the state's text."""
    return [int(word) for word in str(state).split()[-_WORDS - 1 :]]


def _prepare_paddle(generator: Any, state: Any) -> Callable[[], None]:
    try:
        words = _checked_words(state["words"], "uint64", _WORDS + 1)
        numbers = [state[name] for name in ("device", "seed", "offset")]
        for number in numbers:
            if type(number) is not int:
                raise ValueError
        own = generator.get_state()
        # A position beyond the end would be read beyond it.
        if words[-1] > _WORDS or not words[:-1].any() or numbers[0] != own.__getstate__()[0]:
            raise ValueError
        if not all(0 <= number < 2**64 for number in numbers[1:]):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CheckpointError("has no state of Paddle's random numbers for this device") from None
    kind: Any = type(own)
    taken = kind.__new__(kind)
    if len(own.__getstate__()) > 3:
        text = " ".join(map(str, words.tolist())).encode()
        # Paddle 3 gives them without a sign and takes them with one.
        signed = [n - 2**64 if n >= 2**63 else n for n in numbers]
        taken.__setstate__((*signed, list(text)))
    else:
        taken.__setstate__(tuple(numbers))
        _write_engine(taken, words)
    return lambda: generator.set_state(taken)


def _write_engine(state: Any, words: np.ndarray) -> None:
    """Set the engine of a ``GeneratorState`` of Paddle 2.6.

    There its own ``__setstate__`` leaves the engine out, and nothing else reaches it but
    its memory: a pybind11 object holds, behind the reference count and the type, a pointer to
    {int64 device; uint64 seed; uint64 offset; uint64 words[312]; size_t position}.
    """
    pointer = ctypes.c_void_p.from_address(id(state) + object.__basicsize__).value
    words_in_memory = (ctypes.c_uint64 * (3 + _WORDS + 1)).from_address(pointer or id(state))
    if list(words_in_memory)[3:] != _engine(state):
        raise CheckpointError(
            f"has a state of random numbers that Paddle {paddle.__version__} cannot take on this "
            "machine; load it on Paddle 3"
        )
    words_in_memory[3:] = words.tolist()
