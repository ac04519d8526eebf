"""Whether a task log is as it was written: chain, artifacts, seals, head.

    reader -> lines, pieces -> pieces that a line names ----------------> notes
                            -> runs of lines -> chain_runs -------------> altered, missing, moved …
                            -> artifacts they name, seals they bear ----> damaged, forged …
    head of an earlier reply -> cut off behind it, or made anew --------> truncated, other_head
                                                                          all together: a LogVerdict

Nothing is written, and no more than one line is in memory. Only a log that is damaged is read twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from task_logger.chain_runs import MAX_RUNS, Piece, Place, Run, find_changes
from task_logger.codec import FIRST_PREV, ChainLink
from task_logger.findings import Finding, FindingKind, Findings, Level
from task_logger.line_checks import LineChecks
from task_logger.reader import Damage, LogLine, LogReader, recovered_pieces

Head = tuple[int, str]
"""Number and hash of a line, as a reply's `debug_info.log` had them."""

_LINE_END = re.compile(rb',"n":[0-9]+,"prev":"[0-9a-f]{64}","hash":"[0-9a-f]{64}"\}\Z')
_NO_NUMBER = 1 << 63
_MOST_CAREFUL = 256  # lines that are taken one by one before many are tried at once again
_PAGE_BYTES = 4096  # the kernel copies page by page: a write that is killed ends where one does


@dataclass(frozen=True, slots=True, kw_only=True)
class LogVerdict:
    """What was found in one log.

    `lines` counts those whose hash is right, `head` is the last of them as (n, hash), `None` where there is
    none. `complete_to` is the number of the line up to which a head proves that nothing is missing, 0 without
    one. `keyed` names how lines were checked with a key: "seal", "A256GCM", both, or nothing. `counts` counts
    the findings of each level, also those too many to be in `findings`.
    """

    path: str
    lines: int
    bytes: int
    head: Head | None
    complete_to: int
    keyed: tuple[str, ...]
    findings: tuple[Finding, ...]
    counts: Mapping[Level, int]

    def is_yes(self, *, strict: bool = False) -> bool:
        """Whether the log is as it was written; with `strict` what can't be proven is a no, too."""
        return not self.counts["problem"] and not (strict and self.counts["unproven"])


def verify_log(
    path: str,
    *,
    head: Head | None = None,
    checks: LineChecks | None = None,
    reader: LogReader | None = None,
) -> LogVerdict:
    """Check a log from its first byte to its present end.

    `head` is that of an earlier reply; `checks` looks at seals, encryption and artifacts, at none where it is
    `None`; a `reader`, which doesn't decrypt, reads it in another way than from its file, and is closed.
    Raises `LogNotFound` and `LogUnreadable`.
    """
    walk = _Walk(path, head, checks or LineChecks(path))
    with reader or LogReader(path, decrypts=False) as opened:
        careful = 1
        while True:
            if walk.take_run(opened):
                careful = 1  # most often it is only that a line isn't in memory as a whole
            elif not _take_some(walk, opened, careful):
                break
            else:
                careful = min(2 * careful, _MOST_CAREFUL)
        return walk.verdict(max(opened.seen_bytes, walk.end))


def _take_some(walk: _Walk, reader: LogReader, count: int) -> bool:
    """Take so many lines, or more, one by one; returns whether there may be more."""
    for seen in reader.lines():
        if isinstance(seen, LogLine):
            walk.take_line(seen)
            count -= 1
            if count <= 0 and walk.is_quick:
                return True
        elif seen.kind != "chain_break":  # judged here, from all runs together
            walk.take_piece(seen)
        if len(walk.items) > MAX_RUNS:
            break
    return False


