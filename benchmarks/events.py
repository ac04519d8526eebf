"""How long an event takes, beside a bare append of as many bytes: one writer, redaction on.

python -m benchmarks.events [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from statistics import median

from benchmarks.table import markdown
from task_logger.events import event
from task_logger.log_file import LogFile

QUICK = {"rounds": 3}

_CALLS = 300  # of a round: both are measured in turn, so that the machine's other work meets both


def _median_us(call: Callable[[], object]) -> float:
    took_ns = []
    for _ in range(_CALLS):
        began_ns = time.perf_counter_ns()
        call()
        took_ns.append(time.perf_counter_ns() - began_ns)
    return median(took_ns) / 1e3


def measure(rounds: int = 20) -> dict[str, float]:
    """Return the medians in microseconds: `event_us`, and `append_us` of a body as long."""
    with tempfile.TemporaryDirectory(prefix="events-benchmark-") as folder:
        before = os.environ.get("TASK_LOG_DIR")
        os.environ["TASK_LOG_DIR"] = folder
        try:
            assert event("tests.passed", 41, {"suite": "unit"})
            log = LogFile(f"{folder}/bare.jsonl")
            body = b'{"filler":"%b"' % (b"x" * 200)
            found = [
                (
                    _median_us(lambda: event("tests.passed", 41, {"suite": "unit"})),
                    _median_us(lambda: log.append(body)),
                )
                for _ in range(rounds)
            ]
            log.close()
        finally:
            if before is None:
                del os.environ["TASK_LOG_DIR"]
            else:
                os.environ["TASK_LOG_DIR"] = before
    return {
        "event_us": round(median(one for one, _ in found), 1),
        "append_us": round(median(other for _, other in found), 1),
    }


def table(found: dict[str, float]) -> str:
    """Render in Markdown."""
    rows = [["an event", found["event_us"]], ["an append of as many bytes", found["append_us"]]]
    return markdown(["", "p50 µs"], rows)


def bars(found: dict[str, float]) -> list[tuple[str, float, float]]:
    """What is promised."""
    return [("an event, p50 µs", found["event_us"], 50.0)]


def main() -> None:
    """Measure, and print a line, or JSON with `--json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    found = measure()
    if parser.parse_args().json:
        print(json.dumps(found))
    else:
        print(f"an event takes {found['event_us']} us, an append of as many bytes {found['append_us']} us")


if __name__ == "__main__":
    main()
