"""That the program which the type checker sees does what it says; `make lint` checks its types."""

import runpy
from pathlib import Path


def test_it_runs():
    runpy.run_path(str(Path(__file__).with_name("user_program.py")))
