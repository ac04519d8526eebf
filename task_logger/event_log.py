"""The events of one task, in a file beside its log; what can't be written is dropped, and that is said.

    fields --> checked --> redacted --> JSON --> LogFile: locked, chained append to <n>.<name>.events.jsonl
                                          |
          it can't be written: counted, and told once: to subscribers, on stderr, as a notice of the session
          it can again: one more event says how many are missing

An event never fails the work that it is about, and never makes it wait for longer than `LOCK_WAIT_S`.
"""

from __future__ import annotations

import os
import sys
import time
from _thread import RLock
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic

from task_logger.codec import encode_event, timestamp
from task_logger.errors import (
    LogClosed,
    LogDiskFull,
    LogLocked,
    LogMoved,
    TaskLogError,
)
from task_logger.event_fields import EVENT_SCHEMA_VERSION, check_event
from task_logger.log_file import LogFile
from task_logger.opening import make_folder
from task_logger.record import TaskIds
from task_logger.task import LogSettings, event_log_path

TYPE_CHECKING = False  # `typing` costs start-up time
if TYPE_CHECKING:
    from task_logger.alerts import OnAlert
    from task_logger.encryption import Cipher
    from task_logger.keys import KeySource
    from task_logger.redaction import Redactor

LOCK_WAIT_S = 0.25
"""How long an event waits for other writers; a line takes them microseconds."""

_AFTER_LOCKED_S = 1.0
"""How long after such a wait in vain events are dropped without another: each leaves a thread behind."""

_MAX_WAITING = 1000
"""So many events can come in signal handlers while one is written; earlier ones are lost then."""


