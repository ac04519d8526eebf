"""Replays: the doctests recorded and replayed, a dry run of a long log, what a live replay adds to a call.

module --own process--> its doctests, through a recorded worker session --> log --> live replay --> table
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.doctest_corpus import module_names, passing_docstrings
from benchmarks.doctests import QUICK as QUICK_MODULES
from benchmarks.table import markdown
from json_repl.replay import LiveReplay, LiveSettings, dry_run, load_recording
from json_repl.session import Session
from repl_kernel.timeline import TimelineExecutor
from task_logger.codec import FIRST_PREV, encode, seal
from task_logger.record import ExecutionOutcome, ExecutionRequest, NamespaceChanges, TaskIds

QUICK: dict[str, Any] = {"names": QUICK_MODULES, "lines": 20_000, "calls": 500}

_MODULE_LIMIT_S = 1200.0
_ROUNDS = 7


def measure(
    names: Iterable[str] | None = None, *, lines: int = 100_000, calls: int = 2_000
) -> dict[str, Any]:
    """Return `doctests` (those of the named modules, `None` means all), `dry_run` and `overhead_us`."""
    return {
        "doctests": measure_doctests(names),
        "dry_run": measure_dry_run(lines),
        "overhead_us": measure_overhead(calls),
    }


def measure_doctests(names: Iterable[str] | None = None) -> dict[str, Any]:
    """Record the doctests of modules and replay them; returns counts, and all that didn't match."""
    wanted = list(names) if names is not None else module_names()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        told = [one for one in pool.map(_measure_module, wanted) if one is not None]
    counts: Counter[str] = Counter()
    for one in told:
        counts.update(one["counts"])
    return {
        "modules": len(told),
        "counts": dict(counts),
        "causes": dict(Counter(cause for one in told for cause in one["causes"]).most_common()),
        "not_matching": [step for one in told for step in one["not_matching"]],
        "ended": [one["ended"] for one in told if one["ended"]],
    }


