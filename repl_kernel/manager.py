"""The session's side of the worker route: send, wait for a reply or the worker's death, start another.

execute --request--> worker link --> worker
   |    <--reply--------+
   |    <--output-------+--> OutputCollector (stdout, stderr) --> text, artifact
   |    <--death--------+--> crashed; the keeper forks a new worker for the next execution
"""

from __future__ import annotations

import _thread
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from repl_kernel.capture import OpenSpool, OutputCollector, open_temporary_spool
from repl_kernel.confinement import Confinement
from repl_kernel.errors import (
    CannotFork,
    ExecutorClosed,
    InterruptedByCaller,
    RequestRefused,
    SnapshotGone,
    SnapshotLost,
    SnapshotRefused,
    WorkerStartFailed,
)
from repl_kernel.exchange import Exchange, WorkerDied
from repl_kernel.executor import OnDisplay, OnInput, OnOutput, ShellName
from repl_kernel.interruption import Interruption
from repl_kernel.late import LateCollector
from repl_kernel.lives import Lives, SnapshotPolicy
from repl_kernel.outcome import (
    Death,
    Gathered,
    death_outcome,
    outcome_from_reply,
    past_limit,
    past_time_limit,
)
from repl_kernel.spawn import SpawnedKeeper
from repl_kernel.worker_link import WorkerLink
from task_logger.record import NO_CHANGES, ExecutionOutcome, ExecutionRequest, Isolation, Route

if TYPE_CHECKING:
    from repl_kernel.enclosure import Enclosure
    from repl_kernel.limit_watch import LimitWatch
    from repl_kernel.limits import Limits
    from repl_kernel.probe import Attempt
    from repl_kernel.sandbox import Sandbox

MAX_CODE_CHARACTERS = 8 << 20
"""So that any code, escaped as JSON, fits one frame."""

_BOOKS_EVERY = 8
"""After so many executions the copies that were announced are taken in. One that takes longer than 2 ms, and
could write to much memory, does it at once."""

_CLOSE_LIMIT_S = 2.0
"""How long a worker may take for its own atexit handlers when the session closes."""

_ANSWER_PATIENCE_S = 1.0
"""What the worker does between executions takes less: only after this can it be interrupted, and killed."""


