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
    with pytest.raises(ImportError, match="pip install matplotlib"):
        history.plot_losses()


def recorded(history, first, last):
    for step in range(first, last):
        history.record(NAMES, np.array([step, -step]), np.array([1.0, step]))
    return history


def kept(count, limit):
    """What the rows of so many steps are, counted out."""
    stride = 1
    while len(range(0, count, stride)) > limit:
        stride *= 2
    return [step for step in range(count) if step % stride == 0 or step >= count - 10]


@pytest.mark.parametrize("count", [999, 1000, 1001, 2001, 4000, 4001, 9973])
def test_a_long_history_is_thinned_evenly_and_its_end_stays_whole(count):
    history = recorded(History(limit=1000), 0, count)
    steps = history.steps
    assert len(history) == count and steps.tolist() == kept(count, 1000)
    assert len(steps) <= 1000 + 10
    np.testing.assert_array_equal(history.losses["pde"], steps)
    np.testing.assert_array_equal(history.weights["data"], steps)
    assert history.last()["losses"] == {"pde": count - 1, "data": 1 - count}
    assert history.plot_losses().lines[0].get_xdata().tolist() == steps.tolist()
    plt.close("all")


def test_what_stays_depends_on_the_number_of_steps_alone(tmp_path):
    """Not on when it was read, nor on whether it was saved and loaded in between."""
    whole = recorded(History(), 0, 50_000)
    path, again, first = tmp_path / "history.npz", History(), 0
    for last in (7, 19_999, 20_001, 20_300, 41_111, 50_000):
        recorded(again, first, last).save(path)
        again, first = History.load(path), last
    read = History()
    for step in range(50_000):
        recorded(read, step, step + 1)
        if step % 97 == 0:  # as a progress bar does
            read.last()
    for name, values in whole.to_numpy().items():
        np.testing.assert_array_equal(again.to_numpy()[name], values)
        np.testing.assert_array_equal(read.to_numpy()[name], values)
    assert again.steps.tolist() == kept(50_000, 20_000)


def test_memory_is_bounded():
    history = recorded(History(limit=1000), 0, 20_000)
    assert len(history._rows) <= 2 * (1000 + 256) and len(history._steps) == len(history._rows)


def test_without_a_limit_every_step_stays():
    history = recorded(History(limit=None), 0, 21_000)
    assert history.steps.tolist() == list(range(21_000))


def test_a_longer_history_is_thinned_when_it_goes_on_with_a_limit():
    rows = recorded(History(limit=None), 0, 5000).to_numpy()
    history = History(limit=1000)
    history.replace(NAMES, rows)
    assert len(history) == len(history.steps) == 5000
    assert recorded(history, 5000, 5001).steps.tolist() == kept(5001, 1000)
    assert rows["steps"].tolist() == list(range(5000))  # the given arrays are as they were


def test_what_has_been_read_does_not_change_later():
    history = recorded(History(limit=1000), 0, 300)
    steps, losses = history.steps, history.losses["pde"]
    recorded(history, 300, 4000).last()
    assert steps.tolist() == losses.tolist() == list(range(300))


@pytest.mark.parametrize(
    "limit, error, match",
    [
        (999, ValueError, "limit must be at least 1000, got 999"),
        (1e4, TypeError, "limit must be an integer, got 10000.0"),
    ],
)
def test_bad_limits(limit, error, match):
    with pytest.raises(error, match=match):
        History(limit=limit)


def test_a_file_says_which_version_it_is_of(history, tmp_path):
    path = tmp_path / "history.npz"
    history.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    assert int(arrays.pop("version")) == 2
    # Version 1, of 0.1.0, had a row for each step, and no numbers of them.
    steps = arrays.pop("steps")
    np.savez(path, **arrays)
    old = History.load(path)
    assert old.steps.tolist() == steps.tolist() and len(old) == STEPS
    np.savez(path, version=3, **arrays)
    with pytest.raises(ValueError, match=r"by a newer .* version 3 of a history, .* up to 2"):
        History.load(path)


@pytest.mark.parametrize("steps", [[0, 0], [1, 0], [-1, 0], [0], [0.0, 1.0], [[0, 1]]])
def test_steps_that_are_none_are_refused(tmp_path, steps):
    path = tmp_path / "history.npz"
    recorded(History(), 0, 2).save(path)
    with np.load(path) as file:
        np.savez(path, **{**file, "steps": np.array(steps)})
    with pytest.raises(ValueError, match=r"history\.npz' is damaged, or no history"):
        History.load(path)


def test_a_full_disk_leaves_the_file_of_before(tmp_path, mount):
    folder = tmp_path / "disk"
    mount(folder, "size=64k")
    recorded(History(), 0, 10).save(folder / "history.npz")
    mount.fill(folder)
    with pytest.raises(OSError, match="No space left on device") as info:
        recorded(History(), 0, 2000).save(folder / "history.npz")
    assert info.value.filename == str(folder / "history.npz")
    assert len(History.load(folder / "history.npz")) == 10
    assert sorted(path.name for path in folder.iterdir()) == ["filler", "history.npz"]
