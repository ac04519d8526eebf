"""`task-log`: where a task's log is, what is in it, and what is being added to it.

    arguments -> path of a log -> log_view -> rows, text or JSON on stdout; what is wrong on stderr

Exit codes: 0 done; 1 there is no such log, or it can't be read whole; 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from io import TextIOWrapper
from typing import Any, TypeVar

import click

from task_logger import cli_keeping, display
from task_logger.errors import TaskLogError, read_error
from task_logger.log_view import (
    dumps,
    echo,
    show_all,
    show_artifact,
    show_last,
    show_one,
    show_plain,
    show_tree,
)
from task_logger.reader import find_logs
from task_logger.standard_output import buffer_output
from task_logger.summary import summarize
from task_logger.task import log_path, log_root, normalize_task_name, plan_folder, task_ids, task_number

_F = TypeVar("_F", bound=Callable[..., Any])

_MOST_DIGITS = 4_000
"""Of a number of lines or bytes; Python reads no number of more than 4,300."""


def main(arguments: list[str] | None = None) -> int:
    """Run `task-log`; returns its exit code."""
    if sys.stdout is None:
        return _fail("the output can't be written: it is closed", 1)
    buffer_output()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever a terminal's encoding lacks
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):
        # The reader of our output has what it wanted (click turns that into SystemExit, and raises it for
        # nothing else here); what is still buffered may not be written at exit either.
        _discard_output()
        return 0
    except OSError as exc:
        _discard_output()
        if isinstance(exc.filename, str):  # that of the output has no name
            return _fail(str(read_error(exc.filename, exc)), 1)
        return _fail(f"the output can't be written: {exc.strerror or exc}", 1)
    return code


def _run(arguments: list[str] | None) -> int:
    try:
        code = _commands.main(args=arguments, prog_name="task-log", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as exc:
        print(exc.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as exc:
        return _fail(exc.format_message(), exc.exit_code)
    except TaskLogError as exc:
        return _fail(str(exc), 1)
    except (KeyboardInterrupt, click.Abort):
        return 130
    return code if isinstance(code, int) else 0


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(message: str, code: int) -> int:
    print(f"task-log: {display.printable(message).replace(chr(10), ' ')}", file=sys.stderr)
    return code


def _where(command: _F) -> _F:
    """Add the options that say which log is meant."""
    for option in (
        click.option("--dir", "log_dir", metavar="FOLDER", help="Root of the logs [default: TASK_LOG_DIR]."),
        click.option("--name", "task_name", metavar="TEXT", help="Task name [default: FLOW_TASK_NAME]."),
        click.option("--task", "task_id", metavar="ID", help="Task id [default: FLOW_TASK_ID]."),
        click.option("--plan", "plan_id", metavar="ID", help="Plan id [default: FLOW_PLAN_ID]."),
    ):
        command = option(command)
    return command


def _write_utf8_now() -> None:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def _write_utf8(_context: click.Context, _option: click.Parameter, as_json: bool) -> bool:
    if as_json:
        _write_utf8_now()
    return as_json


_as_json = click.option(
    "--json", "as_json", is_flag=True, callback=_write_utf8, help="JSON in UTF-8, one object a line."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def _commands() -> None:
    """Find, show and follow task logs."""


@_commands.command("path")
@_where
@_as_json
def _path(*, as_json: bool, **where: str | None) -> None:
    """Print the path of a task's log, which need not exist."""
    path = _path_of(**where)
    if as_json:
        echo(dumps({"path": path, "exists": os.path.exists(path)}))
    else:
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")  # exactly these bytes, for other programs


@_commands.command("ls")
@click.option("--dir", "log_dir", metavar="FOLDER", help="Root of the logs [default: TASK_LOG_DIR].")
@click.option("--plan", "plan_id", metavar="ID", help="Only this plan.")
@_as_json
def _ls(*, log_dir: str | None, plan_id: str | None, as_json: bool) -> int:
    """List the logs there are: lines, how many ended well, the last time, size."""
    root = log_root(log_dir)
    logs = find_logs(root)
    if plan_id is not None:
        logs = [path for path in logs if path.startswith(f"{plan_folder(root, plan_id)}/")]
    summaries, refused = [], 0
    for path in logs:
        try:
            summaries.append(asdict(summarize(path)))
        except TaskLogError as exc:
            refused += 1
            _fail(str(exc), 1)
    if as_json:
        for summary in summaries:
            echo(dumps(summary))
    else:
        titles = ("plan", "task", "name", "lines", "ok", "failed", "last", "bytes")
        rows = [[display.one_line(str(summary[title])) for title in titles] for summary in summaries]
        display.print_table(titles, rows, right=frozenset({3, 4, 5, 7}), flexible=frozenset({0, 1, 2}))
    damaged = [summary for summary in summaries if summary["damaged"]]
    for summary in damaged:
        _fail(f"{summary['path']} is damaged in {summary['damaged']} places; `task-log show` names them", 1)
    return 1 if damaged or refused else 0


