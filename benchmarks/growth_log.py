"""What opening a long task log, and appending to it, costs; the log is written by the real writer."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.disk import require_room
from json_repl.session import Session
from task_logger.log_file import LogFile

_ROUNDS = 40
_CALLS = 25


def measure_log(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each size; the sizes are measured in turn, so that what drifts drifts for all."""
    with tempfile.TemporaryDirectory(prefix="growth-log-") as folder:
        body = _real_body(f"{folder}/pattern")
        logs = {lines: _write_log(f"{folder}/{lines}", lines, body) for lines in sizes}
        took: dict[int, dict[str, list[float]]] = {lines: {} for lines in sizes}
        for number in range(_ROUNDS + 1):
            for lines in sizes:
                told = _one_round(f"{folder}/{lines}", logs[lines], body)
                if number:  # the first round finds cold caches
                    for name, values in told.items():
                        took[lines].setdefault(name, []).extend(values)
        return [
            {
                "lines": lines,
                "bytes": os.stat(logs[lines]).st_size,
                **{name: round(median(values), 1) for name, values in took[lines].items()},
            }
            for lines in sizes
        ]


def _one_round(folder: str, path: str, body: bytes) -> dict[str, list[float]]:
    clock = time.perf_counter_ns
    marks = [clock()]
    with Session("local", log_dir=folder) as session:
        marks.append(clock())
        for _ in range(_CALLS):
            session.execute_code("x = 1")
            marks.append(clock())
    took_us = [(after - before) / 1e3 for before, after in pairwise(marks)]
    log = LogFile(path)
    appends = []
    for _ in range(_CALLS):
        began_ns = clock()
        log.append(body)
        appends.append((clock() - began_ns) / 1e3)
    log.close()
    return {"open_us": [took_us[0]], "first_us": [took_us[1]], "call_us": took_us[2:], "append_us": appends}


def _real_body(folder: str) -> bytes:
    """A line of a session as the writer gets it: without its chain."""
    with Session("local", log_dir=folder) as session:
        path = session.execute_code("x = 1")["debug_info"]["log"]["path"]
    line = Path(path).read_bytes()
    return line[: line.rindex(b',"n":')]


def _write_log(folder: str, lines: int, body: bytes) -> str:
    with Session("local", log_dir=folder) as session:
        path: str = session.log_path
    require_room(folder, lines * (len(body) + 200))
    log = LogFile(path)
    for _ in range(lines):
        log.append(body)
    log.close()
    return path
