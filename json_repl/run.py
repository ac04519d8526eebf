"""Runs a file's cells in one session of this process, and shows what comes of each.

cells -> Session.execute_code, one after the other -> Terminal, or wire forms as JSON lines
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from threading import Thread
from typing import TYPE_CHECKING, Any

from json_repl.cells import Cell
from json_repl.terminal import Terminal

if TYPE_CHECKING:
    from json_repl.session import Session

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def run_cells(
    session: Session,
    cells: Sequence[Cell],
    terminal: Terminal,
    *,
    source_name: str,
    as_json: bool = False,
    keep_going: bool = False,
    may_ask: bool = True,
) -> int:
    """Run cells in order; returns the exit code.

    The first one that fails ends it, unless `keep_going`. `source_name` is how messages call the file.
    """
    failed = 0
    end_signals = EndSignals(session, terminal)
    try:
        for number, cell in enumerate(cells, start=1):
            if end_signals.has_come:
                break
            terminal.begin(number - 1, len(cells), cell.title)
            if not _run_cell(session, cell, terminal, as_json=as_json, may_ask=may_ask):
                failed += 1
                if not keep_going:
                    break
            if terminal.is_gone:
                return EXIT_FAILED
    finally:
        terminal.end()
    if end_signals.has_come:
        terminal.say("interrupted; what ran until then is in the task log")
        return EXIT_INTERRUPTED
    if failed and not keep_going:
        _say_stopped(terminal, cells, number, source_name)
    if failed and keep_going and len(cells) > 1:
        terminal.say(f"{failed} of {len(cells)} cells failed")
    return EXIT_FAILED if failed else EXIT_DONE


class EndSignals:
    """Makes SIGINT, SIGTERM and SIGHUP interrupt what runs, which is recorded, and end the run after it."""

    def __init__(self, session: Session, terminal: Terminal) -> None:
        self.has_come = False
        self._session = session
        self._terminal = terminal
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.has_come = True
        self._terminal.stop_asking()
        # Not here: the main thread may be inside the session, with its locks.
        Thread(target=self._session.interrupt, name="json-repl-interrupt", daemon=True).start()


def _run_cell(session: Session, cell: Cell, terminal: Terminal, *, as_json: bool, may_ask: bool) -> bool:
    """Run one cell; returns whether the run may go on."""
    outcome: dict[str, Any] = session.execute_code(
        cell.code,
        tags={"cell": cell.title} if cell.title else None,
        on_output=None if as_json else terminal.on_output,
        on_display=None if as_json else terminal.on_display,
        on_input=terminal.on_input if may_ask else None,
    )
    if as_json:
        from json_repl.messages import render

        terminal.write_line(render(outcome))
    else:
        terminal.show(outcome)
    error = outcome["error"]
    if cell.looks_magic and session.route == "local" and error and error["type"] == "SyntaxError":
        terminal.say("lines with % and ! need IPython's shell: run the notebook with --route worker")
    return bool(outcome["success"]) or (cell.may_fail and outcome["debug_info"]["execution"] == "error")


def _say_stopped(terminal: Terminal, cells: Sequence[Cell], number: int, source_name: str) -> None:
    if len(cells) == 1:
        return  # the traceback says it all
    cell = cells[number - 1]
    title = f" ({cell.title})" if cell.title else ""
    place = f", line {cell.first_line} of {source_name}" if cell.first_line else f" of {source_name}"
    terminal.say(f"stopped at cell {number} of {len(cells)}{title}{place}; --keep-going runs the others too")
