"""The program of ``make soak``, for some steps."""

import importlib.util
import json
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks/soak.py"
spec = importlib.util.spec_from_file_location("soak", PROGRAM)
soak = importlib.util.module_from_spec(spec)
spec.loader.exec_module(soak)


def lines(process=1, steps=100_000, **changed):
    """Those of a run in which nothing changes but this, at its end."""
    made = [
        {"process": process, "step": n, "made": n, "MB": 300.0, "ms": 1.0, "rows": 9}
        for n in range(1000, steps, 1000)
    ]
    for line in made[-30:]:
        line.update(changed)
    return made


def test_what_stays_the_same_is_no_fault():
    assert soak.faults(lines() + lines(process=2, MB=304.9) + lines(steps=5000, process=3)) == []


@pytest.mark.parametrize("changed", [{"MB": 305.1}, {"ms": 1.2}])
def test_growth_is_found_in_the_process_that_grows(changed):
    (fault,) = soak.faults(lines() + lines(process=2, **changed))
    assert fault.startswith("process 2, steps 10000 to 99000: memory 300.0 MB at first")


def test_memory_may_grow_before_it_has_settled():
    made = lines()
    made[0]["MB"] = 100.0
    assert soak.faults(made) == []


def test_it_goes_on_where_it_was(tmp_path, capsys):
    for steps in (200, 300):
        assert soak.main(["--steps", str(steps), "--output", str(tmp_path)]) == 0
        assert f"at step {steps}: " in capsys.readouterr().out
    seen = [json.loads(line) for line in (tmp_path / "soak.jsonl").read_text().splitlines()]
    assert [line["step"] for line in seen] == [*range(2, 201, 2), *range(201, 301, 3)]
    assert all(line["MB"] > 50 and line["rows"] == line["step"] for line in seen)
