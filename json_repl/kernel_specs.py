"""Where Jupyter finds our kernels: the specifications that we write, and those that are there.

data/kernels/<name>/kernel.json --absolute interpreter, environment--> <place>/kernels/<name>/kernel.json
                                                        Jupyter's folders --> found_specs()
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repl_kernel.jupyter.kernel_command import split_command

KERNEL_NAMES = ("json_repl", "json_repl_isolated")

_SPEC_FILE = "kernel.json"

_MANAGERS_OWN = ("python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info))
"""Bare names in whose place jupyter_client starts the manager's interpreter, which is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSpec:
    """A kernel that Jupyter would offer; `problem` says why it can't start, `None` where nothing is known.

    `interpreter` is the program it starts, as written; `None` where the file can't be read.
    """

    name: str
    display_name: str
    is_ours: bool
    interpreter: str | None
    folder: str
    problem: str | None


def user_folder() -> str:
    """Where every Jupyter of this user looks for kernels."""
    from jupyter_core.paths import jupyter_data_dir

    return os.path.join(jupyter_data_dir(), "kernels")


def prefix_folder(prefix: str) -> str:
    """Where a Jupyter that is installed in `prefix` looks for kernels."""
    return os.path.join(os.path.abspath(prefix), "share", "jupyter", "kernels")


def install_specs(folder: str, environment: Mapping[str, str]) -> list[str]:
    """Write our specifications below `folder`, over those there; returns their folders.

    They start this interpreter, with `environment` added to the manager's. Raises OSError.
    """
    return [_install(name, folder, environment) for name in KERNEL_NAMES]


def remove_specs(folder: str) -> list[str]:
    """Remove our specifications below `folder`; returns the folders that are gone. Raises OSError."""
    removed = []
    for name in KERNEL_NAMES:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            os.unlink(path)
        elif os.path.isdir(path):
            shutil.rmtree(path)
        else:
            continue
        removed.append(path)
    return removed


def found_specs() -> list[FoundSpec]:
    """Every kernel that Jupyter finds from here, by name."""
    from jupyter_client.kernelspec import KernelSpecManager

    return [
        _look_at(name, folder) for name, folder in sorted(KernelSpecManager().find_kernel_specs().items())
    ]


def _install(name: str, folder: str, environment: Mapping[str, str]) -> str:
    shipped = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "kernels", name, _SPEC_FILE)
    with open(shipped, encoding="utf-8") as file:
        spec: dict[str, Any] = json.load(file)
    # As it was called: the link in a virtual environment is what makes it that environment.
    spec["argv"][0] = sys.executable
    spec["env"] = dict(environment)
    if not _is_seen_from_here_alone(folder):
        del spec["metadata"]["kernel_provisioner"]
    path = os.path.join(folder, name)
    os.makedirs(path, exist_ok=True)
    new = os.path.join(path, f"{_SPEC_FILE}.{os.getpid()}")
    try:
        with open(new, "w", encoding="utf-8") as file:
            file.write(json.dumps(spec, indent=2) + "\n")
        os.replace(new, os.path.join(path, _SPEC_FILE))
    except OSError:
        if os.path.exists(new):
            os.unlink(new)
        raise
    return path


def _is_seen_from_here_alone(folder: str) -> bool:
    """Whether only managers of this environment look there; others don't have our provisioner.

    A kernel whose provisioner is unknown to a manager isn't in its list at all.
    """
    from jupyter_core.paths import SYSTEM_JUPYTER_PATH

    shared = [os.path.join(path, "kernels") for path in SYSTEM_JUPYTER_PATH]
    return folder == prefix_folder(sys.prefix) and folder not in [*shared, user_folder()]


def _look_at(name: str, folder: str) -> FoundSpec:
    try:
        with open(os.path.join(folder, _SPEC_FILE), encoding="utf-8") as file:
            spec = json.load(file)
        command, environment = spec["argv"], spec.get("env", {})
        "".join((*command, *environment, *environment.values()))  # raises where one of them is no text
        if not isinstance(command, list):
            raise TypeError  # noqa: TRY301  # as what else is none
        interpreter = command[0]
        display_name = str(spec.get("display_name", name))
        provisioner = spec.get("metadata", {}).get("kernel_provisioner", {}).get("provisioner_name")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no kernel specification"
        return FoundSpec(
            name=name,
            display_name=name,
            is_ours=name in KERNEL_NAMES,
            interpreter=None,
            folder=folder,
            problem=f"{_SPEC_FILE} can't be read: {reason}",
        )
    return FoundSpec(
        name=name,
        display_name=display_name,
        is_ours=split_command(command) is not None,
        interpreter=interpreter,
        folder=folder,
        problem=_problem(interpreter, provisioner),
    )


def _problem(interpreter: str, provisioner: str | None) -> str | None:
    path = os.path.expanduser(interpreter)
    if interpreter not in _MANAGERS_OWN and shutil.which(path) is None:
        return f"{interpreter} is not there, or can't be run"
    if provisioner is not None:
        from importlib.metadata import entry_points

        if not entry_points(group="jupyter_client.kernel_provisioners", name=provisioner):
            return f"its provisioner {provisioner} is not installed in this environment"
    return None