class EventLog:
    """One task's events; may be used from several threads, in signal handlers and in forked children."""

    def __init__(
        self,
        task: TaskIds,
        settings: Callable[[], LogSettings],
        *,
        session_id: str | None = None,
        on_alert: OnAlert | None = None,
        on_notice: Callable[[str], object] | None = None,
        redactor: Callable[[LogSettings], Redactor | None] = lambda settings: None,
    ) -> None:
        """Nothing is opened until the first event.

        `settings` are asked for then. `session_id` is written where fields name none. `on_alert` gets each
        alert, `on_notice` in words that events are dropped; `redactor` gives what keeps secrets out of them.
        """
        self.task = task
        self._settings = settings
        self._session_id = session_id
        self._on_alert = on_alert
        self._on_notice = on_notice
        self._redactor_of = redactor
        self._redactor: Redactor | None = None
        self._turn = RLock()
        self._pid = os.getpid()
        self._log: LogFile | None = None
        self._is_writing = False
        self._error: BaseException | None = None  # why the last event was dropped
        self._dropped = 0
        self._try_again_at_s = 0.0
        self._waiting: deque[Mapping[str, object]] = deque(maxlen=_MAX_WAITING)
        self._news: list[tuple[str, bool]] = []  # what is to be told, and whether it is trouble

    def write(self, fields: Mapping[str, object]) -> bool:
        """Write one event of these fields, to which time, ids and chain are added; whether it is written.

        Never raises: an event that can't be written, or isn't what the schema allows, is dropped. One that
        comes while the same thread writes another (in a signal handler) is written right after that.
        """
        with self._own_turn():
            if self._is_writing:  # a signal handler, or a finalizer, came in between
                self._waiting.append(fields)
                return True
            try:
                self._is_writing = True
                is_written = self._tried(fields)
                while self._waiting:
                    self._tried(self._waiting.popleft())
            finally:
                self._is_writing = False
            news, self._news = self._news, []
        for text, is_trouble in news:
            self._tell_news(text, is_trouble)
        return is_written

    def alert(
        self,
        level: str,
        message: str,
        *,
        source: str,
        session_id: str | None = None,
        seq: int | None = None,
        more: Mapping[str, object] | None = None,
    ) -> bool:
        """Write an alert and tell it to `on_alert`; whether it is written. `more` are fields to add."""
        fields: dict[str, object] = {"kind": "alert", "level": level, "source": source, "message": message}
        if more:
            fields |= more
        if session_id is not None:
            fields["session_id"] = session_id
        if seq is not None:
            fields["seq"] = seq
        is_written = self.write(fields)
        self._tell(level, message, source=source, session_id=session_id, seq=seq)
        return is_written

    def close(self) -> None:
        """Close the file; the next event would open it again."""
        with self._own_turn():
            if self._log is not None:
                self._log.close()
                self._log = None

    def _own_turn(self) -> RLock:
        if os.getpid() != self._pid:  # a fork: a thread that isn't here may hold the lock, the file is closed
            self._pid = os.getpid()
            self._turn = RLock()
            self._log, self._is_writing = None, False
        return self._turn

    def _tried(self, fields: Mapping[str, object]) -> bool:
        error: Exception | None = None
        try:
            self._append(fields)
        except Exception as exc:  # noqa: BLE001  # whatever it is: the caller's work goes on
            error = exc
        text = self._state_change(error)
        if text is not None:
            self._news.append((text, error is not None))
        return error is None

    def _append(self, fields: Mapping[str, object]) -> None:
        self._give_up_early()
        check_event(fields)
        task = self.task
        event: dict[str, object] = {
            "schema": EVENT_SCHEMA_VERSION,
            "timestamp": timestamp(time.time_ns()),
            "plan_id": task.plan_id,
            "task_id": task.task_id,
            "task_name": task.task_name,
            **fields,
        }
        if self._session_id is not None and "session_id" not in event:
            event["session_id"] = self._session_id
        log = self._log or self._open()
        body = encode_event(event)
        if self._redactor is not None and self._redactor.secrets.may_be_in(body):
            body = encode_event(self._redacted(self._redactor, event))
        log.lock_wait_s = LOCK_WAIT_S if self._error is None else 0.0
        try:
            log.append(body)
        except (LogClosed, LogMoved):  # by a fork, or by who put the file away: a new one is begun
            self._forget()
            self._open().append(body)
        except LogLocked:
            self._try_again_at_s = monotonic() + _AFTER_LOCKED_S
            raise

    def _give_up_early(self) -> None:
        """Raise why the last event was dropped, where another try does harm."""
        error = self._error
        if isinstance(error, LogLocked) and monotonic() < self._try_again_at_s:
            raise error
        if isinstance(error, LogDiskFull) and not error.has_space_now():
            raise error  # a try would only leave one more unreadable piece

    def _redacted(self, redactor: Redactor, event: Mapping[str, object]) -> Mapping[str, object]:
        redacted = redactor.fields(event)
        if redactor.failures:
            reasons = ", ".join(sorted(set(redactor.failures)))
            redactor.failures.clear()
            self._news.append((f"texts of an event are withheld: their redaction failed ({reasons})", True))
        return redacted

    def _open(self) -> LogFile:
        settings = self._settings()
        self._redactor = self._redactor or self._redactor_of(settings)
        path = event_log_path(settings.root, self.task)
        make_folder(os.path.dirname(path), fsync=settings.fsync)
        self._log = LogFile(
            path,
            fsync=settings.fsync,
            lock_wait_s=LOCK_WAIT_S,
            sealer=settings.sealer,
            cipher=None if settings.key is None else _cipher(path, settings.key),
        )
        return self._log

    def _forget(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _state_change(self, error: BaseException | None) -> str | None:
        """Count; returns what is to be told where it goes from good to bad, or back."""
        was_good, self._error = self._error is None, error
        if error is not None:
            self._dropped += 1
            error.__traceback__ = error.__context__ = error.__cause__ = None  # they hold the caller's frames
            return f"events are dropped, since one can't be written: {_words(error)}" if was_good else None
        if was_good:
            return None
        count, self._dropped = self._dropped, 0
        return f"events are written again; {count} before the last were dropped"

    def _tell_news(self, text: str, is_trouble: bool) -> None:
        if not is_trouble:
            self.alert("warning", text, source="events")
            return
        self._tell("error", text, source="events")
        if self._on_notice is not None:
            self._on_notice(text)
        if sys.stderr is not None:
            try:
                sys.stderr.write(f"task_logger: {text}\n")
            except (OSError, ValueError):
                pass  # it is closed: nobody would read it

    def _tell(
        self, level: str, message: str, *, source: str, session_id: str | None = None, seq: int | None = None
    ) -> None:
        if self._on_alert is not None:
            from task_logger.alerts import Alert  # start-up would pay for what is rarely needed

            self._on_alert(
                Alert(
                    level=level,
                    source=source,
                    message=message,
                    timestamp=timestamp(time.time_ns()),
                    task=self.task,
                    session_id=session_id or self._session_id,
                    seq=seq,
                )
            )


def _cipher(path: str, key: KeySource) -> Cipher:
    from task_logger.encryption import cipher_to_write

    return cipher_to_write(path, key)


def _words(error: BaseException) -> str:
    if isinstance(error, TaskLogError):
        return str(error).replace("the task log ", "the event log ")
    return f"{type(error).__name__}: {error}"
