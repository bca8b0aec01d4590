import io
import re

import paddle
import pytest
from rich.console import Console

from paddlescience_gradnorm import GradNorm
from paddlescience_gradnorm.training import LiveView, Trainer, live
from paddlescience_gradnorm.training.live import sparkline

NAMES = ["pde", "[bold]bc[/bold]", "data"]


@pytest.fixture
def fit(fc_net, make_losses):
    def run(console, epochs, data=None, balanced=True, **options):
        net = fc_net
        if balanced:
            net = GradNorm(
                fc_net, n_loss=3, weight_attr=[1.0, 4.0, 2.0], update_every=1000, equations=[0]
            )
        optimizer = paddle.optimizer.SGD(1e-5, parameters=net.parameters())
        return Trainer(
            net,
            lambda net, seed=0: dict(zip(NAMES, make_losses(net, seed=int(seed)))),
            optimizer,
            callbacks=[LiveView(console, unit="epoch")],
        ).fit(data, epochs, **options)

    return run


def terminal(**options):
    return Console(file=io.StringIO(), width=100, record=True, **options)


def test_it_ends_with_the_last_steps_losses_weights_and_their_curves(fit):
    console = terminal()
    history = fit(console, 3, data=[1, 2])
    first, header, *lines = console.export_text().splitlines()
    assert (
        "6/6" in first
        and re.search(r"\d epochs/s", first)
        and re.search(r"elapsed \d:\d\d:\d\d left 0:00:00", first)
    )
    assert header.split() == ["loss", "value", "so", "far", "weight", "so", "far"]
    last = history.last()
    for line, name in zip(lines, NAMES):
        assert line.startswith(name)  # brackets are no markup
        assert f"{last['losses'][name]:.2e}" in line
        assert f"{last['weights'][name]:.3g}" in line
        assert sparkline(history.losses[name]) in line
        assert line.endswith(sparkline(history.weights[name]).ljust(20))
    assert len(lines) == 3


def test_what_validate_returns_has_a_line(fit):
    console, errors = terminal(), iter([0.1, 0.01, 0.001])
    fit(console, 3, balanced=False, validate=lambda net: {"error": next(errors)})
    *_, line = console.export_text().splitlines()
    assert line.split() == ["error", "1.00e-03", "█▅▁"]


@pytest.mark.parametrize(
    "values, line",
    [
        ([], ""),
        ([float("nan")], ""),
        ([1.0], "▄"),
        ([1.0, 1.0 + 1e-9], "▄▄"),
        ([0.0, 7.0], "▁█"),
        ([-7.0, 0.0, float("inf"), float("nan"), 7.0], "▁▅█"),
        ([1e-8, 1e-4, 1.0], "▁▅█"),  # by its exponent
        (range(-2000, 2000), "▁▁▂▂▂▃▃▄▄▄▅▅▅▆▆▇▇▇██"),  # the last number of each twentieth
    ],
)
def test_a_sparkline_shows_the_whole_course(values, line):
    assert sparkline(values) == line


def test_an_unknown_number_of_steps_is_counted(fit):
    class Batches:
        def __iter__(self):
            return iter([1, 2, 3])

    console = terminal()
    fit(console, 2, data=Batches())
    assert "6/?" in console.export_text()


def test_a_terminal_sees_it_before_the_end_and_a_file_once(fit, monkeypatch):
    monkeypatch.setattr(live, "_SECONDS", 0.0)
    seen, written = (terminal(force_terminal=shown) for shown in (True, False))
    for console in (seen, written):
        fit(console, 4)
    for number in (1, 2, 3, 4):
        assert f"{number}/4" in seen.file.getvalue()
    assert written.file.getvalue().count("/4") == 1


def test_a_run_that_fails_leaves_the_terminal_in_order(fc_net):
    def fail(net):
        raise RuntimeError("no losses")

    optimizer = paddle.optimizer.SGD(1e-5, parameters=fc_net.parameters())
    console = terminal(force_terminal=True)
    trainer = Trainer(fc_net, fail, optimizer, callbacks=[LiveView(console)])
    with pytest.raises(RuntimeError, match="no losses"):
        trainer.fit(epochs=3)
    output = console.file.getvalue()
    assert "0/3" in output
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")  # the cursor is shown again


def test_without_rich_it_says_which_extra_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    with pytest.raises(ImportError, match="pip install rich"):
        LiveView()
