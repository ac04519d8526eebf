"""How long an append takes: one writer, 8 and 64, without and with fdatasync, beside a bare write.

    python -m benchmarks.append [--json] [--seconds 1.0]

Each writer is a process that appends lines of about 500 bytes in a loop; `p50_us` and `p99_us` are the
medians of the writers' own. The bare loop is orjson and one `write`: no lock, no chain. Opening is measured
on logs of 10 and of 1,000,000 lines. What encryption adds is the median difference of appends to an encrypted
and a plain log that take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, Any

import orjson

from task_logger.codec import seal
from task_logger.keys import KeySource
from task_logger.log_file import LogFile

_FIELDS = {"plan_id": "P-1", "task_id": "T-7", "code": "x = 1", "stdout": "y" * 300, "success": True}
_WRITERS = (1, 8, 64)
_MOST_LINES = 200_000  # of one writer: a bound for its memory and the disk
_LONG_LOG_LINES = 1_000_000
_BODY_BYTES = (500, 1_000, 64 << 10)
_MOST_BYTES = 200 << 20  # of each of two logs


def _append_chained(path: str, fsync: bool) -> Callable[[], object]:
    log = LogFile(path, fsync=fsync, lock_wait_s=60)
    body = orjson.dumps(_FIELDS)[:-1]
    return lambda: log.append(body)


def _write_bare(path: str, fsync: bool) -> Callable[[], object]:
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write() -> None:
        os.write(number, orjson.dumps(_FIELDS) + b"\n")
        if fsync:
            os.fdatasync(number)

    return write


def _time_calls(call: Callable[[], object], seconds: float) -> dict[str, float]:
    clock = time.perf_counter_ns
    call()
    began_ns = clock()
    ends_at_ns = clock() + int(seconds * 1e9)
    took_ns: list[int] = []
    now = clock()
    while now < ends_at_ns and len(took_ns) < _MOST_LINES:
        call()
        after = clock()
        took_ns.append(after - now)
        now = after
    took_ns.sort()
    return {
        "p50_us": median(took_ns) / 1e3,
        "p99_us": took_ns[int(len(took_ns) * 0.99)] / 1e3,
        "lines_per_s": len(took_ns) * 1e9 / (now - began_ns),
    }


def _run_writer(make: Callable[[], Callable[[], object]], seconds: float, go: int, out: IO[str]) -> None:
    try:
        call = make()
        os.read(go, 1)
        out.write(json.dumps(_time_calls(call, seconds)))
        out.flush()
    finally:
        os._exit(0)


def _measure_writers(
    folder: str, writers: int, fsync: bool, make: Callable[..., Any], seconds: float
) -> dict[str, Any]:
    path = f"{folder}/{writers}-{fsync}-{make.__name__}.jsonl"
    go, start = os.pipe()
    results = [tempfile.TemporaryFile("w+", dir=folder) for _ in range(writers)]  # noqa: SIM115  # closed below
    pids = []
    for result in results:
        pid = os.fork()
        if pid == 0:
            _run_writer(partial(make, path, fsync), seconds, go, result)
        pids.append(pid)
    os.write(start, b"g" * writers)
    for pid in pids:
        os.waitpid(pid, 0)
    os.close(go)
    os.close(start)
    found = []
    for result in results:
        result.seek(0)
        found.append(json.loads(result.read()))
        result.close()
    Path(path).unlink()
    return {
        "writers": writers,
        "fsync": fsync,
        "p50_us": round(median(one["p50_us"] for one in found), 2),
        "p99_us": round(median(one["p99_us"] for one in found), 1),
        "lines_per_s": round(sum(one["lines_per_s"] for one in found)),
    }


def _write_log(path: str, lines: int) -> None:
    """Write a log of short lines at once: a million appends would take longer than all the rest."""
    prev = "0" * 64
    with Path(path).open("wb") as file:
        for n in range(1, lines + 1):
            line, prev = seal(b'{"code":"x"', n, prev)
            file.write(line)
    Path(path).chmod(0o600)


def _measure_opening(folder: str) -> dict[str, float]:
    found = {}
    for lines in (10, _LONG_LOG_LINES):
        path = f"{folder}/long.jsonl"
        _write_log(path, lines)
        took_us = []
        for _ in range(200):
            began_ns = time.perf_counter_ns()
            log = LogFile(path)
            log.append(b'{"code":"x"')
            took_us.append((time.perf_counter_ns() - began_ns) / 1e3)
            log.close()
        found[f"open_and_append_{lines}_lines_us"] = round(median(took_us), 1)
        Path(path).unlink()
    return found


def _measure_encryption(folder: str, body_bytes: int, seconds: float) -> dict[str, float]:
    from task_logger.encryption import cipher_to_write

    paths = [f"{folder}/{name}.{body_bytes}.jsonl" for name in ("plain", "encrypted")]
    cipher = cipher_to_write(paths[1], _new_key(f"{folder}/key"))
    logs = [LogFile(paths[0]), LogFile(paths[1], cipher=cipher)]
    body = b'{"code":"%b"' % os.urandom(body_bytes).hex()[: body_bytes - 10].encode()
    clock = time.perf_counter_ns
    took_us: list[tuple[float, float]] = []
    ends_at_ns = clock() + int(2 * seconds * 1e9)
    while clock() < ends_at_ns and len(took_us) * body_bytes < _MOST_BYTES:
        times = [clock()]
        for log in logs if len(took_us) % 2 else reversed(logs):
            log.append(body)
            times.append(clock())
        first, second = (times[1] - times[0]) / 1e3, (times[2] - times[1]) / 1e3
        took_us.append((first, second) if len(took_us) % 2 else (second, first))
    for log in logs:
        log.close()
    for path in paths:
        Path(path).unlink()
    return {
        "bytes": body_bytes,
        "plain_us": round(median(plain for plain, _ in took_us), 2),
        "encrypted_us": round(median(encrypted for _, encrypted in took_us), 2),
        "more_us": round(median(encrypted - plain for plain, encrypted in took_us), 2),
    }


def _new_key(path: str) -> KeySource:
    Path(path).touch(0o600)
    if not Path(path).stat().st_size:
        Path(path).write_bytes(os.urandom(32))
    return KeySource(f"file:{path}")


def measure(seconds: float = 1.0) -> dict[str, Any]:
    """Return the rows of all tables; `seconds` is how long the writers of each row run."""
    with tempfile.TemporaryDirectory(prefix="append-benchmark-") as folder:
        chained = [
            _measure_writers(folder, writers, fsync, _append_chained, seconds)
            for fsync in (False, True)
            for writers in _WRITERS
        ]
        bare = [_measure_writers(folder, 1, fsync, _write_bare, seconds) for fsync in (False, True)]
        encrypted = [_measure_encryption(folder, body_bytes, seconds) for body_bytes in _BODY_BYTES]
        return {
            "chained": chained,
            "bare": bare,
            "encrypted": encrypted,
            "opening": _measure_opening(folder),
        }


def main() -> None:
    """Measure, and print a table, or JSON with `--json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long the writers of each row run")
    arguments = parser.parse_args()
    found = measure(arguments.seconds)
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{'':24}{'writers':>8}{'fsync':>8}{'p50 us':>10}{'p99 us':>10}{'lines/s':>10}")
    for name, rows in (("locked and chained", found["chained"]), ("orjson and bare write", found["bare"])):
        for row in rows:
            fsync = "always" if row["fsync"] else "off"
            print(
                f"{name:24}{row['writers']:>8}{fsync:>8}{row['p50_us']:>10}{row['p99_us']:>10}{row['lines_per_s']:>10}"
            )
    for row in found["encrypted"]:
        sizes = (
            f"{row['bytes']:>6} bytes: {row['plain_us']:>8} us plain, {row['encrypted_us']:>8} us encrypted"
        )
        print(f"{sizes}, {row['more_us']:>8} us more")
    for name, took_us in found["opening"].items():
        print(f"{name:40}{took_us:>10} us")


if __name__ == "__main__":
    main()
