"""How what a session records is kept: its logs, sealed, and its large output.

settings --> Keeping --> SessionLog of a task | spools for output
"""

from __future__ import annotations

from typing import IO

from repl_kernel.capture import open_temporary_spool
from task_logger.artifacts import new_spool
from task_logger.errors import ArtifactError
from task_logger.record import Isolation, Route, TaskIds
from task_logger.session_log import SessionLog
from task_logger.task import LogSettings, plan_folder


class Keeping:
    """What every log and spool of one session has in common."""

    def __init__(self, settings: LogSettings, task: TaskIds) -> None:
        """`task` is the session's own, its plan has the spools."""
        self.settings = settings
        self._folder = plan_folder(settings.root, task.plan_id)

    def open_log(
        self,
        task: TaskIds,
        *,
        session_id: str,
        route: Route,
        isolation: Isolation,
    ) -> SessionLog:
        """Open a task's log; raises as `SessionLog`."""
        settings = self.settings
        return SessionLog(
            root=settings.root,
            task=task,
            session_id=session_id,
            fsync=settings.fsync,
            strict=settings.strict,
            route=route,
            isolation=isolation,
            sealer=settings.sealer,
        )

    def open_spool(self) -> IO[bytes]:
        """An unnamed file for large output, where possible on the log's own disk. Raises `OSError`."""
        try:
            return new_spool(self._folder)
        except ArtifactError:
            return open_temporary_spool()  # the log's disk can't take it: the output must not suffer
