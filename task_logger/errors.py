"""What can go wrong with a task log. Every error has the path it is about, and says what was kept.

TaskLogError
 +-- LogPathRefused             the caller's: this path can't be a task log; nothing was created
 |    +-- UnsupportedFilesystem   its file system has no locks
 +-- LogUnavailable             the machine's: the log can't be opened or written now
 |    +-- TooManyOpenFiles        no descriptor is left
 |    +-- LogDiskFull             no space, quota or file size is left
 |    +-- LogLocked               another process holds the lock and doesn't let go
 |    +-- LogMoved                the path is gone, or another file is there now
 |    +-- LogSyncFailed           the disk did not take what was written
 |    +-- LogInUse                it isn't finished: a session has it, or left something for it
 +-- LogFailed                  strict mode: an earlier error ended this session's log
 +-- LogClosed                  the caller's: used after close(), or in a forked child
 +-- ExportRefused              the plan isn't as it was written; there is no archive
 +-- ConfigurationError         the caller's: a setting or argument makes no sense
 |    +-- KeyRefused              the encryption key can't be used; nothing was changed
 |         +-- KeyMissing           there is none where one is needed
 |         +-- KeyMalformed         what is there is no key
 |         +-- KeyPermissions       others can read it, or we can't
 |         +-- WrongKey             it is another one than this log was encrypted with
 +-- InvalidField               the caller's: a field of a line has a value that its schema doesn't allow
 +-- LineTooLarge               the caller's: a line can't hold this, and it can't be moved elsewhere
 +-- LogUnreadable              this log, or this part of it, can't be read
 |    +-- LogNotFound             the caller's: there is no log at this path
 |    +-- BadLine                 the file's: a line that is none
 |    +-- UnsupportedSchema       written by another major version
 |    +-- EncryptedLine           it was not decrypted, or this version can't
 +-- ArtifactError              an artifact can't be kept or given
      +-- ArtifactNotStored       the machine's: no room, or not allowed
      +-- MissingArtifact         it isn't there
      +-- DamagedArtifact         its bytes aren't what its name says
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False  # `typing` costs start-up time
if TYPE_CHECKING:
    from collections.abc import Sequence

    from task_logger.findings import Finding


class TaskLogError(Exception):
    """Base of all errors of this package; `path` is the file or folder concerned, empty for none."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class LogPathRefused(TaskLogError):
    """This path can't be a task log; `reason` says why. Nothing was created there."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path!r} can't be a task log: {reason}; "
            "set TASK_LOG_DIR to a folder of your own, or remove what is there",
            path=path,
        )
        self.reason = reason


class UnsupportedFilesystem(LogPathRefused):
    """The file system of this path refuses `flock`, without which writers would damage each other's lines."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "its file system doesn't support locks (flock)")


class LogUnavailable(TaskLogError):
    """The log can't be opened or written now; `reason` says why. All earlier lines are untouched."""

    def __init__(
        self,
        path: str,
        reason: str,
        *,
        what: str = "can't be written",
        advice: str = "all earlier lines are untouched; try again when it can be",
    ) -> None:
        super().__init__(f"the task log {path!r} {what}: {reason}; {advice}", path=path)
        self.reason = reason


class TooManyOpenFiles(LogUnavailable):
    """No descriptor is left for the log."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "too many files are open", advice="close some, or raise `ulimit -n`")


_NO_ROOM = "has no room for what belongs beside it"


class LogDiskFull(LogUnavailable):
    """A line did not fit: the first `written_bytes` of its `line_bytes` stay there as an unreadable piece.

    `free_bytes` is what the file system has left, `None` where it doesn't say.
    """

    def __init__(
        self, path: str, reason: str, *, line_bytes: int, written_bytes: int, free_bytes: int | None
    ) -> None:
        free = "an unknown number of" if free_bytes is None else free_bytes
        super().__init__(
            path,
            f"{reason} ({free} bytes free)",
            what=f"took only {written_bytes} of the {line_bytes} bytes of a line" if line_bytes else _NO_ROOM,
            advice="all earlier lines are untouched; free some space",
        )
        self.line_bytes = line_bytes
        self.written_bytes = written_bytes
        self.free_bytes = free_bytes

    def has_space_now(self) -> bool:
        """Whether the line would probably fit now; true where the file system doesn't say."""
        free_bytes = _free_bytes(self.path)
        return free_bytes is None or free_bytes > self.line_bytes + _SLACK_BYTES


