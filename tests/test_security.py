"""What docs/security.md promises about files and names from elsewhere."""

import ast
import json
import os
import pickle
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import sympy

from paddlescience_gradnorm import FCNet
from paddlescience_gradnorm.pde.problems import PROBLEMS, problem
from paddlescience_gradnorm.pde.problems.formulation import Region
from paddlescience_gradnorm.training import (
    CheckpointError,
    History,
    RunState,
    _checkpoint_file,
    _compared,
    import_safetensors,
    load_metrics,
    write_report,
)
from paddlescience_gradnorm.training._runs import read_runs

ROOT = Path(__file__).parents[1]

# Calls that may run what a file says, and where there are any of these names all the same.
RUNS_CODE = {"eval", "exec", "__import__", "load", "loads", "Unpickler", "sympify", "parse_expr"}
PACKAGE = {
    # JSON, with no options.
    ("training/_checkpoint_file.py", "json.loads"),
    ("training/_course.py", "json.loads"),
    ("training/_runs.py", "json.loads"),
    ("training/exchange.py", "json.loads"),
    ("training/metrics.py", "json.loads"),
    ("runtime.py", "json.loads"),
    # With allow_pickle=False; that of safetensors; and the package's own ones.
    ("training/history.py", "np.load"),
    ("training/exchange.py", "load"),
    ("training/report.py", "History.load"),
    ("training/trainer.py", "self.load"),
    ("training/trainer.py", "self._state.load"),
    # Methods of networks: evaluation mode.
    ("training/trainer.py", "self.net.eval"),
    ("training/gradnorm_run.py", "net.eval"),
    ("training/comparison.py", "net.eval"),
    # What the small processes beside the ranks tell each other.
    ("training/_watcher.py", "json.loads"),
    # Of numbers and expressions: text is refused before.
    ("pde/problems/formulation.py", "sympy.sympify"),
    # Operators that have been compiled here.
    ("runtime.py", "_operators.load"),
    ("_operators/__init__.py", "load"),
    # DeepXDE's own checkpoints are pickles, which Model.restore loads too.
    ("deepxde.py", "paddle.load"),
}
SOLVERS = ("flow/flow", "allen_cahn/allen_cahn", "laplace/laplace2d")
EXAMPLES = {
    ("toy_regression/toy_regression.py", "json.loads"),
    ("rotograd_toy/rotograd_toy.py", "state.load"),
    *(("pinn_laplace/demo.py", call) for call in ("json.loads", "History.load", "np.load")),
    ("pinn_laplace/pinn_laplace.py", "json.loads"),
    # The Solver's evaluation, and the network that the example has exported before.
    *(
        (f"ppsci_{name}.py", call)
        for name in SOLVERS
        for call in ("solver.eval", "paddle.jit.load")
    ),
}
# Objects of this process, which are copied, or sent to processes that it starts.
PICKLE = {"_layers.py", "training/_runs.py"}


def found_in(folder):
    """File, call and keywords of each call of a function of those names; files with pickle."""
    calls, pickling = {}, set()
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT / folder).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called == "compile" or called.rpartition(".")[2] in RUNS_CODE:
                    calls[name, called] = [ast.unparse(keyword) for keyword in node.keywords]
            if isinstance(node, (ast.Import, ast.ImportFrom)) and "pickle" in ast.unparse(node):
                pickling.add(name)
    return calls, pickling


def test_no_other_call_may_run_what_a_file_says():
    calls, pickling = found_in("paddlescience_gradnorm")
    assert set(calls) == PACKAGE and pickling == PICKLE
    assert calls["training/history.py", "np.load"] == ["allow_pickle=False"]
    calls, pickling = found_in("examples")
    assert set(calls) == EXAMPLES and not pickling


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# Nobody can take an audit hook away again, so it asks whether it shall look.
watched = {"folder": None, "seen": []}
FORBIDDEN = ("pickle.find_class", "os.system", "subprocess.Popen", "socket.connect", "os.exec")


