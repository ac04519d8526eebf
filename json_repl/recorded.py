"""An executor around an executor: what runs is put down before, and its line written after.

request --> pending file --> inner executor --> outcome --> one line --> record
"""

from __future__ import annotations

import _thread
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from repl_kernel.errors import ExecutorClosed, InterruptedByCaller, KernelError
from repl_kernel.executor import Executor, OnDisplay, OnInput, OnOutput
from task_logger.errors import LogClosed
from task_logger.record import (
    ExecutionError,
    ExecutionOutcome,
    ExecutionRecord,
    ExecutionRequest,
    Isolation,
    Route,
    Status,
    TaskIds,
)
from task_logger.session_log import SessionLog

_MAX_OPEN_LOGS = 32
"""A session whose `task_context` changes from call to call keeps this many logs open."""

RunAll = Callable[[Sequence[ExecutionRequest]], Sequence[ExecutionOutcome]]
OpenLog = Callable[[TaskIds], SessionLog]


class RecordedExecutor:
    """Records every execution of another executor, each in the log of its task; one at a time."""

    def __init__(self, inner: Executor, open_log: OpenLog, first_log: SessionLog, task: TaskIds) -> None:
        self._inner = inner
        self._open_log = open_log
        self._logs: OrderedDict[TaskIds, SessionLog] = OrderedDict({task: first_log})
        self._task, self._log = task, first_log
        self._turn = _thread.RLock()

    @property
    def route(self) -> Route:
        """That of the executor inside."""
        return self._inner.route

    @property
    def isolation(self) -> Isolation:
        """That of the executor inside."""
        return self._inner.isolation

    def record(
        self,
        request: ExecutionRequest,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        on_display: OnDisplay | None = None,
    ) -> ExecutionRecord:
        """Run a request and return its record, which is in the log then, or kept until it can be.

        A route that cannot run the request (no process to be had, say) makes that the outcome. Raises
        `InterruptedByCaller` once the line is written, `ExecutorClosed` (in a forked child too), and with
        `TASK_LOG_STRICT=1` the log's own errors. The caller lets one thread in at a time.
        """
        log = self._log if request.task is self._task else self._switch_log(request.task)
        try:
            log.begin(request)
        except LogClosed as exc:
            raise ExecutorClosed(str(exc)) from exc
        try:
            outcome = self._inner.execute(request, on_output, on_input, on_display)
        except InterruptedByCaller as exc:
            log.finish(request, exc.outcome)
            raise
        except ExecutorClosed:
            log.finish(request, self._failed("interrupted", "the session was closed before the code ran"))
            raise
        except KernelError as exc:
            outcome = self._failed(type(exc).__name__, str(exc))
        except KeyboardInterrupt:  # of the caller's, while the worker got ready
            log.finish(request, self._failed("KeyboardInterrupt", "the caller interrupted it", "interrupted"))
            raise
        except BaseException as exc:  # a callback of the caller's: the code may have run to any point
            log.finish(
                request,
                self._failed(type(exc).__name__, f"the caller's callback raised {type(exc).__name__}"),
            )
            raise
        return log.finish(request, outcome)

    def _failed(self, error_type: str, message: str, status: Status = "error") -> ExecutionOutcome:
        text = f"{error_type}: {message}\n"
        error = ExecutionError(type=error_type, message=message, traceback=text)
        return ExecutionOutcome(
            status=status,
            route=self.route,
            isolation=self.isolation,
            elapsed_ms=0.0,
            stderr=text,
            error=error,
        )

    def execute(
        self,
        request: ExecutionRequest,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        on_display: OnDisplay | None = None,
    ) -> ExecutionOutcome:
        """See `Executor`; `record` returns the log's head as well."""
        with self._turn:
            return self.record(request, on_output, on_input, on_display).outcome

    def interrupt(self) -> bool:
        """See `Executor`."""
        return self._inner.interrupt()

    def restart(self) -> None:
        """See `Executor`."""
        self._inner.restart()

    def variables(self) -> list[Mapping[str, object]]:
        """See `Executor`."""
        return self._inner.variables()

    def complete(self, code: str, cursor: int) -> Mapping[str, object]:
        """See `Executor`; nothing is recorded."""
        return self._inner.complete(code, cursor)

    def inspect(self, code: str, cursor: int, detail_level: int = 0) -> Mapping[str, object]:
        """See `Executor`; nothing is recorded."""
        return self._inner.inspect(code, cursor, detail_level)

    def record_all(self, requests: Sequence[ExecutionRequest], run: RunAll) -> list[ExecutionRecord]:
        """Run several requests of one task at once, and return their records, in their order.

        Where they can't be run, each has a line that says why, and the error is raised.
        """
        log = self._log if requests[0].task is self._task else self._switch_log(requests[0].task)
        log.begin_all(requests)
        try:
            outcomes = run(requests)
        except InterruptedByCaller as exc:
            _finish_all(log, requests, exc.outcomes)
            raise
        except BaseException as exc:
            failed = self._failed(type(exc).__name__, str(exc))
            _finish_all(log, requests, [failed] * len(requests))
            raise
        return _finish_all(log, requests, outcomes)

    def close(self) -> None:
        """Close the executor inside, then the logs, once a running execution has its line."""
        try:
            self._inner.close()
        finally:
            with self._turn:
                for log in self._logs.values():
                    log.close()

    def _switch_log(self, task: TaskIds) -> SessionLog:
        log = self._logs.get(task)
        if log is None:
            log = self._open_log(task)
            self._logs[task] = log
            if len(self._logs) > _MAX_OPEN_LOGS:
                self._logs.popitem(last=False)[1].close()
        self._logs.move_to_end(task)
        self._task, self._log = task, log
        return log


def _finish_all(
    log: SessionLog, requests: Sequence[ExecutionRequest], outcomes: Sequence[ExecutionOutcome]
) -> list[ExecutionRecord]:
    return [log.finish(request, outcome) for request, outcome in zip(requests, outcomes, strict=True)]
