"""Events beside the log: measurements, alerts, model calls. What a program calls; nothing is passed along.

    event(…), alert(…), llm_request(…), llm_response(…)
        --> whose are they? the execution's that this flow of control is in, else task_context's, else FLOW_*
        --> the event log of a session of that task, where one is open in this process; else one of our own

They never raise and never stop the caller: what can't be written is dropped, and `EventLog` says so.
"""

from __future__ import annotations

import os
import time
from _thread import RLock
from collections import OrderedDict
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from weakref import ref

from task_logger.errors import ConfigurationError
from task_logger.event_log import EventLog
from task_logger.record import ExecutionRequest, TaskIds
from task_logger.task import LogSettings, check_settings, current_context, plan_folder, task_ids

TYPE_CHECKING = False  # `typing` costs start-up time
if TYPE_CHECKING:
    from task_logger.redaction import Redactor

SANDBOX_VARIABLE = "TASK_LOG_SANDBOX"
"""Set in the environment of code from which nothing can be written to the logs."""

_MAX_OWN_LOGS = 16
"""A program that writes events of many tasks keeps this many of their files open."""


def event(
    name: str,
    value: object = None,
    dimensions: Mapping[str, object] | None = None,
    correlation_id: str | None = None,
) -> bool:
    """Write an event; whether it is written.

    `value` is a JSON value, `None` for none; `dimensions` are JSON values by name; `correlation_id` joins it
    to others.
    """
    fields: dict[str, object] = {"kind": "event", "name": name}
    if value is not None:
        fields["value"] = value
    return _write(_with(fields, dimensions=dimensions, correlation_id=correlation_id))


def alert(
    level: str,
    message: str,
    *,
    source: str,
    dimensions: Mapping[str, object] | None = None,
    correlation_id: str | None = None,
) -> bool:
    """Write an alert, and tell it to the subscribers of the task's session; whether it is written.

    `level` is `info`, `warning`, `error` or `critical`, `source` the part of a program that says so.
    """
    place = _place()
    more = _with({}, dimensions=dimensions, correlation_id=correlation_id)
    if place.tags:
        more["tags"] = place.tags
    return place.log.alert(
        level, message, source=source, session_id=place.session_id, seq=place.seq, more=more
    )


def llm_request(
    model: str, *, correlation_id: str | None = None, dimensions: Mapping[str, object] | None = None
) -> str:
    """Write that a model is being called; returns the correlation id for the response, made where `None`."""
    correlation_id = correlation_id or os.urandom(8).hex()
    fields: dict[str, object] = {"kind": "llm_request", "model": model}
    _write(_with(fields, dimensions=dimensions, correlation_id=correlation_id))
    return correlation_id


def llm_response(
    model: str,
    *,
    correlation_id: str,
    latency_ms: float | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    cost_usd: float | None = None,
    error: str | None = None,
    dimensions: Mapping[str, object] | None = None,
) -> bool:
    """Write what came of a model call; whether it is written. `None` is for what isn't known."""
    fields: dict[str, object] = {"kind": "llm_response", "model": model}
    return _write(
        _with(
            fields,
            latency_ms=latency_ms,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_usd=cost_usd,
            error=error,
            dimensions=dimensions,
            correlation_id=correlation_id,
        )
    )


class model_call:  # used as a function is: `with model_call("…") as call:`
    """Writes request and response of one model call around a `with` block, and measures it.

    Set `input_tokens`, `output_tokens` and `cost_usd` inside. An exception goes on; the response names it.
    """

    def __init__(self, model: str, *, dimensions: Mapping[str, object] | None = None) -> None:
        """Nothing is written before the block."""
        self.model = model
        self.dimensions = dimensions
        self.correlation_id = ""
        """That of both events; empty before the block."""
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cost_usd: float | None = None
        self._started_ns = 0

    def __enter__(self) -> model_call:
        self.correlation_id = llm_request(self.model, dimensions=self.dimensions)
        self._started_ns = time.perf_counter_ns()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        latency_ms = (time.perf_counter_ns() - self._started_ns) / 1e6
        llm_response(
            self.model,
            correlation_id=self.correlation_id,
            latency_ms=latency_ms,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cost_usd=self.cost_usd,
            error=None if exc_type is None else exc_type.__name__,
            dimensions=self.dimensions,
        )


def _with(fields: dict[str, object], **more: object) -> dict[str, object]:
    for name, value in more.items():
        if value is not None:
            fields[name] = value
    return fields


