import io
import os
import re
import subprocess
import sys

import paddle
import pytest

from paddlescience_gradnorm import GradNorm
from paddlescience_gradnorm.training import History, ProgressBar, Trainer, progress

NAMES = ["pde", "boundary", "data"]


@pytest.fixture(autouse=True)
def _without_the_line_about_the_rule(caplog):
    caplog.set_level("WARNING", logger="paddlescience_gradnorm")


@pytest.fixture
def make(fc_net, make_losses):
    def trainer(*callbacks, **options):
        net = GradNorm(fc_net, n_loss=3, alpha=1.0, weight_lr=1e-3)
        optimizer = paddle.optimizer.SGD(1e-4, parameters=net.parameters())
        return Trainer(
            net,
            lambda net, seed=0: dict(zip(NAMES, make_losses(net, seed=int(seed)))),
            optimizer,
            callbacks=callbacks,
            **options,
        )

    return trainer


@pytest.fixture
def fit(make):
    def run(file, epochs, data=None, **options):
        return make(ProgressBar(file=file, **options)).fit(data, epochs)

    return run


def last_line(file):
    return file.getvalue().rstrip().rpartition("\r")[2]


def expected(history, weights=True):
    """The losses of the last step, as they are shown."""
    last = history.last()
    total = sum(last["weights"][name] * loss for name, loss in last["losses"].items())
    parts = (
        f"{name} {loss:.1e}" + (f" (w {last['weights'][name]:.2g})" if weights else "")
        for name, loss in last["losses"].items()
    )
    return f"total {total:.1e}: {' '.join(parts)}"


def test_the_bar_ends_full_with_the_last_steps_losses_and_weights(fit):
    file = io.StringIO()
    history = fit(file, 3, data=[1, 2])
    assert re.match(r"#+\| 6/6 +[\d.]+step/s 00:00 left, ", last_line(file))
    assert last_line(file).endswith(expected(history))


@pytest.mark.parametrize(
    "columns, bar, losses",
    [
        (200, True, "weights"),
        (118, False, "weights"),
        (105, True, "names"),
        (92, False, "names"),
        (70, True, "total"),
        (48, False, "total"),
    ],
)
def test_what_does_not_fit_in_the_line_is_left_out(fit, columns, bar, losses):
    file = io.StringIO()
    history = fit(file, 3, data=[1, 2], ncols=columns)
    line = last_line(file)
    assert len(line) <= columns and ("#" in line) is bar
    assert ("(w" in line, "pde" in line) == (losses == "weights", losses != "total")
    shown = expected(history, weights=losses == "weights")
    assert line.endswith(shown if losses != "total" else shown.partition(":")[0])


def test_a_description_and_a_line_of_ones_own(fit):
    file = io.StringIO()
    fit(file, 2, desc="a run")
    assert re.match(r"a run: #+\| 2/2 ", last_line(file))
    file = io.StringIO()
    fit(file, 2, bar_format="{n}:{postfix}")
    assert last_line(file).startswith("2:, total")


def test_an_unknown_number_of_steps_is_counted(fit):
    class Batches:
        def __iter__(self):
            return iter([1, 2, 3])

    file = io.StringIO()
    history = fit(file, 2, data=Batches())
    assert last_line(file).startswith("6step [") and expected(history) in last_line(file)


@pytest.fixture
def reads(monkeypatch):
    """The calls that read numbers, for which an accelerator has to wait."""
    calls = []
    last = History.last
    monkeypatch.setattr(History, "last", lambda self: calls.append(self) or last(self))
    return calls


def test_numbers_are_read_when_it_draws_and_at_no_other_time(fit, reads, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 0.0)  # of a terminal
    fit(io.StringIO(), 50)
    assert len(reads) == 2  # after the first step, and at the end
    monkeypatch.setattr(progress, "_SECONDS_IN_A_FILE", 0.0)
    fit(io.StringIO(), 50)
    assert len(reads) == 2 + 51


@pytest.mark.parametrize("disable", [True, None])
def test_a_disabled_bar_reads_nothing(fit, reads, disable):
    file = io.StringIO()  # which is no terminal
    fit(file, 3, disable=disable)
    assert file.getvalue() == "" and reads == []


def test_a_run_that_fails_ends_the_line_and_shows_its_last_step(make, capsys):
    trainer = make(progress=True)
    losses = trainer.losses

    def fail(net):
        if trainer.step == 2:
            raise RuntimeError("no losses")
        return losses(net)

    trainer.losses = fail
    with pytest.raises(RuntimeError, match="no losses"):
        trainer.fit(5)
    shown = capsys.readouterr().err
    assert "2/5" in shown and shown.endswith("\n")
    trainer.losses = lambda net: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.fit(5)
    assert "/5" not in capsys.readouterr().err  # nothing is known of this run


