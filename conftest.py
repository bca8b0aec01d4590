"""What pytest does not look into, here where its options do not reach."""

from importlib.util import find_spec

# Modules with examples in their docstrings that need PaddleScience or DeepXDE.
_NEEDING = {
    "ppsci": ["paddlescience_gradnorm/ppsci", "tests/ppsci/ppsci_problem.py"],
    "deepxde": ["paddlescience_gradnorm/deepxde.py"],
}
collect_ignore = [
    path for package, paths in _NEEDING.items() if not find_spec(package) for path in paths
]
