"""The server on standard input and output: JSON-RPC, one message a line.

    descriptor 0 -> RequestReader's thread -+-> ping, interrupt, input_reply, busy: answered at once -+
                                            +-> queue -> main thread -> Session -> reply -------------+
                                                                 \\-> stream, input_request -----------+
                                                    the descriptor that was 1  <-  LineWriter  <------+

Executed code finds an empty descriptor 0, and a descriptor 1 that is not the protocol's. The reader's thread
decides what must happen while code runs; the main thread executes, in the order in which requests came.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from _queue import Empty, SimpleQueue  # without the Python half of `queue`, which start-up would pay for
from _thread import _local
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from json_repl import messages
from json_repl.descriptors import StandardDescriptors, take_standard_descriptors
from json_repl.errors import InvalidRequest, SessionClosed, SessionError
from json_repl.lines import LineWriter
from json_repl.messages import Rejected, Request, RequestId
from json_repl.own_process import shield_process
from json_repl.params import Execute, InputReply
from json_repl.request_reader import RequestReader
from json_repl.served import NOT_WHILE_RUNNING, ServedSessions

if TYPE_CHECKING:
    from json_repl.session import Session
    from json_repl.session_settings import SessionRoute
    from repl_kernel.executor import OnInput, OnOutput
    from task_logger.record import OutputName

PROTOCOL_VERSION = 1

MAX_STREAM_CHARS = 16 << 10
"""One stream notification: at most 64 KiB, whatever the script."""

END_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

STALLED_AT_END_S = 1.0
"""How long a client that doesn't read is waited for after a signal to end."""

END_BOUND_S = 4.5
"""From a signal to end to the end of the process, whatever executed code does about it."""

INSIST_S = 1.0
"""Between an interrupt and the next, where the first didn't help."""

ANSWER_CHECK_S = 0.05

EXECUTING = ("execute", "speculate")  # the methods that run code


def serve(route: SessionRoute | None = None, *, spawned: Any = None, **settings: Any) -> int:
    """Serve one session on descriptors 0 and 1 until input ends; returns the exit code.

    `spawned` is a worker's side that was started early, if any; `route` and `settings` are as for `Session`.
    Must be called on the main thread of a process of ours.
    """
    if os.name != "posix":
        return _refuse("json-repl: runs on Linux and macOS; on Windows, run it inside WSL")
    from repl_kernel.errors import KernelError
    from task_logger.errors import ConfigurationError, TaskLogError

    try:
        descriptors = take_standard_descriptors(own_output=True)
    except OSError as exc:
        return _refuse(f"json-repl: standard input or output can't be used ({exc.strerror}); connect both")
    try:
        shield_process()
        from json_repl.session import Session  # what takes time, once nobody can look

        session = Session(route, actor="stdio", owns_process=True, spawned=spawned, **settings)
    except (TaskLogError, KernelError, SessionError, OSError) as exc:
        return _refuse(f"json-repl: {exc}", 2 if isinstance(exc, ConfigurationError) else 1)
    return StdioServer(session, descriptors).run()


def _refuse(message: str, code: int = 2) -> int:
    os.write(2, (message.replace("\n", " ") + "\n").encode("utf-8", "backslashreplace"))
    return code


class _Question:
    """One question to the client; the reader's thread alone answers it, the thread that asks alone waits."""

    def __init__(self) -> None:
        self.is_answered = False
        self.answers: SimpleQueue[str | None] = SimpleQueue()


