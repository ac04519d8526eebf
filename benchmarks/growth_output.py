"""What a flood of output costs: time, memory of session and worker, and whether all of it is kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.disk import require_room
from json_repl.session import Session
from task_logger import artifacts
from task_logger.record import MAX_TEXT_BYTES

_BLOCK_BYTES = 1 << 16

_WRITE = """\
def _write(size):
    write = __import__("sys").stdout.write
    for number in range(size // {block} or 1):
        write(f"{{number:015d}}\\n" * (min(size, {block}) // 16))
_write({size})
"""
"""Lines of 16 bytes, in blocks, each block with its own number."""


def measure_output(route: Any, size_bytes: int) -> dict[str, Any]:
    """Let one execution write so many bytes; memory is the peak above what was held before, in MB."""
    with (
        tempfile.TemporaryDirectory(prefix="growth-output-") as folder,
        Session(route, log_dir=folder) as session,
    ):
        require_room(folder, 2 * size_bytes)
        pid = int(session.execute_code("__import__('os').getpid()")["result"]["text/plain"])
        session.execute_code(_WRITE.format(block=_BLOCK_BYTES, size=_BLOCK_BYTES))
        pids = [os.getpid()] if pid == os.getpid() else [os.getpid(), pid]
        base_mb = [_reset_peak(one) for one in pids]
        began_s = time.perf_counter()
        outcome = session.execute_code(_WRITE.format(block=_BLOCK_BYTES, size=size_bytes))
        seconds = time.perf_counter() - began_s
        above_mb = [_status_mb(one, "VmHWM") - base for one, base in zip(pids, base_mb, strict=True)]
        verdict = _verdict(outcome, str(Path(session.log_path).parent), size_bytes)
    return {
        "route": route,
        "bytes": size_bytes,
        "seconds": round(seconds, 4),
        "mb_per_s": round(size_bytes / 1e6 / seconds, 1),
        "session_mb": round(above_mb[0], 1),
        "worker_mb": round(sum(above_mb[1:]), 1),
        "verdict": verdict,
    }


def _expected(size_bytes: int) -> Any:
    digest = hashlib.sha256()
    for number in range(size_bytes // _BLOCK_BYTES or 1):
        digest.update(b"%015d\n" % number * (min(size_bytes, _BLOCK_BYTES) // 16))
    return digest.hexdigest()


def _verdict(outcome: dict[str, Any], plan_folder: str, size_bytes: int) -> str:
    if not outcome["success"]:
        return f"no: {outcome['stderr'][-200:]}"
    if size_bytes <= MAX_TEXT_BYTES:
        is_right = hashlib.sha256(outcome["stdout"].encode()).hexdigest() == _expected(size_bytes)
        return "yes" if is_right and not outcome["artifacts"] else "no: other text"
    kept = [one for one in outcome["artifacts"] if one["field"] == "stdout"]
    if len(kept) != 1 or kept[0]["bytes"] != size_bytes:
        return f"no: {outcome['artifacts']}"
    digest = hashlib.sha256()
    with artifacts.get(plan_folder, kept[0]["sha256"]) as file:
        while piece := file.read(_BLOCK_BYTES):
            digest.update(piece)
    is_right = kept[0]["sha256"] == digest.hexdigest() == _expected(size_bytes)
    return "yes" if is_right else "no: other bytes"


def _reset_peak(pid: int) -> float:
    """Forget a process's peak of memory; returns what it holds now, in MB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _status_mb(pid, "VmRSS")


def _status_mb(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/{pid}/status has no {name}")
