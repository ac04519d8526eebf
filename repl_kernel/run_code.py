"""Compiles and runs one request in a namespace: the only exec of the product.

code text --compile--> Program --exec, eval--> value --repr--> result
                                    +-- raises --> ExecutionError
namespace --watch--> NamespaceChanges
"""

from __future__ import annotations

import _thread
import sys
from time import perf_counter_ns
from types import ModuleType
from typing import TYPE_CHECKING, cast

from repl_kernel.arrays import ndarray_types
from repl_kernel.code_result import CodeResult
from repl_kernel.failure import describe_failure, is_interrupt
from repl_kernel.namespace import MAX_RESET_NS, NamespaceWatcher
from repl_kernel.source import CO_COROUTINE, Compiler, Program, SourceKeeper
from task_logger.record import ExecutionError, Status

if TYPE_CHECKING:
    from collections.abc import Coroutine, Set

    from repl_kernel.event_loop import PersistentLoop
    from repl_kernel.worker_limits import WorkerLimits


_UNHURRIED_NS = 50 * MAX_RESET_NS
"""As if an execution had taken so long: the search for mutation in place then isn't cut short."""


class _Sample:
    """Stands for the user's objects when the way of a request is warmed up."""


class InterruptGate:
    """Whether an interrupt may raise in the executing thread now: only while the user's code runs."""

    __slots__ = ("has_missed", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self.has_missed = False
        """Whether an interrupt came while it was shut; whoever shuts it for a moment looks there."""

    def close(self) -> None:
        """From now on an interrupt has nothing to interrupt."""
        self.is_open = False


class CodeRunner:
    """Runs executions in one module's namespace, one at a time; the module is the user's `__main__`."""

    def __init__(self, module: ModuleType, gate: InterruptGate, hidden: Set[str] = frozenset()) -> None:
        """`hidden` names what is in the namespace and no variable."""
        self.namespace: dict[str, object] = module.__dict__
        self.namespace["__builtins__"] = sys.modules["builtins"]
        self.gate = gate
        self.sources = SourceKeeper()
        self._hidden = hidden
        self._compiler = Compiler()
        self._watcher = NamespaceWatcher(self.namespace, hidden)
        self._loop: PersistentLoop | None = None
        self._scratch: CodeRunner | None = None
        self.limits: WorkerLimits | None = None
        """Which of this process's limits may be behind what code raises; `None` without any."""

    def run(self, text: str, seq: int) -> CodeResult:
        """Run one execution; whatever its code raises, `SystemExit` included, is in the result."""
        filename = f"<execution {seq}>"
        program: Program | None = None
        bundle: dict[str, object] | None = None
        error: ExecutionError | None = None
        status: Status = "ok"
        started_ns = ended_ns = 0
        gate = self.gate
        limits = self.limits
        self.sources.register(filename, text)
        try:
            try:
                if limits is not None:
                    limits.begin_code()
                gate.is_open = True
                program = self._compiler.compile(text, filename)
                started_ns = perf_counter_ns()
                body, tail, awaits = program
                value: object = None
                if awaits:
                    value = self._persistent_loop().run(self._in_loop(program))
                else:
                    if body is not None:
                        eval(body, self.namespace)
                    if tail is not None:
                        value = eval(tail, self.namespace)
                if value is not None:
                    bundle = {"text/plain": safe_repr(value)}
                    value = None  # nothing of the user's may live longer for having been shown
                ended_ns = perf_counter_ns()
            finally:
                gate.close()
        except BaseException as exc:  # noqa: BLE001 - all of it is the user's
            ended_ns = perf_counter_ns()
            if limits is not None:
                limits.spare_memory()
            status, error = self._judge(exc, filename)
        elapsed_ns = ended_ns - started_ns if started_ns else 0
        self.sources.settle(filename, program)
        code = None if program is None else program.body or program.tail
        try:
            changes = self._watcher.changes(code, elapsed_ns)
        except MemoryError:  # the code has left us none
            if limits is None:
                raise
            limits.spare_memory()
            changes = self._watcher.changes(code, elapsed_ns)
        return CodeResult(status, elapsed_ns, bundle, error, changes)

    def _judge(self, exc: BaseException, filename: str) -> tuple[Status, ExecutionError]:
        """Describe what the code raised; its `__str__` may run for ever, so that can be interrupted too."""
        gate = self.gate
        try:
            try:
                gate.is_open = True
                error = describe_failure(exc, filename)
                if self.limits is not None:
                    error = self.limits.judge(exc, error)
                return "interrupted" if is_interrupt(exc) else "error", error
            finally:
                gate.close()
        except KeyboardInterrupt as interrupt:
            gate.close()
            text = "KeyboardInterrupt\n"
            return "interrupted", ExecutionError(
                type="KeyboardInterrupt", message=str(interrupt), traceback=text
            )

    async def _in_loop(self, program: Program) -> object:
        """Run code that awaits somewhere, all of it: what comes before the first await needs the loop too."""
        value: object = None
        for code in (program.body, program.tail):
            if code is not None:
                value = eval(code, self.namespace)
                if code.co_flags & CO_COROUTINE:
                    value = await cast("Coroutine[object, object, object]", value)
        return value if program.tail is not None else None

    def _persistent_loop(self) -> PersistentLoop:
        if self._loop is None:
            from repl_kernel.event_loop import PersistentLoop

            self._watcher.leave_out_import(PersistentLoop.__module__)  # asyncio is there for the user
            self._loop = PersistentLoop()
        return self._loop

    def forget_imports(self) -> None:
        """What the process around the executions has imported is none of theirs."""
        self._watcher.forget_imports()

    def has_background(self) -> bool:
        """Whether threads, or tasks that wait for the next execution that awaits, are left of ended
        executions."""
        loop = self._loop
        return _thread._count() > 0 or (loop is not None and loop.has_tasks())

    def warm_up(self) -> CodeResult:
        """Run the way of a request once, beside the namespace.

        After a fork the first write to each page copies it; this way the next request doesn't pay for that.
        """
        scratch = self._scratch
        if scratch is None:
            scratch = self._scratch = CodeRunner(ModuleType("__main__"), InterruptGate())
            scratch.namespace |= {"x": 1, "small": [1], "plain": _Sample(), "large": [0.5] * 2000}
            scratch._watcher.reset()
        if "array" not in scratch.namespace and (kinds := ndarray_types()):
            scratch.namespace["array"] = kinds[0]((8,))
            scratch._watcher.reset()
        self.namespace.copy()  # as its watcher will: that counts a reference more to each value
        scratch._watcher.changes(None, _UNHURRIED_NS)
        return scratch.run("x = 1", 0)

    def go_live(self) -> None:
        """This process was a sleeping copy and has become the live worker: what it shares is made its own."""
        if self._loop is not None:
            self._loop.separate()

    def own_fds(self) -> set[int]:
        """Descriptors that are ours, and no user's."""
        return set() if self._loop is None else self._loop.own_fds()

    def has_moved(self) -> None:
        """Do nothing: whoever needs the folder and the environment of this process asks for them then."""

    def variables(self) -> list[dict[str, object]]:
        """Describe the variables, sorted by name."""
        from repl_kernel.description import describe_all

        return describe_all(self.namespace, self._hidden)

    def complete(self, code: str, cursor: int) -> dict[str, object]:
        """What can be typed next; see `completion`. May run code of the user's: the caller bounds it."""
        from repl_kernel.completion import complete

        return complete(self.namespace, code, cursor)

    def inspect(self, code: str, cursor: int, detail_level: int) -> dict[str, object]:
        """What is known of the object under the cursor; see `inspection`. As `complete`."""
        from repl_kernel.inspection import inspect

        return inspect(self.namespace, code, cursor, detail_level)

    def close(self) -> None:
        """Close the event loop, where executions had one."""
        if self._loop is not None:
            self._loop.close()


def safe_repr(value: object) -> str:
    """`repr(value)`; where that fails, a text that says so: the execution itself did not fail."""
    try:
        return str.__str__(repr(value))  # a text, even where __repr__ returns something derived from it
    except Exception as exc:  # noqa: BLE001 - the user's __repr__ may raise anything
        return f"<{type(value).__name__} object; its __repr__ raised {type(exc).__name__}>"
