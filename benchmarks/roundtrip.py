"""What one call costs, beside the peers: pinned to one core and not, back to back and 20 ms apart.

a forked process for each placement --blocks of calls to each peer in turn--> p50, p90, p99 and ratios
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import Any

from benchmarks.command import run_alone
from benchmarks.forking import call_in_fork
from benchmarks.peers import Call, open_all
from benchmarks.table import markdown

_BLOCK = 25
"""Calls of one peer in a row; the first ones of a block, which find cold caches, aren't counted."""

_WARM_UP = 5

_PAUSE_S = 0.02

_LIMIT_S = 600.0


def measure(*, blocks: int = 80, paused: int = 150) -> dict[str, Any]:
    """Return `pinned` and `unpinned`, in each `hot` and `paused`, in each the quantiles of every peer."""
    return {
        "pinned": call_in_fork(lambda: _measure_here(True, blocks, paused), _LIMIT_S),
        "unpinned": call_in_fork(lambda: _measure_here(False, blocks, paused), _LIMIT_S),
    }


def _measure_here(is_pinned: bool, blocks: int, paused: int) -> dict[str, Any]:
    if is_pinned:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the processes that are started inherit it
    with tempfile.TemporaryDirectory(prefix="roundtrip-") as folder, ExitStack() as stack:
        peers = open_all(stack, folder)
        for call in peers.values():
            for _ in range(_BLOCK):
                call()
        return {"hot": _back_to_back(peers, blocks), "paused": _apart(peers, paused)}


def _back_to_back(peers: dict[str, Call], blocks: int) -> dict[str, Any]:
    took_ns: dict[str, list[int]] = {name: [] for name in peers}
    clock = time.perf_counter_ns
    for _ in range(blocks):
        for name, call in peers.items():
            block = []
            for _ in range(_BLOCK):
                began_ns = clock()
                call()
                block.append(clock() - began_ns)
            took_ns[name] += block[_WARM_UP:]
    return {name: _quantiles(values) for name, values in took_ns.items()}


def _apart(peers: dict[str, Call], calls: int) -> dict[str, Any]:
    took_ns: dict[str, list[int]] = {name: [] for name in peers}
    clock = time.perf_counter_ns
    for _ in range(calls):
        for name, call in peers.items():
            time.sleep(_PAUSE_S)
            began_ns = clock()
            call()
            took_ns[name].append(clock() - began_ns)
    return {name: _quantiles(values) for name, values in took_ns.items()}


def _quantiles(took_ns: list[int]) -> dict[str, float]:
    took_ns.sort()
    places = {"p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99}
    return {
        **{name: round(took_ns[int(len(took_ns) * share)] / 1e3, 1) for name, share in places.items()},
        "calls": len(took_ns),
    }


def table(found: dict[str, Any]) -> str:
    """Render what was found, in Markdown."""
    parts = []
    for placement, title in (("pinned", "all pinned to one core"), ("unpinned", "not pinned")):
        for kind, how in (("hot", "back to back"), ("paused", "20 ms apart")):
            rows = found[placement][kind]
            floor, kernel = rows["socketpair echo"]["p50_us"], rows["ipykernel"]["p50_us"]
            parts.append(
                markdown(
                    [f"{title}, {how}", "p50 µs", "p90 µs", "p99 µs", "× echo", "ipykernel ÷"],
                    [
                        [
                            name,
                            *(one[key] for key in ("p50_us", "p90_us", "p99_us")),
                            round(one["p50_us"] / floor, 2),
                            round(kernel / one["p50_us"], 1),
                        ]
                        for name, one in rows.items()
                    ],
                )
            )
    return "\n\n".join(parts)


def bars(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is promised: the name, what was measured, and the most it may be."""
    hot = {name: one["p50_us"] for name, one in found["pinned"]["hot"].items()}
    return [
        ("worker, × socketpair echo, pinned", hot["worker"] / hot["socketpair echo"], 5.0),
        ("worker, × ipykernel, pinned", hot["worker"] / hot["ipykernel"], 1 / 30),
        ("local above bare compile + exec, pinned, µs", hot["local"] - hot["bare compile + exec"], 45.0),
    ]


def main() -> int:
    """Measure, and print a table, or JSON with `--json`."""
    return run_alone(__doc__, measure, table, QUICK, "fewer calls")


QUICK = {"blocks": 10, "paused": 20}

if __name__ == "__main__":
    sys.exit(main())
