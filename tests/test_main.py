import contextlib
import html
import io
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import paddlescience_gradnorm
from paddlescience_gradnorm import FCNet
from paddlescience_gradnorm.__main__ import PROGRAM, _parser, _plot_solution, main
from paddlescience_gradnorm.pde.problems import PROBLEMS, problem
from paddlescience_gradnorm.training import History
from paddlescience_gradnorm.training._lock import FolderLock

COMMAND = [sys.executable, "-W", "ignore", "-m", "paddlescience_gradnorm"]
COMPARED = ["--balance", "pinn", "--seeds", "0"]
TINY = ["--epochs", "20", "--points", "32"]


def command_line(*arguments, cwd):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd)


def test_help_lists_the_commands(tmp_path):
    result = command_line("--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^ {4}(\w+) ", result.stdout, re.MULTILINE) == [
        *("problems", "run", "report", "compare", "doctor"),
    ]


@pytest.mark.parametrize("command", [[], ["run"], ["compare"]])
def test_help_has_examples_that_are_accepted(capsys, command):
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    examples = capsys.readouterr().out.partition("\nexamples:\n")[2].splitlines()
    lines = [line.partition("#")[0] for line in examples if line.startswith(f"  {PROGRAM} ")]
    assert len(lines) >= 2
    for line in lines:
        arguments = shlex.split(line.strip().removeprefix(PROGRAM))
        assert _parser(arguments).parse_args(arguments).command


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    version = paddlescience_gradnorm.__version__
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"paddlescience_gradnorm {version}\n"