class LogLocked(LogUnavailable):
    """The lock could not be had within `waited_s`; `holder_pid` is `None` where nobody can be named."""

    def __init__(self, path: str, *, waited_s: float, holder_pid: int | None) -> None:
        holder = "another process" if holder_pid is None else f"process {holder_pid}"
        advice = "nothing was written; if it is stopped, let it go on (kill -CONT), or end it"
        super().__init__(path, f"{holder} has held its lock for over {waited_s:g} s", advice=advice)
        self.waited_s = waited_s
        self.holder_pid = holder_pid


class LogMoved(LogUnavailable):
    """The open log is no longer the file at its path; nothing was written to either."""

    def __init__(self, path: str, reason: str) -> None:
        advice = "nothing was written; put it back, or start a new session"
        super().__init__(path, reason, what="is not where it was", advice=advice)


class LogSyncFailed(LogUnavailable):
    """The disk reported an error for what was written; it may be lost, and no later sync could tell."""

    def __init__(self, path: str, reason: str) -> None:
        advice = "its last line may not survive a loss of power; check the disk, then start a new session"
        super().__init__(path, reason, what="could not be synced to disk", advice=advice)


class LogInUse(LogUnavailable):
    """The log isn't finished, so that it can't be compressed; it is untouched. `reason` says who has it."""

    def __init__(self, path: str, reason: str) -> None:
        advice = "it is untouched; try again when its sessions are closed"
        super().__init__(path, reason, what="isn't finished", advice=advice)


class LogFailed(TaskLogError):
    """An earlier error ended this session's log; nothing runs that can't be logged (TASK_LOG_STRICT=1)."""

    def __init__(self, path: str, cause: BaseException) -> None:
        super().__init__(
            f"nothing runs any more, since this session's task log failed before: {cause}; "
            "start a new session",
            path=path,
        )
        self.cause = cause


class LogClosed(TaskLogError):
    """The log was used after `close()`, or in a forked child, where its descriptors are closed."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"the task log {path!r} is closed here (by close(), or by a fork); nothing was written; "
            "open it anew",
            path=path,
        )


_SLACK_BYTES = 8 << 10  # a line begins and ends within blocks
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOW = frozenset({errno.EROFS, errno.EIO, errno.ENOMEM, errno.ENFILE, errno.EBUSY, errno.ESTALE, errno.EINTR})


def log_error(path: str, exc: OSError, *, line_bytes: int = 0, written_bytes: int = 0) -> TaskLogError:
    """Name what an `OSError` means for the log at `path`; raise the result `from exc`."""
    reason = exc.strerror or str(exc)
    if exc.errno == errno.EMFILE:
        return TooManyOpenFiles(path)
    if exc.errno in _FULL:
        free = _free_bytes(path)
        return LogDiskFull(path, reason, line_bytes=line_bytes, written_bytes=written_bytes, free_bytes=free)
    if exc.errno in _NOW:
        return LogUnavailable(path, reason)
    return LogPathRefused(path, reason)


def _free_bytes(path: str) -> int | None:
    """What an unprivileged writer has left in the file system of a path, `None` where it can't be asked."""
    while True:
        try:
            found = os.statvfs(path)
        except FileNotFoundError:
            parent = os.path.dirname(path)  # pathlib would cost start-up time
            if parent == path:
                return None
            path = parent
        except OSError:
            return None
        else:
            return found.f_bavail * found.f_frsize


class ExportRefused(TaskLogError):
    """Something of a plan isn't as it was written, as `findings` say; there is no archive."""

    def __init__(self, path: str, findings: Sequence[Finding]) -> None:
        first = findings[0]
        more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
        super().__init__(
            f"no archive was written of {path!r}: {first.path}, byte {first.at}: {first.reason}{more}; "
            "`task-log verify` names all",
            path=path,
        )
        self.findings = findings


