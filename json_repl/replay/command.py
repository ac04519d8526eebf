"""`json-repl replay`: check a recording, or replay it, and say what differs.

recording -> dry_run | LiveReplay -> lines on stdout as they come -> totals -> a report file -> exit code
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from json_repl.errors import InvalidRequest, SessionError
from json_repl.replay.dry_run import dry_run
from json_repl.replay.ending import EndSignals, closed_by_signals
from json_repl.replay.errors import NothingToReplay
from json_repl.replay.executors import ReplayIsolation
from json_repl.replay.normalizers import choose
from json_repl.replay.recording import load_recording
from json_repl.replay.report import Report, StepReport, as_json
from json_repl.replay.runner import LiveReplay, LiveSettings
from json_repl.replay.text import details_lines, step_lines, summary_lines
from task_logger.display import printable

ASK_ABOVE = 50
"""On a terminal, a live replay of more executions asks first."""

_REPORT_KINDS = (".html", ".json", ".md")

EXIT_MATCH = 0
EXIT_DIFFERS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What the command line asks for."""

    path: str
    session_id: str | None = None
    is_live: bool = False
    first_line: int | None = None
    last_line: int | None = None
    keep_going: bool = False
    report_path: str | None = None
    max_executions: int | None = None
    max_seconds: float | None = None
    is_sure: bool = False
    isolation: ReplayIsolation = "sandbox"
    network: bool = False
    normalize: Sequence[str] = ()
    include: Sequence[str] = ()
    has_shell: bool = False


def run_replay(options: ReplayOptions) -> int:
    """Do what the options ask for; returns the exit code.

    Raises `InvalidRequest`, `ReplayError`, `TaskLogError` and `KernelError`.
    """
    _check(options)
    with EndSignals() as ended:
        try:
            replay = _prepare(options) if options.is_live else None
            report = _dry(options) if replay is None else _live(options, replay)
        except KeyboardInterrupt:
            print("json-repl: interrupted before anything was compared", file=sys.stderr)
            return ended.exit_code
    if report is None:
        return ended.exit_code
    for step in report.steps:
        for line in details_lines(options.path, step):
            print(line)
    for line in summary_lines(report):
        print(line)
    if options.report_path is not None:
        write_report(report, options.report_path)
    if options.has_shell and replay is not None and not report.was_interrupted:
        _land(options, replay, report)
    if report.was_interrupted:
        return ended.exit_code
    if replay is not None and report.match_percent is None:
        raise _nothing_compared(options, report)
    return EXIT_DIFFERS if report.has_differences else EXIT_MATCH


def _check(options: ReplayOptions) -> None:
    path = options.report_path
    if path is not None:
        if _kind_of(path) not in _REPORT_KINDS:
            raise InvalidRequest("--report", f"must end in .html, .json or .md, not be {path!r}")
        if _is_same_file(path, options.path):
            raise InvalidRequest("--report", "is the recording itself, which is only ever read")
        if not _has_place(path):
            raise InvalidRequest("--report", f"can't be written: {path!r} is no place for a file")
    if options.has_shell and not options.is_live:
        raise InvalidRequest("--shell", "needs --live: a dry run has no states to look around in")


def _nothing_compared(options: ReplayOptions, report: Report) -> SessionError:
    """The error of a live replay that would pass for ever."""
    if report.stopped is None:
        return NothingToReplay(options.path, "all of it was skipped, and so nothing was compared")
    bounds = "--max-executions or --max-seconds"
    return InvalidRequest(bounds, "ended it before anything was compared: give more")


def _dry(options: ReplayOptions) -> Report:
    gc.disable()  # nothing of a log is cyclic, and looking for it takes a tenth of the time
    try:
        report = dry_run(
            options.path, options.session_id, first_line=options.first_line, last_line=options.last_line
        )
    finally:
        gc.enable()
    _require_steps(options.path, report)
    for step in report.steps:
        if step.verdict != "READY":
            _print_step(options.path, step)
    return report


def _prepare(options: ReplayOptions) -> LiveReplay:
    normalizers = choose(options.normalize)
    return LiveReplay(
        load_recording(options.path, options.session_id),
        LiveSettings(
            isolation=options.isolation,
            network=options.network,
            normalizers=normalizers,
            include=options.include,
            first_line=options.first_line,
            last_line=options.last_line,
            keep_going=options.keep_going,
            max_executions=options.max_executions,
            max_seconds=options.max_seconds,
        ),
    )


def _live(options: ReplayOptions, replay: LiveReplay) -> Report | None:
    count = replay.execution_count
    if options.max_executions is not None:
        count = min(count, options.max_executions)
    is_asked = count > ASK_ABOVE and not options.is_sure and sys.stdin is not None and sys.stdin.isatty()
    if is_asked and not _agrees(options, count):
        return None
    report = replay.run(lambda step: _print_step(options.path, step))
    _require_steps(options.path, report)
    return report


def _land(options: ReplayOptions, replay: LiveReplay, report: Report) -> None:
    """Open a prompt around the first difference, one that has changed before one that is random."""
    from json_repl.replay.landing import Landing
    from json_repl.replay.shell import run_shell

    different = [step for step in report.steps if step.verdict == "DIFF"]
    chosen = next((step for step in different if not step.is_random), different[0] if different else None)
    if chosen is not None:
        with closed_by_signals(), Landing(replay, chosen.number) as landing:
            run_shell(landing, f"{options.path}:{chosen.number}")


def _agrees(options: ReplayOptions, count: int) -> bool:
    import click

    where = "in a sandbox" if options.isolation == "sandbox" else f"with isolation {options.isolation}"
    return click.confirm(
        f"Run the {count} recorded executions of {printable(options.path)} {where}?", err=True
    )


def _require_steps(path: str, report: Report) -> None:
    if not report.steps and report.stopped is None:
        raise NothingToReplay(path, "no execution is in the part that --from, --until and --session name")


def _print_step(path: str, step: StepReport) -> None:
    for line in step_lines(path, step):
        print(line, flush=True)


def _is_same_file(one: str, other: str) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def _has_place(path: str) -> bool:
    """Whether a file may be written there: told before a long replay, not after it."""
    if os.path.exists(path):
        return os.access(path, os.W_OK) and not os.path.isdir(path)
    return os.access(os.path.dirname(path) or ".", os.W_OK | os.X_OK)


def _kind_of(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def write_report(report: Report, path: str) -> None:
    """Write a report file, whose name says what it is: .html, .json or .md; raises `OSError`."""
    kind = _kind_of(path)
    if kind == ".json":
        text = json.dumps(as_json(report), ensure_ascii=True, indent=1) + "\n"
    elif kind == ".md":
        from json_repl.replay.markdown import as_markdown

        text = as_markdown(report)
    else:
        from json_repl.replay.page import as_html

        text = as_html(report)
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
