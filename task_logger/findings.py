"""What a verification finds: each thing with its place, its weight, and words for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["problem", "unproven", "note"]
"""`problem`: it is not as it was written. `unproven`: it may be. `note`: known, and explained."""

FindingKind = Literal[
    "altered",
    "cut",
    "missing",
    "inserted",
    "duplicated",
    "swapped",
    "piece_missing",
    "shifted",
    "broken_up",
    "unreadable",
    "torn",
    "torn_tail",
    "truncated",
    "other_head",
    "completeness",
    "artifact_missing",
    "artifact_damaged",
    "artifact_unchecked",
    "undecodable",
    "not_decrypted",
    "forged",
    "other_seal_key",
    "not_sealed",
    "seal_unchecked",
    "pending_running",
    "pending_unsettled",
    "pending_unreadable",
    "log_missing",
]

MAX_FINDINGS = 1_000
"""Of one log; the rest is only counted, so that memory stays flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found in a file.

    `line` counts the file's lines from 1, pieces included, and is 0 where it isn't about a line; `n` is the
    number a line has, or should have, in the chain, `None` where there is none. `at` and `bytes` are where it
    is in the file, and how long.
    """

    kind: FindingKind
    level: Level
    path: str
    line: int
    at: int
    bytes: int = 0
    n: int | None = None
    reason: str


class Findings:
    """Collects findings; behind `MAX_FINDINGS` notes, and as many others, it only counts."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.counts: dict[Level, int] = {"problem": 0, "unproven": 0, "note": 0}
        """How many there are of each level, kept or not."""

    def add(self, finding: Finding) -> None:
        """Take one more."""
        self.counts[finding.level] += 1
        if self.counts[finding.level] <= MAX_FINDINGS:
            self.kept.append(finding)
