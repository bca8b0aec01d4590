"""What pytest does not look into, and what examples in docstrings need before they run."""

import sys
from importlib.util import find_spec

# Modules with examples in their docstrings that need PaddleScience or DeepXDE.
_NEEDING = {
    "ppsci": ["paddlescience_gradnorm/ppsci", "tests/ppsci/ppsci_problem.py"],
    "deepxde": ["paddlescience_gradnorm/deepxde.py"],
}
collect_ignore = [
    path for package, paths in _NEEDING.items() if not find_spec(package) for path in paths
]


def pytest_collection_finish() -> None:
    """Set up PaddleScience's log, which otherwise says on the standard output that nobody has."""
    if "ppsci" in sys.modules:
        from ppsci.utils import logger

        logger.init_logger("ppsci", None, "error")
