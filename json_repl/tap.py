"""The command `json-repl tap`: records a running kernel from outside, until it is told to end.

connection file, or the id of a kernel of a running server --> KernelTap --> ObservedLog --> task log
"""

from __future__ import annotations

import os
import signal

from json_repl.cli import fail
from json_repl.observed_log import ObservedLog
from repl_kernel.errors import KernelError, KernelUnreachable
from task_logger.errors import ConfigurationError, TaskLogError
from task_logger.task import task_ids

_EXIT_USAGE = 2


def run_tap(
    kernel: str, *, plan_id: str | None = None, task_id: str | None = None, task_name: str | None = None
) -> int:
    """Record a kernel until SIGINT or SIGTERM, or its end; returns the exit code.

    `kernel` is a connection file or a kernel's id; ids of `None` are the environment's.
    """
    from json_repl.own_process import shield_process
    from repl_kernel.jupyter.connection import read_connection_file
    from repl_kernel.jupyter.tap import KernelTap

    try:
        shield_process()
        connection = read_connection_file(find_connection_file(kernel))
        log = ObservedLog(
            task_ids(plan_id, task_id, task_name), actor="jupyter", route="jupyter", isolation="external"
        )
        try:
            tap = KernelTap(connection, log, lambda sentence: _tell(sentence, log.path))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, lambda *_: tap.stop())
            try:
                _say(tap.run())
            finally:
                tap.close()
        finally:
            log.close()
    except (KernelError, TaskLogError) as exc:
        return fail(str(exc), _EXIT_USAGE if isinstance(exc, ConfigurationError) else 1)
    return 0


def find_connection_file(kernel: str) -> str:
    """The connection file that is meant: itself, or that of a kernel's id in Jupyter's runtime folder.

    Raises `KernelUnreachable` where there is none.
    """
    if os.path.exists(kernel):
        return kernel
    from jupyter_core.paths import jupyter_runtime_dir

    folder = jupyter_runtime_dir()
    path = os.path.join(folder, f"kernel-{kernel}.json")
    if os.sep not in kernel and os.path.exists(path):
        return path
    raise KernelUnreachable(
        f"there is no file {kernel}, and no kernel of that id in {folder}; give a connection file (in a "
        "notebook, %connect_info shows it)"
    )


def _tell(sentence: str, log_path: str) -> None:
    _say(f"recording into {log_path}; Ctrl-C ends it" if sentence == "recording" else sentence)


def _say(sentence: str) -> None:
    os.write(2, f"json-repl tap: {sentence}\n".encode("utf-8", "backslashreplace"))
