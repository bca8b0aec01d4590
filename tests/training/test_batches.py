import itertools

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet
from paddlescience_gradnorm.training._batches import as_arguments, batches_and_epochs


@pytest.mark.parametrize("number", [1000, np.int64(1000)])
def test_a_number_is_epochs_without_data(number):
    batches, epochs = batches_and_epochs(number, None)
    assert batches is None and epochs == 1000 and type(epochs) is int
    with pytest.raises(TypeError, match=r"data is the number 1000, beside epochs=5; .*epochs=1000"):
        batches_and_epochs(number, 5)
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        batches_and_epochs(0, None)


class FromTheStart:
    """An iterator that begins anew."""

    def __iter__(self):
        self.rest = [1, 2]
        return self

    def __next__(self):
        if not self.rest:
            raise StopIteration
        return self.rest.pop()


class Items:
    """Only __getitem__, as old as Python."""

    def __getitem__(self, k):
        return [1, 2][k]


class Stream(paddle.io.IterableDataset):
    def __iter__(self):
        return iter([1, 2])


def samples():
    return paddle.io.TensorDataset([paddle.ones([4, 2])])


DATA = {
    "none": lambda: None,
    "list": lambda: [paddle.ones([4, 2])],
    "tuple": lambda: (1, 2),
    "range": lambda: range(3),
    "loader": lambda: paddle.io.DataLoader(samples(), batch_size=2),
    "stream": Stream,
    "class": FromTheStart,
    "items": Items,
}


@pytest.mark.parametrize("data", DATA)
def test_what_can_be_run_through_again_is_taken_as_it_is(data):
    given = DATA[data]()
    assert batches_and_epochs(given, 3) == (given, 3)
    assert batches_and_epochs(given, None) == (given, 1)


@pytest.mark.parametrize(
    "once",
    [
        lambda: (batch for batch in [1, 2]),
        lambda: iter([1, 2]),
        lambda: zip([1], [2]),
        lambda: map(float, [1]),
        lambda: itertools.islice([1, 2], 1),
    ],
    ids=["generator", "iterator", "zip", "map", "islice"],
)
def test_what_runs_once_is_enough_for_one_epoch(once):
    data = once()
    assert batches_and_epochs(data, 1)[0] is data
    with pytest.raises(TypeError, match=f"{type(data).__name__} for 3 epochs, .* once; use a list"):
        batches_and_epochs(data, 3)


@pytest.mark.parametrize(
    "data, match",
    [
        (lambda: paddle.ones([8, 2]), r"Tensor of shape \[8, 2\], whose rows .* fit\(\[data\]\)"),
        (lambda: np.ones([8, 2]), r"ndarray of shape \[8, 2\], whose rows .* fit\(\[data\]\)"),
        (
            lambda: {"x": paddle.ones([8, 2]), "y": 1},
            r"dict with the keys \['x', 'y'\]; .*fit\(\[data\]\)",
        ),
        (samples, r"TensorDataset of single samples; .*DataLoader\(data, batch_size="),
        (lambda: 1e4, r"float 10000\.0; .*fit\(epochs=\.\.\.\)"),
        (lambda: True, "bool True"),
        (lambda: "1000", "str '1000'"),
        (lambda: len, "builtin_function_or_method <built-in function len>"),
    ],
)
def test_what_holds_no_batches_is_named(data, match):
    with pytest.raises(TypeError, match="data must be the batches of an epoch, got a? ?" + match):
        batches_and_epochs(data(), None)


def test_the_parts_of_a_batch_are_the_arguments():
    net, tensor = FCNet(2, 1, 2, 4), paddle.ones([4, 2])
    assert as_arguments(tensor, net)[0] is tensor
    assert as_arguments([tensor, 3], net)[0] is tensor
    assert as_arguments((), net) == [] and as_arguments("seed", net) == ["seed"]


@pytest.mark.parametrize("own", ["float32", "float64"])
def test_arrays_of_floats_become_tensors_of_the_networks_dtype(own):
    net = FCNet(2, 1, 2, 4).to(dtype=own)
    array = np.random.default_rng(0).random((4, 2))
    numbers = np.arange(3)
    x, named, kept, seed = as_arguments([array, {"y": array, "n": 2}, numbers, np.int64(3)], net)
    for tensor in (x, named["y"], as_arguments(array, net)[0]):
        assert tensor.dtype == getattr(paddle, own)
        np.testing.assert_array_equal(tensor.numpy(), array.astype(own))
    assert kept is numbers and named["n"] == 2 and type(seed) is np.int64