@_commands.command("show")
@click.argument("log_and_number", nargs=-1, metavar="[LOG] [N]")
@click.option("--tree", "as_tree", is_flag=True, help="Draw which execution started from the state of which.")
@click.option(
    "--since",
    metavar="TIME",
    callback=cli_keeping.since_time,
    help="Only executions since then: 2h, 3d, 2026-01-31T12:00Z.",
)
@click.option(
    "--artifact",
    is_flag=False,
    flag_value="",
    metavar="[FIELD|SHA256]",
    help="Write the artifact of line N to stdout: that of a field, or by digits of its SHA-256.",
)
@click.option("--range", "byte_range", metavar="FROM:TO", help="Only the characters at these bytes.")
@_where
@_as_json
def _show(
    *,
    log_and_number: tuple[str, ...],
    as_tree: bool,
    since: str | None,
    artifact: str | None,
    byte_range: str | None,
    as_json: bool,
    **where: str | None,
) -> int:
    """Show the executions of a log as a table or a tree, or that of line N in full, or an artifact of it.

    LOG is a file; without it, the log of the task that the options, or else FLOW_*, name. Without N,
    --artifact takes the digits of any artifact of the plan.
    """
    log, number = _log_and_number(log_and_number)
    if byte_range is not None and artifact is None:
        raise click.UsageError("--range is for --artifact")
    is_any_of_plan = artifact is not None and number is None
    path = log or (_path_of(**where) if is_any_of_plan else _existing_path_of(**where))
    if artifact is not None:
        return show_artifact(path, number, artifact, _range_of(byte_range))
    if since is not None and (as_tree or number is not None):
        raise click.UsageError("--since is for the table of all lines")
    if as_tree:
        if number is not None:
            raise click.UsageError("--tree shows all of a log; leave the line number out")
        return show_tree(path, as_json=as_json)
    if number is not None:
        return show_one(path, number, as_json=as_json)
    return show_all(path, as_json=as_json, since=since)


def _range_of(text: str | None) -> tuple[int, int | None] | None:
    if text is None:
        return None
    start, colon, end = text.partition(":")
    if not colon or not all(part.isdecimal() and len(part) <= _MOST_DIGITS for part in (start, end) if part):
        raise click.UsageError(f"--range must be FROM:TO, in bytes; each may be left out; not {text!r}")
    return int(start or 0), int(end) if end else None


def _log_and_number(arguments: tuple[str, ...]) -> tuple[str | None, int | None]:
    rest = list(arguments)
    number = None
    if rest and rest[-1].isdecimal():
        digits = rest.pop()
        if len(digits) > _MOST_DIGITS:
            raise click.UsageError(f"a line number has at most {_MOST_DIGITS} digits, not {len(digits)}")
        number = int(digits)
    if len(rest) > 1:
        raise click.UsageError(f"at most a file and a line number are expected, not {' '.join(arguments)}")
    return (rest[0] if rest else None), number