def look(event, arguments):
    folder = watched["folder"]
    if folder is None:
        return
    if event.startswith(FORBIDDEN):
        watched["seen"].append(event)
    changes = event in ("os.mkdir", "os.remove", "os.rename")
    if event == "open":
        changes = bool(arguments[2] & os.O_ACCMODE) and "__pycache__" not in str(arguments[0])
    if changes and isinstance(arguments[0], str):
        place = Path(os.path.abspath(arguments[0]))
        if not place.is_relative_to(folder):
            watched["seen"].append(f"{event} {place}")


sys.addaudithook(look)


@pytest.fixture
def secret(tmp_path):
    """A file outside of the run's folder."""
    path = tmp_path / "secret"
    path.write_text('{"key": "mine"}')
    return path


@pytest.fixture
def run(tmp_path, secret):
    """A run's folder; nothing that reads it may write elsewhere, unpickle or start anything."""
    folder = tmp_path / "run"
    folder.mkdir()
    history = History()
    for _ in range(3):
        history.record(["pde", "bc"], np.ones(2), np.ones(2))
    history.save(folder / "history.npz")
    write_report(folder)  # which imports what it needs
    watched.update(folder=folder, seen=[])
    yield folder
    watched["folder"] = None
    assert watched["seen"] == [] and not (tmp_path / "bomb").exists()
    assert secret.read_text() == '{"key": "mine"}'


def test_the_watch_sees_what_it_should(run, tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "bomb")))
    (tmp_path / "outside").write_text("")
    places = [f"os.mkdir {tmp_path / 'bomb'}", f"open {tmp_path / 'outside'}"]
    assert watched["seen"] == ["pickle.find_class", *places]
    (tmp_path / "bomb").rmdir()
    watched["seen"].clear()


@pytest.mark.parametrize("name", ["names", "losses", "steps", "version"])
def test_a_pickle_in_a_history_stays_packed(run, tmp_path, name):
    with np.load(run / "history.npz") as file:
        arrays = {**file, name: np.array([Bomb(tmp_path / "bomb")], dtype=object)}
    np.savez(run / "history.npz", **arrays)
    for read in (lambda: History.load(run / "history.npz"), lambda: write_report(run)):
        with pytest.raises(ValueError, match=r"history\.npz' is damaged, or no history"):
            read()


def test_a_pickle_in_place_of_any_file_is_no_such_file(run, tmp_path):
    packed = pickle.dumps(Bomb(tmp_path / "bomb"))
    for name in (
        "history.npz",
        "step_00000001.ckpt",
        "metrics.json",
        "runs.jsonl",
        "x.safetensors",
    ):
        (run / name).write_bytes(packed)
    net = FCNet(1, 1, 2, 4)
    for read in (
        lambda: History.load(run / "history.npz"),
        lambda: RunState(net=net).load(run / "step_00000001.ckpt"),
        lambda: RunState(net=net).load_parameters(run / "step_00000001.ckpt"),
        lambda: load_metrics(run / "metrics.json"),
        lambda: read_runs(run),
        lambda: write_report(run),
    ):
        with pytest.raises(ValueError):
            read()
    pytest.importorskip("safetensors")
    with pytest.raises(ValueError):
        import_safetensors(run / "x.safetensors", net)


CODE = "__import__('os').mkdir({!r})"


def test_text_that_is_code_stays_text(run, tmp_path):
    code = CODE.format(str(tmp_path / "bomb"))
    history = History()
    history.record([code, "bc"], np.ones(2))
    history.save(run / "history.npz")
    metrics = {"settings": {"problem": code, code: code}, "diagnosis": [code], "machine": code}
    (run / "metrics.json").write_text(json.dumps(metrics))
    write_report(run)
    (run / "runs.jsonl").write_text(json.dumps({"problem": code, code: code}) + "\n")
    assert read_runs(run) == [{"problem": code, code: code}]
    path = run / "step_00000001.ckpt"
    _checkpoint_file.write(path, {"parts": {code: code}, "random": code, "position": code})
    with pytest.raises(CheckpointError):
        RunState(net=FCNet(1, 1, 2, 4)).load(path)


