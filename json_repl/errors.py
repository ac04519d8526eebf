"""What can go wrong around a session; what executed code does is never one of these.

SessionError
 +-- InvalidRequest             the caller's: an argument that makes no sense
 +-- SessionClosed              the caller's: used after close()
 +-- PoolClosed                 the caller's: a pool used after close()
 +-- SessionProcessError        of a spawned `python -m json_repl`
 |    +-- SessionStartFailed    the machine's: the process could not be started, or was never ready
 |    +-- SessionProcessDied    the process's: it ended while it was needed
 |    +-- ReplyTimeout          the process's: no reply within the caller's bound
 |    +-- RequestFailed         the caller's, mostly: the process answered with an RPC error
 +-- UnreadableCode             the caller's: a file to run that is not Python source text
 +-- UnreadableNotebook         the caller's: a file to run that is not a notebook that we read
 +-- RecordingRefused           a recording for a test can't be read, or can't be made
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not imported before the worker is started
if TYPE_CHECKING:
    from collections.abc import Mapping


class SessionError(Exception):
    """Base of all errors of this package."""


class InvalidRequest(SessionError, ValueError):
    """An argument makes no sense; `argument` names it, and nothing has run."""

    def __init__(self, argument: str, reason: str) -> None:
        super().__init__(f"{argument} {reason}")
        self.argument = argument


class SessionClosed(SessionError):
    """The session was used after `close()`; nothing has run."""

    def __init__(self, message: str = "the session is closed; start a new one") -> None:
        super().__init__(message)


class PoolClosed(SessionError):
    """The pool was used after `close()`; there is no session."""

    def __init__(self, message: str = "the pool is closed; make a new one") -> None:
        super().__init__(message)


class SessionProcessError(SessionError):
    """Base of the errors of a spawned session; `stderr_tail` is the last 4 kB it wrote there."""

    def __init__(self, message: str, stderr_tail: str = "") -> None:
        super().__init__(message + (f"; it wrote:\n{stderr_tail}" if stderr_tail else ""))
        self.stderr_tail = stderr_tail


class SessionStartFailed(SessionProcessError):
    """The process could not be started, or was never ready; nothing of it is left."""


class SessionProcessDied(SessionProcessError):
    """The process ended while a reply was awaited; its log line, if any, says `unknown`.

    `exit_code` is `None` where a signal ended it, `signal` (such as `SIGKILL`) is `None` where none did;
    both are `None` where it only closed its output.
    """

    def __init__(
        self, message: str, *, exit_code: int | None, signal: str | None, stderr_tail: str = ""
    ) -> None:
        super().__init__(message, stderr_tail)
        self.exit_code = exit_code
        self.signal = signal


class ReplyTimeout(SessionProcessError):
    """No reply came in time; the request may still be running, its late reply is dropped."""

    def __init__(self, method: str, waited_s: float) -> None:
        super().__init__(
            f"no reply to {method!r} within {waited_s:g} s; interrupt() it or close() the session"
        )
        self.method = method
        self.waited_s = waited_s


class RequestFailed(SessionProcessError):
    """The process answered with an RPC error; `code` is one of JSON-RPC's, nothing has run.

    `data` are facts about it, such as the `nearest` state that is kept; empty without any.
    """

    def __init__(self, code: int, message: str, data: Mapping[str, object] | None = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.data = data or {}


class UnreadableCode(SessionError):
    """A file to run that is not Python source text; `path` names it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} is not Python source text: {reason}")
        self.path = path


class UnreadableNotebook(SessionError):
    """A file to run that is not a notebook in Python, of format 4; `path` names it."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path} {what}")
        self.path = path


class RecordingRefused(SessionError):
    """A recording for a test can't be read, or can't be made or replaced; its files are untouched.

    `path` names it, `line` is that of its file, `None` where it is about all of it.
    """

    def __init__(self, path: str, reason: str, *, line: int | None = None) -> None:
        place = path if line is None else f"{path}:{line}"
        super().__init__(f"{place}: the recording {reason}; it is untouched")
        self.path = path
        self.line = line
