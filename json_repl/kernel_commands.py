"""The commands `json-repl kernel install`, `list` and `remove`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from json_repl.cli import fail

if TYPE_CHECKING:
    from json_repl.kernel_specs import FoundSpec

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--sys-prefix", is_flag=True, help="For Jupyter in this environment alone."),
        click.option("--prefix", metavar="DIR", help="For Jupyter that is installed in DIR."),
        click.option("--user", is_flag=True, help="For every Jupyter of this user; the default."),
    ):
        command = option(command)
    return command


@click.group("kernel")
def kernel_commands() -> None:
    """The Jupyter kernels json_repl and json_repl_isolated: where Jupyter finds them."""


@kernel_commands.command("install")
@_place_options
@click.option(
    "--env",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a variable for these kernels; may be repeated. ${OTHER} in it is the manager's value of OTHER.",
)
def install_command(user: bool, prefix: str | None, sys_prefix: bool, assignments: Sequence[str]) -> int:
    """Have Jupyter offer the kernels, run by this interpreter."""
    from json_repl.kernel_specs import install_specs

    environment = _environment(assignments)
    folder = _folder(user, prefix, sys_prefix)
    if not sys.executable:
        return fail("there is no interpreter to name: sys.executable is empty", 1)
    try:
        paths = install_specs(folder, environment)
    except OSError as exc:
        return fail(
            f"can't write to {exc.filename or folder}: {exc.strerror}; "
            "choose another place with --user, --prefix DIR or --sys-prefix",
            1,
        )
    for path in paths:
        click.echo(f"installed {path}")
    return 0


@kernel_commands.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the kernels as one line of JSON.")
def list_command(as_json: bool) -> int:
    """List the kernels that Jupyter finds from here, which of them are ours, and which can't start."""
    from json_repl.kernel_specs import found_specs

    specs = found_specs()
    if as_json:
        click.echo(json.dumps([asdict(spec) for spec in specs]))
    else:
        _print(specs)
    return 0


@kernel_commands.command("remove")
@_place_options
def remove_command(user: bool, prefix: str | None, sys_prefix: bool) -> int:
    """Have Jupyter offer the kernels no more."""
    from json_repl.kernel_specs import remove_specs

    folder = _folder(user, prefix, sys_prefix)
    try:
        paths = remove_specs(folder)
    except OSError as exc:
        return fail(f"can't remove {exc.filename or folder}: {exc.strerror}", 1)
    if not paths:
        return fail(f"not installed in {folder}; `json-repl kernel list` shows where they are", 1)
    for path in paths:
        click.echo(f"removed {path}")
    return 0


def _folder(user: bool, prefix: str | None, sys_prefix: bool) -> str:
    from json_repl.kernel_specs import prefix_folder, user_folder

    if user + (prefix is not None) + sys_prefix > 1:
        raise click.UsageError("--user, --prefix and --sys-prefix exclude each other; give one of them")
    if prefix == "":
        raise click.UsageError("--prefix is empty; give a folder")  # of a variable that isn't set, say
    if sys_prefix:
        return prefix_folder(sys.prefix)
    if prefix is not None:
        return prefix_folder(prefix)
    return user_folder()


def _environment(assignments: Sequence[str]) -> dict[str, str]:
    environment = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not _VARIABLE.fullmatch(name) or "\0" in value:
            raise click.UsageError(f"--env {assignment!r} is not NAME=VALUE")
        environment[name] = value
    return environment


def _print(specs: Sequence[FoundSpec]) -> None:
    from task_logger.display import print_table, printable

    rows = [
        [
            printable(spec.name),
            "yes" if spec.is_ours else "no",
            printable(spec.problem or "ok"),
            printable(spec.interpreter or ""),
            printable(spec.folder),
        ]
        for spec in specs
    ]
    titles = ["kernel", "ours", "state", "interpreter", "folder"]
    print_table(titles, rows, right=frozenset(), flexible=frozenset({2, 3, 4}))
