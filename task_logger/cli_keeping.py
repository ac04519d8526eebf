"""`task-log compress`: what is kept, and where.

arguments -> logs -> compression -> what was done, on stdout
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from task_logger import display
from task_logger.errors import LogInUse, TaskLogError
from task_logger.log_view import dumps, echo

_json = click.option("--json", "as_json", is_flag=True, help="JSON in UTF-8, one object a line.")


def add_to(commands: click.Group) -> None:
    """Add the commands."""
    for command in (_compress,):
        commands.add_command(command)


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