class StdioServer:
    """Sessions and their one client; owns the sessions, and the two descriptors for good."""

    def __init__(self, session: Session, descriptors: StandardDescriptors) -> None:
        self._sessions = ServedSessions(session)
        self._writer = LineWriter(descriptors.output_fd)
        self._reader = RequestReader(
            descriptors.input_fd,
            take_urgent=self._take_urgent,
            see_out=self._see_out,
            blocked_signals=END_SIGNALS,
        )
        self._question: _Question | None = None
        # Each of these has one writing thread; the other only compares. So no lock.
        self._executes_queued = self._executes_done = 0
        self._interrupts = 0
        self._ending_since: float | None = None
        self._is_closed = False
        self._pid = os.getpid()
        self._masks = _local()  # of each thread that forks

    def run(self) -> int:
        """Serve until the input ends, `shutdown`, or a signal to end; returns the exit code."""
        for number in END_SIGNALS:
            signal.signal(number, self._on_end_signal)
        # The handler runs once the main thread comes back to Python: the reader is told of a signal at once.
        signal.set_wakeup_fd(self._reader.wake_fd, warn_on_full_buffer=False)
        os.register_at_fork(
            before=self._hold_signals,
            after_in_parent=self._let_signals_go,
            after_in_child=self._leave_signals_to_fork,
        )
        self._notify("ready", self._description())
        self._reader.start()
        goes_on = True
        while goes_on and (request := self._reader.next()):
            goes_on = self._carry_out(request)
        self._is_closed = True
        code = self._close_sessions()
        while request := self._reader.next_at_once():
            self._carry_out(request)
        self._reader.leave()
        return code

    def _close_sessions(self) -> int:
        from repl_kernel.errors import KernelError
        from task_logger.errors import TaskLogError

        try:
            self._sessions.close()
        except (TaskLogError, KernelError, OSError) as exc:
            return _refuse(f"json-repl: {exc}", 1)
        return 0

    def _description(self) -> dict[str, object]:
        from json_repl import __version__

        session = self._sessions.first
        return {
            "signal": "__READY__",
            "session_id": session.session_id,
            "version": __version__,
            "python": sys.version.split()[0],
            "protocol": PROTOCOL_VERSION,
            "route": session.route,
            "log": messages.well_formed(session.log_path),
            "plan_id": messages.well_formed(session.task.plan_id),
            "task_id": messages.well_formed(session.task.task_id),
        }

    def _carry_out(self, request: Request | Rejected) -> bool:
        """Answer one request; returns false after the last one."""
        if isinstance(request, Rejected):
            if request.wants_reply:
                self._writer.write(messages.render_error(request.id, request.code, request.message))
            return True
        is_last = False
        try:
            result, is_last = self._act(request)
            answer = messages.render_result(request.id, result)
        except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 -- whatever is wrong, each gets its reply
            from json_repl.methods import error_parts

            answer = messages.render_error(request.id, *error_parts(exc, request.method))
        if os.getpid() != self._pid:
            os._exit(0)  # a child that executed code forked and let run on: only its parent answers
        # Before the reply is sent: who has it may restart.
        self._executes_done += request.method in EXECUTING
        if request.wants_reply:
            self._writer.write(answer)
        return not is_last

    def _act(self, request: Request) -> tuple[object, bool]:
        """Carry out a request; returns its result, and whether it was the last one."""
        params = request.params
        if self._is_closed or self._ending_since is not None:
            raise SessionClosed("the process was told to end")
        if isinstance(params, Execute):
            outcome = self._sessions.of(request.session_id).execute_code(
                params.code,
                time_limit_s=params.time_limit_s,
                tags=params.tags,
                atomic=params.atomic,
                on_output=self._stream_of(request.id, params) if params.stream else None,
                on_input=self._input_of(request.id, params) if params.allow_input else None,
            )
            return outcome, False
        if request.method == "shutdown":
            return {}, self._sessions.end(request.session_id)
        from json_repl.methods import act

        return act(self._sessions, request), False

    def _stream_of(self, request_id: RequestId, params: Execute) -> OnOutput:
        """What passes output on; a client that doesn't read delays the code, no limit and no interrupt."""
        is_over = self._over_for(params)

        def on_output(name: OutputName, text: str) -> None:
            for start in range(0, len(text), MAX_STREAM_CHARS):
                piece = text[start : start + MAX_STREAM_CHARS]
                line = messages.render_notification("stream", {"id": request_id, "name": name, "text": piece})
                self._writer.write(line, is_over)

        return on_output

    def _input_of(self, request_id: RequestId, params: Execute) -> OnInput:
        """What asks the client for a line; `EOFError` where none can come any more."""
        is_over = self._over_for(params)

        def on_input(prompt: str, is_password: bool) -> str:
            if os.getpid() != self._pid:
                raise EOFError("input() is answered in the process of the session alone, not in its forks")
            question = self._question = _Question()
            try:
                self._ask({"id": request_id, "prompt": prompt, "password": is_password})
                answer = self._answer_to(question, is_over)
            finally:
                self._question = None
            if answer is None:
                raise EOFError("the client has no more input")
            return answer

        return on_input

    def _answer_to(self, question: _Question, is_over: Callable[[], bool]) -> str | None:
        """Wait for the client's answer; raises EOFError where none can come any more."""
        is_last = False
        while not is_last:
            is_last = self._reader.has_ended or is_over()  # first: what came before the end is there by now
            try:
                return question.answers.get(timeout=0 if is_last else ANSWER_CHECK_S)
            except Empty:
                pass
        raise EOFError("nobody answers input() any more: the client's input or the execution's time ended")

    def _ask(self, question: dict[str, object]) -> None:
        """Send a question, whole: on the local route an interrupt could rise in the middle of the line."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._notify("input_request", question)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _over_for(self, params: Execute) -> Callable[[], bool]:
        """Tells whether an execution that starts now was interrupted, or its time is over."""
        interrupts = self._interrupts
        deadline = float("inf") if params.time_limit_s is None else time.monotonic() + params.time_limit_s
        return lambda: self._interrupts != interrupts or time.monotonic() >= deadline

    def _take_urgent(self, request: Request) -> bool:
        """Answer what doesn't wait for the executions before it, in the reader's thread."""
        if request.method == "ping":
            self._reply(request, {})
        elif request.method == "interrupt":
            self._interrupts += 1
            try:
                self._reply(request, {"interrupted": self._sessions.interrupt(request.session_id)})
            except InvalidRequest as exc:
                self._error(request, messages.BAD_PARAMS, str(exc))
        elif isinstance(request.params, InputReply):
            self._take_answer(request, request.params)
        elif request.method in NOT_WHILE_RUNNING and self._executes_queued != self._executes_done:
            self._error(
                request,
                messages.BUSY,
                f"busy: an execution runs or waits; ask for {request.method} when it is answered",
            )
        elif self._is_closed:
            self._error(request, messages.SESSION_CLOSED, "session closed, not run: shutdown was asked for")
        else:
            self._executes_queued += request.method in EXECUTING
            return False
        return True

    def _take_answer(self, request: Request, params: InputReply) -> None:
        question = self._question
        is_asked = question is not None and not question.is_answered
        if question is not None:
            question.is_answered = True
        self._reply(request, {"accepted": is_asked})  # first: the code may end, and be answered, with it
        if question is not None and is_asked:
            question.answers.put(params.text)

    def _see_out(self, is_done_within: Callable[[float], bool]) -> None:
        """A signal asked for the end: interrupt what runs, in the reader's thread, until all is done."""
        deadline = self._begin_to_end() + END_BOUND_S
        insist_at = 0.0
        while not is_done_within(0.02):
            now = time.monotonic()
            if now >= deadline:
                os._exit(0)
            if now >= insist_at and self._sessions.interrupt():
                self._interrupts += 1
                insist_at = now + INSIST_S

    def _on_end_signal(self, number: int, frame: object) -> None:
        self._begin_to_end()
        self._reader.end()

    def _begin_to_end(self) -> float:
        """Take no further request; returns since when."""
        if self._ending_since is None:
            self._ending_since = time.monotonic()
            self._writer.stop_at(self._ending_since + STALLED_AT_END_S)
        return self._ending_since

    def _hold_signals(self) -> None:
        self._masks.before_fork = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)

    def _let_signals_go(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.before_fork)

    def _leave_signals_to_fork(self) -> None:
        """In a process that executed code has forked: a signal to end is for it alone, not for the server."""
        signal.set_wakeup_fd(-1)
        for number in END_SIGNALS:
            if signal.getsignal(number) == self._on_end_signal:
                signal.signal(
                    number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                )
        self._let_signals_go()

    def _reply(self, request: Request, result: object) -> None:
        if request.wants_reply:
            self._writer.write(messages.render_result(request.id, result))

    def _error(self, request: Request, code: int, message: str) -> None:
        if request.wants_reply:
            self._writer.write(messages.render_error(request.id, code, message))

    def _notify(self, method: str, params: dict[str, object]) -> None:
        self._writer.write(messages.render_notification(method, params))
