"""How what a session records is kept: its logs, sealed, encrypted and without secrets, and its large output.

settings, secrets --> Keeping --> SessionLog of a task | Redactor of a plan | spools for output
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from repl_kernel.capture import open_temporary_spool
from task_logger.artifacts import new_spool
from task_logger.errors import ArtifactError
from task_logger.placeholders import plan_key
from task_logger.record import Isolation, Route, TaskIds
from task_logger.redaction import Redactor
from task_logger.secret_search import Secrets
from task_logger.session_log import SessionLog
from task_logger.task import LogSettings, plan_folder

if TYPE_CHECKING:
    from task_logger.spools import EncryptedSpools


class Keeping:
    """What every log, spool and redactor of one session has in common."""

    def __init__(self, settings: LogSettings, task: TaskIds, secrets: Secrets | None) -> None:
        """`task` is the session's own, its plan has the spools; `secrets` of `None` means that all is kept.

        Raises `ConfigurationError` where the key can't be used.
        """
        self.settings = settings
        self.secrets = secrets
        self._folder = plan_folder(settings.root, task.plan_id)
        self._spools: EncryptedSpools | None = None
        if settings.key is not None:
            from task_logger.spools import EncryptedSpools

            self._spools = EncryptedSpools(self._folder, settings.key)

    def open_log(
        self,
        task: TaskIds,
        *,
        session_id: str,
        route: Route,
        isolation: Isolation,
        on_alert: Callable[[str, str], None] | None = None,
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
            on_alert=on_alert,
            sealer=settings.sealer,
            key=settings.key,
            redactor=self.redactor(task),
        )

    def redactor(self, task: TaskIds) -> Redactor | None:
        """What keeps secrets out of the files of that task's plan, `None` where nothing is to."""
        if self.secrets is None:
            return None
        folder, settings = plan_folder(self.settings.root, task.plan_id), self.settings
        return Redactor(
            self.secrets, lambda: plan_key(folder, settings.key, fsync=settings.fsync), self.open_spool
        )

    def open_spool(self) -> IO[bytes]:
        """An unnamed file for large output, where possible on the log's own disk. Raises `OSError`."""
        if self._spools is not None:
            return self._spools.open()
        try:
            return new_spool(self._folder)
        except ArtifactError:
            return open_temporary_spool()  # the log's disk can't take it: the output must not suffer

    @property
    def open_capture(self) -> Callable[[], IO[bytes]] | None:
        """What opens a file for what programs write themselves, `None` where any will do."""
        return None if self._spools is None else self._spools.open_capture
