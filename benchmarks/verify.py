"""How fast a log is verified, beside what SHA-256 alone takes on this machine, and in how much memory.

lines of 500 B, 64 KB and 1 MB; 1,000,000 short lines; sealed lines, with the key
peak memory: that of a process of its own, which verifies 1,000,000 lines, over that of 1,000
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.table import markdown
from task_logger.codec import FIRST_PREV, seal
from task_logger.line_checks import LineChecks
from task_logger.sealing import Sealer
from task_logger.verification import verify_log

QUICK = {"total_bytes": 32 << 20, "many_lines": 50_000}

_LINE_BYTES = {"500 B": 500, "64 KB": 64 << 10, "1 MB": 1 << 20}
_SEALER = Sealer(bytes(32))
_LOOKS = 3

_PEAK = """
import resource, sys
from task_logger.verification import verify_log
verify_log(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _write(path: Path, line_bytes: int, lines: int, sealer: Sealer | None = None) -> int:
    prev = FIRST_PREV
    body = b'{"code":"%b"' % (b"x" * max(1, line_bytes - 200))
    with path.open("wb") as file:
        for n in range(1, lines + 1):
            line, prev = seal(body, n, prev, (), sealer)
            file.write(line)
        return file.tell()


def _mb_per_s(path: Path, size_bytes: int, sealer: Sealer | None = None) -> float:
    best_s = float("inf")
    for _ in range(_LOOKS):
        began_s = time.perf_counter()
        verdict = verify_log(str(path), checks=LineChecks(str(path), sealer=sealer))
        best_s = min(best_s, time.perf_counter() - began_s)
        assert verdict.is_yes()
    return size_bytes / best_s / 1e6


def _sha256_mb_per_s() -> float:
    data = bytes(64 << 20)
    best_s = float("inf")
    for _ in range(_LOOKS):
        began_s = time.perf_counter()
        hashlib.sha256(data).digest()
        best_s = min(best_s, time.perf_counter() - began_s)
    return len(data) / best_s / 1e6


def _peak_kb(path: Path) -> int:
    told = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True
    )
    return int(told.stdout)


def measure(total_bytes: int = 256 << 20, many_lines: int = 1_000_000) -> dict[str, Any]:
    """Return MB/s of each kind of log, and how memory grows with lines."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="verify-benchmark-") as folder:
        path = Path(folder) / "1.log.jsonl"
        for name, line_bytes in _LINE_BYTES.items():
            size_bytes = _write(path, line_bytes, total_bytes // line_bytes)
            rows.append({"case": f"lines of {name}", "mb_per_s": round(_mb_per_s(path, size_bytes), 1)})
        size_bytes = _write(path, 64 << 10, total_bytes // (64 << 10), _SEALER)
        sealed = _mb_per_s(path, size_bytes, _SEALER)
        rows.append({"case": "lines of 64 KB, sealed", "mb_per_s": round(sealed, 1)})
        _write(path, 300, 1_000)
        few_kb = _peak_kb(path)
        size_bytes = _write(path, 300, many_lines)
        rows.append({"case": f"{many_lines:,} lines", "mb_per_s": round(_mb_per_s(path, size_bytes), 1)})
        grown_kb = _peak_kb(path) - few_kb
    return {"rows": rows, "sha256_mb_per_s": round(_sha256_mb_per_s(), 1), "grown_kb": grown_kb}


def table(found: Any) -> str:
    """Render in Markdown."""
    rows = [[row["case"], row["mb_per_s"]] for row in found["rows"]]
    rows.append(["SHA-256 alone, of one large buffer", found["sha256_mb_per_s"]])
    return markdown(["verifying", "MB/s"], rows)


def bars(found: Any) -> list[tuple[str, float, float]]:
    """What is promised: a gigabyte of usual output in 5 s, and memory that doesn't grow with the log."""
    (long_lines,) = [row["mb_per_s"] for row in found["rows"] if row["case"] == "lines of 64 KB"]
    return [
        ("verify, lines of 64 KB, ms for each MB (5 is 200 MB/s)", round(1000 / long_lines, 2), 5.0),
        ("verify, memory that many lines take over 1,000, MB", round(found["grown_kb"] / 1024, 1), 4.0),
    ]


if __name__ == "__main__":
    print(json.dumps(measure()))
