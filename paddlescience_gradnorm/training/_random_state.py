"""The state of random number generators, in plain types: Paddle's, Python's and numpy's."""

from __future__ import annotations

import random
from typing import Any, Callable

import numpy as np

from paddlescience_gradnorm import _paddle
from paddlescience_gradnorm.training._checkpoint_file import CheckpointError, Values
from paddlescience_gradnorm.training._like import alike
from paddlescience_gradnorm.training._versions import Schema

_GLOBAL = Schema("random numbers", ("paddle", "python", "numpy"))
_PYTHON = Schema("Python's random numbers", ("algorithm", "words", "gauss"))
_NUMPY = Schema("numpy's random numbers", ("state",))


def global_state() -> dict[str, Any]:
    """The state of the generators that everybody shares.

    They are Python's ``random``, numpy's, and Paddle's on the host and on all accelerators.

    Examples:
        >>> import paddle
        >>> state = global_state()
        >>> first = paddle.rand([3])
        >>> prepare_global(state)()
        >>> bool((paddle.rand([3]) == first).all())
        True
    """
    return _GLOBAL.written(
        paddle=[_paddle_state(generator) for generator in _paddle.default_generators()],
        python=python_state(random),
        numpy=numpy_state(np.random),
    )


def prepare_global(state: Any) -> Callable[[], None]:
    """What puts the generators into this state.

    Args:
        state: From ``global_state``, perhaps from a file that nobody has checked.

    Returns:
        A function without arguments. Nothing has been changed before somebody calls it.

    Raises:
        CheckpointError: It is no such state, or comes from another number of accelerators.
    """
    fields, generators = _GLOBAL.read(state), _paddle.default_generators()
    if not isinstance(fields["paddle"], list) or len(fields["paddle"]) != len(generators):
        raise CheckpointError(
            f"has no random state of Paddle for {len(generators)} generators, as on this machine"
        )
    prepared = [_prepare_paddle(*pair) for pair in zip(generators, fields["paddle"])]
    prepared.append(prepare_python(random, fields["python"]))
    prepared.append(prepare_numpy(np.random, fields["numpy"]))

    def apply() -> None:
        for part in prepared:
            part()

    return apply


def python_state(generator: Any) -> dict[str, Any]:
    """The state of a ``random.Random``, or of the module ``random``."""
    algorithm, words, gauss = generator.getstate()
    words = Values("uint32", np.array(words, "uint32"))
    return _PYTHON.written(algorithm=algorithm, words=words, gauss=gauss)


def prepare_python(generator: Any, state: Any) -> Callable[[], None]:
    """As ``prepare_global``, for a state from ``python_state``."""
    fields = _PYTHON.read(state)
    gauss = fields["gauss"]
    try:
        words = tuple(_checked_words(fields["words"], "uint32", 625).tolist())
        # Python takes any second number, and a position before the first word.
        if not (gauss is None or type(gauss) is float) or words[-1] > 624:
            raise ValueError
        taken = (fields["algorithm"], words, gauss)
        random.Random().setstate(taken)
    except (TypeError, ValueError, OverflowError):
        raise CheckpointError("has no state of Python's random numbers") from None
    return lambda: generator.setstate(taken)


def numpy_state(generator: Any) -> dict[str, Any]:
    """The state of a numpy ``Generator`` or ``RandomState``, or of the module ``np.random``."""
    return _NUMPY.written(state=_plain(_own_numpy_state(generator)))


def prepare_numpy(generator: Any, state: Any) -> Callable[[], None]:
    """As ``prepare_global``, for a state from ``numpy_state``."""
    plain, own = _NUMPY.read(state)["state"], _own_numpy_state(generator)
    if not _alike(_plain(own), plain):
        name = getattr(generator, "__name__", type(generator).__name__)
        raise CheckpointError(f"has no state of random numbers for {name}, or of another kind")
    taken = _from_plain(plain)
    is_new = isinstance(generator, np.random.Generator)
    try:
        if taken.get("bit_generator") == "MT19937" and not 0 <= taken["state"]["pos"] <= 624:
            raise ValueError
        if is_new:
            type(generator.bit_generator)().state = taken
        else:
            np.random.RandomState(getattr(np.random, own["bit_generator"])()).set_state(taken)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise CheckpointError("has an impossible state of numpy's random numbers") from None

    def apply() -> None:
        if is_new:
            generator.bit_generator.state = taken
        else:
            generator.set_state(taken)

    return apply


def _own_numpy_state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state(legacy=False)


def _plain(state: Any) -> Any:
    """With arrays as ``Values``, and numpy's numbers as Python's."""
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
    """Unlike ``check_like``, this compares strings and takes integers of 128 bits."""
    if type(own) is not type(other):
        return False
    if isinstance(own, dict):
        return set(own) == set(other) and all(_alike(own[k], other[k]) for k in own)
    if isinstance(own, Values):
        return alike(own, other)
    return own == other if isinstance(own, str) else True


def _checked_words(values: Any, dtype: str, number: int) -> np.ndarray:
    if not alike(Values(dtype, np.empty(number)), values):
        raise ValueError(f"no {number} words of {dtype}")
    return values.array


def _paddle_state(generator: Any) -> dict[str, Any]:
    device, seed, offset, engine = _paddle.generator_numbers(generator.get_state())
    words = Values("uint64", np.array(engine, "uint64"))
    return {"device": device, "seed": seed, "offset": offset, "words": words}


def _prepare_paddle(generator: Any, state: Any) -> Callable[[], None]:
    try:
        words = _checked_words(state["words"], "uint64", _paddle.MERSENNE_WORDS + 1)
        device, seed, offset = (state[name] for name in ("device", "seed", "offset"))
        if any(type(number) is not int for number in (device, seed, offset)):
            raise ValueError
        # Paddle would read beyond the end from a position there.
        if words[-1] > _paddle.MERSENNE_WORDS or not words[:-1].any():
            raise ValueError
        if device != _paddle.generator_numbers(generator.get_state()).device:
            raise ValueError
        if not (0 <= seed < 2**64 and 0 <= offset < 2**64):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CheckpointError("has no state of Paddle's random numbers for this device") from None
    numbers = _paddle.GeneratorNumbers(device, seed, offset, words.tolist())
    try:
        taken = _paddle.generator_state(numbers)
    except RuntimeError as error:
        raise CheckpointError(
            f"has a random state that cannot be put back on this machine: {error}; load the file "
            "on Paddle 3"
        ) from None
    return lambda: generator.set_state(taken)
