"""What it costs to tell what an execution did to its namespace.

namespaces of growing size -> the watcher, called as after an execution of 10 us -> median and best
"""

from __future__ import annotations

import argparse
import json
import sys
from statistics import median
from time import perf_counter_ns
from types import ModuleType
from typing import Any

from repl_kernel.namespace import NamespaceWatcher

ELAPSED_NS = 10_000
GLOBALS = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
MODULES = (600, 3_000)


class Item:
    """An object of the user's."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.parts = [number, number + 1]


def make_namespace(plain: int, containers: int) -> dict[str, object]:
    """Make a namespace of plain values, and of lists, dicts, sets and objects in equal parts."""
    namespace: dict[str, object] = {"__name__": "measured", "__builtins__": __builtins__, "__doc__": None}
    namespace.update((f"plain_{i}", i * 1000 + 7) for i in range(plain))
    makers: Any = (lambda i: [1, 2, i], lambda i: {"a": i, "b": 2}, lambda i: {1, 2, i}, Item)
    namespace.update((f"held_{i}", makers[i % 4](i)) for i in range(containers))
    return namespace


def time_changes(namespace: dict[str, object], source: str) -> dict[str, float]:
    """Run the source again and again; return what telling its changes took, and how often all was told."""
    watcher = NamespaceWatcher(namespace, frozenset())
    code = compile(source, "<measured>", "exec")
    took_us = []
    complete = 0
    calls = max(30, min(2_000, 2_000_000 // len(namespace)))
    for _ in range(calls + 20):
        exec(code, namespace)
        started_ns = perf_counter_ns()
        changes = watcher.changes(code, ELAPSED_NS)
        took_us.append((perf_counter_ns() - started_ns) / 1000)
        complete += changes.diff_complete
    del took_us[:20]  # the first calls learn what each object costs
    return {
        "p50_us": round(median(took_us), 2),
        "best_us": round(min(took_us), 2),
        "complete": complete / (calls + 20),
    }


def measure() -> list[dict[str, object]]:
    """Return a row for each case: `case`, `p50_us`, `best_us`; `complete` is the share that told all."""
    cases = [
        ("x = 1, nothing else", make_namespace(0, 0), "x = 1"),
        ("x counts up, nothing else", make_namespace(0, 0) | {"x": 0}, "x += 1000"),
        ("300 plain", make_namespace(300, 0), "x = plain_1 + plain_2"),
        (
            "180 plain, 120 containers; 8 read",
            make_namespace(180, 120),
            "x = (held_0, held_1, held_2, held_3, held_4, plain_1, plain_2)[0][0]",
        ),
        (
            "180 plain, 120 containers; one appended to",
            make_namespace(180, 120),
            "held_0.append(1); held_0.pop(0)",
        ),
    ]
    cases += [(f"{count:,} plain", make_namespace(count, 0), "x = plain_1 + plain_2") for count in GLOBALS]
    cases += [
        (f"{count:,} containers", make_namespace(0, count), "x = held_0[0]") for count in (1_000, 10_000)
    ]
    return [
        {"case": case, **time_changes(namespace, source)} for case, namespace, source in cases
    ] + _modules()


def _modules() -> list[dict[str, object]]:
    rows = []
    made = []
    for count in MODULES:
        while len(sys.modules) < count:
            made.append(f"measured_module_{len(sys.modules)}")
            sys.modules[made[-1]] = ModuleType(made[-1])
        rows.append({"case": f"x = 1, {count:,} modules", **time_changes(make_namespace(0, 0), "x = 1")})
    for name in made:
        del sys.modules[name]
    return rows


def main() -> None:
    """Print the measurements as a table, or with `--json` as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    rows = measure()
    if parser.parse_args().json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'case':45}{'p50 us':>12}{'best us':>12}{'told all':>10}")
    for row in rows:
        print(f"{row['case']:45}{row['p50_us']:>12}{row['best_us']:>12}{row['complete']:>10.1%}")


if __name__ == "__main__":
    main()
