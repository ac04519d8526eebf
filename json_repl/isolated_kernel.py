"""The isolated kernel's wiring: a session with IPython's shell in its worker, behind Jupyter's protocol.

run_isolated --> keeper and worker, in reserve or new --> Session --> sockets --> IsolatedKernel
                                     no session possible --> RefusingSession: every cell says why
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any, NoReturn

from json_repl.errors import SessionError
from json_repl.notebook_task import notebook_task
from json_repl.own_process import shield_process
from json_repl.session import Session
from repl_kernel.errors import KernelError, RequestRefused
from repl_kernel.reserve import start_reserve
from repl_kernel.spawn import SpawnedKeeper
from task_logger.errors import TaskLogError

if TYPE_CHECKING:
    from task_logger.record import Isolation

_ACTOR = "jupyter"


def run_isolated(arguments: Sequence[str], spawned: SpawnedKeeper | None = None) -> int:
    """Be the kernel until the front end ends it; on the main thread, which lives as long as the kernel.

    `spawned` is a worker that was in reserve, if any.
    """
    spawned = spawned or start_reserve()  # as the first act: it starts up while we do
    from repl_kernel.jupyter.isolated_kernel_app import IsolatedKernelApp
    from repl_kernel.jupyter.kernel_sessions import KernelSession, KernelSessions
    from repl_kernel.keeper_link import KeeperLink

    session: KernelSession
    try:
        shield_process()
        session = _open(spawned)
    except (KernelError, TaskLogError) as exc:
        session = RefusingSession(f"{exc}; nothing has run")
        if (
            spawned is not None and spawned.control.fileno() >= 0
        ):  # no session has taken it over, and ended it
            KeeperLink(spawned).end()
    sessions = KernelSessions(session)
    try:
        app = IsolatedKernelApp.instance()
        app.initialize(list(arguments))
        app.kernel.serve(sessions)
        app.start()
    finally:
        sessions.close()
    return 0


def _open(spawned: SpawnedKeeper | None) -> Session:
    task = notebook_task()
    session = Session(
        "worker",
        plan_id=task.plan_id,
        task_id=task.task_id,
        task_name=task.task_name,
        shell="ipython",
        actor=_ACTOR,
        spawned=spawned,
    )
    Thread(target=_keep_empty_state, args=(session,), name="first-snapshot", daemon=True).start()
    return session


def _keep_empty_state(session: Session) -> None:
    """The snapshot that the first cell would wait for, while the sockets are made."""
    with suppress(KernelError, SessionError):
        session.ensure_snapshot()  # what goes wrong here does so for the cell as well, which says it


class RefusingSession:
    """Stands for a session that there can't be: refuses every cell, and says why."""

    session_id = log_path = ""
    isolation: Isolation = "process"
    last_seq = 0

    def __init__(self, why: str) -> None:
        self._why = why

    def execute(self, *_: object, **__: object) -> NoReturn:
        """Refuse, as does all that needs a worker."""
        raise RequestRefused(self._why)

    record_command = complete = inspect = ensure_snapshot = snapshots = rewind = branch = execute

    def history(self, last: int | None = None) -> list[dict[str, Any]]:
        """Nothing has run."""
        return []

    def interrupt(self) -> bool:
        """Nothing runs."""
        return False

    def close(self) -> None:
        """Nothing is open."""
