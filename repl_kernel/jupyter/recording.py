"""Executions of a kernel that runs in this process, put together from what is seen of them.

request --begin--> Recorder: written down before the code runs --> OpenExecution
messages --take--> of an open execution: its ObservedExecution; of an ended one, or none: late output
code objects, interrupts --> OpenExecution
reply --replied--> what changed in the namespace --> outcome --> Recorder: one line; then the reply is sent
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter_ns
from types import CodeType
from typing import IO, Any, Protocol

from repl_kernel.errors import RequestRefused
from repl_kernel.jupyter.observation import ObservedExecution, is_stderr, late_text
from repl_kernel.jupyter.recorded_session import bytes_of
from repl_kernel.late import LateCollector
from repl_kernel.namespace import NamespaceWatcher
from task_logger.record import (
    NO_CHANGES,
    Artifact,
    ExecutionOutcome,
    ExecutionRequest,
    NamespaceChanges,
    OutputName,
    Status,
)

_KNOWN_EXECUTIONS = 10_000
"""Ended executions whose late output is still told apart."""

_MAX_CODE_OBJECTS = 64
"""IPython compiles each statement by itself; the search for mutation starts with what these read."""


class Recorder(Protocol):
    """Writes down executions that it doesn't run."""

    def begin(self, code: str, tags: Mapping[str, object]) -> ExecutionRequest:
        """Write down what is about to run; raises `RequestRefused` where it must not run unrecorded."""
        ...

    def finish(self, request: ExecutionRequest, outcome: ExecutionOutcome) -> str | None:
        """Write its line; returns what the user must know of the log, `None` where nothing is new."""
        ...

    def open_spool(self) -> IO[bytes]:
        """See `OpenSpool`."""
        ...


@dataclass(slots=True, eq=False)
class OpenExecution:
    """An execution that hasn't replied."""

    request: ExecutionRequest
    observed: ObservedExecution
    codes: list[CodeType]
    beside: set[int]
    """The executions that were open at the same time: nobody can tell whose changes are whose."""
    shell_imports: set[str] = field(default_factory=set)
    """Modules that the shell loaded to show an error."""
    started_ns: int = 0
    elapsed_ns: int = 0
    was_interrupted: bool = False
    is_running: bool = False


