"""What grows with what a session holds: globals, modules, lines of its log, output of one execution.

a forked process for each part --sessions of both routes--> rows by size
"""

from __future__ import annotations

import sys
import tempfile
import time
from statistics import median
from typing import Any

from benchmarks.command import run_alone
from benchmarks.forking import call_in_fork
from benchmarks.growth_log import measure_log
from benchmarks.growth_output import measure_output
from benchmarks.table import markdown

_GLOBALS = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
_MODULES = (100, 300, 1_000, 3_000)
_LOG_LINES = (10, 1_000, 100_000, 1_000_000)
_OUTPUT_BYTES = (1 << 10, 1 << 20, 1 << 24, 1 << 27, 1 << 30)

QUICK = {"log_lines": _LOG_LINES[:3], "output_bytes": _OUTPUT_BYTES[:3]}

_ROUTES = ("local", "worker")

_CALLS = 200

_LIMIT_S = 900.0

_FILL_GLOBALS = "globals().update((f'name_{{i}}', i * 1000 + 7) for i in range(len(globals()), {count}))"

_FILL_MODULES = """\
(lambda modules, make: modules.update((f"made_{{i}}", make("made")) for i in range(len(modules), {count})))(
    __import__("sys").modules, type(__import__("sys"))
)"""


def measure(
    *, log_lines: tuple[int, ...] = _LOG_LINES, output_bytes: tuple[int, ...] = _OUTPUT_BYTES
) -> dict[str, Any]:
    """Return the rows of `globals`, `modules`, `log` and `output`."""
    return {
        "globals": [
            row for route in _ROUTES for row in _in_fork(_measure_names, route, "globals()", _GLOBALS)
        ],
        "modules": [row for route in _ROUTES for row in _in_fork(_measure_names, route, "modules", _MODULES)],
        "log": _in_fork(measure_log, log_lines),
        "output": [_in_fork(measure_output, route, size) for route in _ROUTES for size in output_bytes],
    }


def _in_fork(call: Any, *arguments: Any) -> Any:
    return call_in_fork(lambda: call(*arguments), _LIMIT_S)


def _measure_names(route: Any, what: str, counts: tuple[int, ...]) -> list[dict[str, Any]]:
    from json_repl.session import Session

    fill = _FILL_GLOBALS if what == "globals()" else _FILL_MODULES
    length = what if what == "globals()" else "__import__('sys').modules"
    rows = []
    with tempfile.TemporaryDirectory(prefix="growth-") as folder, Session(route, log_dir=folder) as session:
        for count in counts:
            filled = session.execute_code(fill.format(count=count))
            held = session.execute_code(f"len({length})")
            if not (filled["success"] and held["success"]):
                raise RuntimeError(f"can't fill: {filled['stderr'] or held['stderr']}")
            took_us = time_calls(session)
            rows.append(
                {
                    "route": route,
                    "count": count,
                    "held": int(held["result"]["text/plain"]),
                    "p50_us": round(median(took_us), 1),
                    "p90_us": round(sorted(took_us)[int(len(took_us) * 0.9)], 1),
                }
            )
    return rows


def time_calls(session: Any, calls: int = _CALLS) -> list[float]:
    """Run `x = 1` again and again; return what each call took, in µs, without the first tenth."""
    took_us = []
    for _ in range(calls):
        began_ns = time.perf_counter_ns()
        session.execute_code("x = 1")
        took_us.append((time.perf_counter_ns() - began_ns) / 1e3)
    return took_us[calls // 10 :]


def table(found: dict[str, Any]) -> str:
    """Render what was found, in Markdown."""
    parts = []
    for what in ("globals", "modules"):
        rows = [
            [f"{row['count']:,}", row["route"], row["held"], row["p50_us"], row["p90_us"]]
            for row in found[what]
        ]
        parts.append(markdown([f"`x = 1` beside so many {what}", "route", "there", "p50 µs", "p90 µs"], rows))
    names = ("open_us", "first_us", "append_us", "call_us", "bytes")
    rows = [[f"{row['lines']:,}", *(row[name] for name in names)] for row in found["log"]]
    header = [
        "lines in the log at first",
        "open session µs",
        "first call µs",
        "append µs",
        "`x = 1` µs",
        "bytes",
    ]
    parts.append(markdown(header, rows))
    names = ("seconds", "mb_per_s", "session_mb", "worker_mb", "verdict")
    rows = [[f"{row['bytes']:,}", row["route"], *(row[name] for name in names)] for row in found["output"]]
    header = [
        "bytes on stdout",
        "route",
        "s",
        "MB/s",
        "session MB above base",
        "worker MB above base",
        "complete",
    ]
    parts.append(markdown(header, rows))
    return "\n\n".join(parts)


def bars(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is promised: the name, what was measured, and the most it may be."""
    first, last = found["log"][0], found["log"][-1]
    largest = max(row["bytes"] for row in found["output"])
    told = [
        (
            f"{what} with {last['lines']:,} lines in the log, × with {first['lines']}",
            last[key] / first[key],
            1.5,
        )
        for what, key in (("open", "open_us"), ("append", "append_us"))
    ]
    for row in found["output"]:
        if row["bytes"] == largest:
            above = row["session_mb"] + row["worker_mb"]
            told.append((f"memory for {largest:,} bytes of output, {row['route']}, MB", above, 150.0))
    wrong = sum(row["verdict"] != "yes" for row in found["output"])
    return [*told, ("outputs that are incomplete or not what was written", float(wrong), 0.0)]


def main() -> int:
    """Measure, and print a table, or JSON with `--json`."""
    return run_alone(__doc__, measure, table, QUICK, "only the smaller logs and outputs")


if __name__ == "__main__":
    sys.exit(main())
