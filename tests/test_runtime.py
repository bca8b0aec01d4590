import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paddlescience_gradnorm import _operators, runtime

ROOT = Path(__file__).parents[1]
SETTINGS = ("MKL_", "MALLOC_", "GLIBC_TUNABLES", "OMP_")
HERE = runtime.find_machine()
LINUX = HERE.system == "Linux"
AMD = LINUX and HERE.mkl is not None and HERE.vendor == "AuthenticAMD" and "avx2" in HERE.flags
GLIBC = LINUX and HERE.libc.startswith("glibc")
CORES = LINUX and HERE.mkl is not None and HERE.cores > 1


def run(code, **environment):
    """What the code assigns to ``result``, from a fresh process without settings of ours."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS)}
    code = "from paddlescience_gradnorm import runtime\nglobals().update(vars(runtime))\n" + code
    code += "\nimport json; print(json.dumps(result))"
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**clean, "PADDLE_EXTENSION_DIR": "nothing built", **environment},
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def outcomes(settings):
    return [outcome for _, outcome, _ in settings]


@pytest.fixture
def machine(monkeypatch):
    """A machine on which everything helps, and nothing of which reaches this process."""
    for name in [*os.environ, *runtime._MKL_VARIABLES]:
        if name.startswith(SETTINGS):
            monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(runtime, "_done", set())
    monkeypatch.delenv(_operators.CHOICE)
    monkeypatch.setattr(_operators, "loaded", True)
    monkeypatch.setattr(runtime, "_is_loaded", lambda library: False)
    monkeypatch.setattr(runtime, "_ask_mkl_kernels", lambda library: 5)
    monkeypatch.setattr(runtime, "_own_omp_num_threads", lambda: None)
    monkeypatch.setattr(runtime, "_count_threads", lambda library: 1)
    monkeypatch.setattr(runtime, "_is_malloc_of_glibc", lambda: True)
    monkeypatch.setattr(runtime, "_mallopt", lambda *args: calls.append(args) or 1)
    monkeypatch.setattr(
        runtime._paddle, "set_num_threads", lambda n: calls.append(("threads", n)), raising=False
    )

    class Fake:
        settings = calls

        def be(self, **changes):
            flags = frozenset({"avx2", "fma"})
            machine = runtime.Machine(
                "Linux", "AuthenticAMD", "AMD EPYC", flags, 4, "glibc 2.36", Path("libmkl.so")
            )._replace(**changes)
            monkeypatch.setattr(runtime, "find_machine", lambda: machine)

    # A variable that a test sets by tuning is gone after it.
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "")
    os.environ.pop("MKL_DEBUG_CPU_TYPE")
    fake = Fake()
    fake.be()
    return fake


# The real thing, on whatever machine this is.


def test_every_setting_that_helps_here_is_made_once_and_takes_effect():
    result = run(
        "import os, resource, paddle\n"
        "from paddlescience_gradnorm import runtime\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(5): bytes(1) * 40_000_000\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "given_back = faults()\n"
        "first, second, third = tune_cpu(), tune_cpu(), tune_cpu(threads=1)\n"
        "a = paddle.ones([300, 300]); a @ a\n"
        "mkl = find_machine().mkl\n"
        "kernels = runtime._ask_mkl_kernels(mkl) if mkl else None\n"
        "faults()\n"
        "variable = os.environ.get('MKL_DEBUG_CPU_TYPE')\n"
        "result = [first, second, third, variable, kernels, given_back, faults()]"
    )
    first, second, third, variable, kernels, given_back, kept = result
    *made, operators = outcomes(first)
    assert made == ["done" if helps else "not here" for helps in (AMD, GLIBC, CORES)]
    assert operators == ("yours" if LINUX else "not here")
    *made, _ = outcomes(second)
    assert made == ["already" if helps else "not here" for helps in (AMD, GLIBC, CORES)]
    if AMD:
        assert (variable, kernels) == ("5", 5)
    else:
        assert variable is None
    if GLIBC:  # page faults of taking 40 MB again and again
        assert kept < given_back / 4, (given_back, kept)
    if CORES:
        assert third[2][1] == "done" and third[2][2].startswith("1 instead of ")


def test_after_a_matrix_product_it_is_too_late_for_the_kernels_only():
    report, variable = run(
        "import os, paddle\n"
        "a = paddle.ones([30, 30]); a @ a\n"
        "result = [tune_cpu(), os.environ.get('MKL_DEBUG_CPU_TYPE')]"
    )
    kernels, memory, threads, _ = outcomes(report)
    assert variable is None
    assert kernels == ("too late" if AMD else "not here")
    assert memory == ("done" if GLIBC else "not here")
    assert threads == ("done" if CORES else "not here")


def test_a_library_that_is_loaded_but_not_yet_used_is_in_time():
    report = run(
        "import paddle\npaddle.base.core.set_num_threads(1)\n"
        "a = paddle.ones([30, 30]).tanh() + 1.0\n"
        "result = tune_cpu()"
    )
    assert outcomes(report)[0] == ("done" if AMD else "not here")


def test_the_environment_of_the_user_wins():
    report, variables = run(
        "import os\nresult = [tune_cpu(), [os.environ[v] for v in "
        "('MKL_DEBUG_CPU_TYPE', 'MALLOC_TOP_PAD_', 'OMP_NUM_THREADS')]]",
        MKL_DEBUG_CPU_TYPE="4",
        MALLOC_TOP_PAD_="65536",
        OMP_NUM_THREADS="1",
    )
    assert variables == ["4", "65536", "1"]
    for helps, (_, outcome, reason), variable in zip(
        (AMD, GLIBC, LINUX and HERE.mkl is not None),  # the last also with one core
        report,
        ("MKL_DEBUG_CPU_TYPE=4", "MALLOC_TOP_PAD_=65536", "OMP_NUM_THREADS=1"),
    ):
        assert outcome == ("yours" if helps else "not here")
        assert not helps or variable in reason


def test_the_import_changes_nothing_in_the_environment_but_what_paddle_changes():
    code = (
        "import zlib, os, paddle; before = dict(os.environ);"
        "import paddlescience_gradnorm, paddlescience_gradnorm.runtime;"
        "print(before == dict(os.environ))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.stdout.split()[-1:] == ["True"], process.stderr


def test_a_pinn_step_gives_the_same_numbers_with_and_without():
    code = "step = build_laplace_step(400)\nresult = [float(step()) for _ in range(5)]"
    plain, tuned = run(code), run("tune_cpu()\n" + code)
    assert plain[-1] < plain[0]
    assert tuned == pytest.approx(plain, rel=1e-4)
    assert tuned[0] == pytest.approx(plain[0], rel=1e-6)


def test_operators_that_have_been_built_are_loaded_and_give_the_same_numbers(built_operators):
    code = "step = build_laplace_step(100)\nresult = [float(step()) for _ in range(5)]"
    folder = {"PADDLE_EXTENSION_DIR": os.environ["PADDLE_EXTENSION_DIR"], _operators.CHOICE: ""}
    first, second = run("result = [tune_cpu(build=False), tune_cpu(build=True)]", **folder)
    assert outcomes(first)[3] == "done" and outcomes(second)[3] == "already"
    with_operators = run(
        "assert tune_cpu(build=True).operators.outcome == 'done'\n" + code, **folder
    )
    assert with_operators == pytest.approx(run(code), rel=1e-4)


def test_the_command_line_prints_machine_settings_and_speed():
    process = subprocess.run(
        [
            *(sys.executable, "-m", "paddlescience_gradnorm.runtime"),
            *"--repetitions 1 --points 20 30 --seconds 0".split(),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[0] == str(HERE)
    assert [x.split()[0] for x in lines[2:6]] == ["kernels", "memory", "threads", "operators"]
    assert [line.split()[0] for line in lines[-2:]] == ["20", "30"]


def test_without_repetitions_it_says_how_everything_stands(machine, monkeypatch, capsys):
    runtime.main(["--repetitions", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert [x.split()[0] for x in lines[2:]] == ["kernels", "memory", "threads", "operators"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--repetitions", "-1"], "--repetitions: must be an integer from 0 .* got '-1'"),
        (["--points", "10", "0"], "--points: must be an integer from 1 .* got '0'"),
        (["--seconds", "nan"], "--seconds: must be a finite number of at least 0, got 'nan'"),
        (["--seconds", "-3"], "--seconds: must be a finite number of at least 0, got '-3'"),
        (["--seconds", "inf"], "--seconds: must be a finite number of at least 0, got 'inf'"),
    ],
)
def test_the_command_line_refuses_to_measure_nothing(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        runtime.main(arguments)
    assert exit.value.code == 2
    assert re.search(f"argument {message}", capsys.readouterr().err)


@pytest.mark.parametrize(
    "last, why",
    [
        ("raise MemoryError('no room')", "MemoryError: no room"),
        ("import os, sys; print('  [Hint: x]', file=sys.stderr); os._exit(3)", "exit code 3"),
    ],
)
def test_a_measurement_that_fails_is_a_line(last, why, monkeypatch, capsys):
    real = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda command, **more: real([sys.executable, "-c", last], **more)
    )
    with pytest.raises(SystemExit) as exit:
        runtime.main(["--repetitions", "1", "--points", "10", "20"])
    assert exit.value.code == 1
    said = capsys.readouterr().err
    assert f"the measurement with --points 10 20 failed ({why}); --repetitions 0 prints" in said
    assert said.count("\n") == 1


def test_the_command_line_says_in_a_line_why_it_cannot_build(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit) as exit:
        runtime.main(["--build"])
    assert exit.value.code == 1
    assert capsys.readouterr().err.startswith("the operators cannot be built: ")


# Other machines.


def test_where_everything_helps_everything_is_set(machine):
    report = runtime.tune_cpu()
    assert outcomes(report) == ["done"] * 4
    assert os.environ["MKL_DEBUG_CPU_TYPE"] == "5"
    assert machine.settings == [
        (-4, 0),
        (-1, 2**31 - 1),
        (-2, 64 * 2**20),
        ("threads", 4),
    ]
    assert [line.split()[:2] for line in str(report).splitlines()] == [
        ["kernels", "done"],
        ["memory", "done"],
        ["threads", "done"],
        ["operators", "done"],
    ]
    assert outcomes(runtime.tune_cpu()) == ["already"] * 4
    assert len(machine.settings) == 4


@pytest.mark.parametrize(
    "changes, setting, says",
    [
        ({"vendor": "GenuineIntel"}, 0, "GenuineIntel"),
        ({"vendor": ""}, 0, "unknown vendor"),
        ({"flags": frozenset({"sse2"})}, 0, "no AVX2"),
        ({"mkl": None}, 0, "does not carry Intel MKL"),
        ({"mkl": None}, 2, "carries Intel MKL"),
        ({"libc": "musl 1.2"}, 1, "musl 1.2"),
        ({"libc": ""}, 1, "unknown"),
        ({"cores": 1}, 2, "one core"),
    ],
)
def test_where_a_setting_is_of_no_use_it_is_left_and_the_report_says_why(
    machine, changes, setting, says
):
    machine.be(**changes)
    _, outcome, reason = runtime.tune_cpu()[setting]
    assert outcome == "not here" and says in reason
    if setting == 0:
        assert "MKL_DEBUG_CPU_TYPE" not in os.environ
    elif setting == 1:
        assert machine.settings == [("threads", 4)]
    else:
        assert len(machine.settings) == 3


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_elsewhere_than_on_linux_it_does_nothing_and_says_so(machine, system):
    machine.be(system=system, libc="")
    before = dict(os.environ)
    report = runtime.tune_cpu()
    assert outcomes(report) == ["not here"] * 4 and "Linux" in str(report)
    assert dict(os.environ) == before and machine.settings == []


@pytest.fixture
def not_built(machine, monkeypatch, tmp_path):
    """A machine without operators, whose compiler is done when the test says so."""
    missing = _operators._missing(HERE)
    if missing:
        pytest.skip(missing)
    monkeypatch.setattr(_operators, "loaded", False)
    monkeypatch.setenv("PADDLE_EXTENSION_DIR", str(tmp_path / "extensions"))
    code = (
        f"import pathlib, sys, time\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists():\n"
        "    time.sleep(0.01)\n"
        "sys.exit('error: as it is told')"
    )
    monkeypatch.setattr(_operators, "_code", lambda: code)
    yield tmp_path
    finish(tmp_path)


def finish(folder):
    (folder / "go").touch()
    end = time.monotonic() + 60
    while _operators.building(runtime.find_machine()).outcome == "building":
        assert time.monotonic() < end
        time.sleep(0.02)


def test_operators_are_built_in_the_background_and_a_failure_is_told(not_built):
    first, second = runtime.tune_cpu().operators, runtime.tune_cpu().operators
    assert first.outcome == second.outcome == "building"
    assert "in the background" in first.reason and "by process" in second.reason
    finish(not_built)
    setting = runtime.tune_cpu().operators
    assert setting.outcome == "failed" and "error: as it is told" in setting.reason
    assert "--build, tries again" in setting.reason
    with pytest.raises(RuntimeError, match="cannot be built: error: as it is told"):
        runtime.tune_cpu(build=True)


def test_operators_are_not_built_for_who_does_not_want_them(not_built, monkeypatch):
    setting = runtime.tune_cpu(build=False).operators
    assert setting.outcome == "not built" and "tune_cpu(build=True)" in setting.reason
    monkeypatch.setenv(_operators.CHOICE, "off")
    for build in (None, True):
        setting = runtime.tune_cpu(build=build).operators
        assert setting.outcome == "yours" and "GRADNORM_OPERATORS=off" in setting.reason
    assert not (not_built / "extensions").exists()


def test_a_process_that_has_begun_without_operators_goes_on_without(not_built):
    runtime.tune_cpu(build=False)
    library = _operators.built_library(runtime.find_machine())
    library.parent.mkdir(parents=True)
    library.touch()
    assert runtime.tune_cpu().operators.outcome == "too late" and not _operators.loaded


def test_operators_that_cannot_be_loaded_are_a_line_unless_they_are_asked_for(
    not_built, monkeypatch
):
    monkeypatch.setattr(_operators, "_is_registered", False)
    # Where load, which knows only this machine, looks for them, and build.
    for machine in (HERE, runtime.find_machine()):
        library = _operators.built_library(machine)
        library.parent.mkdir(parents=True)
        library.touch()
    setting = runtime.tune_cpu().operators
    assert setting.outcome == "failed" and "cannot be loaded; delete it" in setting.reason
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        runtime.tune_cpu(build=True)


@pytest.mark.parametrize("used, outcome", [(True, "too late"), (False, "not here")])
def test_kernels_that_mkl_does_not_take_leave_no_trace(machine, monkeypatch, used, outcome):
    monkeypatch.setattr(runtime, "_is_loaded", lambda library: used)
    monkeypatch.setattr(runtime, "_ask_mkl_kernels", lambda library: 0)
    assert runtime.tune_cpu().kernels.outcome == outcome
    assert "MKL_DEBUG_CPU_TYPE" not in os.environ


@pytest.mark.parametrize(
    "variable", ["MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"]
)
def test_related_variables_of_the_user_win_too(machine, monkeypatch, variable):
    monkeypatch.setenv(variable, "glibc.malloc.top_pad=1")
    report = runtime.tune_cpu()
    setting = report.kernels if variable.startswith("MKL") else report.memory
    assert setting.outcome == "yours" and variable in setting.reason


def test_glibc_tunables_for_something_else_do_not_matter(machine, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.rtld.nns=4")
    assert runtime.tune_cpu().memory.outcome == "done"


def test_an_allocator_in_place_of_glibc_is_left_alone(machine, monkeypatch):
    monkeypatch.setattr(runtime, "_is_malloc_of_glibc", lambda: False)
    assert runtime.tune_cpu().memory.outcome == "not here"
    assert machine.settings == [("threads", 4)]


def test_a_refusal_of_mallopt_is_reported(machine, monkeypatch):
    monkeypatch.setattr(runtime, "_mallopt", lambda number, value: int(number != -1))
    setting = runtime.tune_cpu().memory
    assert setting.outcome == "not here" and setting.reason.endswith("refused M_TRIM_THRESHOLD")


def test_threads_that_other_code_has_set_stay_unless_a_number_is_asked_for(machine, monkeypatch):
    monkeypatch.setattr(runtime, "_count_threads", lambda library: 3)
    assert runtime.tune_cpu().threads.outcome == "yours"
    assert runtime.tune_cpu(threads=3).threads.outcome == "already"
    assert runtime.tune_cpu(threads=2).threads.outcome == "done"
    assert machine.settings[-1] == ("threads", 2)


@pytest.mark.parametrize("threads, error", [(0, ValueError), (True, TypeError), ("2", TypeError)])
def test_threads_must_be_a_number_from_one_up(machine, threads, error):
    with pytest.raises(error, match="threads must be"):
        runtime.tune_cpu(threads=threads)
    assert "MKL_DEBUG_CPU_TYPE" not in os.environ and machine.settings == []