class Recording:
    """The executions of one kernel; used by all of its threads."""

    def __init__(self, recorder: Recorder, hidden: Container[str]) -> None:
        """Nothing runs yet; `hidden` are the names that the shell itself puts into the namespace."""
        self._recorder = recorder
        self._hidden = hidden
        self._turn = threading.RLock()
        # Apart: looking at the user's objects can run code of theirs, which may wait for what takes messages.
        self._watching = threading.RLock()
        self._open: dict[str, OpenExecution] = {}
        self._seqs: OrderedDict[str, int] = OrderedDict()
        self._late = LateCollector(recorder.open_spool)
        self._watcher: NamespaceWatcher | None = None
        self._namespace: dict[str, object] = {}

    def begin(
        self, msg_id: str, code: str, tags: Mapping[str, object], namespace: dict[str, object]
    ) -> OpenExecution:
        """Write an execution down; raises `RequestRefused` where it must not run."""
        with self._watching:
            if self._watcher is None or namespace is not self._namespace:
                self._namespace = namespace
                self._watcher = NamespaceWatcher(namespace, self._hidden)
        with self._turn:
            if msg_id in self._open:
                raise RequestRefused("its msg_id is that of a request that still runs; nothing has run")
            request = self._recorder.begin(code, tags)
            execution = OpenExecution(
                request=request,
                observed=ObservedExecution(self._recorder.open_spool),
                codes=[],
                beside={other.request.seq for other in self._open.values()},
            )
            for other in self._open.values():
                other.beside.add(request.seq)
            self._open[msg_id] = execution
            self._seqs[msg_id] = request.seq
            if len(self._seqs) > _KNOWN_EXECUTIONS:
                self._seqs.popitem(last=False)
            return execution

    @property
    def is_idle(self) -> bool:
        """Whether no execution is open."""
        return not self._open

    def take(
        self, msg_type: str, content: Mapping[str, Any], parent_id: str | None, origin: str | None
    ) -> None:
        """Take in a message; see `MessageTap`."""
        with self._turn:
            owner = parent_id if origin is None else origin
            execution = self._open.get(owner) if owner is not None else None
            name: OutputName = "stderr" if is_stderr(msg_type, content) else "stdout"
            if execution is None:
                seq = self._seqs.get(owner) if owner is not None else None
                if text := late_text(msg_type, content):
                    self._late.of(name, seq).feed(bytes_of(text))
            elif msg_type == "stream" and isinstance(content.get("text"), str):
                execution.observed.take_output(name, bytes_of(content["text"]))
            else:
                execution.observed.take(msg_type, content)

    def leave_out_imports(self, execution: OpenExecution) -> None:
        """What was loaded since the last look is the shell's doing; the execution is about to do its own."""
        if not execution.beside:
            with self._watching:
                assert self._watcher is not None
                self._watcher.forget_imports()

    def finish(self, msg_id: str, reply: Mapping[str, Any] | None) -> str | None:
        """Have the line of an execution written; returns what the user must know of the log.

        `reply` of `None` means that there will be none. One that isn't open, or has its line, is left alone.
        """
        with self._turn:
            execution = self._open.get(msg_id)
            if execution is None:
                return None
        changes = self._changes(execution)
        with self._turn:
            if self._open.pop(msg_id, None) is None:
                return None  # the kernel has ended meanwhile, and that was its end too
            if reply is not None:
                execution.observed.replied(reply)
            request = execution.request
            notices: Sequence[str] = ()
            if execution.beside:
                others = sorted(execution.beside)
                request = replace(request, tags={**request.tags, "overlaps": others})
                notices = (f"ran beside {_listed(others)}: whose changes are whose is not known",)
            outcome = execution.observed.outcome(
                route="local",
                isolation="none",
                elapsed_ns=execution.elapsed_ns,
                changes=changes,
                status=_status_of(execution, reply),
                notices=notices,
            )
            if self._late.has_some:
                artifacts: list[Artifact] = list(outcome.artifacts)
                late = self._late.take(artifacts)
                outcome = replace(outcome, late_output=late, artifacts=tuple(artifacts))
            return self._recorder.finish(request, outcome)

    def _changes(self, execution: OpenExecution) -> NamespaceChanges:
        code = _joined(execution.codes)
        with self._watching:
            assert self._watcher is not None
            try:
                changes = self._watcher.changes(code, execution.elapsed_ns)
            except RuntimeError:  # another execution, or a thread, changed what was being looked at
                self._watcher.reset()
                changes = replace(NO_CHANGES, diff_complete=False)
        if execution.shell_imports:
            theirs = [name for name in changes.added_imports if name not in execution.shell_imports]
            changes = replace(changes, added_imports=theirs)
        return replace(changes, diff_complete=False) if execution.beside else changes

    def close(self) -> None:
        """Finish what is still open: the kernel ends."""
        with self._turn:
            for msg_id, execution in list(self._open.items()):
                execution.was_interrupted = True
                self.finish(msg_id, None)


class CodeWatch:
    """Times the code objects of an execution as they run: a context for each of them."""

    __slots__ = ("_execution", "_is_outermost")

    def __init__(self, execution: OpenExecution, code: CodeType) -> None:
        self._execution = execution
        self._is_outermost = not execution.is_running
        if len(execution.codes) < _MAX_CODE_OBJECTS:
            execution.codes.append(code)

    def __enter__(self) -> None:
        if self._is_outermost:
            self._execution.is_running = True
            start_clock(self._execution)

    def __exit__(self, *_: object) -> None:
        if self._is_outermost:
            self._execution.is_running = False
            stop_clock(self._execution)


def start_clock(execution: OpenExecution) -> None:
    """From now on it is the user's code that runs."""
    execution.started_ns = perf_counter_ns()


def stop_clock(execution: OpenExecution) -> bool:
    """What follows is not the user's time; returns whether the clock was running."""
    if not execution.started_ns:
        return False
    execution.elapsed_ns += perf_counter_ns() - execution.started_ns
    execution.started_ns = 0
    return True


def _status_of(execution: OpenExecution, reply: Mapping[str, Any] | None) -> Status:
    has_error = execution.observed.has_error
    if execution.was_interrupted and (has_error or reply is None):
        return "interrupted"
    return "error" if has_error or reply is None else "ok"


def _joined(codes: Sequence[CodeType]) -> CodeType | None:
    """A code object that reads what all of them read; never run."""
    if len(codes) <= 1:
        return codes[0] if codes else None
    return _NO_CODE.replace(co_consts=tuple(codes))


_NO_CODE = compile("", "<statements of one cell>", "exec")


def _listed(seqs: Sequence[int]) -> str:
    return ", ".join(map(str, seqs))
