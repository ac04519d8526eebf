"""What a whole log comes to: how many executions ended well, and what is damaged in it.

lines and damage of a log, in order -> DamageTally -> which damage no writer's death explains
                                    -> LogSummary
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from task_logger.reader import Damage, LogLine, LogReader, recovered_pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSummary:
    """One log in numbers; ids and `last` (a timestamp) are those of its last line, empty where it has none.

    `damaged` counts the places that no writer's death explains.
    """

    plan: str
    task: str
    name: str
    lines: int
    ok: int
    failed: int
    last: str
    bytes: int
    damaged: int
    path: str


class DamageTally:
    """Collects the damage of a log, and which of it a later line names as found and passed over."""

    def __init__(self) -> None:
        self.damage: list[Damage] = []
        self._named: set[tuple[int, int]] = set()

    def add(self, line: LogLine | Damage) -> None:
        """Take the next line of the log, or the next damage."""
        if isinstance(line, Damage):
            self.damage.append(line)
        else:
            self._named.update(recovered_pieces(line))

    def is_named(self, damage: Damage) -> bool:
        """Whether a later line names this piece: its writer died, and the next one went on behind it."""
        return (damage.at, damage.bytes) in self._named

    def alarming(self) -> list[Damage]:
        """Return the damage that is neither named nor the tail being written."""
        return [one for one in self.damage if one.kind != "torn_tail" and not self.is_named(one)]


def summarize(path: str) -> LogSummary:
    """Read a whole log; raises `LogNotFound`, `LogUnreadable` and `EncryptedLine`."""
    tally = DamageTally()
    succeeded = failed = 0
    last: dict[str, object] = {}
    with LogReader(path) as reader:
        for line in reader.lines():
            tally.add(line)
            if isinstance(line, LogLine):
                try:
                    last = orjson.loads(line.data)
                except ValueError as exc:  # forged, with the right hash
                    damage = Damage(
                        kind="unreadable", path=path, at=line.at, bytes=len(line.data), reason=str(exc)
                    )
                    tally.add(damage)
                    continue
                succeeded += last.get("success") is True
                failed += last.get("success") is not True
        stored_bytes = reader.stored_bytes()
    return LogSummary(
        plan=str(last.get("plan_id", "")),
        task=str(last.get("task_id", "")),
        name=str(last.get("task_name", "")),
        lines=succeeded + failed,
        ok=succeeded,
        failed=failed,
        last=str(last.get("timestamp", "")),
        bytes=stored_bytes,
        damaged=len(tally.alarming()),
        path=path,
    )
