import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import paddle
import pytest

from paddlescience_gradnorm.training.history import QUANTITIES, History

NAMES = ["pde", "data"]
STEPS = 600  # more than are kept on the device


@pytest.fixture
def numbers():
    return np.random.default_rng(0).lognormal(size=(STEPS, len(QUANTITIES), 2)).astype("float32")


@pytest.fixture
def history(numbers):
    history = History()
    for rows in numbers:
        history.record(NAMES, *map(paddle.to_tensor, rows))
    return history


def test_everything_comes_back_by_name(history, numbers):
    assert len(history) == STEPS
    arrays = history.to_numpy()
    assert arrays["names"].tolist() == NAMES
    for k, quantity in enumerate(QUANTITIES):
        np.testing.assert_array_equal(arrays[quantity], numbers[:, k])
        by_name = getattr(history, quantity)
        assert list(by_name) == NAMES
        np.testing.assert_array_equal(by_name["data"], numbers[:, k, 1])
        assert history.last()[quantity] == dict(zip(NAMES, numbers[-1, k].tolist()))


def test_reading_in_between_changes_nothing(history, numbers):
    read = History()
    for step, rows in enumerate(numbers):
        read.record(NAMES, *map(paddle.to_tensor, rows))
        if step % 7 == 0:
            read.last(), len(read), read.losses
    for quantity in QUANTITIES:
        np.testing.assert_array_equal(read.to_numpy()[quantity], history.to_numpy()[quantity])


def test_what_was_not_measured_is_nan():
    history = History()
    history.record(NAMES, paddle.ones([2]))
    history.record(NAMES, paddle.ones([2]), gradient_norms=paddle.full([2], 3.0))
    assert np.isnan(history.weights["pde"]).all()
    np.testing.assert_array_equal(history.gradient_norms["pde"], [np.nan, 3.0])


def test_rows_may_be_tensors_or_arrays(history, numbers):
    mixed = History()
    for step, rows in enumerate(numbers):
        losses, *others = rows
        mixed.record(NAMES, paddle.to_tensor(losses) if step % 3 else losses, *others)
    for quantity in QUANTITIES:
        np.testing.assert_array_equal(mixed.to_numpy()[quantity], history.to_numpy()[quantity])


def test_tensors_are_read_many_at_a_time(monkeypatch):
    read, stack = [], paddle.stack
    monkeypatch.setattr(paddle, "stack", lambda rows: read.append(len(rows)) or stack(rows))
    history = History()
    for _ in range(STEPS):
        history.record(NAMES, paddle.ones([2]), np.ones(2))
    assert read == [256, 256]
    assert len(history.losses["pde"]) == STEPS and read == [256, 256, STEPS - 512]


@pytest.mark.parametrize("suffix", [".npz", ".history"])
def test_a_saved_history_is_loaded_again_and_goes_on(history, tmp_path, suffix):
    path = tmp_path / f"run{suffix}"
    history.save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    loaded = History.load(path)
    for key, array in history.to_numpy().items():
        np.testing.assert_array_equal(loaded.to_numpy()[key], array)
    loaded.record(NAMES, paddle.ones([2]))
    assert len(loaded) == STEPS + 1 and loaded.losses["pde"][-1] == 1


def test_an_empty_history(tmp_path):
    history = History()
    assert len(history) == 0 and history.losses == {}
    assert history.to_numpy()["weights"].shape == (0, 0)
    history.save(tmp_path / "empty.npz")
    assert len(History.load(tmp_path / "empty.npz")) == 0
    with pytest.raises(IndexError, match="no step has been recorded"):
        history.last()


def test_other_names_are_refused(history):
    with pytest.raises(ValueError, match=r"names must be \['pde', 'data'\] .* got \['pde', 'bc'\]"):
        history.record(["pde", "bc"], paddle.ones([2]))
    assert len(history) == STEPS


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_plots_draw_every_line(history, quantity):
    _, given = plt.subplots()
    for axes in (getattr(history, f"plot_{quantity}")(), given):
        if axes is given:
            assert getattr(history, f"plot_{quantity}")(given) is given
        for line, (name, values) in zip(axes.lines, getattr(history, quantity).items()):
            assert line.get_label() == name
            np.testing.assert_array_equal(line.get_ydata(), values)
        assert axes.get_legend() is not None
        # And one where a loss is as fast as the mean.
        others = [line.get_ydata() for line in axes.lines[2:]]
        assert others == ([[1, 1]] if quantity == "training_rates" else [])
        logarithmic = quantity in ("losses", "gradient_norms")
        assert axes.get_yscale() == ("log" if logarithmic else "linear")
        plt.close(axes.figure)


def test_losses_and_weights_are_drawn_one_above_the_other(history):
    given = plt.figure().subplots(2, 1)
    for axes in (history.plot(), history.plot(given)):
        for axis, quantity in zip(axes, (history.losses, history.weights)):
            for line, (name, values) in zip(axis.lines, quantity.items()):
                assert line.get_label() == name
                np.testing.assert_array_equal(line.get_ydata(), values)
        assert axes[0].get_legend() is not None and axes[1].get_legend() is None
        assert axes[0].figure is axes[1].figure
        plt.close(axes[0].figure)
    assert axes == tuple(given)


def test_a_frame_has_a_column_for_each_quantity_and_loss(history):
    pytest.importorskip("pandas", reason="needs pandas: pip install pandas")
    frame = history.to_dataframe()
    assert frame.index.name == "step" and len(frame) == STEPS
    for quantity in QUANTITIES:
        for name, values in getattr(history, quantity).items():
            np.testing.assert_array_equal(frame[quantity][name], values)
    assert History().to_dataframe().shape == (0, 0)


def test_without_pandas_the_frame_says_what_to_install(history, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="to_dataframe needs pandas: pip install pandas"):
        history.to_dataframe()


def test_it_says_what_it_is(history):
    assert repr(history) == "<History: 600 steps of pde, data>"
    assert repr(History()) == "<History: 0 steps of no losses yet>"


def test_weights_far_apart_are_drawn_on_a_logarithmic_scale():
    for weights, scale in (([0.5, 1.5], "linear"), ([1.0, 90.0], "log")):
        history = History()
        history.record(["pde", "bc"], paddle.ones([2]), paddle.to_tensor(weights))
        axes = history.plot_weights()
        assert axes.get_yscale() == scale
        plt.close(axes.figure)


def test_without_matplotlib_the_plot_says_which_extra_to_install(history, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'paddlescience_gradnorm\[plot\]'"):
        history.plot_losses()
