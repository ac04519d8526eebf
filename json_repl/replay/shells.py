"""Which shell ran a recorded execution: plain Python, or IPython's, with magics and displays. Pure.

line -> its tag `shell`, which sessions with IPython's shell write; or its actor `jupyter`, a kernel of ours
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from json_repl.replay.recording import RecordedLine
from repl_kernel.executor import ShellName
from repl_kernel.jupyter.kernel_magics import parse_command
from task_logger.record import ExecutionRecord

NO_SHELLS: Mapping[str, ShellName] = MappingProxyType({})


def ran_in_ipython(record: ExecutionRecord) -> bool:
    """Whether IPython's shell ran it."""
    return record.request.tags.get("shell") == "ipython" or record.request.actor == "jupyter"


def is_kernel_command(record: ExecutionRecord) -> bool:
    """Whether the isolated kernel took care of it itself, as of `%rewind 3`: no shell has run it."""
    request, route = record.request, record.outcome.route
    return request.actor == "jupyter" and route == "worker" and parse_command(request.code) is not None


def shells_of(lines: Iterable[RecordedLine]) -> dict[str, ShellName]:
    """The sessions, by their ids, whose shell is IPython's."""
    return {line.record.request.session_id: "ipython" for line in lines if ran_in_ipython(line.record)}
