"""What was done to a chain of lines, found in its runs: pure, from what a reader saw.

    lines and pieces, in the file's order -> runs of lines that follow each other, and the pieces between
    runs -> the way through them that keeps most lines; what it leaves out was inserted, duplicated or moved
    what is missing on that way -> altered or cut where unreadable bytes stand in its place, else missing

A log that nobody touched is one run, so memory doesn't grow with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from task_logger.codec import FIRST_PREV, ChainLink

ChangeKind = Literal["altered", "cut", "missing", "inserted", "duplicated", "swapped"]

MAX_RUNS = 1_000
"""A log in more runs than this was made of parts of others; and finding a way takes the square of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line or piece is: its number among the file's lines, from 1, and its offset."""

    line: int
    at: int


@dataclass(slots=True)
class Run:
    """Lines of which each follows the one before: the first and the last, and where they are."""

    first: ChainLink
    first_place: Place
    last: ChainLink
    last_place: Place

    def extends(self, before: Run | None) -> bool:
        """Whether this follows `before`, or is a log's start where there is none."""
        last_n, last_hash = (0, FIRST_PREV) if before is None else (before.last.n, before.last.hash)
        return self.first.n == last_n + 1 and self.first.prev == last_hash


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that are no line, and that no line names. `is_like_a_line`: it ends as a line does."""

    place: Place
    bytes: int
    is_like_a_line: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was done: to which lines (numbers, 0 where it is none of the log's), and where."""

    kind: ChangeKind
    place: Place
    bytes: int
    first_n: int
    last_n: int
    reason: str


Occurrences = Callable[[Iterable[str]], Mapping[str, int]]
"""Tells of each of these hashes how many lines of the log have it."""


def find_changes(items: list[Run | Piece], occurrences: Occurrences) -> list[Change]:
    """Name what was done to a log of these runs and pieces; pieces behind its last line aren't among them."""
    runs = [item for item in items if isinstance(item, Run)]
    if len(runs) == 1 and len(items) == 1 and runs[0].extends(None):
        return []
    if not runs:
        return []
    way = _longest_way(runs)
    strays = [run for run in runs if not any(run is kept for kept in way)]
    found = _between(items, way)
    gaps = {change: change.last_n - change.first_n + 1 for change in found if change.kind == "missing"}
    gone_on = _gone_on(strays, way[-1])
    ends = [run.last.hash for run in strays] + [run.first.hash for run in way[1:]]
    times = occurrences(ends) if ends else {}
    for stray in strays:
        if times.get(stray.last.hash, 0) < 2:
            change, gap = _moved(stray, gaps, gone_on)
            if gap is not None:
                gaps[gap] -= _count(stray)
        else:
            change = _named("duplicated", stray, "is there again")
        found.append(change)
    found = [one for one in found if gaps.get(one, 1) > 0]  # what was moved away is not missing
    for before, after in pairwise(way):
        if after.first.n <= before.last.n:
            found.append(_overlap(before, after, times))
    return sorted(found, key=lambda change: change.place.at)


def _longest_way(runs: list[Run]) -> list[Run]:
    """Choose the runs, in order and with growing numbers, that have most lines together."""
    scores: list[tuple[int, int]] = []  # lines kept, and joints that fit
    previous: list[int] = []
    for place, run in enumerate(runs):
        best, best_at = (_count(run), int(run.extends(None))), -1
        for earlier in range(place):
            before = runs[earlier]
            if before.last.n < run.last.n and before.first.n < run.first.n:
                kept, joints = scores[earlier]
                new = run.last.n - max(before.last.n, run.first.n - 1)
                score = (kept + new, joints + run.extends(before))
                if score > best:
                    best, best_at = score, earlier
        scores.append(best)
        previous.append(best_at)
    at = max(range(len(runs)), key=scores.__getitem__)
    way = []
    while at >= 0:
        way.append(runs[at])
        at = previous[at]
    return way[::-1]


def _count(run: Run) -> int:
    return run.last.n - run.first.n + 1


def _between(items: list[Run | Piece], way: list[Run]) -> list[Change]:
    """Name what is wrong at each joint of the way: pieces, gaps, lines that name another line before them."""
    found: list[Change] = []
    before: Run | None = None
    pieces: list[Piece] = []
    steps = iter(way)
    after = next(steps, None)
    skip_joint = False
    for item in items:
        if isinstance(item, Piece):
            pieces.append(item)
        elif item is after:
            following = next(steps, None)
            is_odd = _is_odd_one(before, item, following)
            found += _joint(before, item, pieces, is_odd=is_odd, skip=skip_joint)
            skip_joint = is_odd
            before, after, pieces = item, following, []
    return found + [_inserted_piece(piece) for piece in pieces]


