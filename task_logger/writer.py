"""For programs that log executions of their own: a mapping becomes a line.

mapping -> what it leaves out is filled in, the rest checked -> locked, chained append -> the log's new head
"""

from __future__ import annotations

import os
import time
from _thread import allocate_lock
from collections.abc import Mapping
from types import TracebackType

from task_logger import artifacts
from task_logger.codec import complete, timestamp
from task_logger.errors import ConfigurationError, InvalidField, LogMoved
from task_logger.log_file import LogFile
from task_logger.opening import make_folder
from task_logger.record import Artifact, LogHead
from task_logger.redaction import redactor_of
from task_logger.settling import settle
from task_logger.task import check_settings, log_path, plan_folder, task_ids

TYPE_CHECKING = False  # `typing` costs start-up time
if TYPE_CHECKING:
    from task_logger.encryption import Cipher
    from task_logger.keys import KeySource

_REOPENINGS = 64
"""So often in a row, for one line, a log that is compressed under its writer is opened anew."""


class TaskLogger:
    """Writes lines to one task's log; may be used from several threads, and as a context manager."""

    def __init__(
        self,
        plan_id: str | None = None,
        task_number: int = 0,
        task_name: str | None = None,
        *,
        log_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open the log of a task, with its folders, and settle what dead sessions left there.

        `None`, and number 0, take the id from the environment; `log_dir` of `None` takes the logs' root from
        there. Raises `ConfigurationError` for an argument or a setting that makes no sense, `LogPathRefused`
        where this can't be a log, `LogUnavailable` where it can't be had now.
        """
        if not isinstance(task_number, int) or isinstance(task_number, bool) or task_number < 0:
            raise ConfigurationError("task_number", f"must be a whole number from 0 on, not {task_number!r}")
        settings = check_settings(log_dir)
        self._task = task_ids(plan_id, f"T-{task_number}" if task_number else None, task_name)
        self._plan_folder = plan_folder(settings.root, self._task.plan_id)
        self._fsync = settings.fsync
        self._session_id = new_session_id()
        self._seq = 0
        self._turn = allocate_lock()
        self.path = log_path(settings.root, self._task)
        make_folder(self._plan_folder, fsync=settings.fsync)
        self._cipher = _cipher(self.path, settings.key)
        self._redactor = redactor_of(settings, self._plan_folder)
        self._sealer = settings.sealer
        self._log = self._open_log()
        self.notices = settle(self._plan_folder, self._log, fsync=settings.fsync)
        """What was settled at the start, in words."""

    def write(self, mapping: Mapping[str, object]) -> LogHead:
        """Write one line; returns the log's new head once the line is in it.

        Fields that the mapping leaves out are filled in: ids, start time (now), session and `seq`, empty
        output. Secrets (those of the environment, and well-known tokens) are replaced by placeholders. Raises
        `InvalidField` for a value that a line can't have, and whatever `LogFile.append` does;
        the line is not in the log then, and the next `write` works as if this one had not been.
        """
        if not isinstance(mapping, Mapping):
            raise InvalidField("mapping", "a mapping from names of fields to values", mapping)
        with self._turn:
            seq = self._seq + 1
            body = complete(
                self._redactor.fields(mapping),
                task=self._task,
                session_id=self._session_id,
                seq=seq,
                timestamp=timestamp(time.time_ns()),
                store=self._store,
                max_body_bytes=None if self._cipher is None else self._cipher.max_body_bytes,
            )
            head = self._append(body)
            self._seq = seq
            return head

    def close(self) -> None:
        """Close the log; idempotent."""
        with self._turn:
            self._log.close()

    def _append(self, body: bytes) -> LogHead:
        for _ in range(_REOPENINGS):
            try:
                return self._log.append(body)
            except LogMoved:
                from task_logger.compression import is_brought_back

                if not is_brought_back(self.path, self._log.head, fsync=self._fsync):
                    raise
                self._log.close()
                self._log = self._open_log()
        return self._log.append(body)

    def _open_log(self) -> LogFile:
        for _ in range(_REOPENINGS):
            try:
                return LogFile(self.path, fsync=self._fsync, sealer=self._sealer, cipher=self._cipher)
            except LogMoved:  # compressed between its opening and its lock
                from task_logger.compression import is_brought_back

                if not is_brought_back(self.path, None, fsync=self._fsync):
                    raise
        return LogFile(self.path, fsync=self._fsync, sealer=self._sealer, cipher=self._cipher)

    def _store(self, artifact: Artifact) -> None:
        cipher = None if self._cipher is None else self._cipher.artifacts
        artifacts.put(self._plan_folder, artifact, fsync=self._fsync, cipher=cipher)

    def __enter__(self) -> TaskLogger:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


EnhancedTaskLogger = TaskLogger


def _cipher(path: str, key: KeySource | None) -> Cipher | None:
    if key is None:
        return None
    from task_logger.encryption import cipher_to_write

    return cipher_to_write(path, key)


def new_session_id() -> str:
    """Make a session id: a UUIDv7 (RFC 9562), which sorts by the time it was made."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    number = milliseconds << 80 | 7 << 76 | (random >> 68) << 64 | 2 << 62 | random & ((1 << 62) - 1)
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
