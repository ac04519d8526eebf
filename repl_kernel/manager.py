"""The session's side of the worker route: send, wait for a reply or the worker's death, start another.

execute --request--> worker link --> worker
   |    <--reply--------+
   |    <--output-------+--> OutputCollector (stdout, stderr) --> text, artifact
   |    <--death--------+--> crashed; the keeper forks a new worker for the next execution
"""

from __future__ import annotations

import _thread
import os
import signal
import time
from collections.abc import Collection, Mapping
from typing import Any

from repl_kernel.capture import OpenSpool, OutputCollector, open_temporary_spool
from repl_kernel.errors import (
    CannotFork,
    ExecutorClosed,
    InterruptedByCaller,
    RequestRefused,
    WorkerStartFailed,
)
from repl_kernel.exchange import Exchange, WorkerDied
from repl_kernel.executor import OnInput, OnOutput
from repl_kernel.interruption import Interruption
from repl_kernel.isolation import worker_environment
from repl_kernel.keeper_link import KeeperLink
from repl_kernel.late import LateCollector
from repl_kernel.outcome import Death, Gathered, death_outcome, outcome_from_reply, past_time_limit
from repl_kernel.spawn import SpawnedKeeper
from repl_kernel.worker_link import WorkerLink, death_of
from task_logger.record import ExecutionOutcome, ExecutionRequest, Isolation, Route

MAX_CODE_CHARACTERS = 8 << 20
"""So that any code, escaped as JSON, fits one frame."""

_CLOSE_LIMIT_S = 2.0
"""How long a worker may take for its own atexit handlers when the session closes."""


