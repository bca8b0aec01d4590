"""What a benchmark of Paddle alone leaves behind: its numbers as JSON, a table as Markdown."""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any

import paddlescience_gradnorm

import paddle  # isort: skip, after the package that sees to its loading


def write(name: str, options: argparse.Namespace, tuning: Any, results: Any, table: str) -> None:
    """Write ``name``.json and ``name``.md in ``options.output``, and print the table.

    Args:
        name: Of the files.
        options: The command line's.
        tuning: What ``tune_cpu`` has returned.
        results: Plain types.
        table: The Markdown.
    """
    report = {
        "results": results,
        "settings": {**vars(options), "output": str(options.output), "tune_cpu": str(tuning)},
        "versions": {
            "paddlescience_gradnorm": paddlescience_gradnorm.__version__,
            "paddle": paddle.__version__,
            "python": platform.python_version(),
        },
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / f"{name}.md").write_text(table)
    print(table)
