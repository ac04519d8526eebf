"""The report that a worker writes as a fault kills it, told apart from output that is shown as it comes.

It lists all frames, those of IPython too; the outcome has it without them.
"""

from __future__ import annotations

from repl_kernel.outcome import FATAL_ERROR
from task_logger.record import ExecutionOutcome


class FaultReport:
    """What was held back of the stderr of one execution after the other."""

    def __init__(self) -> None:
        self._held = ""

    def hold_back(self, text: str) -> str:
        """What of some output can be shown now: all up to such a report."""
        before, mark, _ = ("", text, "") if self._held else text.partition(FATAL_ERROR)
        if mark:
            self._held += text[len(before) :]
        return before

    def take(self, outcome: ExecutionOutcome) -> str:
        """What of that is to be shown at the end: the outcome's report, or where there is none all of it."""
        held, self._held = self._held, ""
        if held and outcome.status == "crashed" and outcome.error is not None:
            report = "".join(outcome.stderr.partition(FATAL_ERROR)[1:])
            return report.removesuffix(outcome.error.traceback)
        return held
