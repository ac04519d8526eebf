"""Which execution started from the state of which: a log's records as a forest.

records -> Step, one each -> lineage() -> Lineage: for each step its parent and its children

A record names its parent only where that isn't the execution before it in its session (`rewind`, a restored
worker, a branch, candidates of `speculate`), so the others are found by their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from task_logger.record import ExecutionRecord

EMPTY_SEQ = 0
"""`session_id:0` names the empty namespace that a session began with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the lineage takes of an execution: its line's number `n`, its name, the parent that it gives."""

    n: int
    session_id: str
    seq: int
    parent: str | None
    status: str
    is_rolled_back: bool
    code: str

    @property
    def name(self) -> str:
        """The execution as `parent` of others names it."""
        return f"{self.session_id}:{self.seq}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """A forest over `steps`, by position: the parent of each (`None` for a root), its children in order.

    `roots` are in order as well; one whose step gives a parent starts from a state that isn't in this log.
    `next_of` has, for each step that its session went on from, the child on the way to the newest execution.
    """

    steps: Sequence[Step]
    parents: Sequence[int | None]
    children: Sequence[Sequence[int]]
    roots: Sequence[int]
    next_of: Mapping[int, int]


def step_of(record: ExecutionRecord) -> Step:
    """Return what the lineage takes of a record."""
    request, outcome = record.request, record.outcome
    return Step(
        n=record.head.n if record.head else 0,
        session_id=request.session_id,
        seq=request.seq,
        parent=outcome.parent,
        status=outcome.status,
        is_rolled_back=outcome.rolled_back,
        code=request.code,
    )


def lineage(steps: Iterable[Step]) -> Lineage:
    """Return the forest of these steps.

    Where a name is there twice its first step counts. A circle, which only a forged log can hold, is cut at
    its first step.
    """
    steps = list(steps)
    positions: dict[str, int] = {}
    for position, step in enumerate(steps):
        positions.setdefault(step.name, position)
    parents = _parents(steps, positions)
    _cut_circles(parents)
    children: list[list[int]] = [[] for _ in steps]
    for position, parent in enumerate(parents):
        if parent is not None:
            children[parent].append(position)
    roots = [position for position, parent in enumerate(parents) if parent is None]
    next_of = _next_of(steps, parents)
    return Lineage(steps=steps, parents=parents, children=children, roots=roots, next_of=next_of)


def _parents(steps: Sequence[Step], positions: dict[str, int]) -> list[int | None]:
    before: dict[int, int] = {}
    last_of: dict[str, int] = {}
    for position in sorted(positions.values(), key=lambda position: steps[position].seq):
        session_id = steps[position].session_id
        if session_id in last_of:
            before[position] = last_of[session_id]
        last_of[session_id] = position
    parents: list[int | None] = []
    for step in steps:
        if step.parent is not None:
            parents.append(positions.get(step.parent))
        else:
            parents.append(before.get(positions[step.name]))
    return parents


def _cut_circles(parents: list[int | None]) -> None:
    """Make the first step of each circle a root."""
    is_sound = [False] * len(parents)
    for start in range(len(parents)):
        path: set[int] = set()
        position: int | None = start
        while position is not None and not is_sound[position] and position not in path:
            path.add(position)
            position = parents[position]
        if position in path:
            first = circled = position
            while (circled := parents[circled]) != position:  # type: ignore[assignment]  # a circle has no end
                first = min(first, circled)
            parents[first] = None
        for position in path:
            is_sound[position] = True


def _next_of(steps: Sequence[Step], parents: Sequence[int | None]) -> dict[int, int]:
    """Walk from each execution, the newest first, to its session's start; who passes a step first counts."""
    next_of: dict[int, int] = {}
    is_passed = [False] * len(steps)
    for position in sorted(range(len(steps)), key=lambda position: -steps[position].seq):
        child = position
        while not is_passed[child]:
            is_passed[child] = True
            parent = parents[child]
            if parent is None or steps[parent].session_id != steps[child].session_id:
                break
            next_of.setdefault(parent, child)
            child = parent
    return next_of
