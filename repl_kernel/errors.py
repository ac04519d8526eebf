"""What can go wrong on our side of an execution.

KernelError
 +-- ExecutorClosed          the caller's: used after close()
 +-- RequestRefused          the caller's: this route cannot do what was asked
 +-- LimitRefused            the caller's: a limit that can't be meant
 +-- SnapshotGone            the caller's: that state is not kept any more
 +-- SnapshotRefused         the code's: its state can't be copied now
 +-- SnapshotLost            the machine's: the copy that held that state has died
 +-- WorkerStartFailed       the machine's: no process to run code in
 |    +-- KernelUnreachable    the caller's or the machine's: a Jupyter kernel that isn't there
 |    +-- CannotFork         the machine's: no more processes or memory
 |    +-- LimitUnavailable   the machine's: a limit that was asked for can't be held
 |    +-- PreloadFailed      the caller's: a library that can't be loaded before workers are forked
 |    +-- IsolationUnavailable    the machine's: a layer that was asked for doesn't hold
 |         +-- SandboxUnavailable
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


class LimitRefused(KernelError):
    """A limit can't be meant: `name` and `value` are what was given, `allowed` says what could be."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"limits: {name} is {value!r}; it must be {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


class SnapshotGone(KernelError):
    """The state after execution `seq` is not kept; `nearest` is the closest that is, `None` without any."""

    def __init__(self, seq: int, nearest: int | None) -> None:
        instead = f"the nearest that is kept is {nearest}" if nearest is not None else "none is kept"
        super().__init__(f"the state after execution {seq} is not kept; {instead}")
        self.seq = seq
        self.nearest = nearest


class SnapshotRefused(KernelError):
    """The worker can't be copied now; nothing has run, and the live worker is as it was."""


class SnapshotLost(KernelError):
    """The copy that held the state after execution `seq` has died; the live worker is as it was."""

    def __init__(self, seq: int) -> None:
        super().__init__(f"the copy that held the state after execution {seq} has died; try an older one")
        self.seq = seq


class WorkerStartFailed(KernelError):
    """No worker could be started; `stderr_tail` holds the last 4 kB it wrote."""

    def __init__(self, message: str, stderr_tail: str = "") -> None:
        super().__init__(message + (f"; it wrote:\n{stderr_tail}" if stderr_tail else ""))
        self.stderr_tail = stderr_tail


class KernelUnreachable(WorkerStartFailed):
    """There is no such Jupyter kernel, it doesn't start, or doesn't answer; nothing of ours is left."""


class PreloadFailed(WorkerStartFailed):
    """A library can't be preloaded; the message names it, and nothing has been started."""


class CannotFork(WorkerStartFailed):
    """The system has no process or no memory left for a worker; the old one is unharmed."""


class LimitUnavailable(WorkerStartFailed):
    """A limit that was asked for can't be held here; no code has run.

    `limit` names it, `fix` says what to do.
    """

    def __init__(self, limit: str, reason: str, fix: str) -> None:
        super().__init__(f"the limit {limit} can't be held: {reason}; {fix}")
        self.limit = limit
        self.reason = reason
        self.fix = fix


class IsolationUnavailable(WorkerStartFailed):
    """A layer of the isolation that was asked for is missing or doesn't hold; no code has run.

    `layer` names it, `fix` says what to do about it.
    """

    tier = "process"

    def __init__(self, layer: str, reason: str, fix: str) -> None:
        super().__init__(f"isolation={self.tier!r} is not available: {layer}: {reason}; {fix}")
        self.layer = layer
        self.reason = reason
        self.fix = fix


class SandboxUnavailable(IsolationUnavailable):
    """A layer of the sandbox is missing or doesn't hold; no code has run."""

    tier = "sandbox"


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
    is what came of it; `outcomes` of those that ran at once."""

    def __init__(self, *outcomes: ExecutionOutcome) -> None:
        super().__init__()
        self.outcomes = outcomes
        self.outcome = outcomes[0]
