"""`json-repl demo`: a recorded session on real data, and what its task log holds.

data/tour.py -> cells -> Session (worker route) -> shown as they run
                              \\-> task log -> table, its path, and three jq lines with their output
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from json_repl.cells import Cell, split_cells
from json_repl.run import EXIT_INTERRUPTED, EndSignals
from json_repl.terminal import Terminal

if TYPE_CHECKING:
    from rich.console import Console

    from json_repl.session import Session

COLUMNS = 80

JQ_LINES = (
    ("how each ended, and how long it took", "-r", "[.seq, .status, .elapsed_ms] | @tsv"),
    ("what failed, and why", "-r", r'select(.success | not) | "\(.error.type): \(.error.message)"'),
    (
        "who changed `planets`, and what it is",
        "-c",
        'select(.changed_vars | index("planets")) | {seq, variables}',
    ),
)
"""What is asked of the log, and jq's option and filter for it."""


def run_demo() -> int:
    """Run the tour and show its log; returns 0, or 1 where the log doesn't hold what ran."""
    from json_repl.cli import fail
    from json_repl.errors import SessionError
    from repl_kernel.errors import KernelError
    from task_logger.errors import TaskLogError

    try:
        return _run_demo()
    except (TaskLogError, KernelError, SessionError) as exc:
        return fail(str(exc), 1)
    except KeyboardInterrupt:
        return fail("interrupted before anything ran", 130)
    except BrokenPipeError:
        return 1


def _run_demo() -> int:
    from rich.console import Console

    from json_repl.descriptors import StandardDescriptors, take_standard_descriptors
    from json_repl.own_process import shield_process
    from json_repl.session import Session

    shield_process()
    taken = take_standard_descriptors(own_output=False)
    # A traceback is part of the tour: it goes where the rest goes, in its place.
    terminal = Terminal(
        StandardDescriptors(input_fd=taken.input_fd, output_fd=taken.output_fd, error_fd=taken.output_fd)
    )
    cells = split_cells(files("json_repl").joinpath("data", "tour.py").read_text(encoding="utf-8"))
    with open(taken.output_fd, "w", buffering=1, encoding="utf-8", closefd=False) as output:
        console = Console(file=output, width=COLUMNS, highlight=False, markup=False, emoji=False)
        console.print("A recorded session in a keep-alive worker, on real data: the planets.", style="bold")
        task_id = time.strftime("T-%Y%m%d%H%M%S", time.gmtime())  # a log of its own for each tour
        with Session(
            route="worker", plan_id="demo", task_id=task_id, task_name="tour", actor="demo", owns_process=True
        ) as session:
            end_signals = EndSignals(session, terminal)
            for number, cell in enumerate(cells, start=1):
                _run_cell(session, number, cell, console, terminal)
                if end_signals.has_come:
                    terminal.say("interrupted; what ran until then is in the task log")
                    return EXIT_INTERRUPTED
            path = session.log_path
        recorded = _show_log(path, console)
        _show_jq(path, console)
        if recorded == len(cells):
            return 0
        console.print(
            f"The log holds {recorded} of {len(cells)} executions: run task-log show on it.", style="red"
        )
        return 1


def _run_cell(session: Session, number: int, cell: Cell, console: Console, terminal: Terminal) -> None:
    console.print()
    console.rule(
        f"{number}  {cell.title}", align="left", style="dim", characters="─" if console.is_terminal else "-"
    )
    _show_code(cell.code, console)
    terminal.begin(number, 1, cell.title)
    outcome = session.execute_code(cell.code, tags={"cell": cell.title}, on_output=terminal.on_output)
    terminal.show(outcome)
    console.print(_summary(outcome), style="green" if outcome["success"] else "yellow", no_wrap=True)


def _show_code(code: str, console: Console) -> None:
    if console.is_terminal:
        from rich.syntax import Syntax

        console.print(
            Syntax(code.rstrip(), "python", theme="ansi_dark", background_color="default", word_wrap=True)
        )
        return
    for line in code.rstrip().splitlines():
        console.print(f"    {line}".rstrip(), soft_wrap=True)


def _summary(outcome: Mapping[str, Any]) -> str:
    """What the session saw, in one line."""
    debug = outcome["debug_info"]
    parts = [f"[{debug['execution']}, {debug['elapsed_ms']:.2f} ms]"]
    for word, key in (("added", "added_vars"), ("changed", "changed_vars"), ("imported", "added_imports")):
        if debug[key]:
            # What people know by name comes first: no submodules, nothing private.
            names = sorted(debug[key], key=lambda name: (name.startswith("_") or "." in name, name))
            parts.append(f"{word} {_some(names, 24)}")
    return _shortened("  ".join(parts), COLUMNS)


def _show_log(path: str, console: Console) -> int:
    """Show the log as a table; returns how many lines it holds."""
    from rich import box
    from rich.table import Table

    from task_logger.reader import Damage, read_records

    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, padding=(0, 1), pad_edge=False)
    for header, justify in (("n", "right"), ("status", "left"), ("ms", "right"), ("code", "left")):
        table.add_column(header, justify=justify, no_wrap=True)  # type: ignore[arg-type]  # both are JustifyMethod
    table.add_column("added", no_wrap=True)
    table.add_column("changed", no_wrap=True)
    count = 0
    for record in read_records(path):
        if isinstance(record, Damage):
            table.add_row("!", record.kind, "", _shortened(record.reason, 26), "", "")
            continue
        count += 1
        outcome, changes = record.outcome, record.outcome.changes
        table.add_row(
            str(record.request.seq),
            outcome.status,
            f"{outcome.elapsed_ms:.2f}",
            _shortened(_first_statement(record.request.code), 27),
            _some(changes.added_vars, 20),
            _some(changes.changed_vars, 12),
        )
    console.print()
    console.rule("The task log", align="left", style="dim", characters="─" if console.is_terminal else "-")
    console.print(table)
    return count


def _show_jq(path: str, console: Console) -> None:
    """Ask the log three things by `jq`, and show the answers; or say how to get it."""
    import shutil
    import subprocess

    jq = shutil.which("jq")
    console.print(f"\nLOG={shlex.quote(path)}", soft_wrap=True)
    for question, option, query in JQ_LINES:
        console.print(f"\n# {question}", style="dim")
        console.print(f'jq {option} {shlex.quote(query)} "$LOG"', style="bold", soft_wrap=True)
        if jq is not None:
            asked = subprocess.run(
                [jq, option, query, path], capture_output=True, text=True, timeout=30, check=False
            )
            console.print((asked.stdout + asked.stderr).rstrip(), soft_wrap=True)
    if jq is None:
        console.print(
            "\njq is not here, so these did not run; get it with: apt install jq (macOS: brew install jq)"
        )


def _first_statement(code: str) -> str:
    lines = [line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return lines[0] if lines else ""


def _some(names: Sequence[str], columns: int) -> str:
    """As many names as fit, and how many more there are."""
    text = ", ".join(names)
    kept = len(names)
    while len(text) > columns and kept > 1:
        kept -= 1
        text = f"{', '.join(names[:kept])} +{len(names) - kept}"
    return text


def _shortened(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: columns - 1] + "…"
