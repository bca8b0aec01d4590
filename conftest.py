"""What pytest does not look into, here where its options do not reach."""

from importlib.util import find_spec

# Modules with examples in their docstrings that need PaddleScience.
collect_ignore = (
    [] if find_spec("ppsci") else ["paddlescience_gradnorm/ppsci.py", "tests/ppsci_problem.py"]
)
