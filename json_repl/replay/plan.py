"""What to run in which state: pure, from the lines of a recording.

recorded lines -> in the order of each session's numbers -> PlannedStep: starts from `before`, leaves `after`

States are named as in the log: `session_id:seq`, and `session_id:0` for the empty namespace. A line names its
`parent` only where that isn't the execution before it in its session. An execution that was rolled back
leaves the state that it started from; so does one that is skipped, as well as can be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from json_repl.replay.comparison import Difference
from json_repl.replay.recording import Fault, RecordedLine
from json_repl.replay.shells import is_kernel_command
from task_logger.lineage import EMPTY_SEQ
from task_logger.record import ExecutionRecord

RUN_IF_ASKED = ("crashed", "timeout")
"""What is only run where it was asked for: how it ended depends on more than its code."""

_NEVER_RUN = {
    "unknown": "nobody knows how it ended: its session died in it",
    "interrupted": "somebody interrupted it, which a replay can't do at the same moment",
}
_NOT_RUN_ERRORS = frozenset({
    "CannotFork", "ExecutorClosed", "LimitUnavailable", "PreloadFailed", "RequestRefused",
    "SandboxUnavailable", "SnapshotGone", "SnapshotLost", "SnapshotRefused", "WorkerStartFailed",
})  # fmt: skip
"""Errors of the session's, where the code never ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One execution to replay.

    `before` is the state that it starts from, `None` where that isn't in the recording; `after` is its own
    name, `leaves` the state that those after it find: `before` where it is skipped or was rolled back. `skip`
    says why it isn't run, `None` where it is. `stands_in_for` is the number that its line should have among
    those of its session, `None` where it has that.
    """

    line: RecordedLine
    before: str | None
    leaves: str | None
    skip: str | None
    stands_in_for: int | None = None

    @property
    def session_id(self) -> str:
        """Its session."""
        return self.line.record.request.session_id

    @property
    def after(self) -> str:
        """The state after it, as the log names it."""
        return f"{self.session_id}:{self.line.record.request.seq}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of a replay, in the order in which they can run, and what is wrong with their lineage."""

    steps: tuple[PlannedStep, ...]
    faults: tuple[Fault, ...]

    def until(self, number: int) -> Plan:
        """The same without the lines after `number`."""
        return replace(self, steps=tuple(step for step in self.steps if step.line.number <= number))


def empty_state(session_id: str) -> str:
    """The name of a session's empty namespace."""
    return f"{session_id}:{EMPTY_SEQ}"


def session_of(state: str) -> str:
    """The session that a state's name belongs to."""
    return state.rpartition(":")[0]


_NO_MORE: Mapping[int, str] = {}


def make_plan(
    lines: Sequence[RecordedLine], include: Collection[str] = (), more_skips: Mapping[int, str] = _NO_MORE
) -> Plan:
    """Plan the replay of these lines.

    `include` names statuses that are run although they usually aren't, `more_skips` lines by number that
    can't be run, and why.
    """
    faults: list[Fault] = []
    steps: list[PlannedStep] = []
    leaves: dict[str, str | None] = {}
    last_of: dict[str, str] = {}
    for line, expected in _in_order(lines, faults):
        record = line.record
        session_id, seq = record.request.session_id, record.request.seq
        parent = record.outcome.parent
        if parent is None:
            parent = last_of.get(session_id) or empty_state(session_id)
            _tell_gap(line, parent, faults)
        last_of[session_id] = name = f"{session_id}:{seq}"
        is_known = parent in leaves or parent.endswith(f":{EMPTY_SEQ}")
        before = leaves.get(parent, parent if is_known else None)
        skip = more_skips.get(line.number) or why_skipped(record, include)
        if before is None:
            skip = f"it starts from {parent}, which is not in this recording, or can't be had"
        step = PlannedStep(
            line=line,
            before=before,
            leaves=before if skip is not None or record.outcome.rolled_back else name,
            skip=skip,
            stands_in_for=expected if expected != seq else None,
        )
        leaves[name] = step.leaves
        steps.append(step)
    return Plan(steps=tuple(steps), faults=tuple(faults))


def misplaced(step: PlannedStep) -> tuple[Difference, ...]:
    """The difference of a line that doesn't stand where its number belongs; none for all others."""
    if step.stands_in_for is None:
        return ()
    seq, due = str(step.line.record.request.seq), str(step.stands_in_for)
    column = next((at for at, (one, other) in enumerate(zip(seq, due, strict=False)) if one != other), 0) + 1
    return (Difference(field="seq", line=1, column=column, recorded=seq, replayed=due, is_random=False),)


def why_skipped(record: ExecutionRecord, include: Collection[str] = ()) -> str | None:
    """Why an execution isn't replayed, `None` where it is."""
    status = record.outcome.status
    if status in _NEVER_RUN:
        return _NEVER_RUN[status]
    if status in RUN_IF_ASKED and status not in include:
        how = "its worker died" if status == "crashed" else "it ran into its time limit"
        return f"{how}; --include {status} runs it"
    if record.request.actor is None:
        return "it was written by another program, not by a session"
    if record.outcome.route == "jupyter":
        return "it was recorded on another kernel"
    if is_kernel_command(record):
        return "the kernel answered it, no code ran; the lines after it start from the state that it left"
    return _why_not_runnable(record)


def _why_not_runnable(record: ExecutionRecord) -> str | None:
    outcome = record.outcome
    error = outcome.error
    if error is None or outcome.elapsed_ms or error.line is not None:
        return None
    if error.traceback != f"{error.type}: {error.message}\n":
        return None
    if error.type in _NOT_RUN_ERRORS or error.message == f"the caller's callback raised {error.type}":
        return f"it never ran: {error.type}"
    return None


def _in_order(lines: Sequence[RecordedLine], faults: list[Fault]) -> Iterable[tuple[RecordedLine, int]]:
    """Each place of a session's line with the session's next line by number, and the number found there.

    Of two lines with one name the first counts.
    """
    places: dict[str, list[RecordedLine]] = {}
    kept: list[RecordedLine] = []
    seen: dict[str, int] = {}
    for line in lines:
        request = line.record.request
        name = f"{request.session_id}:{request.seq}"
        if name in seen:
            reason = f"execution {name} is there already, in line {seen[name]}"
            faults.append(Fault(number=line.number, kind="twice", reason=reason))
            continue
        seen[name] = line.number
        places.setdefault(request.session_id, []).append(line)
        kept.append(line)
    ordered = {
        session_id: iter(sorted(own, key=lambda line: line.record.request.seq))
        for session_id, own in places.items()
    }
    expected_at: dict[int, int] = {}
    in_order = []
    for line in kept:
        due = next(ordered[line.record.request.session_id])
        expected_at[line.number] = due.record.request.seq
        in_order.append(due)
    return [(line, expected_at[line.number]) for line in in_order]


def _tell_gap(line: RecordedLine, before: str, faults: list[Fault]) -> None:
    """Say so where executions of a session are missing before one that doesn't name its parent."""
    seq, last = line.record.request.seq, int(before.rpartition(":")[2])
    if seq != last + 1:
        missing = f"execution {seq - 1}" if seq == last + 2 else f"executions {last + 1} to {seq - 1}"
        reason = f"{missing} of its session: not in this recording; what it did is lacking here"
        faults.append(Fault(number=line.number, kind="gap", reason=reason))
