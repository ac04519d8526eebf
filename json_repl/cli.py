"""The command `json-repl`: serve (the default), run, replay, demo, doctor, kernel, tap.

main() -> no arguments: stdio.serve, at once   -> otherwise click -> the command -> exit code
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from click import Group

    from json_repl.cells import Cell
    from json_repl.session_settings import SessionRoute
    from repl_kernel.limits import Limits
    from task_logger.record import Isolation

EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 code failed, 2 usage, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if os.name != "posix":
        return fail("runs on Linux and macOS; on Windows, run it inside WSL")
    if not arguments:
        from json_repl.stdio import serve

        return serve()
    from task_logger.standard_output import buffer_output

    buffer_output()
    try:
        code = _run(arguments)
        print(end="", flush=True)  # what can't be written is told here, not at exit
    except OSError as exc:
        _discard_output()
        return fail(f"{exc.filename or 'standard input or output'} can't be used: {exc.strerror}", 1)
    return code


def _run(arguments: list[str]) -> int:
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


def _where_it_runs(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options that say where code runs, and what it is kept from; they are named as in `Session`."""
    import click

    for option in (
        click.option(
            "--limit",
            "limits",
            multiple=True,
            metavar="NAME=VALUE",
            help="What code may use: memory_bytes=512M, cpu_s=10, processes=20 …; again for each. "
            "Means --route worker.",
        ),
        click.option("--network", is_flag=True, help="Let code in the sandbox use the machine's network."),
        click.option(
            "--work-folder",
            metavar="FOLDER",
            help="The one folder that code in the sandbox can write to [default: one below the task log's].",
        ),
        click.option(
            "--isolation",
            type=click.Choice(["none", "process", "sandbox"]),
            help="What the worker is kept from [default: process]. All but none mean --route worker.",
        ),
        click.option(
            "--kernel",
            metavar="NAME",
            help="The Jupyter kernel to start, or the connection file of one that runs. "
            "Means --route jupyter.",
        ),
        click.option(
            "--route",
            type=click.Choice(["local", "worker", "jupyter"]),
            help="Where the code runs: in this process, in a keep-alive worker (USE_SUBPROCESS_WORKER=1), or "
            "on a Jupyter kernel (--kernel).",
        ),
    ):
        command = option(command)
    return command


def _session_settings(
    *,
    route: SessionRoute | None,
    isolation: Isolation | None,
    limits: Sequence[str],
    kernel: str | None,
    preload: str | None = None,
    **others: Any,
) -> dict[str, Any]:
    """What the options mean for `Session`; those that need a route choose it."""
    names = () if preload is None else tuple(name.strip() for name in preload.split(","))
    if route is None and kernel is not None:
        route = "jupyter"
    elif route is None and (names or limits or isolation in ("process", "sandbox")):
        route = "worker"
    settings = {"route": route, "kernel": kernel, "isolation": isolation, "preload": names, **others}
    return settings | {"limits": _parsed(limits)} if limits else settings


def _parsed(limits: Sequence[str]) -> Limits | None:
    import click

    from json_repl.limiting import parsed_limits
    from task_logger.errors import ConfigurationError

    try:
        return parsed_limits(limits)
    except ConfigurationError as exc:
        raise click.UsageError(str(exc)) from exc


