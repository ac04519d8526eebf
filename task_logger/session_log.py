"""One session's way into its task log.

    request ----> begin  -> pending file: what runs now
    the code runs
    outcome ----> finish -> encoded -> artifacts stored -> line appended -> record with the log's new head
                                                  |
                     the log can't be written: the line is kept in the pending file, or in memory where
                     even that fails, and appended before the next line as soon as it can be

In strict mode it is the other way round: what can't be logged is refused before it runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence, Set
from dataclasses import replace

from task_logger.backlog import RETRY_LOCK_WAIT_S, Backlog
from task_logger.codec import EncodedRecord, encode, encode_request
from task_logger.errors import (
    ConfigurationError,
    LogClosed,
    LogFailed,
    LogPathRefused,
    LogUnavailable,
    TaskLogError,
)
from task_logger.log_file import LOCK_WAIT_S
from task_logger.opening import check_path
from task_logger.record import (
    Artifact,
    ExecutionOutcome,
    ExecutionRecord,
    ExecutionRequest,
    Isolation,
    LogHead,
    Route,
    TaskIds,
)
from task_logger.session_files import SessionFiles
from task_logger.task import log_path

TYPE_CHECKING = False  # `typing` costs start-up time
if TYPE_CHECKING:
    from task_logger.encryption import LogKeys
    from task_logger.keys import KeySource
    from task_logger.redaction import Redactor
    from task_logger.sealing import Sealer


class SessionLog:
    """The task log as one session sees it. The caller lets one thread in at a time."""

    def __init__(
        self,
        *,
        root: str,
        task: TaskIds,
        session_id: str,
        fsync: bool = False,
        strict: bool = False,
        route: Route = "worker",
        isolation: Isolation = "process",
        on_alert: Callable[[str, str], object] | None = None,
        sealer: Sealer | None = None,
        key: KeySource | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        """Open the log of a task below `root`, with its folders, and settle what dead sessions left.

        `route` and `isolation` are for the line that others write should this session die; a `sealer` seals
        each line, a `key` encrypts all that is kept. `on_alert` gets level and message where the log
        fails. Raises `LogPathRefused` where this can't be a log, `ConfigurationError` where the key doesn't
        fit it; `LogUnavailable` only with `strict`: without it the session goes on, `notices` says what is
        wrong, and each execution tries again.
        """
        self.path = log_path(os.path.abspath(root) if "\0" not in root else root, task)
        check_path(self.path)
        self.notices: list[str] = []
        """What the session must tell its caller with the next outcome; emptied by `finish`."""
        keys = None if key is None else _log_keys(self.path, key)
        self._files = SessionFiles(
            self.path, session_id, fsync=fsync, route=route, isolation=isolation, sealer=sealer, keys=keys
        )
        self._max_body_bytes = None if keys is None else keys.max_body_bytes
        self._session_id = session_id
        self._redactor = redactor
        self._on_alert = on_alert  # gets level and message where the log fails, and where it is well again
        self._is_alarmed = False
        self._strict = strict
        self._running: ExecutionRequest | None = None
        self._together: set[int] = set()  # the executions begun at once that have no line yet
        self._begun_bytes, self._begun_inode = 0, 0
        folder, name = os.path.split(self.path)
        self._backlog = Backlog(folder, name, route=route, isolation=isolation, fsync=fsync, keys=keys)
        self._is_behind = True  # something is not as it should be: the next line takes the careful way
        self._failure: TaskLogError | None = None  # strict: why nothing may run any more
        self._closed = False
        try:
            self._open()
        except (LogPathRefused, ConfigurationError):
            self._let_go()
            raise
        except TaskLogError as exc:
            if strict:
                self._let_go()
                raise
            text = f"{exc}; executions run all the same, and their lines are kept until then"
            self.notices.append(text)
            self._alarm("error", text)

    def begin(self, request: ExecutionRequest) -> None:
        """Put down that a request is about to run; call it right before.

        Raises only with `strict`, and then the code must not run: `LogFailed` after an earlier error, or
        what is wrong now.
        """
        if self._strict:
            self._check()
        if self._running is not None and self._files.pending is not None:  # an interrupt came before its line
            self._is_behind = True
            self._files.pending.hold()
        self._running = request
        if (log := self._files.log) is not None:
            self._begun_bytes, self._begun_inode = log.known_bytes, log.inode
        try:
            pending = self._files.pending or self._files.open_pending()
            encoded = encode_request(request)
            if self._redactor is not None and self._redactor.secrets.may_be_in(encoded):
                encoded = encode_request(self._redactor.request(request))
            pending.begin(encoded, request.seq, log_inode=self._begun_inode, log_bytes=self._begun_bytes)
        except TaskLogError as exc:
            if self._strict or isinstance(exc, LogClosed):
                self._running = None
                raise
            text = f"{exc}; should the session die now, execution {request.seq} leaves no trace"
            self.notices.append(text)
            self._alarm("error", text)

    def begin_all(self, requests: Sequence[ExecutionRequest]) -> None:
        """Put down that these are about to run at once; `finish` each, in any order, before the next `begin`.

        Raises as `begin`, and then none of them may run, nor may be finished.
        """
        try:
            for request in requests:
                self.begin(request)
                self._running = None
                self._together.add(request.seq)
                if self._files.pending is not None:
                    self._files.pending.hold()  # the next entry goes behind this one
        except BaseException:
            self._together.clear()
            self._start_pending_anew()
            raise

    def finish(self, request: ExecutionRequest, outcome: ExecutionOutcome) -> ExecutionRecord:
        """Write the line of what came of a request.

        Returns the record as the line has it, but with its secrets, and with the log's head; `None` for a
        head, and a notice, where the line could not be written and is kept. With `strict` that is an error,
        `LogUnavailable` or `ArtifactNotStored`: the line is kept all the same, and nothing may run any more.
        """
        encoded: EncodedRecord | None = None
        head: LogHead | None = None
        try:
            plain = encode(request, outcome, max_body_bytes=self._max_body_bytes)
            encoded = plain if self._redactor is None else self._redacted(request, outcome, plain)
            outcome = plain.outcome
            if encoded.outcome.artifacts:
                outcome = replace(outcome, artifacts=self._store_artifacts(encoded.outcome.artifacts))
            if encoded is not plain:
                outcome = replace(outcome, notices=encoded.outcome.notices)
            if self._is_behind or self._files.is_settling_due:
                head = self._append_carefully(encoded.body, request.seq)
            else:
                assert self._files.log is not None
                head = self._files.log.append(encoded.body)
        except TaskLogError as exc:
            self._keep(encoded, request.seq, exc)
            after = "nothing runs any more" if self._strict else "lines are kept until it can be"
            self._alarm("critical" if self._strict else "error", f"{exc}; {after}")
            if self._strict:
                self._failure = exc
                raise
        except BaseException as exc:
            # An interrupt. Whether the line is there all the same is looked up before the next one.
            self._keep(
                encoded, request.seq, LogUnavailable(self.path, f"{type(exc).__name__} came in between")
            )
            raise
        self._running = None
        if self._together:
            self._together.discard(request.seq)
            if not self._together and not self._is_behind:
                self._start_pending_anew()
        notices = outcome.notices
        if self.notices:
            notices = (*notices, *self.notices)
            self.notices.clear()
        return ExecutionRecord(request=request, outcome=outcome, head=head, notices=notices)

    def close(self) -> None:
        """Append what is kept, if it can be, and close the log; idempotent.

        What could not be appended stays in the pending file, and is named on stderr; the next writer of the
        log does it. What is in memory only is lost then, and named too.
        """
        if self._closed:
            return
        try:
            if self._is_behind or self._running is not None or self._together:
                self._append_kept(except_seqs=frozenset())
                self._is_behind = self._backlog.has_artifacts
            self.notices += self._files.settle()
        except TaskLogError as exc:
            self._complain(exc)
        finally:
            self._closed = True
            self._let_go()

    def _open(self) -> None:
        """Have log and pending file open, whichever of them isn't."""
        self.notices += self._files.open(LOCK_WAIT_S if self._backlog.error is None else RETRY_LOCK_WAIT_S)
        self._is_behind = self._backlog.error is not None

    def _check(self) -> None:
        if self._failure is not None:
            raise LogFailed(self.path, self._failure) from self._failure
        assert self._files.log is not None
        try:
            self._files.log.check()
        except TaskLogError as exc:
            self._alarm("critical", f"{exc}; nothing runs that can't be logged")
            raise

    def _redacted(
        self, request: ExecutionRequest, outcome: ExecutionOutcome, plain: EncodedRecord
    ) -> EncodedRecord:
        assert self._redactor is not None
        encoded = self._redactor.kept(request, outcome, plain, self._max_body_bytes)
        if self._redactor.failures:
            text = (
                f"texts of execution {request.seq} are withheld from the log: their redaction failed "
                f"({', '.join(sorted(set(self._redactor.failures)))})"
            )
            self._redactor.failures.clear()
            self.notices.append(text)
            self._alert("error", text)
        return encoded

    def _store_artifacts(self, given: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
        stored, error = self._backlog.store(given)
        if error is not None:
            self._is_behind = True
            text = f"{error}; it is kept in memory, and stored as soon as it can be"
            self.notices.append(text)
            self._alarm("error", text)
            if self._strict:
                raise error
        return stored

    def _start_pending_anew(self) -> None:
        """Nothing in the pending file is needed any more."""
        if self._files.pending is not None:
            try:
                self._files.pending.reset()
            except TaskLogError:
                self._is_behind = True  # the next line does it

    def _append_carefully(self, body: bytes, seq: int) -> LogHead:
        """Append a line after opening what isn't, appending what is kept, and settling what is due."""
        was_behind = self._is_behind
        unfinished = self._together | {seq}
        if was_behind:
            self._append_kept(except_seqs=unfinished)
        if self._files.is_settling_due:
            self.notices += self._files.settle()
        assert self._files.log is not None
        head = self._files.log.append(body)
        if was_behind and len(unfinished) > 1:
            return head  # still behind: the last of them does it
        if was_behind and self._files.pending is not None:
            try:
                self._files.pending.reset()  # only now: until here it protects this line too
            except TaskLogError:
                return head  # still behind: the next line does it
        self._is_behind = self._backlog.has_artifacts
        if self._is_alarmed and not self._is_behind:
            self._is_alarmed = False
            self._alert(
                "info", f"the task log {self.path!r} is written again, and all that was kept is in it"
            )
        return head

    def _append_kept(self, *, except_seqs: Set[int]) -> None:
        if self._closed:
            raise LogClosed(self.path)
        self._backlog.raise_if_hopeless()
        if self._files.log is None or self._files.pending is None:
            self._open()
        assert self._files.log is not None
        self._backlog.append_to(self._files.log, self._files.pending, except_seqs=except_seqs)

    def _keep(self, encoded: EncodedRecord | None, seq: int, error: TaskLogError) -> None:
        """Keep a line that could not be appended; the log is tried anew with the next one.

        Without a line, because it could not be made, the request stays: it will get one that says `unknown`.
        """
        if isinstance(error, LogClosed):  # also in a forked child: the line is its parent's to write
            raise error
        self._is_behind = True
        self._backlog.error = error
        self._files.forget_moved_log()
        if self._files.pending is None:
            with contextlib.suppress(TaskLogError):  # then it is kept in memory, and said
                self._files.open_pending()
        if encoded is None:
            if self._files.pending is not None:
                self._files.pending.hold()
            return
        kept = self._backlog.keep(
            self._files.pending, encoded.body, seq, log_inode=self._begun_inode, log_bytes=self._begun_bytes
        )
        self.notices.append(
            f"the line of execution {seq} is not in the log: {error}; {kept}, until it can be appended"
        )

    def _alarm(self, level: str, text: str) -> None:
        """Alert once until the log is well again."""
        if not self._is_alarmed:
            self._is_alarmed = True
            self._alert(level, text)

    def _alert(self, level: str, text: str) -> None:
        if self._on_alert is not None:
            self._on_alert(level, text)

    def _complain(self, error: TaskLogError) -> None:
        if not (self._is_behind or self._running):
            return  # only others' executions could not be settled: the next writer will
        self._is_behind = True
        lost = self._backlog.lost_at_the_end()
        text = f"task log of session {self._session_id}: {error}\n"
        if (pending := self._files.pending) is not None and os.path.lexists(pending.path):
            text += f"what is not in the log stays in {pending.path}; the log's next writer appends it\n"
        elif pending is not None:
            text += f"LOST, because {pending.path}, which had it, is gone as well: what is not in the log\n"
        if lost:
            text += f"LOST, because nothing could be written: {', '.join(lost)}\n"
            self._alert("critical", text.rstrip("\n"))
        if sys.stderr is not None:
            sys.stderr.write(text)

    def _let_go(self) -> None:
        self._files.close(remove_pending=not self._is_behind)


def _log_keys(path: str, key: KeySource) -> LogKeys:
    from task_logger.encryption import LogKeys  # costs start-up time, which plain logs don't pay

    return LogKeys(path, key)