@_commands.command("tail")
@click.argument("log", required=False)
@click.option(
    "-n", "--lines", "count", type=click.IntRange(min=0), default=10, help="How many [default: 10]."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@_where
@_as_json
def _tail(*, log: str | None, count: int, follow: bool, as_json: bool, **where: str | None) -> int:
    """Show the last executions of a log, one a line, and with -f those to come."""
    path = log or _existing_path_of(**where)
    return show_last(path, count, as_json=as_json, follow=follow)


@_commands.command("decrypt")
@click.argument("log", required=False)
@_where
def _decrypt(*, log: str | None, **where: str | None) -> int:
    """Print the lines of an encrypted log as plain JSON, for jq and others.

    The key is that of TASK_LOG_KEY. `n`, `prev` and `hash` are those of the encrypted lines.
    """
    _write_utf8_now()
    return show_plain(log or _existing_path_of(**where))


@_commands.command("rekey")
@click.option("--dir", "log_dir", metavar="FOLDER", help="Root of the logs [default: TASK_LOG_DIR].")
@click.option("--plan", "plan_id", metavar="ID", help="Only this plan [default: all that are encrypted].")
@_as_json
def _rekey(*, log_dir: str | None, plan_id: str | None, as_json: bool) -> None:
    """Change the key of encrypted logs, from TASK_LOG_KEY to TASK_LOG_NEW_KEY.

    Both name a key as TASK_LOG_KEY does. Only the small header files are written anew: no log, no artifact.
    Where it was interrupted, run it again with the same two keys.
    """
    from task_logger.key_places import KEY_SETTING
    from task_logger.keys import key_from_environment
    from task_logger.rekeying import encrypted_plans, rekey

    old, new = key_from_environment(KEY_SETTING), key_from_environment("TASK_LOG_NEW_KEY")
    if old is None or new is None:
        missing = KEY_SETTING if old is None else "TASK_LOG_NEW_KEY"
        raise click.UsageError(
            f"{missing} is not set; it must name the {'old' if old is None else 'new'} key"
        )
    root = log_root(log_dir)
    for folder in encrypted_plans(root) if plan_id is None else [plan_folder(root, plan_id)]:
        done = rekey(folder, old, new)
        if as_json:
            echo(dumps(asdict(done)))
        else:
            had = f"; {done.already} had the new key already" if done.already else ""
            echo(f"{os.path.basename(folder)}: {done.wrapped} data keys wrapped by the new key{had}")


@_commands.command("events")
@click.argument("log", required=False)
@_where
@_as_json
def _events(*, log: str | None, as_json: bool, **where: str | None) -> int:
    """Show the events of a task: measurements, alerts, model calls.

    LOG is the file of its log, or of its events; without it, the task that the options, or else FLOW_*, name.
    """
    from task_logger.event_view import show_events

    return show_events(log or _existing_path_of(**where), as_json=as_json)


@_commands.command("verify")
@click.argument("target", required=False, metavar="[LOG|FOLDER|PLAN]")
@click.option("--head", metavar="N:HASH", help="Head of the log, as the last reply had it (debug_info.log).")
@click.option("--strict", is_flag=True, help="What can't be proven is a no, too.")
@_where
@_as_json
def _verify(*, target: str | None, head: str | None, strict: bool, as_json: bool, **where: str | None) -> int:
    """Check that logs are as they were written: chain, artifacts, pending files, and what keys can prove.

    Of one log, of a plan (its folder or id), or of a root; without an argument, of the task or plan that the
    options name, else of all plans. Exits with 1 where the answer is no.
    """
    from task_logger.verify_targets import head_of, targets_of
    from task_logger.verify_view import show_verdicts

    log = _existing_path_of(**where) if target is None and where["task_id"] is not None else target
    plans, whole_plans = targets_of(log, log_root(where["log_dir"]), where["plan_id"])
    known = None if head is None else head_of(head)
    if known is not None and sum(len(logs) for _, logs in plans) != 1:
        raise click.UsageError("--head is of one log: name its file, or --plan and --task")
    return show_verdicts(plans, head=known, strict=strict, as_json=as_json, whole_plans=whole_plans)


cli_keeping.add_to(_commands)


def _path_of(*, plan_id: str | None, task_id: str | None, task_name: str | None, log_dir: str | None) -> str:
    return log_path(log_root(log_dir), task_ids(plan_id, task_id, task_name))


def _existing_path_of(
    *, plan_id: str | None, task_id: str | None, task_name: str | None, log_dir: str | None
) -> str:
    """Return the path of the log that is meant; where only its name is left open, the one there is."""
    path = _path_of(plan_id=plan_id, task_id=task_id, task_name=task_name, log_dir=log_dir)
    if task_name is not None or task_id is None or os.path.exists(path):
        return path
    number_or_id = str(task_number(task_id) or normalize_task_name(task_id))
    folder = os.path.dirname(path)
    found = [log for log in find_logs(log_root(log_dir)) if log.startswith(f"{folder}/{number_or_id}.")]
    if len(found) > 1:
        raise click.UsageError(f"task {task_id} has several logs: say --name, or one of {', '.join(found)}")
    return found[0] if found else path