class ConfigurationError(TaskLogError):
    """A setting or argument makes no sense; `setting` is its name. Nothing was started."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(f"{setting}: {message}")
        self.setting = setting


class KeyRefused(ConfigurationError):
    """The encryption key can't be used; `path` is the file concerned. No file was changed."""

    def __init__(self, setting: str, message: str, *, path: str = "") -> None:
        super().__init__(setting, message)
        self.path = path


class KeyMissing(KeyRefused):
    """There is no key where one is needed: none given, none in that place, or a log's key file is gone."""


class KeyMalformed(KeyRefused):
    """What is there is no key, or no key file of a log."""


class KeyPermissions(KeyRefused):
    """Others than its owner can read the key, or we can't."""


class WrongKey(KeyRefused):
    """The key is another one than the log was encrypted with."""


class InvalidField(TaskLogError):
    """A field's value is not what the schema of a line allows; nothing was written. `field` is its name."""

    def __init__(self, field: str, expected: str, value: object) -> None:
        super().__init__(f"field {field} must be {expected}, not {_short(value)}")
        self.field = field
        self.expected = expected


class LineTooLarge(TaskLogError):
    """A line can't hold this, and what is too much can't be moved to an artifact; nothing was written."""


class LogUnreadable(TaskLogError):
    """A log, or a part of it, can't be read; nothing in it was changed."""


def read_error(path: str, exc: OSError, consequence: str = "") -> LogUnreadable:
    """Say which file or folder can't be read; `path` is where the error itself doesn't name one."""
    path = exc.filename if isinstance(exc.filename, str) else path
    return LogUnreadable(f"{path!r} can't be read: {exc.strerror or exc}{consequence}", path=path)


class LogNotFound(LogUnreadable):
    """There is no log at this path."""

    def __init__(self, path: str, message: str | None = None) -> None:
        super().__init__(
            message or f"there is no task log {path!r}; `task-log ls` shows those there are", path=path
        )


class BadLine(LogUnreadable):
    """These bytes are no line of a log; `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"not a line of a task log{_of(path)}: {reason}", path=path)
        self.reason = reason


class UnsupportedSchema(LogUnreadable):
    """A line was written by another major version of the format; `version` is its, `supported` is ours."""

    def __init__(self, path: str, version: int, supported: int) -> None:
        super().__init__(
            f"a line{_of(path)} has schema {version}, and this version reads schema {supported}; "
            "use the json-repl that wrote it",
            path=path,
        )
        self.version = version
        self.supported = supported


class EncryptedLine(LogUnreadable):
    """A line is encrypted, and was not decrypted: a reader of logs does that, where this version can."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"a line{_of(path)} is encrypted, and not in a way that is decrypted here; "
            "read it with `task-log`, TASK_LOG_KEY and the json-repl that wrote it",
            path=path,
        )


class ArtifactError(TaskLogError):
    """An artifact can't be kept or given; `sha256` is its name."""

    def __init__(self, message: str, *, path: str, sha256: str) -> None:
        super().__init__(message, path=path)
        self.sha256 = sha256


class ArtifactNotStored(ArtifactError):
    """An artifact could not be written; nothing of it is there. `reason` says why."""

    def __init__(self, path: str, sha256: str, reason: str) -> None:
        super().__init__(f"artifact {sha256} can't be stored in {path!r}: {reason}", path=path, sha256=sha256)
        self.reason = reason


class MissingArtifact(ArtifactError):
    """There is no artifact of this name."""

    def __init__(self, path: str, sha256: str) -> None:
        super().__init__(f"artifact {sha256} isn't there: no file {path!r}", path=path, sha256=sha256)


class DamagedArtifact(ArtifactError):
    """The bytes of an artifact aren't what its name says; `reason` says how. The file is untouched."""

    def __init__(self, path: str, sha256: str, reason: str) -> None:
        super().__init__(f"artifact {sha256} in {path!r} is damaged: {reason}", path=path, sha256=sha256)
        self.reason = reason


def _of(path: str) -> str:
    return f" of {path!r}" if path else ""


def _short(value: object) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        if len(text) <= 60:
            return text
    return f"a {type(value).__name__}"
