"""What can go wrong on our side of an execution.

KernelError
 +-- ExecutorClosed          the caller's: used after close()
 +-- RequestRefused          the caller's: this route cannot do what was asked
 +-- WorkerStartFailed       the machine's: no process to run code in
 |    +-- CannotFork         the machine's: no more processes or memory
 +-- ProtocolViolation       the other process's: what it sent makes no sense
      +-- FrameTooLarge
      +-- BadMessage

KeyboardInterrupt
 +-- InterruptedByCaller     the caller's: Ctrl-C while waiting for an execution
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not imported before the worker is started
if TYPE_CHECKING:
    from task_logger.record import ExecutionOutcome


class KernelError(Exception):
    """Base of all errors of this package."""


class ExecutorClosed(KernelError):
    """The executor was used after `close()`."""


class RequestRefused(KernelError):
    """This route cannot do what was asked; nothing has run."""


class WorkerStartFailed(KernelError):
    """No worker could be started; `stderr_tail` holds the last 4 kB it wrote."""

    def __init__(self, message: str, stderr_tail: str = "") -> None:
        super().__init__(message + (f"; it wrote:\n{stderr_tail}" if stderr_tail else ""))
        self.stderr_tail = stderr_tail


class CannotFork(WorkerStartFailed):
    """The system has no process or no memory left for a worker; the old one is unharmed."""


class ProtocolViolation(KernelError):
    """The other process sent what the protocol doesn't know."""


class FrameTooLarge(ProtocolViolation):
    """A frame announces more bytes than are allowed; nothing was allocated for it."""

    def __init__(self, announced_bytes: int, max_frame_bytes: int) -> None:
        super().__init__(
            f"a frame of {announced_bytes} bytes was announced; at most {max_frame_bytes} are allowed"
        )
        self.announced_bytes = announced_bytes
        self.max_frame_bytes = max_frame_bytes


class BadMessage(ProtocolViolation):
    """A frame is not a message; `field` names the part that is wrong, `None` where it is all of it."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InterruptedByCaller(KeyboardInterrupt):
    """The caller's own KeyboardInterrupt came while it waited; the execution was interrupted, `outcome`
    is what came of it."""

    def __init__(self, outcome: ExecutionOutcome) -> None:
        super().__init__()
        self.outcome = outcome