class WorkerExecutor:
    """Runs executions in a keep-alive worker process, and replaces it where it dies."""

    route: Route = "worker"

    def __init__(
        self,
        *,
        snapshots: SnapshotPolicy = "auto",
        isolation: Literal["none", "process"] | Sandbox = "process",
        pass_env: Collection[str] = (),
        open_spool: OpenSpool = open_temporary_spool,
        spawned: SpawnedKeeper | None = None,
        lives: Lives | None = None,
        preload: Sequence[str] = (),
        limits: Limits | None = None,
        shell: ShellName = "plain",
    ) -> None:
        """Start the worker, or take over one that is starting, or is live; raises `WorkerStartFailed`.

        `spawned` is a keeper that was started with this isolation; `preload` are modules that a keeper loads
        before it forks the worker; `limits` hold on top of those that the isolation sets; `shell` is what
        runs the code.
        """
        if lives is None:
            enclosure = _enclosure(limits, isolation, snapshots)
            if not isinstance(isolation, str) and enclosure is not None:
                isolation = isolation.within(enclosure.limits.memory_bytes)
            lives = Lives(snapshots, Confinement(isolation, pass_env, preload, shell), spawned, enclosure)
        self._limits = _watch(lives.enclosure)
        meter = None if self._limits is None else self._limits.meter
        self._streams = (
            OutputCollector("stdout", open_spool, meter),
            OutputCollector("stderr", open_spool, meter),
        )
        self._late = LateCollector(open_spool, meter)
        self._interruption = Interruption()
        self._exchange = Exchange(self._interruption, self._streams, self._late, open_spool)
        self._turn = _thread.RLock()
        self._owner_pid = os.getpid()
        self._is_closed = False
        self._message_id = int.from_bytes(os.urandom(6), "big")  # so that executed code can't guess a reply's
        self._last_seq = 0
        self._unbooked = 0
        self._first_notices: list[str] = []
        """What the caller must know with the next outcome: it happened where no outcome tells it."""
        self._open_spool = open_spool
        self._lives = lives
        self.environment: dict[str, str] = {}
        """What the worker's environment has besides the ids of a request."""
        self.on_death: Callable[[str, int | None], object] | None = None
        """Gets in words how a worker died and what is live now, and the execution, `None` between two."""
        self.isolation: Isolation = self._lives.confinement.isolation
        self._exchange.watch = self._lives.bound_memory
        self._exchange.limits = self._limits

    @property
    def isolation_probe(self) -> tuple[Attempt, ...]:
        """What the newest worker that began empty tried in vain: `name`, `denied`, `detail` of each."""
        return self._lives.isolation_probe

    def execute(
        self,
        request: ExecutionRequest,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        on_display: OnDisplay | None = None,
    ) -> ExecutionOutcome:
        """Run the request's code in the worker; see `Executor`.

        Where the worker died since the last execution, this one runs in a new worker with an empty namespace,
        and a notice says so.
        """
        with self._turn:
            gathered = Gathered("worker", self.isolation, self._streams)
            link = self._lives.link
            if self._is_closed or os.getpid() != self._owner_pid or link.poll(0):
                link = self._attend(gathered.notices, keeps_books=False)
            lives = self._lives
            self._unbooked += 1
            if self._unbooked >= _BOOKS_EVERY:
                self._unbooked = 0
                self._exchange.meanwhile = self._keep_books
            if self._first_notices:
                gathered.notices += self._take_notices()
            last_seq, self._last_seq = self._last_seq, request.seq
            if request.atomic:
                self.ensure_snapshot(gathered.notices)
                link = lives.link
            started_from = lives.state_seq
            if started_from != last_seq or (lives.origin is not None and started_from == 0):
                gathered.parent = self._name(request.session_id, started_from)
            message = self._message(request, link, on_input is not None)
            for stream in self._streams:
                if stream.size:
                    stream.begin()
            started_ns = time.perf_counter_ns()
            try:
                reply = self._converse(
                    link, message, request.time_limit_s, on_output, on_input, on_display=on_display
                )
                outcome = self._settle(link, reply, request, gathered)
            except WorkerDied:
                lives.ran(request.seq)
                death = Death(*lives.bury(), time.perf_counter_ns() - started_ns)
                outcome = self._end(death, gathered)
            else:
                lives.ran(request.seq)
            if request.atomic and outcome.status != "ok":
                outcome = self._roll_back(outcome, started_from)
            interrupt = self._exchange.keyboard_interrupt
            if self._unbooked == 0:
                lives.ring.end_thinned()
        if interrupt is not None:
            raise InterruptedByCaller(outcome) from interrupt
        return outcome

    def _keep_books(self) -> None:
        """Take in what was announced while the worker works; copies that end would take its processor."""
        self._lives.take_announcements(ends_thinned=False)

    def _converse(
        self,
        link: WorkerLink,
        message: dict[str, Any],
        time_limit_s: float | None,
        on_output: OnOutput | None,
        on_input: OnInput | None,
        *,
        on_display: OnDisplay | None,
    ) -> dict[str, Any]:
        """Have the worker run a request; raises `WorkerDied`, and what the caller's callbacks raise."""
        self._interruption.arm(link)
        try:
            return self._exchange.run(link, message, time_limit_s, on_output, on_input, on_display=on_display)
        except WorkerDied:
            raise
        except BaseException:
            self._lives.bury()  # a callback raised: nobody knows where the worker is
            try:
                self._lives.succeed()
            except WorkerStartFailed:
                pass  # the next execution tries again
            raise
        finally:
            self._interruption.disarm()

    def _settle(
        self, link: WorkerLink, reply: dict[str, Any], request: ExecutionRequest, gathered: Gathered
    ) -> ExecutionOutcome:
        """The outcome of an execution that replied; raises `WorkerDied` where that can't be its reply."""
        gathered.parts, gathered.displays = self._exchange.parts, self._exchange.take_displays()
        if self._late.has_some:
            gathered.late = self._late.take(gathered.artifacts)
        try:
            link.children_mark = reply["mark"]
            if reply["copyable"] and self._lives.policy == "auto":
                gathered.snapshot = f"{request.session_id}:{request.seq}"
            outcome = outcome_from_reply(reply, gathered)
        except (KeyError, TypeError, AttributeError) as exc:
            raise WorkerDied(f"executed code has forged a reply that lacks its parts: {exc!r}") from exc
        strike = None if self._limits is None else self._limits.strike_of(outcome)
        if strike is not None:
            return past_limit(outcome, strike)
        limit_s = request.time_limit_s
        if (
            self._interruption.reason == "timeout"
            and limit_s is not None
            and (outcome.status == "interrupted" or outcome.elapsed_ms > limit_s * 1000)
        ):
            return past_time_limit(outcome, limit_s)
        return outcome

    def _end(self, death: Death, gathered: Gathered) -> ExecutionOutcome:
        """The outcome of an execution whose worker died: another one has taken over."""
        strike = None if self._limits is None else self._limits.strike_of_death(death.signal)
        gathered.late = self._late.take(gathered.artifacts)
        gathered.displays = self._exchange.take_displays()
        try:
            state = self._lives.succeed()
        except WorkerStartFailed as exc:
            state = f"no worker could take over: {exc}; the next execution tries again"
        if self.on_death is not None:
            self.on_death(f"the worker {death.words}; {state}", self._last_seq)
        return death_outcome(death, self._interruption, strike, state, gathered)

    def _name(self, session_id: str, seq: int) -> str:
        """A state as the log names it."""
        origin = self._lives.origin if seq == 0 else None
        return f"{session_id}:{seq}" if origin is None else origin

    def ensure_snapshot(self, notices: list[str] | None = None) -> None:
        """Have the live state kept, where it isn't yet; raises `SnapshotRefused`.

        `notices` get what must be told, those of the next execution where it is `None`.
        """
        self._lives.take_announcements()
        newest = self._lives.ring.newest()
        if newest is None or newest.seq != self._lives.state_seq:
            self._keep_state(self._first_notices if notices is None else notices)

    def _take_notices(self) -> list[str]:
        notices, self._first_notices = self._first_notices, []
        return notices

    def _roll_back(self, outcome: ExecutionOutcome, seq: int) -> ExecutionOutcome:
        """Leave the namespace as it was before an execution that failed; a notice says where it can't be."""
        lives, notices = self._lives, outcome.notices
        if lives.state_seq != seq:
            try:
                notices = (*notices, *lives.go_to(lives.ring.get(seq)))
            except (SnapshotGone, SnapshotLost, CannotFork) as exc:
                return replace(outcome, notices=(*notices, f"this could not be rolled back: {exc}"))
        return replace(outcome, rolled_back=True, snapshot=None, changes=NO_CHANGES, notices=notices)

    def _message(self, request: ExecutionRequest, link: WorkerLink, may_ask: bool) -> dict[str, Any]:
        code = request.code
        _check_size(code)
        self._message_id += 1
        message: dict[str, Any] = {
            "id": self._message_id,
            "op": "execute",
            "code": code,
            "seq": request.seq,
            "input": may_ask,
            "auto": self._lives.policy == "auto",
        }
        if link.task is not request.task:
            link.task = request.task
            message["env"] = {
                "FLOW_PLAN_ID": _environment_text(request.task.plan_id),
                "FLOW_TASK_ID": _environment_text(request.task.task_id),
                "FLOW_TASK_NAME": _environment_text(request.task.task_name),
                **{name: _environment_text(text) for name, text in self.environment.items()},
            }
        if not code.isascii():
            _make_encodable(message)
        return message

    def interrupt(self) -> bool:
        """Interrupt the running execution; asked again, it takes the next harder step at once."""
        if os.getpid() != self._owner_pid:  # a fork of the host: what runs there isn't this process's
            return False
        return self._interruption.begin("interrupted")

    def restart(self) -> None:
        """Empty the namespace: the worker, its copies and every program it started are killed."""
        with self._turn:
            self._require_open()
            self._late.take([])
            self._lives.restart()

    def variables(self) -> list[Mapping[str, object]]:
        """Describe the variables; see `Executor`."""
        reply = self._ask("variables", self._first_notices)
        found: list[Mapping[str, object]] = reply["variables"] if reply is not None else []
        return found

    def complete(self, code: str, cursor: int) -> Mapping[str, object]:
        """What can be typed at the cursor; see `Executor`. Raises `CannotFork` where it takes a process more.

        A copy of the worker answers: whatever `__dir__` does, the worker doesn't notice.
        """
        from repl_kernel.cursor_reply import check_cursor, completion_reply

        check_cursor(code, cursor)
        return self._ask_copy("complete", code, cursor) or completion_reply([], cursor, cursor)

    def inspect(self, code: str, cursor: int, detail_level: int = 0) -> Mapping[str, object]:
        """What is known of the object under the cursor; see `Executor`. As `complete`."""
        from repl_kernel.cursor_reply import check_cursor, inspection_reply

        check_cursor(code, cursor)
        return self._ask_copy("inspect", code, cursor, detail_level=detail_level) or inspection_reply(None)

    def _ask_copy(
        self, operation: str, code: str, cursor: int, **details: object
    ) -> Mapping[str, object] | None:
        """The answer of a copy of the worker, `None` where it has none."""
        _check_size(code)
        fields: dict[str, Any] = {"code": code, "cursor": cursor, **details}
        _make_encodable(fields)
        with self._turn:
            reply = self._ask(operation, self._first_notices, **fields)
        if reply is None:
            return None
        if "refused" in reply:
            raise CannotFork(f"the system has no process for it: {reply['refused']}")
        answer: Mapping[str, object] | None = reply["answer"]
        return answer

    def snapshot(self) -> int:
        """Keep the live state now; returns the execution it is the state of. Raises `SnapshotRefused`."""
        with self._turn:
            return self._keep_state(self._first_notices)

    def _keep_state(self, notices: list[str]) -> int:
        lives = self._lives
        if lives.policy == "off":
            raise SnapshotRefused("there are no snapshots here; open it with snapshots='auto' or 'manual'")
        self._ask("snapshot", notices)
        lives.take_announcements()
        newest = lives.ring.newest()
        if newest is None or newest.seq != lives.state_seq:
            raise SnapshotRefused(f"the worker can't be copied: {lives.ring.refused or 'it died'}")
        return newest.seq

    def close(self) -> None:
        """End the worker (its `atexit` handlers run, for 2 s at most), its copies, and all they started."""
        if os.getpid() != self._owner_pid:  # a fork of the host: the worker isn't this process's to end
            self._abandon()
            return
        self._interruption.begin("interrupted")
        with self._turn:
            if self._is_closed:
                return
            self._is_closed = True
            self._let_end(self._lives.link)
            self._lives.end()

    def _abandon(self) -> None:
        """Close our copies of the descriptors; no lock, a thread that isn't here may have held it."""
        if not self._is_closed:
            self._is_closed = True
            self._lives.end(abandon=True)

    def _let_end(self, link: WorkerLink) -> None:
        """Have the worker end as Python does, draining what it writes: nobody else will."""
        try:
            link.send({"op": "close"})
            deadline = time.monotonic() + _CLOSE_LIMIT_S
            while (remaining := deadline - time.monotonic()) > 0:
                ready = link.wait(remaining * 1000)
                if link.is_dead(ready):
                    break
                for stream in self._streams:
                    stream.begin()
                if not link.drain(ready, self._streams, None) and link.wait_for_death(0.01):
                    break
        except OSError:
            pass  # it is gone already

    def _require_open(self) -> None:
        if self._is_closed:
            raise ExecutorClosed("this executor is closed; make another one")
        if os.getpid() != self._owner_pid:
            raise ExecutorClosed(
                f"this executor belongs to process {self._owner_pid}; make one in this process"
            )

    def _attend(self, notices: list[str], *, keeps_books: bool = True) -> WorkerLink:
        """Deal with what has happened since the last execution; returns the live worker's link.

        Announced copies are taken in if it `keeps_books`: that needs time, and can wait for some executions.
        """
        self._require_open()
        lives = self._lives
        link = lives.link
        ready = link.wait(0)
        if keeps_books and link.has_announced(ready):
            lives.take_announcements()
        if link.has_output(ready):
            link.drain(ready, (self._late.of("stdout", None), self._late.of("stderr", None)), None)
        if link.is_dead(ready):
            self._replace(notices)
        return lives.link

    def _replace(self, notices: list[str]) -> None:
        """Have another worker take over from one that died between two executions."""
        words = self._lives.bury()[2]
        text = f"the worker {words} between two executions; {self._lives.succeed()}"
        notices.append(text)
        if self.on_death is not None:
            self.on_death(text, None)

    def _ask(self, operation: str, notices: list[str], **fields: object) -> dict[str, Any] | None:
        """Have the worker do something between executions; `None` where it died of it.

        A KeyboardInterrupt of the caller's meanwhile is raised once that is done.
        """
        with self._turn:
            link = self._attend(notices)
            self._message_id += 1
            reply = None
            # A worker that is stopped, or whose threads leave it no turn, may never answer.
            self._interruption.arm(link, _ANSWER_PATIENCE_S)
            try:
                reply = self._exchange.run(link, {"id": self._message_id, "op": operation, **fields})
            except WorkerDied:
                self._replace(notices)
            finally:
                self._interruption.disarm()
            if self._exchange.keyboard_interrupt is not None:
                if notices is not self._first_notices:
                    self._first_notices += notices
                raise self._exchange.keyboard_interrupt
            return reply


