"""`python -m json_repl.warm_kernel`: a kernel in reserve, started by the warm provisioner alone.

a worker is started, everything is imported --"ready"--> wait
    arguments, environment, folder --> json_repl.jupyter, as if new; it takes the worker over, or ends it
    the manager is gone            --> exit
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import socket
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from repl_kernel.jupyter.spare_pool import modified_ns
from repl_kernel.reserve import destine, loaded, start_reserve

_LOADED_WHEN_NEEDED = (
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.logger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "IPython.utils.wildcard",
    "encodings.idna",
    "faulthandler",
    "ipykernel.debugger",
    "ipykernel.kernelapp",
    "json_repl.isolated_kernel",
    "json_repl.notebook_task",
    "json_repl.observed_log",
    "pdb",
    "repl_kernel.jupyter.isolated_kernel",
    "repl_kernel.jupyter.isolated_kernel_app",
    "repl_kernel.jupyter.kernel_sessions",
    "repl_kernel.jupyter.recorded_kernel",
    "repl_kernel.jupyter.shell_runner",
    "repl_kernel.jupyter.worker_shell",
    "repl_kernel.manager",
    "sqlite3",
    "tornado.gen",
    "tornado.locks",
    "tornado.platform.asyncio",
    "tornado.queues",
)
"""What a kernel imports between its start and its first reply, and what is imported by none of it at once."""

_OURS = ("json_repl", "repl_kernel", "task_logger")


def main(arguments: Sequence[str]) -> int:
    """Load, wait, then be the kernel; returns its exit code, 0 where none was wanted."""
    if len(arguments) != 2:
        os.write(2, b"json_repl.warm_kernel: is started by the warm provisioner, to be a kernel later\n")
        return 2
    link, manager_pid = socket.socket(fileno=int(arguments[0])), int(arguments[1])
    if os.getcwd() in sys.path:
        sys.path.remove(os.getcwd())  # by -m; a kernel's own folder comes later
    before = dict(os.environ)
    spawned = start_reserve()
    with _Unobtrusive():
        _load()
    if spawned is not None:
        spawned = loaded(spawned)
    # debugpy has settings of its own there, which a kernel hands down to its children.
    set_by_loading = dict(os.environ.items() - before.items())
    request = _wait(link, manager_pid)
    link.close()
    if request is None:
        return 0
    if spawned is not None:
        destine(spawned, request["environment"], request["cwd"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"] | set_by_loading)
    from json_repl import jupyter

    sys.argv = [str(jupyter.__file__), *request["arguments"]]
    return jupyter.main(request["arguments"], spawned) or 0


class _Unobtrusive:
    """While a spare loads, others come first; niceness would do more, but could not be taken back."""

    def __enter__(self) -> None:
        self._policy = os.sched_getscheduler(0) if sys.platform == "linux" else None
        if self._policy == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    def __exit__(self, *_: object) -> None:
        if self._policy == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _load() -> None:
    # debugpy would warn of frozen modules now, long before anyone thinks of a debugger.
    name = "PYDEVD_DISABLE_FILE_VALIDATION"
    before = os.environ.get(name)
    os.environ[name] = "1"
    for module in ("json_repl.jupyter", *_LOADED_WHEN_NEEDED):
        try:
            importlib.import_module(module)
        except ImportError:
            pass  # the kernel says so, if it needs it
    if before is None:
        del os.environ[name]
    # The kernel makes many objects as it starts: without this each collection walks all the modules, 30 ms.
    gc.collect()
    gc.freeze()


def _loaded_from() -> list[tuple[str, int | None]]:
    """The folders that modules came from, and our own files, with the times of their last change.

    An installation changes the folder of the packages; whoever works on ours changes a file.
    """
    paths = set()
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and name.partition(".")[0] in _OURS:
            paths.add(path)
        if path and "." not in name:
            paths.add(_folder_of(module, path))
    return [(path, modified_ns(path)) for path in sorted(paths)]


def _folder_of(module: ModuleType, path: str) -> str:
    folder = os.path.dirname(path)
    return os.path.dirname(folder) if hasattr(module, "__path__") else folder


def _wait(link: socket.socket, manager_pid: int) -> dict[str, Any] | None:
    """Say that all is loaded, return the request; `None` where the manager ends first, or ends this spare."""
    watched: list[Any] = [link]
    if sys.platform == "linux":
        # EOF alone doesn't tell: a program that the manager forked may hold the other end, too.
        try:
            manager_fd = os.pidfd_open(manager_pid)
        except ProcessLookupError:
            return None
        watched.append(manager_fd)
    if os.getppid() != manager_pid:
        return None
    received = bytearray()
    try:
        link.sendall(json.dumps(_loaded_from()).encode() + b"\n")
        if link not in select.select(watched, [], [])[0]:
            return None
        if sys.platform == "linux":
            os.close(manager_fd)
        while piece := link.recv(65536):
            received += piece
        request: dict[str, Any] = json.loads(received)
    except (OSError, ValueError):
        return None  # the manager ended, or this spare's time, before all was said, or anything
    return request


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
