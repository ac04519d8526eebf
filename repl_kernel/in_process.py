"""The local route: runs code in this process.

request --> surroundings (streams) --> CodeRunner.run --> result
                 +--> collectors --> stdout, stderr --------+--> outcome
"""

from __future__ import annotations

import _thread
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType

from repl_kernel.capture import OpenSpool, OutputCollector, open_temporary_spool
from repl_kernel.errors import ExecutorClosed, InterruptedByCaller, RequestRefused
from repl_kernel.executor import OnDisplay, OnInput, OnOutput
from repl_kernel.failure import is_interrupt
from repl_kernel.late import LateCollector
from repl_kernel.local_interruption import LocalInterruption, SignalGate, ThreadGate
from repl_kernel.outcome import Gathered, assemble, past_time_limit
from repl_kernel.run_code import CodeRunner
from repl_kernel.surroundings import HostSurroundings, OwnSurroundings, Surroundings
from task_logger.record import ExecutionOutcome, ExecutionRequest, Isolation, Route

_QUESTION_BOUND_S = 0.7
"""How long code of the user's may run for a question; the caller is promised an answer within a second."""


class LocalExecutor:
    """Runs executions in the calling thread; the namespace is a module of its own."""

    route: Route = "local"
    isolation: Isolation = "none"

    def __init__(
        self,
        *,
        owns_process: bool = False,
        open_spool: OpenSpool = open_temporary_spool,
        open_capture: OpenSpool | None = None,
    ) -> None:
        """Make an empty namespace.

        `open_capture` opens the files that descriptors 1 and 2 go to, where those aren't spools: they are
        read while the code runs then, and so stay small.
        `owns_process` is for programs of ours, which execute on their main thread: descriptors 1 and 2 are
        captured as well, `__main__` is the namespace, and interrupts end blocking calls.
        """
        self._owns_process = owns_process
        self._turn = _thread.RLock()
        self._is_closed = False
        self._pid = os.getpid()
        self._late = LateCollector(open_spool)
        self._streams = (OutputCollector("stdout", open_spool), OutputCollector("stderr", open_spool))
        self._gate: ThreadGate | SignalGate = SignalGate() if owns_process else ThreadGate()
        self._interruption = LocalInterruption(self._gate)
        self._asking = LocalInterruption(self._gate)
        self._runner = self._new_runner()
        self._modules_seen = 0
        self._has_run = self._is_emptied = False
        self._surroundings: Surroundings = (
            OwnSurroundings(self._streams, self._late, open_capture or open_spool, open_capture is not None)
            if owns_process
            else HostSurroundings(self._streams)
        )

    def execute(
        self,
        request: ExecutionRequest,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        on_display: OnDisplay | None = None,
    ) -> ExecutionOutcome:
        """Run the request's code in this thread; see `Executor`. Nothing displays here."""
        with self._turn:
            if self._is_closed:
                raise ExecutorClosed("this executor is closed; make another one")
            gathered = Gathered("local", "none", self._streams)
            for stream in self._streams:
                if stream.size:
                    stream.begin()
            if self._is_emptied:
                gathered.parent = f"{request.session_id}:0"
                self._is_emptied = False
            self._has_run = True
            self._surroundings.begin(on_output, on_input)
            if len(sys.modules) != self._modules_seen:
                self._runner.forget_imports()
            self._interruption.arm(request.time_limit_s)
            try:
                result = self._runner.run(request.code, request.seq)
                if self._owns_process and os.getpid() != self._pid:
                    os._exit(0)  # a fork of the user's that ran off the end of the code: only we may go on
            finally:
                self._interruption.disarm()
                self._surroundings.end(gathered.notices)
            if self._late.has_some:
                gathered.late = self._late.take(gathered.artifacts)
            self._modules_seen = len(sys.modules)
            outcome = assemble(result, gathered)
            if outcome.status == "interrupted" or self._interruption.reason is not None:
                return self._judge(outcome, request)
            return outcome

    def _judge(self, outcome: ExecutionOutcome, request: ExecutionRequest) -> ExecutionOutcome:
        """Tell a time limit, an interrupt that was asked for, and a KeyboardInterrupt of the host's apart."""
        reason, limit_s = self._interruption.reason, request.time_limit_s
        if reason == "timeout" and limit_s is not None:
            if outcome.status == "interrupted" or outcome.elapsed_ms > limit_s * 1000:
                return past_time_limit(outcome, limit_s)
        elif reason is None and outcome.status == "interrupted":
            raise InterruptedByCaller(outcome)
        return outcome

    def interrupt(self) -> bool:
        """Interrupt the running execution; see `Executor`."""
        return self._interruption.begin("interrupted")

    def restart(self) -> None:
        """Empty the namespace; threads and programs that executions started go on."""
        with self._turn:
            self._runner.close()
            self._runner = self._new_runner()
            self._is_emptied = self._has_run

    def variables(self) -> list[Mapping[str, object]]:
        """Describe the variables; see `Executor`."""
        with self._turn:
            return list(self._runner.variables())

    def complete(self, code: str, cursor: int) -> Mapping[str, object]:
        """What can be typed at the cursor; see `Executor`.

        What the user's `__dir__` changes, stays changed; one that never comes back to Python is waited for.
        """
        from repl_kernel.cursor_reply import completion_reply

        answer = self._ask(lambda: self._runner.complete(code, cursor))
        return completion_reply([], cursor, cursor) if answer is None else answer

    def inspect(self, code: str, cursor: int, detail_level: int = 0) -> Mapping[str, object]:
        """What is known of the object under the cursor; see `Executor`. As `complete`."""
        from repl_kernel.cursor_reply import inspection_reply

        answer = self._ask(lambda: self._runner.inspect(code, cursor, detail_level))
        return inspection_reply(None) if answer is None else answer

    def _ask(self, question: Callable[[], dict[str, object]]) -> dict[str, object] | None:
        """The answer to a question that may run code of the user's, `None` where that fails or takes
        too long."""
        with self._turn:
            if self._is_closed:
                raise ExecutorClosed("this executor is closed; make another one")
            self._surroundings.begin_question()
            self._asking.arm(_QUESTION_BOUND_S)
            failure: BaseException | None = None
            try:
                try:
                    self._gate.is_open = True
                    return question()
                finally:
                    self._gate.close()
            except RequestRefused:
                raise
            except BaseException as exc:  # noqa: BLE001 - all else is the user's
                self._gate.close()
                failure = exc
            finally:
                self._asking.disarm()
                self._surroundings.end_question()
            if is_interrupt(failure) and self._asking.reason is None:
                raise failure  # the host's own
            return None

    def close(self) -> None:
        """Let go of the namespace and give back the streams."""
        self._interruption.begin("interrupted")
        with self._turn:
            if self._is_closed:
                return
            self._is_closed = True
            self._runner.close()
            self._surroundings.close()

    def _new_runner(self) -> CodeRunner:
        module = ModuleType("__main__")
        if self._owns_process:
            sys.modules["__main__"] = module
        return CodeRunner(module, self._gate)