def _enclosure(
    limits: Limits | None, isolation: Literal["none", "process"] | Sandbox, snapshots: SnapshotPolicy
) -> Enclosure | None:
    """What holds the limits of a namespace, `None` where nothing is limited; raises `LimitUnavailable`."""
    is_sandbox = not isinstance(isolation, str)
    if not is_sandbox and not limits:
        return None
    from repl_kernel.enclosure import Enclosure
    from repl_kernel.limits import NO_LIMITS, SANDBOX_LIMITS

    in_force = (limits or NO_LIMITS).over(SANDBOX_LIMITS if is_sandbox else NO_LIMITS)
    if not in_force:
        return None
    folder = None if isinstance(isolation, str) else isolation.work_folder
    return Enclosure(in_force, copies=snapshots != "off", sandboxed=is_sandbox, work_folder=folder)


def _watch(enclosure: Enclosure | None) -> LimitWatch | None:
    if enclosure is None:
        return None
    from repl_kernel.limit_watch import LimitWatch

    return LimitWatch(enclosure)


def _check_size(code: str) -> None:
    if len(code) > MAX_CODE_CHARACTERS:
        raise RequestRefused(
            f"the code has {len(code)} characters, a worker takes {MAX_CODE_CHARACTERS}; pass data in a file"
        )


def _make_encodable(message: dict[str, Any]) -> None:
    """Have a message hold its code in a form that JSON can hold; what is wrong with it, the compiler says."""
    try:
        message["code"].encode()
    except UnicodeEncodeError:
        message["code_hex"] = message.pop("code").encode("utf-8", "surrogatepass").hex()


def _environment_text(text: str) -> str:
    """A text as the environment can hold it: no NUL; it stands for bytes, half characters are escaped."""
    safe = text.replace("\0", "\\x00")
    try:
        return safe.encode("utf-8", "surrogateescape").decode("latin-1")
    except UnicodeEncodeError:
        return safe.encode("utf-8", "backslashreplace").decode("latin-1")


def run_in_worker(code: str, *, time_limit_s: float | None = None) -> ExecutionOutcome:
    """Run code on the keep-alive worker of this process, unrecorded; raises as `WorkerExecutor.execute`."""
    from repl_kernel.process_worker import PROCESS_WORKER

    return PROCESS_WORKER.run(code, time_limit_s)