# The trainer's own bar.


def test_without_a_terminal_it_is_shown_when_asked_for(make, capsys):
    make().fit(3)
    assert capsys.readouterr().err == ""
    make(progress=True).fit(3)
    assert "3/3" in capsys.readouterr().err
    trainer = make(progress=True)
    trainer.fit_lbfgs(epochs=2, max_iter=2)
    assert "2/2" in capsys.readouterr().err and trainer.callbacks == []


def test_a_program_without_a_console_stays_quiet(make, monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.setattr(sys, "stderr", None)
    assert len(make().fit(3)) == 3


@pytest.mark.parametrize(
    "view",
    [lambda: ProgressBar(disable=True), lambda: paddle.callbacks.ProgBarLogger(verbose=0)],
    ids=["bar", "Paddle's"],
)
def test_there_is_none_beside_a_view_that_was_given(make, capsys, view):
    make(view(), progress=True).fit(3)
    assert capsys.readouterr().err == ""


PROGRAM = """
import logging, sys
import paddle
from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.training import LiveView, ProgressBar, Trainer, progress

logging.getLogger("paddlescience_gradnorm").setLevel("WARNING")
net = GradNorm(FCNet(2, 1, 3, 8), 2)
x = paddle.rand([8, 2])
adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())


def losses(net):
    return {"pde": net(x).square().mean(), "boundary": (net(x[:2]) - 1).square().mean()}


def stage(name, call, *callbacks, **options):
    print(f"<{name}>", file=sys.stderr, end="", flush=True)
    call(Trainer(net, losses, adam, callbacks=callbacks, **options))


progress._SECONDS = 0.0
stage("fit", lambda trainer: trainer.fit(7))
progress._SECONDS = 3600.0
stage("seldom", lambda trainer: trainer.fit(7))
stage("L-BFGS", lambda trainer: trainer.fit_lbfgs(3, max_iter=2))
stage("off", lambda trainer: trainer.fit(7), progress=False)
stage("given", lambda trainer: trainer.fit(7), ProgressBar(desc="mine"))
try:
    stage("live", lambda trainer: trainer.fit(7), LiveView())
except ImportError:
    pass
print("<end>", file=sys.stderr)
"""


def stages(text):
    text = text.replace("\r\n", "\n")  # as a terminal makes of it
    return dict(re.findall(r"<([\w-]+)>([^<]*)", text))


def in_terminal(terminal, columns, **environment):
    window = terminal(columns)
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    with window.begin("-c", PROGRAM, env={**env, **environment}) as process:
        shown = window.read()
    assert process.returncode == 0, shown
    return stages(shown)


def test_a_terminal_shows_one_line_that_is_rewritten_in_place(terminal):
    shown = in_terminal(terminal, 80)
    line = r"\r{}/7 +[\d.]+(?:step/s|s/step) \d\d:\d\d left, total \S+: pde \S+ boundary \S+ *"
    # The last step is drawn when it is made, when the run has ended, and with its mean speed.
    for name, steps in ("fit", [*range(1, 8), 7, 7]), ("seldom", [1, 7, 7]):
        assert re.fullmatch("".join(map(line.format, steps)) + "\n", shown[name]), shown[name]
    assert shown["L-BFGS"].count("\n") == 1 and "3/3" in shown["L-BFGS"]
    assert shown["off"] == ""
    assert shown["given"].count("mine: ") == shown["given"].count("/7") == 3
    assert "left, total" not in shown["live"]
    for text in shown.values():
        assert all(len(part) <= 80 for part in re.split("[\r\n]", text.partition("\x1b")[0]))


@pytest.mark.parametrize(
    "environment",
    [{"PYTEST_CURRENT_TEST": "a test"}, {"PADDLE_TRAINER_ID": "1", "PADDLE_TRAINERS_NUM": "2"}],
    ids=["pytest", "second process"],
)
def test_a_terminal_stays_quiet_under_pytest_and_for_other_processes(terminal, environment):
    shown = in_terminal(terminal, 80, **environment)
    for name in ("fit", "seldom", "L-BFGS", "off"):
        assert shown[name] == ""
    assert "mine: " in shown["given"]  # somebody has asked for it


def test_a_file_stays_empty(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    with (tmp_path / "log").open("w") as log:
        assert subprocess.run(command, stderr=log, env=env).returncode == 0
    shown = stages((tmp_path / "log").read_text())
    assert [shown[name] for name in ("fit", "seldom", "L-BFGS", "off")] == [""] * 4
