"""`task-log gc` and `compress`: what is kept, where, and for how long.

arguments -> plan folder or logs -> garbage, compression -> what was done, on stdout
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from task_logger import display
from task_logger.errors import LogInUse, TaskLogError
from task_logger.log_view import dumps, echo
from task_logger.task import log_root, plan_folder, task_ids

_dir = click.option("--dir", "log_dir", metavar="FOLDER", help="Root of the logs [default: TASK_LOG_DIR].")
_json = click.option("--json", "as_json", is_flag=True, help="JSON in UTF-8, one object a line.")


def add_to(commands: click.Group) -> None:
    """Add the commands."""
    for command in (_gc, _compress):
        commands.add_command(command)


@click.command("gc")
@click.argument("plan", required=False)
@click.option("--yes", is_flag=True, help="Remove them, without asking.")
@_dir
@_json
def _gc(*, plan: str | None, yes: bool, log_dir: str | None, as_json: bool) -> int:
    """Show the artifacts of a plan that nothing refers to any more; with --yes, or when asked, remove them.

    PLAN is a plan's id [default: FLOW_PLAN_ID]. What a line, an event or a pending file names stays, and so
    does what was stored within the last hour, or since the oldest session of the plan that still runs began.
    Where a log is damaged nothing is removed: what can't be read may refer to anything.
    """
    from task_logger.garbage import find_garbage, remove_garbage

    garbage = find_garbage(_plan_folder(plan, log_dir))
    if as_json:
        for file in garbage.files:
            echo(dumps({"path": file.path, "bytes": file.bytes}))
    elif garbage.files:
        start = len(garbage.plan_folder) + 1
        rows = ([display.one_line(file.path[start:], 200), f"{file.bytes:,}"] for file in garbage.files)
        display.print_table(["path", "bytes"], rows, right=frozenset({1}), flexible=frozenset({0}))
    text = f"{len(garbage.files)} files, {garbage.bytes:,} bytes, that nothing refers to"
    kept = f"{garbage.referenced} artifacts are referred to, {garbage.young} are too young to tell"
    _say(f"{text}; {kept}", as_json=as_json)
    if not garbage.files:
        return 0
    if not yes and not (sys.stdin.isatty() and sys.stdout.isatty() and click.confirm("Remove them?")):
        _say("nothing was removed; --yes removes them", as_json=as_json)
        return 0
    removed = remove_garbage(garbage)
    _say(f"removed {len(removed)} files, {sum(file.bytes for file in removed):,} bytes", as_json=as_json)
    return 0


@click.command("compress")
@click.argument("logs", nargs=-1, required=True, metavar="LOG...")
@_json
def _compress(*, logs: tuple[str, ...], as_json: bool) -> int:
    """Compress finished logs: LOG becomes LOG.zst, which every reader here opens as it is.

    A log that a session has open stays as it is, and is an error. When its task goes on, a compressed log is
    brought back first.
    """
    from task_logger.compression import compress_log

    failed = 0
    for log in logs:
        try:
            done = compress_log(log)
        except TaskLogError as exc:
            failed += 1
            reason = exc.reason if isinstance(exc, LogInUse) else str(exc)
            print(f"task-log: {display.printable(log)}: {display.printable(reason)}", file=sys.stderr)
            continue
        if as_json:
            echo(dumps(asdict(done)))
        else:
            sizes = f"{done.plain_bytes:,} -> {done.compressed_bytes:,} bytes"
            echo(f"{display.printable(done.path)}: {sizes}")
    return 1 if failed else 0


def _plan_folder(plan_id: str | None, log_dir: str | None) -> str:
    return plan_folder(log_root(log_dir), task_ids(plan_id).plan_id)


def _say(text: str, *, as_json: bool) -> None:
    if as_json:
        print(f"task-log: {text}", file=sys.stderr)  # stdout is for other programs
    else:
        echo(text)
