"""Runs the benchmarks, and tells which promises are kept: `python -m benchmarks [name …]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import (
    append,
    diff,
    doctests,
    events,
    growth,
    isolation,
    jupyter,
    jupyter_start,
    kills,
    redaction,
    replay,
    roundtrip,
    startup,
    state,
    verify,
    warm,
)
from benchmarks.table import markdown

Bar = tuple[str, float, float]
"""What is promised: the name, what was measured, and the most it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One of them: how it is measured (`quick`: with less), rendered, and judged."""

    title: str
    measure: Callable[[], Any]
    quick: Callable[[], Any]
    table: Callable[[Any], str]
    bars: Callable[[Any], list[Bar]]


def _append_table(found: Any) -> str:
    rows = [
        [
            name,
            row["writers"],
            "always" if row["fsync"] else "off",
            row["p50_us"],
            row["p99_us"],
            row["lines_per_s"],
        ]
        for name, rows in (("locked and chained", found["chained"]), ("orjson and bare write", found["bare"]))
        for row in rows
    ]
    opening = [
        [name.removesuffix("_us").replace("_", " "), took_us] for name, took_us in found["opening"].items()
    ]
    header = ["append", "writers", "fsync", "p50 µs", "p99 µs", "lines/s"]
    encrypted = [
        [str(row["bytes"]), row["plain_us"], row["encrypted_us"], row["more_us"]]
        for row in found["encrypted"]
    ]
    tables = [
        markdown(header, rows),
        markdown(["bytes of a line", "plain µs", "encrypted µs", "more µs"], encrypted),
        markdown(["", "µs"], opening),
    ]
    return "\n\n".join(tables)


def _append_bars(found: Any) -> list[Bar]:
    (alone,) = [row for row in found["chained"] if row["writers"] == 1 and not row["fsync"]]
    small, kilobyte, large = found["encrypted"]
    return [
        ("append, locked and chained, one writer, p50 µs", alone["p50_us"], 15.0),
        ("append, 500 bytes encrypted, more than plain, µs", small["more_us"], 20.0),
        ("append, 64 KB encrypted, more than plain, µs", large["more_us"], 200.0),
        ("append, 1,000 bytes encrypted, µs", kilobyte["encrypted_us"], 60.0),
    ]


def _diff_table(found: Any) -> str:
    rows = [[row["case"], row["p50_us"], row["best_us"], f"{row['complete']:.1%}"] for row in found]
    return markdown(["telling what changed", "p50 µs", "best µs", "told all"], rows)


def _diff_bars(found: Any) -> list[Bar]:
    p50_us = {row["case"]: row["p50_us"] for row in found}
    limits = (("180 plain, 120 containers; 8 read", 60.0), ("100,000 plain", 5_000.0))
    return [(f"diff, {case}, p50 µs", p50_us[case], most) for case, most in limits]


def _doctest_bars(found: Any) -> list[Bar]:
    return [
        (f"doctests that differ, {name}, of {route['compared']:,}", float(len(route["mismatches"])), 0.0)
        for name, route in found["routes"].items()
    ]


BENCHMARKS = {
    "doctests": Benchmark(
        title="Doctests as sessions",
        measure=doctests.measure,
        quick=lambda: doctests.measure(doctests.QUICK),
        table=doctests.table,
        bars=_doctest_bars,
    ),
    "roundtrip": Benchmark(
        title="One call",
        measure=roundtrip.measure,
        quick=lambda: roundtrip.measure(**roundtrip.QUICK),
        table=roundtrip.table,
        bars=roundtrip.bars,
    ),
    "startup": Benchmark(
        title="Start",
        measure=startup.measure,
        quick=lambda: startup.measure(**startup.QUICK),
        table=startup.table,
        bars=startup.bars,
    ),
    "warm": Benchmark(
        title="Warm start",
        measure=warm.measure,
        quick=lambda: warm.measure(**warm.QUICK),
        table=warm.table,
        bars=warm.bars,
    ),
    "jupyter": Benchmark(
        title="A cell in Jupyter",
        measure=jupyter.measure,
        quick=lambda: jupyter.measure(**jupyter.QUICK),
        table=jupyter.table,
        bars=jupyter.bars,
    ),
    "jupyter_start": Benchmark(
        title="Start of a Jupyter kernel",
        measure=jupyter_start.measure,
        quick=lambda: jupyter_start.measure(**jupyter_start.QUICK),
        table=jupyter_start.table,
        bars=jupyter_start.bars,
    ),
    "isolation": Benchmark(
        title="Isolation",
        measure=isolation.measure,
        quick=lambda: isolation.measure(**isolation.QUICK),
        table=isolation.table,
        bars=isolation.bars,
    ),
    "append": Benchmark(
        title="The log",
        measure=append.measure,
        quick=lambda: append.measure(0.2),
        table=_append_table,
        bars=_append_bars,
    ),
    "verify": Benchmark(
        title="Verifying",
        measure=verify.measure,
        quick=lambda: verify.measure(**verify.QUICK),
        table=verify.table,
        bars=verify.bars,
    ),
    "events": Benchmark(
        title="Events",
        measure=events.measure,
        quick=lambda: events.measure(**events.QUICK),
        table=events.table,
        bars=events.bars,
    ),
    "redaction": Benchmark(
        title="Redaction",
        measure=redaction.measure,
        quick=lambda: redaction.measure(**redaction.QUICK),
        table=redaction.table,
        bars=redaction.bars,
    ),
    "diff": Benchmark(
        title="The diff", measure=diff.measure, quick=diff.measure, table=_diff_table, bars=_diff_bars
    ),
    "growth": Benchmark(
        title="Growth",
        measure=growth.measure,
        quick=lambda: growth.measure(**growth.QUICK),
        table=growth.table,
        bars=growth.bars,
    ),
    "replay": Benchmark(
        title="Replay",
        measure=replay.measure,
        quick=lambda: replay.measure(**replay.QUICK),
        table=replay.table,
        bars=replay.bars,
    ),
    "state": Benchmark(
        title="State",
        measure=state.measure,
        quick=lambda: state.measure(**state.QUICK),
        table=state.table,
        bars=state.bars,
    ),
    "kills": Benchmark(
        title="Killed sessions",
        measure=kills.measure,
        quick=lambda: kills.measure(**kills.QUICK),
        table=kills.table,
        bars=kills.bars,
    ),
}


def machine() -> dict[str, Any]:
    """Say where and when this was measured."""
    is_optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpus": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "pgo": is_optimized,
        "load": round(os.getloadavg()[0], 2),
    }


def summary(place: dict[str, Any], bars: list[Bar]) -> str:
    """Render which promises are kept, in Markdown."""
    build = "with" if place["pgo"] else "without"
    where = (
        f"{place['date']}, {place['cpus']} CPUs, {place['system']}, {place['python']} built {build} "
        f"profile-guided optimization, load {place['load']} at the start"
    )
    rows = [[name, value, most, "yes" if value <= most else "NO"] for name, value, most in bars]
    return f"{where}\n\n" + markdown(["promise", "measured", "at most", "kept"], rows)


def main() -> int:
    """Run the named benchmarks, all without a name; returns 1 where a promise isn't kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}; all without")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="measure less, for a first look")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    place, found, bars = machine(), {}, []
    for name in arguments.names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        found[name] = benchmark.quick() if arguments.quick else benchmark.measure()
        bars += benchmark.bars(found[name])
        if not arguments.json:
            print(f"## {benchmark.title}\n\n{benchmark.table(found[name])}\n", flush=True)
    if arguments.json:
        told = [
            {"promise": name, "measured": value, "at_most": most, "kept": value <= most}
            for name, value, most in bars
        ]
        print(json.dumps({"machine": place, "promises": told, **found}))
    else:
        print(f"## Promises\n\n{summary(place, bars)}")
    return 0 if all(value <= most for _, value, most in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
