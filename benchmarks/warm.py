"""A session with libraries at hand: from a pool, beside one that has to import them first.

pool.session() --> a session --> its first reply --> the clock stops --> the pool fills up --> again
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

from benchmarks.command import run_alone
from benchmarks.table import markdown

_LIBRARIES = ("numpy", "pandas")
_CODE = "import pandas as pd\npd.DataFrame({'a': [1, 2]})['a'].sum() == 3"
_REST_S = 0.1
"""Between two starts, so that what fills the pool up doesn't run into the next one."""

QUICK = {"rounds": 8}


def measure(*, rounds: int = 40) -> dict[str, Any]:
    """Return for each kind of session its median, 95th percentile and best, in ms; one round warms up."""
    from json_repl.pool import SessionPool
    from json_repl.session import Session

    took_ms: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        began_s = time.perf_counter()
        with SessionPool(2, preload=_LIBRARIES, log_dir=folder) as pool:
            filling_ms = (time.perf_counter() - began_s) * 1e3
            starts: dict[str, tuple[Callable[[], Session], str, int]] = {
                "warm, first reply of `1 + 1`": (pool.session, "1 + 1", rounds),
                "warm, first reply that uses pandas": (pool.session, _CODE, rounds),
                "cold, first reply of `1 + 1`": (lambda: Session("worker", log_dir=folder), "1 + 1", rounds),
                "cold, first reply that uses pandas": (
                    lambda: Session("worker", log_dir=folder),
                    _CODE,
                    max(3, rounds // 4),
                ),
            }
            for number in range(rounds + 1):
                for name, (start, code, times) in starts.items():
                    if number <= times:
                        time.sleep(_REST_S)
                        value = _first_reply(start, code)
                        if number:
                            took_ms.setdefault(name, []).append(value)
    found: dict[str, Any] = {
        name: {
            "p50_ms": round(median(values), 2),
            "p95_ms": round(quantiles(values, n=20)[-1], 2),
            "best_ms": round(min(values), 2),
            "starts": len(values),
        }
        for name, values in took_ms.items()
    }
    found["a pool of 2, until it can be asked"] = {
        "p50_ms": round(filling_ms, 2),
        "p95_ms": None,
        "best_ms": None,
        "starts": 1,
    }
    return found


def _first_reply(start: Callable[[], Any], code: str) -> float:
    began_s = time.perf_counter()
    with start() as session:
        outcome = session.execute_code(code)
        took_ms = (time.perf_counter() - began_s) * 1e3
    if outcome["result"] not in ({"text/plain": "2"}, {"text/plain": "True"}, {"text/plain": "np.True_"}):
        raise RuntimeError(f"a session gave a wrong reply: {outcome!r}")
    return took_ms


def table(found: dict[str, Any]) -> str:
    """Render what was found, in Markdown."""
    rows = [[name, one["p50_ms"], one["p95_ms"], one["best_ms"]] for name, one in found.items()]
    return markdown(["session", "p50 ms", "p95 ms", "best ms"], rows)


def bars(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is promised: the name, what was measured, and the most it may be."""
    return [
        (f"{name}, p50 ms", found[name]["p50_ms"], 20.0)
        for name in ("warm, first reply of `1 + 1`", "warm, first reply that uses pandas")
    ]


def main() -> int:
    """Measure, and print a table, or JSON with `--json`."""
    return run_alone(__doc__, measure, table, QUICK, "fewer starts")


if __name__ == "__main__":
    sys.exit(main())
