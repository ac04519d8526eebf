"""From spawn to first reply, beside `python -c pass`: interleaved, medians.

spawn --> one execute request is written --> its reply is read --> the clock stops --> the process ends
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.command import run_alone
from benchmarks.peers import ipykernel_client
from benchmarks.table import markdown

_REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"execute","params":{"code":"1 + 1"}}\n'

_LIMIT_S = 60.0

QUICK = {"rounds": 5}


def measure(*, rounds: int = 31) -> dict[str, Any]:
    """Return for each kind of start the median and the best, in ms; a round that isn't counted warms up."""
    took_ms: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        starts: dict[str, Callable[[], float]] = {
            "python -c pass": _pass,
            "python -c pass again": _pass,
            "python -m json_repl, local": lambda: _serve(folder, "0"),
            "python -m json_repl, worker": lambda: _serve(folder, "1"),
        }
        for number in range(rounds + 1):
            for name, start in starts.items():
                value = start()
                if number:
                    took_ms.setdefault(name, []).append(value)
        took_ms["ipykernel"] = [_kernel() for _ in range(max(3, rounds // 4))]
    return {
        name: {"p50_ms": round(median(values), 2), "best_ms": round(min(values), 2), "starts": len(values)}
        for name, values in took_ms.items()
    }


def _pass() -> float:
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return (time.perf_counter() - began_s) * 1e3


def _serve(folder: str, uses_worker: str) -> float:
    environment = {**os.environ, "TASK_LOG_DIR": folder, "USE_SUBPROCESS_WORKER": uses_worker}
    began_s = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "json_repl"],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(_REQUEST)
    received = b""
    while b'"id":1' not in received or not received.endswith(b"\n"):
        piece = os.read(process.stdout.fileno(), 65536)
        if not piece:
            raise RuntimeError(f"json_repl ended before its reply: {received!r}")
        received += piece
    took_ms = (time.perf_counter() - began_s) * 1e3
    process.stdin.close()
    process.wait(_LIMIT_S)
    process.stdout.close()
    if json.loads(received.splitlines()[-1])["result"]["result"] != {"text/plain": "2"}:
        raise RuntimeError(f"json_repl gave a wrong reply: {received!r}")
    return took_ms


def _kernel() -> float:
    began_s = time.perf_counter()
    with ipykernel_client():
        return (time.perf_counter() - began_s) * 1e3


def table(found: dict[str, Any]) -> str:
    """Render what was found, in Markdown."""
    base = found["python -c pass"]["p50_ms"]
    rows = [
        [name, one["p50_ms"], one["best_ms"], round(one["p50_ms"] / base, 2)] for name, one in found.items()
    ]
    return markdown(["spawn to first reply", "p50 ms", "best ms", "× python -c pass"], rows)


def bars(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is promised: the name, what was measured, and the most it may be."""
    base = found["python -c pass"]["p50_ms"]
    return [
        (f"start, {route}, × python -c pass", found[f"python -m json_repl, {route}"]["p50_ms"] / base, most)
        for route, most in (("local", 6.0), ("worker", 9.0))
    ]


def main() -> int:
    """Measure, and print a table, or JSON with `--json`."""
    return run_alone(__doc__, measure, table, QUICK, "fewer starts")


if __name__ == "__main__":
    sys.exit(main())
