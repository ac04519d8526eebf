"""A log's lineage as people read it, one line an execution, and as JSON.

Lineage -> _walk(): (position, rails) in the order of drawing -> lines

The way to a session's newest execution is drawn straight down, what branches off from it further in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from task_logger.display import one_line, printable
from task_logger.lineage import EMPTY_SEQ, Lineage

_MIN_CODE_CHARS = 12
"""How much of the code is shown however deep a branch is."""

_MAX_RAILS_CHARS = 36


@dataclass(frozen=True, slots=True)
class Strokes:
    """What rails are drawn with: past a branch, to a branch, where nothing is."""

    past: str
    to: str
    none: str = "   "


UNICODE = Strokes("│  ", "├─ ")
ASCII = Strokes("|  ", "|- ")


def tree_lines(lineage: Lineage, *, columns: int, strokes: Strokes = UNICODE) -> Iterator[str]:
    """Yield the lines of the drawing: the number of the log's line, rails, `seq`, the status, the code."""
    width = max([len(str(step.n)) for step in lineage.steps], default=1)
    for position, all_rails, is_entry in _walk(lineage, strokes):
        step = lineage.steps[position]
        rails = all_rails if len(all_rails) <= _MAX_RAILS_CHARS else f"…{all_rails[-_MAX_RAILS_CHARS:]}"
        if is_entry:
            indent = rails.removesuffix(strokes.to) + strokes.past if rails.endswith(strokes.to) else rails
            yield f"{'':{width}}  {indent}{_origin(lineage, position)}"
        status = printable(step.status) + (", rolled back" if step.is_rolled_back else "")
        start = f"{step.n:{width}}  {rails}{step.seq} {status}  "
        yield (start + one_line(step.code, max(_MIN_CODE_CHARS, columns - len(start)))).rstrip()


def _origin(lineage: Lineage, position: int) -> str:
    """What a line above the first execution of a session, or of a piece of one, says."""
    step, parent = lineage.steps[position], lineage.parents[position]
    text = f"session {printable(step.session_id)}"
    if parent is not None or step.parent is None:
        return text
    origin, _, seq = step.parent.rpartition(":")
    if origin == step.session_id and seq == str(EMPTY_SEQ):
        return f"{text}, from the empty namespace"
    return f"{text}, from {printable(step.parent)}, which is not in this log"


def _walk(lineage: Lineage, strokes: Strokes) -> Iterator[tuple[int, str, bool]]:
    """Yield position, rails, and whether a session is entered; without recursion: logs are long."""
    pending = [(root, "", "", True) for root in reversed(lineage.roots)]
    while pending:
        position, rails, below, is_entry = pending.pop()
        yield position, rails, is_entry
        straight = lineage.next_of.get(position)
        if straight is not None:
            pending.append((straight, below, below, False))
        branches = [child for child in lineage.children[position] if child != straight]
        session_id = lineage.steps[position].session_id
        for number, child in enumerate(reversed(branches)):
            is_last = number == 0 and straight is None
            is_other = lineage.steps[child].session_id != session_id
            inner = below + (strokes.none if is_last else strokes.past)
            pending.append((child, below + strokes.to, inner, is_other))


def tree_nodes(lineage: Lineage) -> Iterator[dict[str, object]]:
    """Yield each execution as a JSON object, with the names (`session_id:seq`) of its parent and children.

    `parent` is `null` where the execution started from the empty namespace.
    """
    for position, step in enumerate(lineage.steps):
        parent = lineage.parents[position]
        named = step.parent if step.parent is not None and not step.parent.endswith(f":{EMPTY_SEQ}") else None
        yield {
            "n": step.n,
            "name": step.name,
            "session_id": step.session_id,
            "seq": step.seq,
            "status": step.status,
            "rolled_back": step.is_rolled_back,
            "code": step.code,
            "parent": named if parent is None else lineage.steps[parent].name,
            "children": [lineage.steps[child].name for child in lineage.children[position]],
        }