@pytest.mark.parametrize(
    "name", ["../laplace", "/etc/passwd", CODE.format("bomb"), "<script>", "laplace\0", ""]
)
def test_a_problem_is_one_of_the_list(run, name):
    assert name not in PROBLEMS
    with pytest.raises(ValueError, match="laplace"):  # the list
        problem(name)


def test_text_in_a_face_is_refused_before_sympy_runs_it(run, tmp_path):
    laplace = problem("laplace")
    code = CODE.format(str(tmp_path / "bomb"))
    region = Region("edge", 4, ({laplace.coordinates[0]: code},))
    with pytest.raises(TypeError, match="must have numbers and expressions of sympy, got text"):
        laplace._check_region(region)
    laplace._check_region(Region("edge", 4, ({laplace.coordinates[0]: sympy.Integer(0)},)))


def test_links_do_not_lead_the_report_out_of_the_folder(run, secret):
    for name in ("metrics.json", "figure.png", "history.npz"):
        path = run / name
        kept = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        path.symlink_to(secret)
        with pytest.raises(
            ValueError, match=f"{name}' is a link that leads out of the run's folder"
        ):
            write_report(run)
        path.unlink()
        if kept is not None:
            path.write_bytes(kept)
    # What it writes takes the link's place.
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(secret)
    write_report(run)
    assert not (run / "report.html").is_symlink()
    assert "mine" not in (run / "report.html").read_text(encoding="utf-8")


def test_the_names_in_an_archive_lead_nowhere(run):
    with zipfile.ZipFile(run / "history.npz", "a") as file:
        for name in ("../bomb", "/tmp/bomb", "../bomb.npy"):
            file.writestr(name, b"boo")
    assert len(History.load(run / "history.npz")) == 3


def test_a_checkpoint_is_not_written_through_a_link(run, secret):
    state, path = RunState(net=FCNet(1, 1, 2, 4)), run / "step_00000001.ckpt"
    (run / f".{path.name}.{os.getpid()}.tmp").symlink_to(secret)
    with pytest.raises(OSError):
        state.save(path)
    path.symlink_to(secret)
    (run / f".{path.name}.{os.getpid()}.tmp").unlink(missing_ok=True)
    state.save(path)
    assert not path.is_symlink()


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found, self.attributes = set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.add(tag)
        self.attributes.update(name for name, _ in attributes)


HOSTILE = "</td><script>boo()</script><img src=x onerror=boo()>\" onload='boo()' $\\bad$ | `boo` _"


def test_names_in_a_comparison_are_harmless(run):
    """In its page, its figure and its file."""
    moments = [[1, 0.1, 0.5], [2, 0.2, 0.4]]
    made = {
        "balance": HOSTILE,
        "seed": 0,
        "error": None,
        "steps": 2,
        "seconds": 0.2,
        "curve": moments,
        "conflicts": [0.0, 0.5],
        "losses": {HOSTILE: 1.0, "bc": 1.0},
        "loss_curves": {HOSTILE: [2.0, 1.0], "bc": [2.0, 1.0]},
        "weights": {HOSTILE: [1.0, 1.0], "bc": [1.0, 1.0]},
        "diagnosis": [HOSTILE],
    }
    failed = {**made, "failed": HOSTILE}
    settings = {"problem": HOSTILE, HOSTILE: HOSTILE}
    _compared.write(run, [made], [failed], settings, HOSTILE)
    tags = Tags((run / "comparison.html").read_text(encoding="utf-8"))
    assert not tags.found & {"script", "iframe"} and not {"onerror", "onload"} & tags.attributes