def _commands() -> Group:
    import click

    from json_repl import __version__

    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(__version__, message="json-repl %(version)s")
    def commands() -> None:
        """A recorded Python session: every execution is one line of a task log.

        Without a command: serve.
        """

    @commands.command("serve")
    @_where_it_runs
    @click.option(
        "--preload",
        metavar="NAME,…",
        help="Import these modules before the worker is forked: it has them at once. Means --route worker.",
    )
    def serve_command(**where: Any) -> int:
        """Serve JSON-RPC, one message a line, on standard input and output."""
        from json_repl.stdio import serve

        return serve(**_session_settings(**where))

    @commands.command("run")
    @click.argument("file")
    @_where_it_runs
    @click.option("--json", "as_json", is_flag=True, help="Print each outcome as one line of JSON.")
    @click.option("--keep-going", is_flag=True, help="Run the cells after one that failed, too.")
    @click.option(
        "--time-limit", "time_limit_s", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS"
    )
    def run_command(
        file: str, as_json: bool, keep_going: bool, time_limit_s: float | None, **where: Any
    ) -> int:
        """Run FILE, or standard input (-), cell by cell; `# %%` begins a cell. A notebook (.ipynb), too."""
        settings = _session_settings(**where) | {"time_limit_s": time_limit_s}
        return run_file(file, settings, as_json=as_json, keep_going=keep_going)

    @commands.command("replay")
    @_what_is_replayed
    def replay_command(**given: Any) -> int:
        """Check the recording LOG, or replay it: 0 where all matches, 1 where anything differs."""
        return replay_log(**given)

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

    @commands.command("tap")
    @click.argument("kernel")
    @click.option("--plan-id", metavar="ID", help="The plan of what is recorded (FLOW_PLAN_ID).")
    @click.option("--task-id", metavar="ID", help="Its task (FLOW_TASK_ID).")
    @click.option("--task-name", metavar="NAME", help="The task's name (FLOW_TASK_NAME).")
    def tap_command(kernel: str, plan_id: str | None, task_id: str | None, task_name: str | None) -> int:
        """Record a running Jupyter kernel from outside, whoever runs code on it, until Ctrl-C.

        KERNEL is its connection file, or its id where a Jupyter server of yours runs it.
        """
        from json_repl.tap import run_tap

        return run_tap(kernel, plan_id=plan_id, task_id=task_id, task_name=task_name)

    from json_repl.kernel_commands import kernel_commands

    commands.add_command(kernel_commands)
    return commands


def _what_is_replayed(command: Callable[..., int]) -> Callable[..., int]:
    """Add the argument and the options of `replay`."""
    import click

    line_number, some = click.IntRange(min=1), click.FloatRange(min=0, min_open=True)
    for add in (
        click.option(
            "--shell", "has_shell", is_flag=True, help="Look around just before and just after a difference."
        ),
        click.option(
            "--yes", "is_sure", is_flag=True, help="Don't ask before a live replay of many executions."
        ),
        click.option("--max-seconds", type=some, metavar="S", help="Let a live replay run no longer."),
        click.option("--max-executions", type=line_number, metavar="N", help="Run no more of them."),
        click.option(
            "--report", "report_path", metavar="FILE", help="Write a report, too: FILE.html, .json or .md."
        ),
        click.option("--keep-going", is_flag=True, help="Go on after a difference."),
        click.option(
            "--include",
            multiple=True,
            type=click.Choice(["crashed", "timeout"]),
            help="Run what is skipped otherwise; again for each.",
        ),
        click.option(
            "--normalize",
            multiple=True,
            metavar="NAME",
            help="Take for alike: addresses, times, durations, paths, temp-names, set-order, all of these "
            "(all), what a package offers, /PATTERN/ or /PATTERN/REPLACEMENT/; again for each.",
        ),
        click.option("--until", "last_line", type=line_number, metavar="N", help="End with line N."),
        click.option(
            "--from", "first_line", type=line_number, metavar="N", help="Compare from line N of the file on."
        ),
        click.option("--network", is_flag=True, help="Let code in the sandbox use the machine's network."),
        click.option(
            "--isolation",
            type=click.Choice(["none", "process", "sandbox"]),
            default="sandbox",
            help="What the replayed code is kept from [default: sandbox: a recording may be hostile].",
        ),
        click.option("--session", "session_id", metavar="ID", help="Only this session; the start of its id."),
        click.option(
            "--live/--dry-run",
            "is_live",
            help="Run the code, or only check the recording [default: --dry-run].",
        ),
        click.argument("path", metavar="LOG"),
    ):
        command = add(command)
    return command