@pytest.mark.parametrize("arguments", [["--help"], [], ["reports"], ["--version"]])
def test_help_answers_without_paddle(arguments):
    code = (
        "import sys\n"
        "from paddlescience_gradnorm.__main__ import main\n"
        f"try: main({arguments})\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'paddle', 'numpy', 'sympy', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_problems_is_a_table_with_a_row_for_each(capsys):
    assert main(["problems"]) == 0
    header, rule, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["problem", "losses", "equation"] and set(rule) == {"-", " "}
    second, third = header.index("losses"), header.index("equation")
    cells = [(line[:second], line[second:third], line[third:]) for line in lines]
    assert [name.strip() for name, _, _ in cells if name.strip()] == list(PROBLEMS)
    for name in PROBLEMS:
        first = next(k for k, row in enumerate(cells) if row[0].strip() == name)
        more = itertools.takewhile(lambda row: not row[0].strip(), cells[first + 1 :])
        losses = " ".join(row[1].strip() for row in [cells[first], *more])
        assert losses == ", ".join(condition.name for condition in problem(name).conditions)
        assert cells[first][2] == problem(name).equation


def test_in_a_terminal_the_table_is_no_wider(terminal):
    window = terminal(80)
    code = (
        "import sys; sys.stdout = sys.stderr\n"
        "from paddlescience_gradnorm.__main__ import main; main(['problems'])"
    )
    with window.begin("-c", code) as process:
        shown = window.read()
    assert process.returncode == 0, shown
    assert max(map(len, shown.splitlines())) <= 80 and "kovasznay" in shown


@pytest.mark.parametrize("name", ["beam", "couette", "helmholtz_3d"])
def test_solutions_are_plotted_over_one_and_two_of_their_coordinates(tmp_path, name):
    p = problem(name)
    _plot_solution(tmp_path / "a.png", p, FCNet(len(p.coordinates), len(p.fields), 3, 8))
    image = np.array(Image.open(tmp_path / "a.png").convert("RGB"))
    rows = len(p.quantities)
    # In the middle of the first panel: a colour, the white of a hole, or a curve beside white.
    middle = image[image.shape[0] // rows // 2, int(image.shape[1] * 0.15)]
    assert (middle == 255).all() == (name != "helmholtz_3d")


@pytest.mark.parametrize(
    "name, balance, alpha",
    [("helmholtz_inverse", "pinn", None), ("laplace", "published", 0.5), ("wave", "equal", None)],
)
def test_run_writes_what_it_prints(tmp_path, name, balance, alpha):
    arguments = ["run", name, "--balance", balance, *TINY, "--seed", "3"]
    if alpha is not None:
        arguments += ["--alpha", str(alpha)]
    result = command_line(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    output = tmp_path / "outputs" / f"{name}_{balance}"
    shown = output.relative_to(tmp_path)
    files = "metrics.json, history.npz, training.png, solution.png"
    assert "kernels" not in result.stdout  # the settings are for doctor
    assert f"{files} in {shown}\nas a page: {PROGRAM} report {shown}\n" in result.stdout

    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["steps"] == 20 and "20/20" not in result.stderr  # which is no terminal
    asked = {"problem": name, "balance": balance, "epochs": 20, "points": 32, "seed": 3}
    steps, errors = zip(*metrics["error_curve"])
    assert steps == tuple(range(1, 21)) and min(errors) > 0
    assert metrics["settings"].items() >= {**asked, "beta2": 0.99}.items()
    assert metrics["settings"].get("alpha") == (0.5 if balance == "published" else None)
    assert metrics["versions"]["numpy"] == np.__version__
    assert list(metrics["errors"]) == list(problem(name).quantities)
    assert list(metrics["coefficients"]) == [unknown.name for unknown in problem(name).unknowns]
    for quantity, error in metrics["errors"].items():
        assert f"relative L2 error of {quantity}: {error:.2e}\n" in result.stdout
    for coefficient, error in metrics["coefficient_errors"].items():
        assert re.search(rf"^{coefficient}: .* relative error {error:.2e}$", result.stdout, re.M)
    for finding in metrics["diagnosis"]:
        assert finding in result.stdout

    history = History.load(output / "history.npz")
    assert history.names == [condition.name for condition in problem(name).conditions]
    assert len(history) == 20
    assert history.last()["losses"] == metrics["final_losses"]
    assert history.last()["weights"] == metrics["final_weights"]
    weights = list(metrics["final_weights"].values())
    if balance == "pinn":
        assert weights[0] == pytest.approx(1, abs=1e-5)  # of the equation, which is the unit
    else:
        assert sum(weights) == pytest.approx(len(weights), abs=1e-5)
    assert (weights == [1] * len(weights)) == (balance == "equal")

    for figure in ("training", "solution"):
        pixels = np.asarray(Image.open(output / f"{figure}.png").convert("L"))
        assert pixels.shape[0] > 300 and pixels.std() > 10  # not an empty sheet

    result = command_line("report", str(shown), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{shown / 'report.html'}: open it in a browser")
    page = (output / "report.html").read_text(encoding="utf-8")
    assert f"<h1>{name}</h1>" in page and html.escape(problem(name).equation) in page
    assert f"{next(iter(metrics['errors'].values())):.4g}" in page
    assert html.escape(metrics["machine"]) in page
    assert page.count("<img") == (4 if balance == "equal" else 6)


def test_gradnorm_means_what_the_class_makes_of_it(tmp_path, capsys):
    def settings(*options):
        assert main(["run", "laplace", *TINY, *options, "--output", str(tmp_path)]) == 0
        return json.loads((tmp_path / "metrics.json").read_text())["settings"]

    assert settings("--balance", "gradnorm")["balance"] == "pinn"
    found = settings("--balance", "gradnorm", "--alpha", "1.5")
    assert (found["balance"], found["alpha"]) == ("published", 1.5)
    assert settings("--steps", "3")["epochs"] == 3  # as version 0.1.0 spelt it


def test_the_report_shows_the_run_with_equal_weights_beside(tmp_path, capsys):
    for balance in ("equal", "pinn"):
        options = ["--balance", balance, *TINY, "--output", str(tmp_path / balance)]
        assert main(["run", "laplace", *options]) == 0
    metrics = json.loads((tmp_path / "equal/metrics.json").read_text())
    assert main(["report", str(tmp_path / "pinn")]) == 0
    page = (tmp_path / "pinn/report.html").read_text(encoding="utf-8")
    assert f"equal weights: {metrics['errors']['u']:.4g}" in page
    assert main(["report", str(tmp_path / "equal")]) == 0
    assert "equal weights" not in (tmp_path / "equal/report.html").read_text(encoding="utf-8")


def test_a_run_learns_and_the_seed_decides_it(tmp_path, capsys):
    def error(seed, steps):
        options = ["--steps", steps, "--points", "64", "--seed", seed, "--output", str(tmp_path)]
        assert main(["run", "laplace", *options]) == 0
        return json.loads((tmp_path / "metrics.json").read_text())["errors"]["u"]

    assert error("0", "300") < 0.1  # untrained: about 1
    assert error("1", "5") == error("1", "5") != error("2", "5")


def test_the_published_rule_has_an_alpha_of_its_own(tmp_path, capsys):
    options = ["--balance", "published", *TINY, "--output", str(tmp_path)]
    assert main(["run", "laplace", *options]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["alpha"] == 1


def test_ctrl_c_ends_a_run_whose_results_are_written(tmp_path, terminal):
    arguments = ["run", "laplace", "--steps", "1000000", "--points", "16", "--output", "here"]
    window = terminal(100)
    with window.begin("-m", "paddlescience_gradnorm", *arguments, cwd=tmp_path) as process:
        window.read(until="step/s")  # the run has begun
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate()
    assert process.returncode == 130 and "Traceback" not in window.read()
    metrics = json.loads((tmp_path / "here/metrics.json").read_text())
    assert 0 < metrics["steps"] < 1000000
    assert f"stopped at step {metrics['steps']} of 1000000" in printed
    assert len(History.load(tmp_path / "here/history.npz")) == metrics["steps"]


def test_without_matplotlib_there_is_no_figure_and_a_line_that_says_why(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from paddlescience_gradnorm.__main__ import main\n"
        f"sys.exit(main(['run', 'laplace', *{TINY}, '--output', '.']))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    missing = "no figures: matplotlib is not installed; pip install matplotlib"
    assert missing in result.stdout.splitlines()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.npz", "metrics.json"]


def test_a_run_whose_printing_fails_keeps_its_results(tmp_path, monkeypatch):
    def is_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("paddlescience_gradnorm.__main__._print_metrics", is_full)
    with pytest.raises(SystemExit) as ended:
        main(["run", "laplace", *TINY, "--output", str(tmp_path)])
    assert ended.value.code == 1
    assert {"history.npz", "metrics.json"} <= {path.name for path in tmp_path.iterdir()}


def test_a_reader_that_goes_away_ends_a_command_without_a_word(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-u", *COMMAND[3:], "problems"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_compare_writes_what_it_prints_and_goes_on_where_it_was(tmp_path):
    options = ["--balance", "equal,pinn", "--seeds", "0,1", *TINY, "--jobs", "2"]
    result = command_line("compare", "burgers_inverse", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "outputs/burgers_inverse_comparison"
    first, *lines = result.stdout.splitlines()
    assert first == f"burgers_inverse: {problem('burgers_inverse').equation}"
    assert [line[:4] for line in lines[:4]] == ["1/4 ", "2/4 ", "3/4 ", "4/4 "]
    table = (folder / "comparison.md").read_text()
    files = "comparison.md, comparison.png, comparison.html"
    assert f"\n{table}\n{files} in {folder.relative_to(tmp_path)}\n" in result.stdout
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert sorted((run["balance"], run["seed"]) for run in runs) == [
        *(("equal", 0), ("equal", 1), ("pinn", 0), ("pinn", 1))
    ]
    errors = sorted(run["error"] for run in runs if run["balance"] == "pinn")
    assert f"{np.median(errors):.2g} [{errors[0]:.2g}, {errors[1]:.2g}]" in table
    page = (folder / "comparison.html").read_text(encoding="utf-8")
    assert html.escape(problem("burgers_inverse").equation) in page

    result = command_line("compare", "burgers_inverse", *options, cwd=tmp_path)
    assert result.stdout.splitlines()[1] == "4 of 4 runs are there already"
    assert (folder / "comparison.md").read_text() == table


def test_compare_takes_options_of_rules(tmp_path, capsys):
    asked = "inverse_norm,inverse_norm:update_every=5:memory=0.5,dual_balance:by=std"
    options = ["--balance", asked, "--seeds", "0", *TINY, "--jobs", "1", "--output", str(tmp_path)]
    assert main(["compare", "heat", *options]) == 0
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [(run["balance"], run["options"]) for run in runs] == [
        ("inverse_norm", "InverseNorm(memory=0.9, eps=1e-05)"),
        (
            "inverse_norm:update_every=5:memory=0.5",
            "InverseNorm(memory=0.5, eps=1e-05), update_every=5",
        ),
        ("dual_balance:by=std", "DualBalance(by='std')"),
    ]
    assert "inverse_norm:update_every=5:memory=0.5" in capsys.readouterr().out


def test_compare_is_the_run_of_each_rule(tmp_path, capsys):
    assert main(["run", "heat", *TINY, "--output", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert main(["compare", "heat", *TINY, *COMPARED, "--output", str(tmp_path / "all")]) == 0
    (run,) = map(json.loads, (tmp_path / "all/runs.jsonl").read_text().splitlines())
    for quantity, error in run["errors"].items():
        assert error == pytest.approx(metrics["errors"][quantity], rel=1e-4)


def test_doctor_prints_versions_settings_and_speed(tmp_path):
    tiny = ["--repetitions", "1", "--points", "10", "--seconds", "0"]
    result = command_line("doctor", *tiny, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    shown = dict(line.split(maxsplit=1) for line in result.stdout.split("\n\n")[0].splitlines())
    assert shown["paddlescience_gradnorm"] == paddlescience_gradnorm.__version__
    assert shown["numpy"] == np.__version__
    assert shown["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"paddle", "paddlesci"} <= set(shown)
    assert re.search(r"^kernels +\S+.*\nmemory ", result.stdout, re.MULTILINE)
    assert re.search(r"^ +10 +\d+\.\d", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required: COMMAND"),
        (["reports"], "invalid choice: 'reports' .*; did you mean 'report'?"),
        (["xyz"], "invalid choice: 'xyz' .*doctor'?\\); see"),
        (["report"], "required: RUN_DIR"),
        (["report", "nowhere"], "'nowhere' does not exist; give the folder that a run has written"),
        (["report", "tests"], "'tests' has no history.npz, so no finished run; give the folder"),
        (["run"], "required: PROBLEM"),
        (["run", "nope"], "PROBLEM: there is no problem 'nope'; the names are laplace, poisson"),
        (["run", "heet"], r"PROBLEM: there is no problem 'heet'; did you mean 'heat'\?"),
        (["run", "heat", "--balance", "pin"], r"--balance: .*; did you mean 'pinn'\?"),
        (["compare", "heat", "--balance", "equl"], r"got 'equl'; did you mean 'equal'\?"),
        (["run", "heat", "--balance", "magic"], "--balance: invalid choice: 'magic'"),
        (["run", "heat", "--steps", "0"], "--steps: must be an integer from 1 .*, got '0'"),
        (["run", "heat", "--steps", "1e3"], "--steps: must be an integer from 1 .*, got '1e3'"),
        (["run", "heat", "--points", "-1"], "--points: must be an integer from 1 .*, got '-1'"),
        (["run", "heat", "--seed", "-1"], "--seed: must be an integer from 0 .*, got '-1'"),
        (["run", "heat", "--seed", str(2**70)], "--seed: must be an integer from 0 to 2147483647"),
        (["run", "heat", "--alpha", "nan"], "--alpha: must be a finite number .*, got 'nan'"),
        (["run", "heat", "--alpha", "-1"], "--alpha: must be a finite number .*, got '-1'"),
        (
            ["run", "heat", "--balance", "equal", "--alpha", "1"],
            "--alpha: equal weights have none, got 1; leave it out",
        ),
        (
            ["run", "heat", "--balance", "softadapt", "--alpha", "1"],
            "--alpha: 'softadapt' has none, got 1; leave it out, or choose another --balance",
        ),
        (["run", "heat", "--balance", "fixed"], "--balance: invalid choice: 'fixed'"),
        (["run", "heat", "--epochs", "0"], "--epochs/--steps: must be an integer from 1"),
        (["run", "heat", "--iterations", "3"], "unrecognized arguments: --iterations 3"),
        (
            ["run", "laplace", "--point-weights", "causal"],
            "--point-weights: .* no coordinate of laplace is called t",
        ),
        (["compare", "heat", "--point-weights", "rbc"], "--point-weights: invalid choice: 'rbc'"),
        (["compare"], "required: PROBLEM"),
        (
            ["compare", "heat", "--balance", "pinn:lead"],
            "'pinn:lead' has 'lead'; write options as in pinn:update_every=50",
        ),
        (["compare", "heat", "--balance", "pinn:leed=2"], "'pinn:leed=2': .* did you mean 'lead'"),
        (
            ["compare", "heat", "--balance", "pinn:floor=x"],
            "'pinn:floor=x': floor must be a number, got 'x'",
        ),
        (["compare", "heat", "--balance", "equal,fixed"], "must name rules of .*, got 'fixed'"),
        (["compare", "heat", "--balance", ""], "--balance: must name rules of .*, got ''"),
        (["compare", "heat", "--seeds", "0,x"], "--seeds: must be an integer from 0 .*, got 'x'"),
        (["compare", "heat", "--jobs", "0"], "--jobs: must be an integer from 1 .*, got '0'"),
        (["doctor", "--seconds", "nan"], "--seconds: must be a finite number .*, got 'nan'"),
        (["doctor", "--points", "0"], "--points: must be an integer from 1 .*, got '0'"),
    ],
)
def test_mistakes_are_named_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1 and said.endswith("--help\n")


@pytest.mark.parametrize("kind", ["rba", "self_adaptive", "causal"])
def test_weights_of_points_change_a_run(tmp_path, kind):
    found = []
    for more in ([], ["--point-weights", kind]):
        assert main(["run", "heat", *TINY, *more, "--output", str(tmp_path)]) == 0
        found.append(json.loads((tmp_path / "metrics.json").read_text()))
    assert [metrics["settings"]["point_weights"] for metrics in found] == [None, kind]
    assert found[0]["final_losses"] != found[1]["final_losses"]


def test_a_report_that_cannot_be_written_is_one_line(tmp_path, capsys):
    assert main(["run", "laplace", *TINY, "--output", str(tmp_path)]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path), "--output", str(tmp_path / "none" / "page.html")])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and "No such file" in said


def test_run_draws_a_live_view_when_asked(tmp_path):
    result = command_line("run", "heat", *TINY, "--live", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    names = [condition.name for condition in problem("heat").conditions]
    bar, header, *rows = result.stderr.splitlines()[-len(names) - 3 :]
    assert re.search(r"20/20 \d+ steps/s", bar) and header.startswith("loss")
    assert [row.split()[0] for row in rows] == [*names, "error"]


@pytest.mark.parametrize("viewer, module", [("visualdl",) * 2, ("tensorboard", "tensorboardX")])
def test_run_logs_for_a_viewer_when_asked(tmp_path, viewer, module):
    pytest.importorskip(module, reason=f"needs {module}: pip install -e '.[{viewer}]'")
    result = command_line("run", "heat", *TINY, f"--{viewer}", "--output", "a run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"curves: {viewer} --logdir 'a run'\n" in result.stdout
    assert len(list((tmp_path / "a run" / viewer).iterdir())) == 1


@pytest.mark.parametrize(
    "option, module, package",
    [
        ("--live", "rich.console", "rich"),
        ("--visualdl", "visualdl", "visualdl"),
        ("--tensorboard", "tensorboardX", "tensorboardX"),
    ],
)
def test_a_view_that_is_not_installed_is_named(
    tmp_path, capsys, monkeypatch, option, module, package
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as stopped:
        main(["run", "laplace", *TINY, option, "--output", str(tmp_path)])
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.err.count("\n") == 1
    assert f": pip install {package};" in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["run", "heat"], ["compare", "heat"], ["doctor"], ["doctor", "--repetitions", "0"]],
)
def test_a_wrong_choice_in_the_environment_is_one_line(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADNORM_OPERATORS", "maybe")
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.endswith(" GRADNORM_OPERATORS must be 'on' or 'off', got 'maybe'\n")
    assert said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_mistake_has_no_traceback(tmp_path):
    result = command_line("run", "nope", cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("python -m paddlescience_gradnorm run: ")
    assert "Traceback" not in result.stderr


def test_a_folder_that_cannot_be_written_to_is_found_before_the_training(tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit):
        main(["run", "laplace", *TINY, "--output", str(file / "run")])
    captured = capsys.readouterr()
    assert f"--output: cannot write to '{file / 'run'}' (Not a directory)" in captured.err
    assert "choose another folder" in captured.err and captured.out == ""


def test_what_cannot_be_written_afterwards_is_one_line_too(tmp_path, capfd):
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["run", "laplace", *TINY, "--output", str(tmp_path)])
    assert stopped.value.code == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert "Is a directory" in last and str(tmp_path / "metrics.json") in last


def test_a_folder_in_which_another_process_runs_is_refused(tmp_path, elsewhere):
    command = ["run", "laplace", "--steps", "1", "--points", "8", "--output", str(tmp_path)]

    def refused():
        with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit):
            main(command)
        return said.getvalue()

    with FolderLock(tmp_path):
        told = elsewhere(refused)
    assert f"--output: {str(tmp_path)!r} is in use by process {os.getpid()} on" in told
    assert not list(tmp_path.iterdir())
