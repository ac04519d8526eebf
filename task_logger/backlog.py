"""What a session could not write yet: lines in its pending file or in memory, and artifacts in memory.

a line that could not be appended -> pending file, behind its request; in memory where even that fails
an artifact that could not be stored -> memory
when the log can be written again -> artifacts stored, lines appended in the order of their executions
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import replace

from task_logger import artifacts
from task_logger.errors import LogDiskFull, LogSyncFailed, TaskLogError
from task_logger.log_file import LOCK_WAIT_S, LogFile
from task_logger.pending import Entry, PendingFile
from task_logger.record import Artifact, Isolation, Route
from task_logger.settling import append_missing

TYPE_CHECKING = False  # `typing` costs start-up time
if TYPE_CHECKING:
    from task_logger.encryption import LogKeys

RETRY_LOCK_WAIT_S = 0.05
"""How long a retry waits for the lock: once a log has failed, each line tries again, and must not stall."""


class Backlog:
    """One session's lines and artifacts that aren't where they belong; `error` is why the last one isn't."""

    def __init__(
        self,
        plan_folder: str,
        log_name: str,
        *,
        route: Route,
        isolation: Isolation,
        fsync: bool,
        keys: LogKeys | None = None,
    ) -> None:
        self.error: TaskLogError | None = None
        self._plan_folder = plan_folder
        self._log_name = log_name
        self._route: Route = route
        self._isolation: Isolation = isolation
        self._fsync = fsync
        self._keys = keys
        self._lines: list[Entry] = []  # those in memory only
        self._artifacts: list[Artifact] = []

    def lost_at_the_end(self) -> list[str]:
        """Name what nobody else could append: seqs and artifacts that are in memory only."""
        lines = [f"the line of execution {entry.seq}" for entry in self._lines]
        return lines + [f"artifact {artifact.sha256}" for artifact in self._artifacts]

    @property
    def has_artifacts(self) -> bool:
        """Whether artifacts wait to be stored."""
        return bool(self._artifacts)

    def store(self, given: Iterable[Artifact]) -> tuple[tuple[Artifact, ...], TaskLogError | None]:
        """Store artifacts; returns them without content, and the error that keeps some of them in memory."""
        stored, error = [], None
        for artifact in given:
            if artifact.content is not None:
                try:
                    self._put(artifact)
                    if not isinstance(artifact.content, bytes):
                        artifact.content.close()
                except TaskLogError as exc:
                    error = exc
                    self._artifacts.append(artifact)
            stored.append(replace(artifact, content=None))
        return tuple(stored), error

    def keep(
        self, pending: PendingFile | None, body: bytes, seq: int, *, log_inode: int, log_bytes: int
    ) -> str:
        """Keep a line; returns in words where, and why it is in memory only."""
        try:
            if pending is not None:
                pending.keep(body, seq, log_inode=log_inode, log_bytes=log_bytes)
                return f"it is kept in {pending.path}"
            why = "there is no pending file"
        except TaskLogError as exc:
            why = str(exc)
        if pending is not None:
            pending.hold()
        self._lines.append(
            Entry(
                log_name=self._log_name,
                log_inode=log_inode,
                log_bytes=log_bytes,
                route=self._route,
                isolation=self._isolation,
                seq=seq,
                request=None,
                body=body,
            )
        )
        return f"it is kept in memory only ({why})"

    def append_to(self, log: LogFile, pending: PendingFile | None, *, except_seqs: Set[int]) -> None:
        """Append every line that is kept and isn't in the log; `except_seqs` are those that are about to be.

        Raises `LogUnavailable`; what is not appended then is still kept.
        """
        log.lock_wait_s = RETRY_LOCK_WAIT_S
        self._artifacts = [artifact for artifact in self._artifacts if not self._is_stored(artifact)]
        kept = ([] if pending is None else pending.entries()) + self._lines
        kept = sorted((entry for entry in kept if entry.seq not in except_seqs), key=lambda entry: entry.seq)
        append_missing(self._plan_folder, log, kept, fsync=self._fsync)
        self._lines.clear()
        self.error = None
        log.lock_wait_s = LOCK_WAIT_S

    def raise_if_hopeless(self) -> None:
        """Raise why the last line could not be written, where another try is wrong or of no use."""
        error = self.error
        if isinstance(error, LogSyncFailed):
            raise error
        if isinstance(error, LogDiskFull) and not error.has_space_now():
            raise error  # a try would only leave one more unreadable piece

    def _put(self, artifact: Artifact) -> None:
        cipher = None if self._keys is None else self._keys.cipher().artifacts
        artifacts.put(self._plan_folder, artifact, fsync=self._fsync, cipher=cipher)

    def _is_stored(self, artifact: Artifact) -> bool:
        try:
            self._put(artifact)
        except TaskLogError:
            return False
        return True