def _write(fields: dict[str, object]) -> bool:
    place = _place()
    if place.session_id is not None:
        fields["session_id"], fields["seq"] = place.session_id, place.seq
    if place.tags:
        fields["tags"] = place.tags
    return place.log.write(fields)


class _Place:
    """Where an event belongs."""

    __slots__ = ("log", "seq", "session_id", "tags")

    def __init__(
        self, log: EventLog, session_id: str | None, seq: int | None, tags: Mapping[str, object]
    ) -> None:
        self.log, self.session_id, self.seq, self.tags = log, session_id, seq, tags


def _place() -> _Place:
    running, context = _running.get(), current_context()
    tags: Mapping[str, object] = {}
    session_id = seq = None
    if running is not None:
        log, request = running
        task, tags, session_id, seq = request.task, request.tags, request.session_id, request.seq
    else:
        log, task = None, task_ids()
    if context is not None:
        inner = context.task_ids(task)
        tags = {**tags, **context.tags} if tags else context.tags
        if inner != task:
            log, task = None, inner
    return _Place(log if log is not None else OPEN_LOGS.find(task), session_id, seq, tags)


# Only its value in a context ever changes, which is what a context variable is for.
_running: ContextVar[tuple[EventLog, ExecutionRequest] | None] = ContextVar("running_execution", default=None)


def enter_execution(
    log: EventLog, request: ExecutionRequest
) -> Token[tuple[EventLog, ExecutionRequest] | None]:
    """From now on this flow of control is an execution, until `leave_execution` gets what is returned."""
    return _running.set((log, request))


leave_execution = _running.reset


def _own_settings() -> LogSettings:
    if os.environ.get(SANDBOX_VARIABLE):  # what could be written here would be gone with the sandbox
        raise ConfigurationError(
            "events",
            "they can't leave the sandbox; print what is to be kept, or give it as the code's result",
        )
    return check_settings()


def _own_redactor(settings: LogSettings, task: TaskIds) -> Redactor:
    """What keeps secrets out of the events of a task without a session."""
    from task_logger.redaction import redactor_of  # made at the first event

    return redactor_of(settings, plan_folder(settings.root, task.plan_id))


class OpenLogs:
    """The event logs that this process has open, by task: those of its sessions, and those without one."""

    def __init__(self) -> None:
        """None yet."""
        self._lock = RLock()
        self._pid = os.getpid()
        self._of_sessions: dict[TaskIds, list[ref[EventLog]]] = {}  # a session that is let go of must end
        self._own: OrderedDict[tuple[str | None, TaskIds], EventLog] = OrderedDict()

    def add(self, log: EventLog) -> None:
        """From now on, events of its task go to this log of a session."""
        with self._own_lock():
            self._of_sessions[log.task] = [*self._others(log), ref(log)]

    def remove(self, log: EventLog) -> None:
        """The session is closed; idempotent."""
        with self._own_lock():
            others = self._others(log)
            if others:
                self._of_sessions[log.task] = others
            else:
                self._of_sessions.pop(log.task, None)

    def find(self, task: TaskIds) -> EventLog:
        """Return the log of the newest session of a task, else one where the environment says."""
        for known in reversed(self._of_sessions.get(task, ())):
            if (of_session := known()) is not None:
                return of_session
        key = (os.environ.get("TASK_LOG_DIR"), task)
        log = self._own.get(key)
        return log if log is not None else self._new(key, task)

    def _new(self, key: tuple[str | None, TaskIds], task: TaskIds) -> EventLog:
        with self._own_lock():
            log = self._own.get(key)
            if log is None:
                log = self._own[key] = EventLog(
                    task, _own_settings, redactor=lambda settings: _own_redactor(settings, task)
                )
                if len(self._own) > _MAX_OWN_LOGS:
                    self._own.popitem(last=False)[1].close()
        return log

    def _others(self, log: EventLog) -> list[ref[EventLog]]:
        return [known for known in self._of_sessions.get(log.task, ()) if known() not in (None, log)]

    def _own_lock(self) -> RLock:
        if os.getpid() != self._pid:  # a fork: a thread that isn't here may hold the lock
            self._lock, self._pid = RLock(), os.getpid()
        return self._lock


# Events are written by functions that get no handle, from any module: what is open must be found.
OPEN_LOGS = OpenLogs()
