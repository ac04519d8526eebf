"""The command `json-repl`: serve (the default), run, demo, doctor.

main() -> no arguments: stdio.serve, at once   -> otherwise click -> the command -> exit code
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from click import Group

    from json_repl.cells import Cell
    from json_repl.session import SessionRoute

EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 code failed, 2 usage, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if os.name != "posix":
        return fail("runs on Linux and macOS; on Windows, run it inside WSL")
    if not arguments:
        from json_repl.stdio import serve

        return serve()
    import click

    try:
        code: int | None = _commands().main(arguments, prog_name="json-repl", standalone_mode=False)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        return fail(f"{exc.format_message()} (see json-repl --help)")
    except click.Abort:
        return fail("interrupted", 130)
    return code or 0


def fail(sentence: str, code: int = EXIT_USAGE) -> int:
    """Say in one line on stderr what is wrong; returns the exit code."""
    line = "json-repl: " + " ".join(sentence.split()) + "\n"
    os.write(2, line.encode("utf-8", "backslashreplace"))
    return code


def _commands() -> Group:
    import click

    from json_repl import __version__

    route_option = click.option(
        "--route",
        type=click.Choice(["local", "worker"]),
        help="Where the code runs: in this process, or in a keep-alive worker (USE_SUBPROCESS_WORKER=1).",
    )

    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(__version__, message="json-repl %(version)s")
    def commands() -> None:
        """A recorded Python session: every execution is one line of a task log.

        Without a command: serve.
        """

    @commands.command("serve")
    @route_option
    @click.option(
        "--preload",
        metavar="NAME,…",
        help="Import these modules before the worker is forked: it has them at once. Means --route worker.",
    )
    def serve_command(route: SessionRoute | None, preload: str | None) -> int:
        """Serve JSON-RPC, one message a line, on standard input and output."""
        from json_repl.stdio import serve

        if preload is None:
            return serve(route)
        names = [name.strip() for name in preload.split(",")]
        return serve(route or "worker", preload=names)

    @commands.command("run")
    @click.argument("file")
    @route_option
    @click.option("--json", "as_json", is_flag=True, help="Print each outcome as one line of JSON.")
    @click.option("--keep-going", is_flag=True, help="Run the cells after one that failed, too.")
    @click.option(
        "--time-limit", "time_limit_s", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS"
    )
    def run_command(
        file: str, route: SessionRoute | None, as_json: bool, keep_going: bool, time_limit_s: float | None
    ) -> int:
        """Run FILE, or standard input (-), cell by cell; `# %%` begins a cell."""
        return run_file(file, route=route, as_json=as_json, keep_going=keep_going, time_limit_s=time_limit_s)

    @commands.command("demo")
    def demo_command() -> int:
        """Show a recorded session on real data, and what its task log holds."""
        from json_repl.demo import run_demo

        return run_demo()

    @commands.command("doctor")
    @click.option("--json", "as_json", is_flag=True, help="Print what was found as one line of JSON.")
    def doctor_command(as_json: bool) -> int:
        """Try every isolation on this machine, and say how to get what is missing; 1 without a sandbox."""
        from json_repl.doctor import run_doctor

        return run_doctor(as_json=as_json)

    return commands


def run_file(
    path: str, *, route: SessionRoute | None, as_json: bool, keep_going: bool, time_limit_s: float | None
) -> int:
    """Run a file in a session made from the environment; returns the exit code.

    `route` of `None` means from the environment, `time_limit_s` of `None` no limit for each cell.
    """
    from json_repl.cells import read_source, split_cells
    from json_repl.errors import UnreadableCode

    name = "standard input" if path == "-" else path
    try:
        cells = split_cells(read_source(path))
    except UnreadableCode as exc:
        return fail(str(exc))
    except OSError as exc:
        return fail(f"{name} can't be read: {exc.strerror}")
    return _run_recorded(
        cells, name, route=route, as_json=as_json, keep_going=keep_going, time_limit_s=time_limit_s
    )


def _run_recorded(
    cells: list[Cell],
    name: str,
    *,
    route: SessionRoute | None,
    as_json: bool,
    keep_going: bool,
    time_limit_s: float | None,
) -> int:
    from json_repl.descriptors import take_standard_descriptors
    from json_repl.errors import SessionError
    from json_repl.run import run_cells
    from json_repl.session import Session
    from json_repl.terminal import Terminal
    from repl_kernel.errors import KernelError
    from task_logger.errors import ConfigurationError, TaskLogError

    try:
        terminal = Terminal(take_standard_descriptors(own_output=False))
        with Session(route=route, time_limit_s=time_limit_s, actor="run", owns_process=True) as session:
            return run_cells(
                session,
                cells,
                terminal,
                source_name=name,
                as_json=as_json,
                keep_going=keep_going,
                may_ask=name != "standard input",
            )
    except (TaskLogError, KernelError, SessionError) as exc:
        return fail(str(exc), EXIT_USAGE if isinstance(exc, ConfigurationError) else 1)
    except OSError as exc:
        return fail(f"standard input or output can't be used: {exc.strerror}", 1)
    except KeyboardInterrupt:
        return fail("interrupted before anything ran", 130)
