"""A session's events: those it writes itself, its alerts, and who is told of them.

the log can't be written, the worker died --> alert --> event log of the task --> subscribers
`task_logger.event(…)` anywhere in the process, for a task of this session ----> the same event log
events are dropped --> alert to subscribers, a line on stderr, a notice in the next reply
"""

from __future__ import annotations

import sys
from _thread import RLock, get_ident
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextvars import Token
from dataclasses import replace
from typing import TYPE_CHECKING

from task_logger.event_log import EventLog
from task_logger.events import OPEN_LOGS, enter_execution, leave_execution
from task_logger.record import ExecutionRecord, ExecutionRequest, Isolation, TaskIds
from task_logger.task import LogSettings

if TYPE_CHECKING:
    from repl_kernel.probe import Attempt
    from task_logger.alerts import Alert, OnAlert
    from task_logger.redaction import Redactor

_MAX_OPEN_LOGS = 32
"""A session whose `task_context` changes from call to call keeps the event files of so many tasks open."""


class SessionEvents:
    """The event logs of one session, by task, and the subscribers of its alerts."""

    def __init__(
        self,
        settings: LogSettings,
        session_id: str,
        task: TaskIds,
        redactor: Callable[[TaskIds], Redactor | None] = lambda task: None,
    ) -> None:
        """Of a session of `task`; no file is opened yet. `redactor` gives what keeps secrets out of them."""
        self._redactor = redactor
        self._settings = settings
        self._session_id = session_id
        self.notices: list[str] = []
        """What the next reply must say; `noticed` takes it."""
        self._lock = RLock()
        self._logs: OrderedDict[TaskIds, EventLog] = OrderedDict()
        self._subscribers: tuple[OnAlert, ...] = ()
        self._telling: set[int] = set()  # threads: a subscriber's own alerts aren't told to it
        self._task = self._entered = task
        self._entered_log = self.of(task)

    def of(self, task: TaskIds) -> EventLog:
        """Return the event log of a task, to which its events go from now on."""
        log = self._logs.get(task)
        if log is not None:
            return log
        with self._lock:
            log = EventLog(
                task,
                lambda: self._settings,
                session_id=self._session_id,
                on_alert=self._tell,
                on_notice=self.notices.append,
                redactor=lambda settings: self._redactor(task),
            )
            self._logs[task] = log
            OPEN_LOGS.add(log)
            if len(self._logs) > _MAX_OPEN_LOGS:
                oldest = next(known for known in self._logs if known not in (self._task, self._entered))
                self._close(self._logs.pop(oldest))
        return log

    def enter(self, request: ExecutionRequest) -> Token[tuple[EventLog, ExecutionRequest] | None]:
        """What this thread does from now on is that execution; `leave` it with what is returned."""
        if request.task is not self._entered:  # looking it up costs more than all the rest
            self._entered, self._entered_log = request.task, self.of(request.task)
        return enter_execution(self._entered_log, request)

    leave = staticmethod(leave_execution)

    def noticed(self, record: ExecutionRecord) -> ExecutionRecord:
        """The record with what the next reply must say."""
        taken = []
        while self.notices:  # other threads may add to it meanwhile
            taken.append(self.notices.pop(0))
        return replace(record, notices=(*record.notices, *taken))

    def subscribe(self, callback: OnAlert) -> Callable[[], None]:
        """Have `callback` called with each alert; returns what ends that, idempotent."""

        def told(alert: Alert) -> object:
            return callback(alert)

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = tuple(other for other in self._subscribers if other is not told)

        with self._lock:
            self._subscribers = (*self._subscribers, told)
        return unsubscribe

    def alert(
        self, level: str, source: str, message: str, *, task: TaskIds | None = None, seq: int | None = None
    ) -> None:
        """Write an alert of the session's own, and tell it."""
        self.of(task or self._task).alert(level, message, source=source, seq=seq)

    def log_alert(self, task: TaskIds) -> Callable[[str, str], None]:
        """Return what takes level and message of the alerts of a task's log."""
        return lambda level, message: self.alert(level, "log", message, task=task)

    def worker_died(self, message: str, seq: int | None) -> None:
        """Write that a worker died, and what came of it; `seq` is `None` between two executions."""
        self.alert("warning", "worker", message, seq=seq)

    def isolation_held(self, isolation: Isolation, attempts: Sequence[Attempt]) -> None:
        """Write what the worker's probe has shown before any code ran."""
        failed = [attempt["name"] for attempt in attempts if not attempt["denied"]]
        self.of(self._task).write(
            {
                "kind": "event",
                "name": "isolation.probe",
                "value": len(attempts) - len(failed),
                "dimensions": {"isolation": isolation, "attempts": len(attempts), "not_denied": failed},
            }
        )

    def close(self) -> None:
        """Close the files; events of these tasks go where those without a session go."""
        with self._lock:
            while self._logs:
                self._close(self._logs.popitem()[1])

    def _close(self, log: EventLog) -> None:
        OPEN_LOGS.remove(log)
        log.close()

    def _tell(self, alert: Alert) -> None:
        if not self._subscribers or get_ident() in self._telling:
            return
        self._telling.add(get_ident())
        try:
            for told in self._subscribers:
                try:
                    told(alert)
                except Exception as exc:  # noqa: BLE001  # it is the subscriber's; the work goes on
                    _complain(f"a subscriber of alerts raised {type(exc).__name__}: {exc}")
        finally:
            self._telling.discard(get_ident())


def _complain(text: str) -> None:
    if sys.__stderr__ is not None:  # not what an execution of this thread has put in its place
        try:
            sys.__stderr__.write(f"json-repl: {text}\n")
        except (OSError, ValueError):
            pass  # it is closed: nobody would read it
