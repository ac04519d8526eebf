"""The isolated kernel's wiring: a session with IPython's shell in its worker, behind Jupyter's protocol.

run_isolated --> keeper and worker, in reserve or new --> Session --> sockets --> IsolatedKernel
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from threading import Thread

from json_repl.errors import SessionError
from json_repl.notebook_task import notebook_task
from json_repl.session import Session
from repl_kernel.errors import KernelError
from repl_kernel.reserve import start_reserve
from repl_kernel.spawn import SpawnedKeeper

_ACTOR = "jupyter"


def run_isolated(arguments: Sequence[str], spawned: SpawnedKeeper | None = None) -> int:
    """Be the kernel until the front end ends it; on the main thread, which lives as long as the kernel.

    `spawned` is a worker that was in reserve, if any.
    """
    spawned = spawned or start_reserve()  # as the first act: it starts up while we do
    from repl_kernel.jupyter.isolated_kernel_app import IsolatedKernelApp
    from repl_kernel.jupyter.kernel_sessions import KernelSessions

    task = notebook_task()
    with Session(
        "worker",
        plan_id=task.plan_id,
        task_id=task.task_id,
        task_name=task.task_name,
        shell="ipython",
        actor=_ACTOR,
        spawned=spawned,
    ) as session:
        Thread(target=_keep_empty_state, args=(session,), name="first-snapshot", daemon=True).start()
        sessions = KernelSessions(session)
        try:
            app = IsolatedKernelApp.instance()
            app.initialize(list(arguments))
            app.kernel.serve(sessions)
            app.start()
        finally:
            sessions.close()
    return 0


def _keep_empty_state(session: Session) -> None:
    """The snapshot that the first cell would wait for, while the sockets are made."""
    with suppress(KernelError, SessionError):
        session.ensure_snapshot()  # what goes wrong here does so for the cell as well, which says it