def _measure_module(name: str) -> dict[str, Any] | None:
    with tempfile.TemporaryDirectory(prefix="replay-", ignore_cleanup_errors=True) as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.replay", "--module", name, "--result", str(result)]
        path = os.pathsep.join(
            [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        work = Path(folder) / "work"
        work.mkdir()
        ended = subprocess.run(
            command,
            cwd=work,
            env={**os.environ, "PYTHONPATH": path, "TASK_LOG_DIR": f"{folder}/logs"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_MODULE_LIMIT_S,
            check=False,
        )
        if not result.exists():
            said = ended.stderr.decode(errors="replace")[-500:]
            return {
                "counts": {}, "causes": [], "not_matching": [],
                "ended": f"{name}: exit code {ended.returncode}: {said}",
            }  # fmt: skip
        told: dict[str, Any] | None = json.loads(result.read_text())
        return told


def _run_module(name: str) -> dict[str, Any] | None:
    docstrings, _ = passing_docstrings(name)
    if not docstrings:
        return None
    from benchmarks.doctest_replay import replay

    with Session("worker", isolation="sandbox") as session:
        path = session.log_path
        for docstring in docstrings:
            replay(session, docstring)
            session.restart()
    report = LiveReplay(load_recording(path), LiveSettings(keep_going=True)).run()
    others = [step for step in report.steps if step.verdict in ("DIFF", "SKIP")]
    return {
        "counts": report.counts,
        "causes": [
            each.cause or "no cause is to be seen"
            for step in others
            if step.is_random
            for each in step.differences[:1]
        ],
        "not_matching": [{"module": name, **asdict(step)} for step in others],
        "ended": report.stopped,
    }


def measure_dry_run(lines: int) -> dict[str, float]:
    """Check a log of that many lines, most of them short; returns the lines checked in a second."""
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        path = Path(folder) / "1.long.jsonl"
        _write_log(path, lines)
        began = time.perf_counter()
        report = dry_run(str(path))
        took_s = time.perf_counter() - began
    if report.counts["READY"] != lines or report.faults:
        raise RuntimeError(f"the dry run found {report.counts}, {report.faults[:1]}")
    return {"lines": lines, "lines_per_s": lines / took_s}


def _write_log(path: Path, lines: int) -> None:
    task = TaskIds(plan_id="P-1", task_id="T-1", task_name="long")
    prev = FIRST_PREV
    with path.open("wb") as file:
        for n in range(1, lines + 1):
            code = (
                f"total_{n} = sum(values)\nprint('so far', total_{n})\nfor value in values:\n    check(value)"
            )
            request = ExecutionRequest(
                code=code,
                session_id=f"01990000-0000-7000-8000-{(n - 1) // 1000:012}",
                seq=(n - 1) % 1000 + 1,
                task=task,
                timestamp="2026-11-20T14:23:21.123Z",
                actor="python",
                tags={},
            )
            outcome = ExecutionOutcome(
                status="ok",
                route="worker",
                isolation="process",
                elapsed_ms=0.5,
                stdout=f"so far {n}\n",
                changes=NamespaceChanges(
                    added_vars=(f"total_{n}",), variables={f"total_{n}": {"type": "int"}}
                ),
            )
            line, prev = seal(encode(request, outcome).body, n, prev)
            file.write(line)


def measure_overhead(calls: int) -> dict[str, float]:
    """What a live replay takes for a call beyond its executor alone, in turn, in µs: the median of rounds."""
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        with Session("worker", log_dir=folder, snapshots="off") as session:
            for number in range(calls):
                session.execute_code(f"x = {number}" if number % 2 else f"print({number}); {number}")
            path = session.log_path
        recording = load_recording(path)
        rounds = [(_plain_us(recording, calls), _replayed_us(recording, calls)) for _ in range(_ROUNDS)]
    return {
        "plain": statistics.median(plain for plain, _ in rounds),
        "replayed": statistics.median(replayed for _, replayed in rounds),
        "added": statistics.median(replayed - plain for plain, replayed in rounds),
    }


def _plain_us(recording: Any, calls: int) -> float:
    requests = [line.record.request for line in recording.lines]
    executor = TimelineExecutor(snapshots="manual", isolation="process")
    try:
        executor.execute(requests[0])
        began = time.perf_counter()
        for request in requests[1:]:
            executor.execute(request)
        return (time.perf_counter() - began) / (calls - 1) * 1e6
    finally:
        executor.close()


def _replayed_us(recording: Any, calls: int) -> float:
    seen: list[float] = []
    report = LiveReplay(recording, LiveSettings(isolation="process")).run(
        lambda step: seen.append(time.perf_counter())
    )
    if report.counts["MATCH"] != calls:
        raise RuntimeError(f"the replay found {report.counts}")
    return (seen[-1] - seen[0]) / (calls - 1) * 1e6


def bars(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is promised: the name, what was measured, and the most it may be."""
    counts = found["doctests"]["counts"]
    compared = sum(counts.get(name, 0) for name in ("MATCH", "DIFF", "random"))
    unexplained = found["doctests"]["causes"].get("no cause is to be seen", 0)
    return [
        (f"replayed doctests that changed, of {compared:,}", float(counts.get("DIFF", 0)), 0.0),
        ("those that differ at random, %", 100.0 * counts.get("random", 0) / max(1, compared), 1.0),
        ("of these without a cause", float(unexplained), 0.0),
        ("dry run of 10,000 lines, s", 10_000 / found["dry_run"]["lines_per_s"], 1.0),
        ("a live replay's part of a call, µs", found["overhead_us"]["added"], 150.0),
    ]


def table(found: dict[str, Any]) -> str:
    """Render what was found, in Markdown."""
    told = found["doctests"]
    parts = [
        f"{told['modules']} modules",
        markdown(["doctests replayed live", "executions"], [[name, n] for name, n in told["counts"].items()]),
        markdown(["random, because", "executions"], [[cause, n] for cause, n in told["causes"].items()]),
        markdown(["", "lines/s"], [["dry run", found["dry_run"]["lines_per_s"]]]),
        markdown(["a call, µs", "p50"], [[name, value] for name, value in found["overhead_us"].items()]),
    ]
    for step in told["not_matching"]:
        if step["verdict"] == "DIFF" and not all(each["is_random"] for each in step["differences"]):
            parts.append(json.dumps(step, indent=1)[:2000])
    return "\n\n".join([*parts, *told["ended"]])


def main() -> int:
    """Run all, or only the doctests of the named modules; returns 1 where a promise isn't kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("modules", nargs="*", help="only the doctests of these modules; all without")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="measure less")
    parser.add_argument("--module", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.module:
        arguments.result.write_text(json.dumps(_run_module(arguments.module)))
        return 0
    settings: dict[str, Any] = QUICK if arguments.quick else {}
    found = measure(**{**settings, **({"names": arguments.modules} if arguments.modules else {})})
    print(json.dumps(found) if arguments.json else table(found))
    return 0 if all(value <= most for _, value, most in bars(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
