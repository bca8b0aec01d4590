import copy
import random

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.training import CheckpointError, _checkpoint_file, _random_state
from paddlescience_gradnorm.training._checkpoint_file import Values


def drawn():
    """Numbers of every kind, more of Paddle's than its state has words."""
    return [
        paddle.rand([700]).numpy().tolist(),
        paddle.randn([3], "float64").tolist(),
        paddle.randperm(9).tolist(),
        paddle.nn.functional.dropout(paddle.ones([9])).tolist(),
        random.gauss(0, 1),
        random.random(),
        np.random.standard_normal(3).tolist(),
        np.random.permutation(9).tolist(),
    ]


@pytest.mark.parametrize("before", [0, 1, 311, 312, 313, 10_000])
def test_the_same_numbers_come_again_in_another_process(tmp_path, before):
    paddle.seed(3)
    random.gauss(0, 1), np.random.standard_normal(3)  # both keep a second number
    if before:
        paddle.rand([before])
    _checkpoint_file.write(tmp_path / "state", _random_state.global_state())
    expected = drawn()
    paddle.seed(1)
    np.random.seed(1)
    random.seed(1)
    assert drawn() != expected
    for _ in range(2):
        _random_state.prepare_global(_checkpoint_file.read(tmp_path / "state"))()
        assert drawn() == expected


def test_a_state_is_not_changed_by_what_is_drawn_after():
    state = _random_state.global_state()
    put_back = _random_state.prepare_global(state)
    expected = drawn()
    put_back()
    assert drawn() == expected
    _random_state.prepare_global(state)()
    assert drawn() == expected


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_numpys_generators(tmp_path, kind):
    generator = np.random.Generator(getattr(np.random, kind)(7))
    generator.integers(0, 9, dtype="int32")  # half a word stays
    _checkpoint_file.write(tmp_path / "state", _random_state.numpy_state(generator))
    expected = generator.random(5).tolist(), generator.integers(0, 99, 3, "int32").tolist()
    other = np.random.Generator(getattr(np.random, kind)(8))
    _random_state.prepare_numpy(other, _checkpoint_file.read(tmp_path / "state"))()
    assert (other.random(5).tolist(), other.integers(0, 99, 3, "int32").tolist()) == expected
    with pytest.raises(CheckpointError, match="of another kind"):
        wrong = np.random.default_rng() if kind != "PCG64" else np.random.RandomState()
        _random_state.prepare_numpy(wrong, _checkpoint_file.read(tmp_path / "state"))


def test_a_seed_with_its_highest_bit_set_comes_back():
    paddle.seed(2**63 + 5)
    put_back = _random_state.prepare_global(_random_state.global_state())
    expected = paddle.rand([3]).tolist()
    paddle.seed(1)
    put_back()
    assert paddle.rand([3]).tolist() == expected
    assert paddle.get_rng_state()[0].__getstate__()[1] == 2**63 + 5


def test_own_generators_of_the_older_kinds():
    for generator, state, prepare in (
        (random.Random(3), _random_state.python_state, _random_state.prepare_python),
        (np.random.RandomState(3), _random_state.numpy_state, _random_state.prepare_numpy),
    ):
        put_back = prepare(generator, state(generator))
        expected = [generator.gauss(0, 1) if hasattr(generator, "gauss") else generator.normal()]
        put_back()
        again = [generator.gauss(0, 1) if hasattr(generator, "gauss") else generator.normal()]
        assert again == expected


def altered(state, path, value):
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return state


def words(number, dtype, fill=1):
    return Values(dtype, np.full(number, fill, dtype))


@pytest.mark.parametrize(
    "path, value",
    [
        (["paddle"], []),
        (["paddle"], 3),
        (["paddle", 0], None),
        (["paddle", 0, "seed"], "3"),
        (["paddle", 0, "seed"], 2**64),
        (["paddle", 0, "offset"], -1),
        (["paddle", 0, "device"], 5),
        (["paddle", 0, "words"], words(312, "uint64")),
        (["paddle", 0, "words"], words(313, "uint64", 313)),  # a position beyond the end
        (["paddle", 0, "words"], words(313, "uint64", 0)),
        (["paddle", 0, "words"], words(313, "int64")),
        (["python"], None),
        (["python", "version"], 99),
        (["python", "words"], words(625, "uint32", 625)),
        (["python", "words"], words(624, "uint32")),
        (["python", "gauss"], "x"),
        (["numpy", "bit_generator"], "os.system"),
        (["numpy", "state"], {}),
        (["numpy", "state", "pos"], 700),
        (["numpy", "state", "pos"], -1),
        (["numpy", "state", "key"], words(3, "uint32")),
        (["numpy", "has_gauss"], "x"),
    ],
)
def test_a_state_that_is_none_is_an_error_and_changes_nothing(path, value):
    state = _random_state.global_state()
    expected = drawn()
    _random_state.prepare_global(state)()
    with pytest.raises(CheckpointError):
        _random_state.prepare_global(altered(state, path, value))
    assert drawn() == expected