def _is_odd_one(before: Run | None, run: Run, following: Run | None) -> bool:
    """Whether a single line has the right number, but fits neither the line before nor the one behind it."""
    if run.first is not run.last or following is None or run.extends(before) or following.extends(run):
        return False
    last_n = before.last.n if before else 0
    return run.first.n == last_n + 1 and following.first.n == run.last.n + 1


def _joint(before: Run | None, after: Run, pieces: list[Piece], *, is_odd: bool, skip: bool) -> list[Change]:
    last_n = before.last.n if before else 0
    missing = after.first.n - last_n - 1
    if missing > 0:
        return _gap(last_n + 1, after.first.n - 1, after.first_place, pieces)
    found = [_inserted_piece(piece) for piece in pieces]
    if missing < 0 or after.extends(before) or skip:
        return found
    if is_odd:
        reason = "it names another line before it, and the line behind it doesn't name it"
        changed = Change("altered", after.first_place, 0, after.first.n, after.first.n, reason)
    elif before is None:
        reason = "the first line names a line before it"
        changed = Change("altered", after.first_place, 0, 1, 1, reason)
    else:
        reason = f"line {after.first.n} was written behind another line {last_n} than this, or was made anew"
        changed = Change("altered", before.last_place, 0, last_n, last_n, reason)
    return [*found, changed]


def _gap(first_n: int, last_n: int, place: Place, pieces: list[Piece]) -> list[Change]:
    if not pieces:
        which = "line" if first_n == last_n else "lines"
        where = "the log begins with" if first_n == 1 else f"line {first_n - 1} is followed by"
        reason = f"{which} {_span(first_n, last_n)} should be here, but {where} line {last_n + 1}"
        return [Change("missing", place, 0, first_n, last_n, reason)]
    found = []
    for piece in pieces:
        kind: ChangeKind = "altered" if piece.is_like_a_line else "cut"
        what = (
            "its hash isn't that of its bytes" if piece.is_like_a_line else "these bytes are a part of a line"
        )
        reason = f"{what}; line {_span(first_n, last_n)} should be here"
        found.append(Change(kind, piece.place, piece.bytes, first_n, last_n, reason))
    return found


def _inserted_piece(piece: Piece) -> Change:
    reason = "bytes that are no line of this log, and that no line names as a dead writer's"
    return Change("inserted", piece.place, piece.bytes, 0, 0, reason)


def _gone_on(strays: list[Run], end: Run) -> list[Run]:
    """The runs that go on from the end of the way, which stand before it."""
    found = []
    for run in sorted(strays, key=lambda run: run.first.n):
        if run.extends(end):
            found.append(run)
            end = run
    return found


def _moved(stray: Run, gaps: Mapping[Change, int], gone_on: list[Run]) -> tuple[Change, Change | None]:
    """Name what a run off the way is; the second value is the gap that it came from."""
    for gap in gaps:
        if gap.first_n <= stray.first.n and stray.last.n <= gap.last_n:
            return _named("swapped", stray, "is not in its place"), gap
    if any(stray is run for run in gone_on):
        return _named("swapped", stray, "is not in its place"), None
    return _named("inserted", stray, "calls itself so, and is none of this chain"), None


def _named(kind: ChangeKind, stray: Run, what: str) -> Change:
    first_n, last_n = stray.first.n, stray.last.n
    return Change(kind, stray.first_place, 0, first_n, last_n, f"line {_span(first_n, last_n)} {what}")


def _overlap(before: Run, after: Run, times: Mapping[str, int]) -> Change:
    first_n, last_n = after.first.n, before.last.n
    span = _span(first_n, last_n)
    if times.get(after.first.hash, 0) > 1:
        return Change("duplicated", after.first_place, 0, first_n, last_n, f"line {span} is there again")
    reason = f"there is another line {span} behind it, from which the chain goes on"
    return Change("inserted", before.last_place, 0, first_n, last_n, reason)


def _span(first_n: int, last_n: int) -> str:
    return str(first_n) if first_n == last_n else f"{first_n} to {last_n}"
