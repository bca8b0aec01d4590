"""Warnings of faults in a step, each given once."""

from __future__ import annotations

import sys
import warnings


def warn_the_caller(message: str) -> None:
    """Give a ``RuntimeWarning`` that points at the line outside of this package."""
    level, frame = 2, sys._getframe(1)
    package = __name__.partition(".")[0] + "."
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(package):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, RuntimeWarning, stacklevel=level)


class FaultReporter:
    """Warns of a fault once, and again only after ``forget``.

    Args:
        consequence: End of every message: what follows from a fault.

    Examples:
        >>> reporter = FaultReporter("it is left out of the balancing while this lasts")
        >>> with warnings.catch_warnings(record=True) as record:
        ...     for step in range(3):
        ...         reporter.report(step, "loss 'pde'", "is nan")
        >>> [str(warning.message) for warning in record]
        ["step 0: loss 'pde' is nan; it is left out of the balancing while this lasts"]
    """

    def __init__(self, consequence: str) -> None:
        self._consequence = consequence
        self._reported: set[tuple[str, str]] = set()

    def report(
        self, step: int, what: str, fault: str, numbers: str = "", consequence: str | None = None
    ) -> None:
        """Warn, unless this fault has been reported.

        Args:
            step: Number of the step, from 0.
            what: What has the fault, such as a loss.
            fault: What is wrong with it; with ``what`` it makes a sentence.
            numbers: Details to add, such as numbers that differ from step to step. They do not
                make it a new fault.
            consequence: End of this message, if it differs from the usual one.

        Warns:
            RuntimeWarning: The first time.
        """
        if (what, fault) not in self._reported:
            self._reported.add((what, fault))
            added = f" ({numbers})" if numbers else ""
            consequence = consequence or self._consequence
            message = f"step {step}: {what} {fault}{added}; {consequence}"
            warn_the_caller(message)

    def forget(self, what: str | None = None) -> None:
        """Let the faults of ``what``, or all faults, be reported again."""
        self._reported = {each for each in self._reported if what not in (None, each[0])}
