"""A second opinion on a task log: the chain checked with nothing but the standard library."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HASH = re.compile(rb',"hash":"([0-9a-f]{64})"}\Z')


@dataclass(frozen=True)
class CheckedLog:
    """What a log holds: its lines, and the unreadable pieces as `(at, bytes)`.

    `breaks` says in words where the chain, the numbers or the naming of pieces are wrong; `unnamed` are the
    pieces behind the last line, which nobody could name yet.
    """

    lines: list[dict[str, Any]]
    pieces: list[tuple[int, int]]
    unnamed: list[tuple[int, int]]
    breaks: list[str]
    line_ends: int

    @property
    def hashes(self) -> dict[int, str]:
        return {line["n"]: line["hash"] for line in self.lines}


def check_log(path: str | Path) -> CheckedLog:
    """Read a log from its first byte to its last."""
    lines: list[dict[str, Any]] = []
    pieces: list[tuple[int, int]] = []
    unnamed: list[tuple[int, int]] = []
    breaks: list[str] = []
    at = line_ends = 0
    with Path(path).open("rb") as file:
        for raw in file:
            piece = raw.removesuffix(b"\n")
            line_ends += piece != raw
            if is_line(piece):
                line = json.loads(piece)
                last_n, last_hash = (lines[-1]["n"], lines[-1]["hash"]) if lines else (0, "0" * 64)
                if (line["n"], line["prev"]) != (last_n + 1, last_hash):
                    breaks.append(f"line {line['n']} at byte {at} follows line {last_n}")
                if [(p["at"], p["bytes"]) for p in line.get("recovered", [])] != unnamed:
                    breaks.append(f"line {line['n']} names {line.get('recovered')}, not {unnamed}")
                unnamed = []
                lines.append(
                    {k: line.get(k) for k in ("n", "prev", "hash", "session_id", "seq", "status", "code")}
                )
            else:
                pieces.append((at, len(piece)))
                unnamed.append((at, len(piece)))
            at += len(raw)
    return CheckedLog(lines, pieces, unnamed, breaks, line_ends)


def is_line(piece: bytes) -> bool:
    """Whether a piece is a whole line with the right hash."""
    found = _HASH.search(piece)
    return found is not None and hashlib.sha256(piece[:-75]).hexdigest().encode() == found[1]
