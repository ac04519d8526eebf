"""The jupyter route: code runs on any Jupyter kernel, one that is started by name, or one that runs already.

execute --> KernelRun --> KernelLink --> kernel
   <-- outcome <-- ObservedExecution <-- its messages
   the kernel's end --> crashed; the next execution starts another where the kernel is ours
"""

from __future__ import annotations

import _thread
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from repl_kernel.capture import OpenSpool, open_temporary_spool
from repl_kernel.cursor_reply import check_cursor, completion_reply, inspection_reply
from repl_kernel.errors import ExecutorClosed, InterruptedByCaller, RequestRefused
from repl_kernel.executor import OnDisplay, OnInput, OnOutput
from repl_kernel.jupyter.kernel_hold import KernelHold
from repl_kernel.jupyter.kernel_link import KernelLink
from repl_kernel.jupyter.kernel_outcome import completed, died, failed
from repl_kernel.jupyter.kernel_run import End, KernelInterruption, KernelRun, is_idle
from repl_kernel.jupyter.observation import ObservedExecution, is_stderr, late_text
from repl_kernel.jupyter.wire import Message
from repl_kernel.late import LateCollector
from task_logger.record import (
    ExecutionError,
    ExecutionOutcome,
    ExecutionRequest,
    Isolation,
    NamespaceChanges,
    OutputName,
    Route,
    Status,
    TaskIds,
)

_ANSWER_LIMIT_S = 0.9
"""How long a kernel may take for a completion or an inspection."""

_ASK_AGAIN_S = 0.2

_QUESTIONS = ("complete_request", "inspect_request")
"""What a kernel prints while it answers these is no output of an execution."""

_REMEMBERED_EXECUTIONS = 256

_ANOTHER = "the next execution starts another, with an empty namespace"

_UNKNOWN_CHANGES = NamespaceChanges(diff_complete=False)
"""What a foreign kernel's code does to its names, nobody tells."""

_Answer = TypeVar("_Answer")