class WorkerExecutor:
    """Runs executions in a keep-alive worker process, and replaces it where it dies."""

    route: Route = "worker"
    isolation: Isolation = "process"

    def __init__(
        self,
        *,
        pass_env: Collection[str] = (),
        open_spool: OpenSpool = open_temporary_spool,
        spawned: SpawnedKeeper | None = None,
    ) -> None:
        """Start the worker, or take over one that is starting; raises `WorkerStartFailed`."""
        self._pass_env = frozenset(pass_env)
        self._streams = (OutputCollector("stdout", open_spool), OutputCollector("stderr", open_spool))
        self._late = LateCollector(open_spool)
        self._interruption = Interruption()
        self._exchange = Exchange(self._interruption, self._streams, self._late, open_spool)
        self._turn = _thread.RLock()
        self._owner_pid = os.getpid()
        self._is_closed = False
        self._message_id = int.from_bytes(os.urandom(6), "big")  # so that executed code can't guess a reply's
        self._link: WorkerLink | None = None
        self._keeper = KeeperLink(spawned) if spawned is not None else self._start_keeper()
        try:
            self._link = WorkerLink(self._keeper.fork_worker())
        except WorkerStartFailed:
            self._keeper.end()
            raise

    def execute(
        self, request: ExecutionRequest, on_output: OnOutput | None = None, on_input: OnInput | None = None
    ) -> ExecutionOutcome:
        """Run the request's code in the worker; see `Executor`.

        Where the worker died since the last execution, this one runs in a new worker with an empty namespace,
        and a notice says so.
        """
        with self._turn:
            gathered = Gathered("worker", "process", self._streams)
            link = self._link
            if link is None or self._is_closed or os.getpid() != self._owner_pid or link.poll(0):
                link = self._live_link(gathered.notices)
            message = self._message(request, link, on_input is not None)
            for stream in self._streams:
                if stream.size:
                    stream.begin()
            started_ns = time.perf_counter_ns()
            try:
                reply = self._converse(link, message, request.time_limit_s, on_output, on_input)
                outcome = self._settle(link, reply, request, gathered)
            except WorkerDied:
                death = Death(*self._bury(link), time.perf_counter_ns() - started_ns)
                outcome = self._end(death, gathered)
            interrupt = self._exchange.keyboard_interrupt
        if interrupt is not None:
            raise InterruptedByCaller(outcome) from interrupt
        return outcome

    def _converse(
        self,
        link: WorkerLink,
        message: dict[str, Any],
        time_limit_s: float | None,
        on_output: OnOutput | None,
        on_input: OnInput | None,
    ) -> dict[str, Any]:
        """Have the worker run a request; raises `WorkerDied`, and what the caller's callbacks raise."""
        self._interruption.arm(link)
        try:
            return self._exchange.run(link, message, time_limit_s, on_output, on_input)
        except WorkerDied:
            raise
        except BaseException:
            self._bury(link)  # a callback raised: nobody knows where the worker is
            raise
        finally:
            self._interruption.disarm()

    def _settle(
        self, link: WorkerLink, reply: dict[str, Any], request: ExecutionRequest, gathered: Gathered
    ) -> ExecutionOutcome:
        """The outcome of an execution that replied; raises `WorkerDied` where that can't be its reply."""
        gathered.parts = self._exchange.parts
        if self._late.has_some:
            gathered.late = self._late.take(gathered.artifacts)
        try:
            link.children_mark = reply["mark"]
            outcome = outcome_from_reply(reply, gathered)
        except (KeyError, TypeError, AttributeError) as exc:
            raise WorkerDied(f"executed code has forged a reply that lacks its parts: {exc!r}") from exc
        limit_s = request.time_limit_s
        if (
            self._interruption.reason == "timeout"
            and limit_s is not None
            and (outcome.status == "interrupted" or outcome.elapsed_ms > limit_s * 1000)
        ):
            return past_time_limit(outcome, limit_s)
        return outcome

    def _end(self, death: Death, gathered: Gathered) -> ExecutionOutcome:
        """The outcome of an execution whose worker died."""
        interruption = self._interruption
        gathered.late = self._late.take(gathered.artifacts)
        return death_outcome(death, interruption.reason or "crashed", interruption.taken, gathered)

    def _message(self, request: ExecutionRequest, link: WorkerLink, may_ask: bool) -> dict[str, Any]:
        code = request.code
        if len(code) > MAX_CODE_CHARACTERS:
            raise RequestRefused(
                f"the code has {len(code)} characters, a worker takes {MAX_CODE_CHARACTERS}; "
                "pass data in a file"
            )
        self._message_id += 1
        message: dict[str, Any] = {
            "id": self._message_id,
            "op": "execute",
            "code": code,
            "seq": request.seq,
            "input": may_ask,
        }
        if link.task is not request.task:
            link.task = request.task
            message["env"] = {
                "FLOW_PLAN_ID": _environment_text(request.task.plan_id),
                "FLOW_TASK_ID": _environment_text(request.task.task_id),
                "FLOW_TASK_NAME": _environment_text(request.task.task_name),
            }
        if not code.isascii():
            try:
                code.encode()
            except UnicodeEncodeError:  # JSON can't hold it; what is wrong with it, the compiler says
                del message["code"]
                message["code_hex"] = code.encode("utf-8", "surrogatepass").hex()
        return message

    def interrupt(self) -> bool:
        """Interrupt the running execution; asked again, it takes the next harder step at once."""
        if os.getpid() != self._owner_pid:  # a fork of the host: what runs there isn't this process's
            return False
        return self._interruption.begin("interrupted")

    def restart(self) -> None:
        """Empty the namespace: the worker and every program it started are killed, another one is forked."""
        with self._turn:
            self._require_open()
            if self._link is not None:
                self._link.close()
                self._link = None
            self._late.take([])
            try:
                self._keeper.sweep()
            except WorkerStartFailed:
                self._replace_keeper()
            self._link = self._fork()

    def variables(self) -> list[Mapping[str, object]]:
        """Describe the variables; see `Executor`."""
        with self._turn:
            link = self._live_link([])
            self._message_id += 1
            try:
                reply = self._exchange.run(link, {"id": self._message_id, "op": "variables"})
            except WorkerDied:
                self._bury(link)
                return []
            found: list[Mapping[str, object]] = reply["variables"]
            return found

    def close(self) -> None:
        """End the worker (its `atexit` handlers run, for 2 s at most), the keeper and all they started."""
        if os.getpid() != self._owner_pid:  # a fork of the host: the worker isn't this process's to end
            self._abandon()
            return
        self._interruption.begin("interrupted")
        with self._turn:
            if self._is_closed:
                return
            self._is_closed = True
            link, self._link = self._link, None
            if link is not None:
                self._let_end(link)
            self._keeper.end()

    def _abandon(self) -> None:
        """Close our copies of the descriptors; no lock, a thread that isn't here may have held it."""
        if not self._is_closed:
            self._is_closed = True
            self._keeper.abandon()
            if self._link is not None:
                self._link.close()

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
        link.close()

    def _require_open(self) -> None:
        if self._is_closed:
            raise ExecutorClosed("this executor is closed; make another one")
        if os.getpid() != self._owner_pid:
            raise ExecutorClosed(
                f"this executor belongs to process {self._owner_pid}; make one in this process"
            )

    def _live_link(self, notices: list[str]) -> WorkerLink:
        """The worker's link, after taking late output; a dead worker is replaced, with a notice."""
        self._require_open()
        link = self._link
        if link is None:
            self._link = link = self._fork()
        ready = link.wait(0)
        if ready:
            link.drain(ready, (self._late.of("stdout", None), self._late.of("stderr", None)), None)
            if link.is_dead(ready):
                words = self._bury(link)[2]
                notices.append(
                    f"the worker {words} between two executions; its variables are lost, this is a new one"
                )
                self._link = link = self._fork()
        return link

    def _fork(self) -> WorkerLink:
        try:
            return WorkerLink(self._keeper.fork_worker())
        except CannotFork:
            raise
        except WorkerStartFailed:
            self._replace_keeper()
            return WorkerLink(self._keeper.fork_worker())

    def _replace_keeper(self) -> None:
        self._keeper.end()
        self._keeper = self._start_keeper()

    def _start_keeper(self) -> KeeperLink:
        return KeeperLink.start(worker_environment(os.environ, self._pass_env))

    def _bury(self, link: WorkerLink) -> tuple[str | None, int | None, str]:
        """Make sure that a worker is dead, let go of it, and return how it died."""
        if not link.wait_for_death(0.2):
            link.signal(signal.SIGKILL)
        death = death_of(self._keeper.exit_status(link.pid))
        link.close()
        self._link = None
        return death


def _environment_text(text: str) -> str:
    """A text as the environment can hold it: no NUL, and what isn't Unicode escaped."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
