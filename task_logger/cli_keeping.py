"""`task-log gc`, `export` and `compress`: what is kept, where, and for how long.

arguments -> plan folder or logs -> garbage, export, compression -> what was done, on stdout
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from task_logger import display
from task_logger.errors import ConfigurationError, ExportRefused, LogInUse, TaskLogError
from task_logger.log_view import dumps, echo
from task_logger.task import check_settings, log_root, plan_folder, task_ids

_dir = click.option("--dir", "log_dir", metavar="FOLDER", help="Root of the logs [default: TASK_LOG_DIR].")
_json = click.option("--json", "as_json", is_flag=True, help="JSON in UTF-8, one object a line.")


def since_time(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    """Read the value of `--since`, as a line's `timestamp`; raises `click.UsageError`."""
    from task_logger.since import since_timestamp

    try:
        return None if text is None else since_timestamp(text)
    except ConfigurationError as exc:
        raise click.UsageError(str(exc)) from exc


def add_to(commands: click.Group) -> None:
    """Add the commands."""
    for command in (_gc, _export, _compress):
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


@click.command("export")
@click.argument("plan", required=False)
@click.option("-o", "--output", required=True, metavar="FILE", help="The archive, usually NAME.tar.zst.")
@click.option(
    "--since",
    metavar="TIME",
    callback=since_time,
    help="Only logs with lines since then: 2h, 3d, 2026-01-31T12:00Z.",
)
@_dir
@_json
def _export(*, plan: str | None, output: str, since: str | None, log_dir: str | None, as_json: bool) -> int:
    """Write a plan into one archive: logs, events, artifacts and a manifest, all verified on the way.

    PLAN is a plan's id [default: FLOW_PLAN_ID]. Exits with 1, and leaves no archive, where something isn't as
    it was written. An encrypted plan stays encrypted; TASK_LOG_KEY is only used to check it.
    """
    from task_logger.export import export_plan

    settings = check_settings(log_dir)
    try:
        done = export_plan(
            _plan_folder(plan, log_dir),
            output,
            since=since,
            key=settings.key,
            sealer=settings.sealer,
        )
    except ExportRefused as exc:
        for finding in exc.findings:
            text = f"{finding.path}, line {finding.line}, byte {finding.at}: {finding.kind}: {finding.reason}"
            print(f"task-log: {display.printable(text)}", file=sys.stderr)
        print(f"task-log: no archive was written: {len(exc.findings)} problems", file=sys.stderr)
        return 1
    for finding in (*done.findings, *done.pending):
        text = f"{finding.level}: {finding.path}: {finding.reason}"
        print(f"task-log: {display.printable(text)}", file=sys.stderr)
    if as_json:
        fields = asdict(done)
        echo(dumps({name: fields[name] for name in ("path", "logs", "artifacts", "bytes")}))
    else:
        what = f"{done.logs} logs, {done.artifacts} artifacts, {done.bytes:,} bytes"
        echo(f"{display.printable(done.path)}: {what}")
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