class KernelExecutor:
    """Runs executions on a Jupyter kernel; one that it has started ends with it."""

    route: Route = "jupyter"
    isolation: Isolation = "external"

    def __init__(
        self, kernel: str, *, task: TaskIds | None = None, open_spool: OpenSpool = open_temporary_spool
    ) -> None:
        """Start the kernel of that name, or connect to the one whose connection file that is.

        Code in a kernel that is started here sees the ids of `task` as FLOW_*; `None` leaves these variables
        as they are here. Raises `KernelUnreachable`, and nothing is left then.
        """
        self._hold = KernelHold(kernel, task)
        self._open_spool = open_spool
        self._interruption = KernelInterruption()
        self._late = LateCollector(open_spool)
        self._turn = _thread.RLock()
        self._owner_pid = os.getpid()
        self._is_closed = False
        self._executions: dict[str, int] = {}
        self._has_run = self._is_emptied = False
        self._unfinished: tuple[str, int] | None = None
        """The message and the number of an execution that runs on in a kernel that isn't ours to end."""
        self._unanswered: str | None = None
        """A question that the kernel had not answered in time."""
        self._hold.open()

    @property
    def info(self) -> Mapping[str, Any]:
        """What the kernel says of itself: Jupyter's `kernel_info_reply`."""
        return self._hold.link.info if self._hold.link is not None else {}

    def execute(
        self,
        request: ExecutionRequest,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        on_display: OnDisplay | None = None,
    ) -> ExecutionOutcome:
        """Run the request's code on the kernel; see `Executor`.

        Where the kernel has ended since the last execution, this one runs on another with an empty namespace,
        and a notice says so. Raises `KernelUnreachable` where there is none to be had, and `RequestRefused`
        while a kernel that isn't ours still runs an earlier execution that would not be stopped.
        """
        with self._turn:
            notices: list[str] = []
            link = self._attend(notices)
            parent = f"{request.session_id}:0" if self._is_emptied else None
            self._has_run, self._is_emptied = True, False
            observed = ObservedExecution(self._open_spool, _guarded(on_output), _guarded(on_display))
            run = KernelRun(
                link,
                observed,
                self._interruption,
                self._hold.interrupt,
                self._take_late,
                is_alone=self._hold.is_ours,
            )
            self._interruption.arm(link.wake)
            try:
                end = run.run(request.code, request.time_limit_s, _guarded(on_input, EOFError))
            except _RaisedByCaller as exc:
                self._stop(run, request.seq)
                raise exc.error from None
            finally:
                self._interruption.disarm()
            self._remember(run.message_id, request.seq)
            outcome = replace(self._settle(run, end, request, notices), parent=parent)
        if run.keyboard_interrupt is not None:
            raise InterruptedByCaller(outcome) from run.keyboard_interrupt
        return outcome

    def _settle(
        self, run: KernelRun, end: End, request: ExecutionRequest, notices: list[str]
    ) -> ExecutionOutcome:
        link = self._hold.link
        assert link is not None
        reason = self._interruption.reason
        lost = link.gaps.lost() - run.questions if end == "replied" else 0
        if lost > 0:
            notices.append(f"output may be missing: {lost} messages of the kernel didn't come")
        if end == "replied" and not run.is_whole:
            notices.append("the kernel never said that this was all: output may be missing")
        error: ExecutionError | None = None
        status: Status | None = None
        if end == "died":
            error = self._bury(notices)
            status = reason or "crashed"
        elif end == "given up":
            error = self._give_up(run, request.seq, notices)
            status = reason
        elif run.asks_to_end and self._hold.is_ours:
            self._hold.let_go()
            notices.append(f"the code has ended the kernel; {_ANOTHER}")
        elif reason is not None and run.reply_status != "ok":
            status = reason
        elif run.reply_status == "error" and self._hold.is_ours:
            status = "error"  # a KeyboardInterrupt of the code's own too: nobody else can interrupt it
        elif run.reply_status in ("abort", "aborted"):
            error = failed("Aborted", "the kernel has not run it, or not to its end")
        elif (
            not run.has_replied and not run.observed.has_error
        ):  # ipykernel's handler can fail before and after
            error = failed(
                "NoReply", "the kernel failed at this request: the code has not run, or not to its end"
            )
        outcome = run.observed.outcome(
            route=self.route,
            isolation=self.isolation,
            elapsed_ns=run.elapsed_ns,
            changes=_UNKNOWN_CHANGES,
            status=status,
            notices=notices,
        )
        artifacts = list(outcome.artifacts)
        outcome = replace(outcome, late_output=self._late.take(artifacts), artifacts=tuple(artifacts))
        return completed(outcome, error, status, request.time_limit_s)

    def _bury(self, notices: list[str]) -> ExecutionError:
        """The kernel has ended while code ran; returns that as an error."""
        death, tail = self._hold.let_go()
        message = f"the kernel {death.words}"
        if self._hold.is_ours:
            notices.append(f"{message}; {_ANOTHER}")
        else:
            notices.append(f"{message}; the next execution tries to connect again")
        return died(message, death, tail)

    def _give_up(self, run: KernelRun, seq: int, notices: list[str]) -> ExecutionError:
        """The code would not be stopped: a kernel of ours is killed, one that isn't runs on."""
        tries = self._interruption.interrupts
        if self._hold.is_ours and self._hold.link is not None:
            self._hold.let_go()
            message = f"the kernel did not stop after {tries} interrupts, and was killed"
            notices.append(f"{message}; {_ANOTHER}")
        else:
            self._unfinished = run.message_id, seq
            message = f"the kernel did not stop after {tries} interrupts, and runs on"
            if not run.has_begun:
                message = "it waits in the kernel for its turn, and will run: that can't be taken back"
            notices.append(f"{message}; it isn't ours to kill")
        return failed("KeyboardInterrupt", message)

    def _stop(self, run: KernelRun, seq: int) -> None:
        """A callback raised: stop the code, and see that the next execution is right."""
        _discard(run.observed)
        run.observed = ObservedExecution(self._open_spool)
        end = run.finish()
        if end == "died":
            self._hold.let_go()
        elif end == "given up":
            self._give_up(run, seq, [])
        self._remember(run.message_id, seq)
        _discard(run.observed)

    def _take_late(self, message: Message) -> None:
        """Take in what belongs to no execution that runs here: threads of earlier ones write it."""
        if self._unfinished is not None and is_idle(message, self._unfinished[0]):
            self._unfinished = None
        text = late_text(message.type, message.content)
        if not text or message.parent_type in _QUESTIONS:
            return
        seq = self._executions.get(message.parent_id)
        if seq is None and message.parent_id and not self._hold.is_ours:
            return  # another client's
        name: OutputName = "stderr" if is_stderr(message.type, message.content) else "stdout"
        self._late.of(name, seq).feed(text.encode("utf-8", "surrogatepass"))

    def _remember(self, message_id: str, seq: int) -> None:
        self._executions[message_id] = seq
        if len(self._executions) > _REMEMBERED_EXECUTIONS:
            del self._executions[next(iter(self._executions))]

    def _attend(self, notices: list[str]) -> KernelLink:
        """Deal with what has happened since the last execution; returns the link to a kernel."""
        self._require_open()
        link = self._hold.link
        if link is not None:
            self._take_waiting(link)
            self._await_answer(link)
            if link.is_dead:
                death, _ = self._hold.let_go()
                what = "this one starts with an empty namespace" if self._hold.is_ours else "connected anew"
                notices.append(f"the kernel {death.words} between two executions; {what}")
                link = None
        if link is None:
            link = self._open()
        if self._unfinished is not None:
            raise RequestRefused(
                f"the kernel still runs execution {self._unfinished[1]}, which would not be stopped; wait "
                "for it, or restart the kernel where it was started"
            )
        return link

    def _take_waiting(self, link: KernelLink) -> None:
        while (received := link.receive(0)) is not None or link.is_ending:
            if received is not None and received[0] == "iopub":
                self._take_late(received[1])

    def _await_answer(self, link: KernelLink) -> None:
        """Wait for an answer that is late, but not for long: what that does is no part of an execution."""
        deadline = time.monotonic() + _ANSWER_LIMIT_S
        while self._unanswered is not None and not link.is_dead and time.monotonic() < deadline:
            received = link.receive(_ASK_AGAIN_S)
            if received is None:
                if self._hold.is_ours:
                    self._hold.interrupt()  # one may end a part of what hangs only
                continue
            channel, message, _ = received
            if channel == "iopub":
                self._take_late(message)
                if is_idle(message, self._unanswered):
                    self._unanswered = None

    def _open(self) -> KernelLink:
        self._unfinished = self._unanswered = None
        link = self._hold.open()
        self._is_emptied = self._has_run and self._hold.is_ours
        return link

    def interrupt(self) -> bool:
        """Interrupt the running execution; asked again, it takes the next harder step at once."""
        if os.getpid() != self._owner_pid:
            return False
        return self._interruption.begin("interrupted")

    def restart(self) -> None:
        """Start another kernel in place of ours; raises `RequestRefused` for one that isn't ours."""
        with self._turn:
            self._require_open()
            if not self._hold.is_ours:
                raise RequestRefused("this kernel isn't ours to restart; do that where it was started")
            self._late.take([])
            self._hold.let_go()
            self._open()

    def variables(self) -> list[Mapping[str, object]]:
        """Raises `RequestRefused`: Jupyter's protocol has no way to ask for them."""
        raise RequestRefused("the jupyter route can't describe the variables of a kernel; use route='worker'")

    def complete(self, code: str, cursor: int) -> Mapping[str, object]:
        """See `Executor`: what the kernel answers, nothing where it doesn't within 1 s."""
        check_cursor(code, cursor)
        answer = self._ask("complete", {"code": code, "cursor_pos": cursor})
        return completion_reply([], cursor, cursor) if answer is None else answer

    def inspect(self, code: str, cursor: int, detail_level: int = 0) -> Mapping[str, object]:
        """See `Executor`: what the kernel answers, nothing where it doesn't within 1 s."""
        check_cursor(code, cursor)
        content = {"code": code, "cursor_pos": cursor, "detail_level": detail_level}
        answer = self._ask("inspect", content)
        return inspection_reply(None) if answer is None else answer

    def _ask(self, what: str, content: Mapping[str, object]) -> Mapping[str, object] | None:
        """The kernel's answer; `None` where none came in time, or it is an error."""
        with self._turn:
            link = self._attend([])
            message_id = link.send("shell", f"{what}_request", content)
            deadline = time.monotonic() + _ANSWER_LIMIT_S
            while (left_s := deadline - time.monotonic()) > 0 and not link.is_dead:
                received = link.receive(left_s)
                if received is None:
                    continue
                channel, message, _ = received
                if channel == "iopub":
                    self._take_late(message)
                elif message.parent_id == message_id:
                    return message.content if message.content.get("status") == "ok" else None
            self._unanswered = message_id
            if self._hold.is_ours and not link.is_dead:
                self._hold.interrupt()  # nobody else's code can run there
            return None

    def close(self) -> None:
        """End a kernel of ours, and all it started; let go of one that isn't. A running execution is
        interrupted first."""
        if os.getpid() != self._owner_pid:  # a fork of the host: the kernel isn't this process's to end
            if not self._is_closed:
                self._is_closed = True
                self._hold.abandon()
            return
        self._interruption.begin("interrupted")
        with self._turn:
            if not self._is_closed:
                self._is_closed = True
                self._late.take([])
                self._hold.end()

    def _require_open(self) -> None:
        if self._is_closed:
            raise ExecutorClosed("this executor is closed; make another one")
        if os.getpid() != self._owner_pid:
            raise ExecutorClosed(
                f"this executor belongs to process {self._owner_pid}; make one in this process"
            )


class _RaisedByCaller(Exception):
    """What one of the caller's callbacks raised, so that it isn't taken for an error of ours."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _guarded(
    callback: Callable[..., _Answer] | None, *passed_on: type[Exception]
) -> Callable[..., _Answer] | None:
    """The callback with what it raises wrapped, but for these."""
    if callback is None:
        return None

    def call(*arguments: Any) -> _Answer:
        try:
            return callback(*arguments)
        except passed_on:
            raise
        except Exception as exc:
            raise _RaisedByCaller(exc) from exc

    return call


def _discard(observed: ObservedExecution) -> None:
    """Let go of what was observed, with the files that hold it."""
    for artifact in observed.outcome(route="jupyter", isolation="external", elapsed_ns=0).artifacts:
        if artifact.content is not None and not isinstance(artifact.content, bytes):
            artifact.content.close()