class _Walk:
    """The state of one way through a log."""

    def __init__(self, path: str, head: Head | None, checks: LineChecks) -> None:
        self.items: list[Run | Piece] = []
        """Runs, and the pieces between them that no line names: what is wrong with the chain follows."""
        self.end = 0
        """Where what was seen ends."""
        self._path = path
        self._head, self._head_found = head, ""
        self._checks = checks
        self._findings = Findings()
        self._run: Run | None = None  # the one that goes on
        self._waiting: list[Piece] = []  # pieces since the last line: the next one names them, or nobody
        self._last = (0, FIRST_PREV)
        self._lines = self._pieces = 0

    @property
    def is_quick(self) -> bool:
        """Whether lines may be taken many at once: nothing but their chain is looked at."""
        return self._checks.is_quick and not self._waiting and (self._run is not None or not self._lines)

    def take_run(self, reader: LogReader) -> bool:
        """Take the next lines, as many as can be taken at once; returns whether there were any."""
        if not self.is_quick:
            return False
        last_n, last_hash = self._last
        stop_n = self._head[0] if self._head is not None and self._head[0] > last_n else _NO_NUMBER
        after = ChainLink(last_n, "", last_hash)
        found = reader.run(after, before_n=stop_n, unless=self._checks.looked_for)
        if found is None:
            return False
        first_place = Place(self._lines + self._pieces + 1, self.end)
        self._lines += found.lines
        place = Place(self._lines + self._pieces, self.end + found.last_at)
        if self._run is None:
            first = found.last if found.lines == 1 else ChainLink(1, FIRST_PREV, "")
            self._run = Run(first, first_place, found.last, place)
            self.items.append(self._run)
        else:
            self._run.last, self._run.last_place = found.last, place
        self._last = (found.last.n, found.last.hash)
        self.end += found.bytes
        return True

    def take_line(self, line: LogLine) -> None:
        link, data = line.link, line.data
        self._lines += 1
        place = Place(self._lines + self._pieces, line.at)
        if self._waiting or b',"recovered":[' in data:
            self._match_pieces(line, place)
        run = self._run
        if run is not None and link.prev == self._last[1] and link.n == self._last[0] + 1:
            run.last, run.last_place = link, place
        else:
            self._run = Run(link, place, link, place)
            self.items.append(self._run)
        self._last = (link.n, link.hash)
        self.end = line.at + len(data) + 1
        if self._head is not None and link.n == self._head[0] and self._head_found != self._head[1]:
            self._head_found = link.hash
        self._checks.take(line, place.line, self._findings)

    def take_piece(self, damage: Damage) -> None:
        self._pieces += 1
        place = Place(self._lines + self._pieces, damage.at)
        self.end = damage.at + damage.bytes + (damage.kind != "torn_tail")
        self._waiting.append(Piece(place, damage.bytes, _LINE_END.search(damage.end) is not None))

    def _match_pieces(self, line: LogLine, place: Place) -> None:
        """Tell the pieces before a line that it names from those that it doesn't.

        By their lengths, in order: offsets are not what they were behind anything taken out or put in.
        """
        named = recovered_pieces(line)
        waiting, self._waiting = self._waiting, []
        for piece in waiting:
            if named and named[0][1] == piece.bytes:
                del named[0]
                self._add(
                    "torn",
                    "note",
                    piece.place,
                    "its writer died; the next line names it",
                    size_bytes=piece.bytes,
                )
            else:
                self.items.append(piece)
                self._run = None
        for at, size_bytes in named:
            reason = f"this line names a piece of {size_bytes} bytes, then at {at}, that is not before it"
            self._add("piece_missing", "problem", place, reason, n=line.link.n)

    def verdict(self, size_bytes: int) -> LogVerdict:
        """Judge what was seen, with all of the log read that will be."""
        if len(self.items) > MAX_RUNS:
            reason = f"the chain is in more than {MAX_RUNS} parts; not looked at further, nor are they named"
            self._add("broken_up", "problem", Place(self._lines + self._pieces, self.end), reason)
        else:
            for change in find_changes(self.items, lambda hashes: _occurrences(self._path, hashes)):
                changed_bytes, n = change.bytes, change.first_n or None
                self._add(change.kind, "problem", change.place, change.reason, size_bytes=changed_bytes, n=n)
        for piece in self._waiting:
            self._add_end_piece(piece, size_bytes)
        complete_to = self._judge_head()
        self._checks.finish(self._findings)
        return LogVerdict(
            path=self._path,
            lines=self._lines,
            bytes=size_bytes,
            head=self._last if self._lines else None,
            complete_to=complete_to,
            keyed=self._checks.keyed,
            findings=tuple(sorted(self._findings.kept, key=lambda finding: finding.at)),
            counts=self._findings.counts,
        )

    def _add_end_piece(self, piece: Piece, size_bytes: int) -> None:
        """Judge a piece behind the last line, which no line could name yet."""
        last_n = self._last[0]
        is_last = piece is self._waiting[-1]
        ends_in_lf = piece.place.at + piece.bytes < size_bytes
        kind: FindingKind = "torn"
        level: Level = "unproven"
        if piece.is_like_a_line:
            kind, level = "altered", "problem"
            reason = f"its hash isn't that of its bytes; line {last_n + 1} should be here"
        elif is_last and not ends_in_lf:
            kind = "torn_tail"
            reason = (
                f"torn_tail({last_n}): a part of line {last_n + 1}: it is being written, or its writer died, "
                "or the log was cut here"
            )
        elif is_last and size_bytes % _PAGE_BYTES:
            kind, level = "cut", "problem"
            reason = f"no line, nor what a dead writer leaves; line {last_n + 1} should be here"
        else:
            reason = "a part of a line that no line names yet: its writer died, or it was cut"
        self._add(kind, level, piece.place, reason, size_bytes=piece.bytes, n=last_n + 1)

    def _judge_head(self) -> int:
        """Compare with the head of an earlier reply; returns the number up to which nothing is missing."""
        place = Place(self._lines + self._pieces, self.end)
        last_n = self._last[0]
        if self._head is None:
            reason = (
                f"complete only if line {last_n} is the head of the last reply, which can't be proven "
                "without it (--head N:HASH): lines cut off leave no trace, nor do those lost with the power "
                "where TASK_LOG_FSYNC was off (unsynced_tail_possible)"
            )
            self._add("completeness", "unproven", place, reason)
            return 0
        n, wanted = self._head
        if self._head_found == wanted:
            return n
        if self._head_found:
            reason = f"line {n} has hash {self._head_found}, not that of the head: the log was made anew"
            self._add("other_head", "problem", place, reason, n=n)
        elif n > last_n:
            missing = "1 record" if n - last_n == 1 else f"{n - last_n} records"
            self._add(
                "truncated", "problem", place, f"truncated: {missing} missing behind line {last_n}", n=n
            )
        else:
            self._add("other_head", "problem", place, f"line {n}, which the head names, isn't there", n=n)
        return 0

    def _add(
        self,
        kind: FindingKind,
        level: Level,
        place: Place,
        reason: str,
        *,
        size_bytes: int = 0,
        n: int | None = None,
    ) -> None:
        self._findings.add(
            Finding(
                kind=kind,
                level=level,
                path=self._path,
                line=place.line,
                at=place.at,
                bytes=size_bytes,
                n=n,
                reason=reason,
            )
        )


def _occurrences(path: str, hashes: Iterable[str]) -> Mapping[str, int]:
    """Count the lines with each of these hashes, in another way through the log."""
    wanted = frozenset(hashes)
    found: Counter[str] = Counter()
    with LogReader(path, decrypts=False) as reader:
        for seen in reader.lines():
            if isinstance(seen, LogLine) and seen.link.hash in wanted:
                found[seen.link.hash] += 1
    return found
