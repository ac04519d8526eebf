"""`python -m json_repl.jupyter -f CONNECTION_FILE`: a kernel that Jupyter starts; --isolated the other.

arguments --> ipykernel's application with a recorded kernel --> ObservedLog --> task log
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and os.getcwd() in sys.path[:1]:
    del sys.path[0]  # by -m: a notebook's own random.py is no module of ours; ipykernel puts "" there later

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threading import Thread

    from json_repl.observed_log import ObservedLog, RefusingLog
    from repl_kernel.spawn import SpawnedKeeper

_ACTOR = "jupyter"


def open_log() -> ObservedLog | RefusingLog:
    """The log of this kernel; where there can't be one, what refuses every cell and says why."""
    from json_repl.notebook_task import notebook_task
    from json_repl.observed_log import ObservedLog, RefusingLog
    from task_logger.errors import TaskLogError

    try:
        return ObservedLog(notebook_task(), actor=_ACTOR, route="local", isolation="none")
    except TaskLogError as exc:
        return RefusingLog(str(exc))


def main(argv: Sequence[str] | None = None, spawned: SpawnedKeeper | None = None) -> int:
    """Be a kernel until the front end ends it; `argv` of `None` means the program's own.

    `spawned` is a worker that was in reserve for an isolated kernel; it is ended where none is wanted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--isolated" in arguments:
        from json_repl.isolated_kernel import run_isolated

        return run_isolated([argument for argument in arguments if argument != "--isolated"], spawned)
    from repl_kernel.jupyter.recorded_kernel import RecordedKernelApp

    app = RecordedKernelApp.instance()
    app.open_recorder = open_log
    ending = None if spawned is None else _end(spawned)
    app.initialize(arguments)
    if ending is not None:
        ending.join()  # before any code runs, which could wait for a child of its own
    app.start()
    return 0


def _end(spawned: SpawnedKeeper) -> Thread:
    from threading import Thread

    from repl_kernel.keeper_link import KeeperLink

    ending = Thread(target=KeeperLink(spawned).end, name="unused-worker")
    ending.start()
    return ending


if __name__ == "__main__":
    sys.exit(main())