def replay_log(**given: Any) -> int:
    """Check or replay a recording, as the options of `replay` say; returns the exit code."""
    from json_repl.errors import SessionError
    from json_repl.own_process import shield_process
    from json_repl.replay.command import ReplayOptions, run_replay
    from repl_kernel.errors import KernelError, SandboxUnavailable
    from task_logger.errors import TaskLogError

    try:
        shield_process()
        code = run_replay(ReplayOptions(**given))
        print(end="", flush=True)  # what can't be written is told here, not at exit
    except SandboxUnavailable as exc:
        return fail(f"{exc}; or, if you trust the recording, replay it with --isolation process")
    except (TaskLogError, KernelError, SessionError) as exc:
        return fail(str(exc))
    except BrokenPipeError:
        _discard_output()
        return 1
    except OSError as exc:
        _discard_output()
        if exc.errno in (errno.EMFILE, errno.ENFILE):  # each session whose state is needed has a worker
            return fail(f"{exc.strerror}; `ulimit -n` allows more, --session replays one session alone")
        return fail(f"{exc.filename or 'the output'} can't be written: {exc.strerror}")
    return code


def _discard_output() -> None:
    """What is buffered can't be written at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run_file(path: str, settings: Mapping[str, Any], *, as_json: bool, keep_going: bool) -> int:
    """Run a file in a session with these settings of `Session`; returns the exit code."""
    from json_repl.cells import read_source, split_cells
    from json_repl.errors import UnreadableCode, UnreadableNotebook

    name = "standard input" if path == "-" else path
    try:
        if path.endswith(".ipynb"):
            route = _notebook_route(settings["route"])
            cells, of_notebook = _notebook_cells(path, route)
            settings = {**settings, "route": route, **of_notebook}
        else:
            cells = split_cells(read_source(path))
    except (UnreadableCode, UnreadableNotebook) as exc:
        return fail(str(exc))
    except OSError as exc:
        return fail(f"{name} can't be read: {exc.strerror}")
    return _run_recorded(cells, name, settings, as_json=as_json, keep_going=keep_going)


def _notebook_route(route: SessionRoute | None) -> SessionRoute | None:
    """A worker, unless the caller or the environment wants another: IPython's shell can't run elsewhere."""
    return route or (None if os.environ.get("USE_SUBPROCESS_WORKER") else "worker")


def _notebook_cells(path: str, route: SessionRoute | None) -> tuple[list[Cell], Mapping[str, Any]]:
    """A notebook's cells, and what a session for them is made with."""
    from json_repl.notebook import read_notebook
    from json_repl.notebook_task import task_of_notebook

    notebook = read_notebook(path, any_language=route == "jupyter")
    task = task_of_notebook(path, notebook.metadata)
    is_worker = route == "worker" or (route is None and os.environ.get("USE_SUBPROCESS_WORKER") == "1")
    return list(notebook.cells), {
        "plan_id": task.plan_id,
        "task_id": task.task_id,
        "task_name": task.task_name,
        "shell": "ipython" if is_worker else "plain",
    }


def _run_recorded(
    cells: list[Cell], name: str, settings: Mapping[str, Any], *, as_json: bool, keep_going: bool
) -> int:
    from json_repl.descriptors import take_standard_descriptors
    from json_repl.errors import InvalidRequest, SessionError
    from json_repl.own_process import shield_process
    from json_repl.run import run_cells
    from json_repl.session import Session
    from json_repl.terminal import Terminal
    from repl_kernel.errors import KernelError
    from task_logger.errors import ConfigurationError, TaskLogError

    try:
        shield_process()
        terminal = Terminal(take_standard_descriptors(own_output=False))
        with Session(actor="run", owns_process=True, **settings) as session:
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
        return fail(str(exc), EXIT_USAGE if isinstance(exc, ConfigurationError | InvalidRequest) else 1)
    except OSError as exc:
        return fail(f"standard input or output can't be used: {exc.strerror}", 1)
    except KeyboardInterrupt:
        return fail("interrupted before anything ran", 130)
