"""The sessions of one isolated kernel: the one that cells run in, and those it was branched from.

%rewind, %snapshots, %branch, %tasklog --> KernelSessions.run --> text, and maybe another live session
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from repl_kernel.errors import KernelError
from repl_kernel.executor import OnDisplay, OnInput, OnOutput
from repl_kernel.jupyter.kernel_magics import Command
from task_logger.record import ExecutionError, ExecutionOutcome, ExecutionRecord, Isolation

_MB = 1_000_000


class KernelSession(Protocol):
    """What a kernel needs of a session; `json_repl.Session` on the worker route is one."""

    session_id: str
    log_path: str
    isolation: Isolation

    @property
    def last_seq(self) -> int: ...

    def execute(
        self,
        code: str,
        *,
        tags: Mapping[str, object] | None = None,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        on_display: OnDisplay | None = None,
    ) -> ExecutionRecord: ...

    def record_command(
        self, code: str, run: Callable[[], ExecutionOutcome], *, tags: Mapping[str, object] | None = None
    ) -> ExecutionRecord: ...

    def complete(self, code: str, cursor: int) -> dict[str, Any]: ...

    def inspect(self, code: str, cursor: int, detail_level: int = 0) -> dict[str, Any]: ...

    def history(self, last: int | None = None) -> list[dict[str, Any]]: ...

    def interrupt(self) -> bool: ...

    def ensure_snapshot(self) -> bool: ...

    def snapshots(self) -> list[dict[str, object]]: ...

    def rewind(self, seq: int) -> dict[str, object]: ...

    def branch(self, seq: int) -> KernelSession: ...

    def close(self) -> None: ...


class CommandRefused(KernelError):
    """A line magic of the kernel's makes no sense; nothing has changed."""


class KernelSessions:
    """All sessions of a kernel; `current` is the one that cells run in."""

    def __init__(self, first: KernelSession) -> None:
        self.current = first
        self._all = {first.session_id: first}
        self._origins: dict[str, str] = {}
        """Of each session that is a branch the state that it began with, as `parent` names it."""

    def run(self, command: Command, code: str, tags: Mapping[str, object]) -> ExecutionRecord:
        """Do what a command says, and record it in the session that it was given in."""
        session = self.current
        return session.record_command(code, lambda: self._outcome(session, command), tags=tags)

    def _outcome(self, session: KernelSession, command: Command) -> ExecutionOutcome:
        began_ns = time.perf_counter_ns()
        text, parent = "", None
        notices: Sequence[str] = ()
        try:
            if command.name == "rewind":
                seq = _number(command)
                notices = [str(notice) for notice in _listed(session.rewind(seq)["notices"])]
                text, parent = self._rewound(session, seq), self._name(session, seq)
            elif command.name == "branch":
                text = self._branch(session, command)
            elif command.argument:
                raise CommandRefused(f"%{command.name} takes no argument, not {command.argument!r}")
            else:
                text = _states(session) if command.name == "snapshots" else _log(session)
        except (KernelError, ValueError) as exc:
            return refused_outcome(type(exc).__name__, str(exc), session.isolation)
        return ExecutionOutcome(
            status="ok",
            route="worker",
            isolation=session.isolation,
            elapsed_ms=(time.perf_counter_ns() - began_ns) / 1e6,
            stdout=text,
            notices=tuple(notices),
            parent=parent,
        )

    def _branch(self, session: KernelSession, command: Command) -> str:
        if not command.argument:
            lines = [
                f"{'*' if each is session else ' '} {name}  {each.last_seq} executions\n"
                for name, each in self._all.items()
            ]
            return "the sessions of this kernel (*: cells run in it)\n" + "".join(lines)
        if command.argument in self._all:
            self.current = self._all[command.argument]
            return f"cells run in session {command.argument} again, after {session.session_id}\n"
        seq = _number(command)
        other = session.branch(seq)
        self._all[other.session_id] = other
        self._origins[other.session_id] = self._name(session, seq)
        self.current = other
        return (
            f"cells run in session {other.session_id} now, which begins with the state after {seq}\n"
            f"of session {session.session_id}; %branch {session.session_id} goes back to that\n"
        )

    def _rewound(self, session: KernelSession, seq: int) -> str:
        if seq:
            return f"the state after cell {seq} is live\n"
        if session.session_id in self._origins:
            return "the state that this session began with is live\n"
        return "the namespace is empty, as it was at first\n"

    def _name(self, session: KernelSession, seq: int) -> str:
        """The state after a cell, as `parent` names it."""
        origin = self._origins.get(session.session_id)
        return origin if seq == 0 and origin is not None else f"{session.session_id}:{seq}"

    def close(self) -> None:
        """Close them all; idempotent."""
        for session in self._all.values():
            session.close()


def refused_outcome(name: str, message: str, isolation: Isolation) -> ExecutionOutcome:
    """The outcome of what was not run; `name` and `message` say why."""
    text = f"{name}: {message}\n"
    return ExecutionOutcome(
        status="error",
        route="worker",
        isolation=isolation,
        elapsed_ms=0.0,
        stderr=text,
        error=ExecutionError(type=name, message=message, traceback=text),
    )


def _number(command: Command) -> int:
    if not re.fullmatch("[0-9]{1,18}", command.argument):  # no number of a cell is longer
        raise CommandRefused(
            f"%{command.name} needs the number of a cell, as in In[3]; not {command.argument!r}"
        )
    return int(command.argument)


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, (list, tuple)) else ()


def _states(session: KernelSession) -> str:
    kept = session.snapshots()
    if not kept:
        return "no state is kept yet\n"
    rows = [
        f"{each['seq']!s:>6}  {_float(each.get('age_s')):>8.1f} s ago  "
        f"{_float(each.get('extra_bytes')) / _MB:>8.1f} MB of its own\n"
        for each in kept
    ]
    return "  cell  states that %rewind and %branch can go to\n" + "".join(rows)


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _log(session: KernelSession) -> str:
    lines = session.history(1)
    newest = f"its newest line here: n {lines[-1]['n']}, hash {lines[-1]['hash']}\n" if lines else ""
    return f"{session.log_path}\nsession {session.session_id}, {session.last_seq} executions\n{newest}"
