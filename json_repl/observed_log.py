"""Records executions that somebody else runs: a kernel that is watched from within, or from outside.

begin(code) --> request --> pending file       the execution runs, wherever that is
finish(request, outcome) --> one line
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import IO

from json_repl.keeping import Keeping
from repl_kernel.capture import open_temporary_spool
from repl_kernel.errors import RequestRefused
from task_logger.codec import timestamp
from task_logger.errors import TaskLogError
from task_logger.record import ExecutionOutcome, ExecutionRequest, Isolation, Route, TaskIds
from task_logger.secret_search import Secrets
from task_logger.session_log import SessionLog
from task_logger.task import check_settings, log_path
from task_logger.writer import new_session_id


class ObservedLog:
    """One session's part of a task log; executions may overlap, threads take turns."""

    def __init__(
        self,
        task: TaskIds,
        *,
        actor: str,
        route: Route,
        isolation: Isolation,
        log_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open the task's log below `log_dir`, `None` from the environment.

        Raises `ConfigurationError`, `LogPathRefused`, and with `TASK_LOG_STRICT=1` the log's other errors.
        """
        settings = check_settings(log_dir)
        self.task = task
        self.session_id = new_session_id()
        self.path = log_path(settings.root, task)
        self._keeping = Keeping(settings, task, Secrets(os.environ))
        self._actor = actor
        self._route: Route = route
        self._isolation: Isolation = isolation
        self._turn = threading.RLock()
        self._seq = 0
        self._running: dict[int, SessionLog] = {}
        # One for each of those that run at once: a log writes down one running execution.
        self._free = [self._open()]
        self._is_behind = False

    def begin(self, code: str, tags: Mapping[str, object]) -> ExecutionRequest:
        """Write down that code is about to run; returns its request.

        Raises `RequestRefused` with `TASK_LOG_STRICT=1` where that can't be done: then it must not run.
        """
        with self._turn:
            request = ExecutionRequest(
                code=code,
                session_id=self.session_id,
                seq=self._seq + 1,
                task=self.task,
                timestamp=timestamp(time.time_ns()),
                tags=tags,
                actor=self._actor,
            )
            try:
                log = self._free.pop() if self._free else self._open()
                try:
                    log.begin(request)
                except BaseException:
                    self._free.append(log)
                    raise
            except TaskLogError as exc:
                raise RequestRefused(f"{exc}; nothing has run") from exc
            self._seq += 1
            self._running[request.seq] = log
            return request

    def finish(self, request: ExecutionRequest, outcome: ExecutionOutcome) -> str | None:
        """Write the line of what came of it; returns what is new of the log itself, `None` for nothing.

        News are that lines can't be written, which are kept then, and that they can be again.
        """
        with self._turn:
            log = self._running.pop(request.seq)
            try:
                record = log.finish(request, outcome)
            except TaskLogError as exc:  # strict: the code has run, and nothing else may
                return str(exc)
            finally:
                self._free.append(log)
            was_behind, self._is_behind = self._is_behind, record.head is None
            if self._is_behind == was_behind:
                return None
            if self._is_behind:
                own = [notice for notice in record.notices if notice not in outcome.notices]
                return "; ".join(own)
            return f"{self.path} can be written again; it has the lines that were kept"

    def open_spool(self) -> IO[bytes]:
        """An unnamed file for large output, where possible on the log's own disk."""
        return self._keeping.open_spool()

    def close(self) -> None:
        """Close the log; idempotent. What runs gets its line, `unknown`, from the next writer."""
        with self._turn:
            for log in (*self._free, *self._running.values()):
                log.close()

    def _open(self) -> SessionLog:
        return self._keeping.open_log(
            self.task, session_id=self.session_id, route=self._route, isolation=self._isolation
        )


class RefusingLog:
    """Stands for a log that there can't be: refuses every execution, and says why."""

    def __init__(self, why: str) -> None:
        self._why = why

    def begin(self, code: str, tags: Mapping[str, object]) -> ExecutionRequest:
        """Refuse."""
        raise RequestRefused(f"{self._why}; nothing has run")

    def finish(self, request: ExecutionRequest, outcome: ExecutionOutcome) -> str | None:
        """Nothing has begun."""
        raise AssertionError

    def open_spool(self) -> IO[bytes]:
        """An unlinked file for output of no execution."""
        return open_temporary_spool()

    def close(self) -> None:
        """Nothing is open."""
