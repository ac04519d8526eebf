"""What isolation costs: the start of a worker, and each round trip; the tiers interleaved, medians.

start: a worker is started, proves its isolation, replies once --> the clock stops --> it ends
round trip: `1` runs in a worker of each tier by turns, all on one core
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, Literal

from benchmarks.table import markdown
from repl_kernel.errors import IsolationUnavailable
from repl_kernel.manager import WorkerExecutor
from repl_kernel.sandbox import Sandbox
from task_logger.record import ExecutionRequest, TaskIds

_TASK = TaskIds(plan_id="benchmark", task_id="T-1", task_name="isolation")

QUICK = {"starts": 3, "calls": 200}


def measure(*, starts: int = 21, calls: int = 4000) -> dict[str, Any]:
    """Return for each tier the median and the best start in ms and round trip in µs.

    `missing` says why there is no sandbox, `None` where there is.
    """
    with tempfile.TemporaryDirectory(prefix="isolation-") as folder:
        tiers: dict[str, Literal["none", "process"] | Sandbox] = {
            "none": "none",
            "process": "process",
            "process again": "process",
            "sandbox": Sandbox(work_folder=folder),
        }
        try:
            WorkerExecutor(isolation=tiers["sandbox"], snapshots="off").close()
        except IsolationUnavailable as exc:
            tiers.pop("sandbox")
            missing: str | None = str(exc)
        else:
            missing = None
        start_ms = _interleaved(starts, {name: partial(_start, tier) for name, tier in tiers.items()})
        call_us = _round_trips(tiers, calls)
    return {
        "missing": missing,
        "tiers": {
            name: {
                "start_p50_ms": round(median(start_ms[name]), 1),
                "start_best_ms": round(min(start_ms[name]), 1),
                "call_p50_us": round(median(call_us[name]), 1),
                "call_best_us": round(min(call_us[name]), 1),
            }
            for name in tiers
        },
    }


def _interleaved(rounds: int, measured: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, take in measured.items():
            found[name].append(take())
    return found


def _start(tier: Literal["none", "process"] | Sandbox) -> float:
    began_s = time.perf_counter()
    executor = WorkerExecutor(isolation=tier, snapshots="off")
    executor.execute(_request(1))
    took_ms = (time.perf_counter() - began_s) * 1e3
    executor.close()
    return took_ms


def _round_trips(
    tiers: dict[str, Literal["none", "process"] | Sandbox], calls: int
) -> dict[str, list[float]]:
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})  # else what is compared is where the scheduler put whom
    executors = {name: WorkerExecutor(isolation=tier, snapshots="off") for name, tier in tiers.items()}
    found: dict[str, list[float]] = {name: [] for name in executors}
    try:
        for seq in range(1, calls + 100):
            request = _request(seq)
            for name, executor in executors.items():
                began_ns = time.perf_counter_ns()
                executor.execute(request)
                found[name].append((time.perf_counter_ns() - began_ns) / 1e3)
    finally:
        os.sched_setaffinity(0, cpus)
        for executor in executors.values():
            executor.close()
    return {name: took[100:] for name, took in found.items()}


def _request(seq: int) -> ExecutionRequest:
    return ExecutionRequest(
        code="1", session_id="benchmark", seq=seq, task=_TASK, timestamp="2026-01-01T00:00:00.000Z"
    )


def main() -> None:
    """Measure and print; `--json` for programs, `--quick` with less."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    found = measure(**QUICK) if options.quick else measure()
    print(json.dumps(found) if options.json else table(found))


def table(found: dict[str, Any]) -> str:
    """The same for people."""
    rows = [[name, *row.values()] for name, row in found["tiers"].items()]
    text = markdown(["isolation", "start p50 ms", "start best ms", "call p50 µs", "call best µs"], rows)
    return text if found["missing"] is None else f"{text}\n\n{found['missing']}"


def bars(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is promised: the name, what was measured, and the most it may be; empty without a sandbox."""
    tiers = found["tiers"]
    if "sandbox" not in tiers:
        return []
    added_us = tiers["sandbox"]["call_p50_us"] - tiers["process"]["call_p50_us"]
    return [
        ("sandboxed worker, spawn to first reply, p50 ms", tiers["sandbox"]["start_p50_ms"], 120.0),
        ("sandboxed worker, added to a round trip, p50 µs", added_us, 20.0),
    ]


if __name__ == "__main__":
    main()
