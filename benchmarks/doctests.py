"""Every doctest of the standard library and of more-itertools, as a real session, on both routes.

module --own process--> docstrings that pass under doctest
    --+--> local session, a forked process each --+
      +--> worker session, restarted between -----+--> table
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.doctest_corpus import Docstring, module_names, passing_docstrings
from benchmarks.forking import ForkFailed, call_in_fork

ROUTES = ("local", "worker")

QUICK = ("collections", "ast", "difflib", "heapq", "textwrap", "test.test_genexps", "test.test_unpack")
"""Modules with many kinds of examples that take little time."""

_MODULE_LIMIT_S = 600.0


def measure(names: Iterable[str] | None = None) -> dict[str, Any]:
    """Run the doctests of the named modules, `None` means all.

    Returns `modules`, `docstrings`, `examples`, `left_out` (how many docstrings for which reason),
    `interactive_only`, `skipped`, and for each route what was run, compared and alike, and the mismatches.
    """
    wanted = list(names) if names is not None else module_names()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        told = [one for one in pool.map(_measure_module, wanted) if one["docstrings"] or one["left_out"]]
    routes = {}
    for route in ROUTES:
        counts = {name: sum(one[route][name] for one in told) for name in ("run", "compared", "identical")}
        lists = {
            name: [item for one in told for item in one[route][name]] for name in ("mismatches", "known")
        }
        routes[route] = {**counts, **lists}
    return {
        "modules": len(told),
        **{
            name: sum(one[name] for one in told)
            for name in ("docstrings", "examples", "interactive_only", "skipped")
        },
        "left_out": dict(Counter(reason for one in told for _, reason in one["left_out"]).most_common()),
        "left_out_docstrings": [place for one in told for place in one["left_out"]],
        "routes": routes,
    }


def is_right(found: dict[str, Any]) -> bool:
    """Whether every compared example gave the same on both routes, and there were some."""
    routes = found["routes"].values()
    return all(route["compared"] and not route["mismatches"] for route in routes)


def _measure_module(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="doctests-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.doctests", "--module", name, "--result", str(result)]
        root = str(Path(__file__).parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        work = Path(folder) / "work"
        work.mkdir()
        ended = subprocess.run(
            command,
            cwd=work,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "TASK_LOG_DIR": f"{folder}/logs"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_MODULE_LIMIT_S,
            check=False,
        )
        if not result.exists():
            raise RuntimeError(
                f"the process for {name} ended with {ended.returncode}: {ended.stderr.decode()[-2000:]}"
            )
        told: dict[str, Any] = json.loads(result.read_text())
        return told


def _run_module(name: str) -> dict[str, Any]:
    docstrings, left_out = passing_docstrings(name)
    examples = [example for docstring in docstrings for example in docstring.examples]
    told: dict[str, Any] = {
        "module": name,
        "docstrings": len(docstrings),
        "examples": len(examples),
        "interactive_only": sum(example.is_interactive_only for example in examples),
        "skipped": sum(example.is_skipped for example in examples),
        "left_out": left_out,
    }
    import benchmarks.doctest_replay  # noqa: F401  # once, before the forks; not before doctest's own turn

    local = [_in_fork([docstring], "local") for docstring in docstrings]
    return {**told, "local": _sum(local), "worker": _sum([_in_fork(docstrings, "worker")])}


def _in_fork(docstrings: list[Docstring], route: str) -> list[dict[str, Any]]:
    if not docstrings:
        return []
    try:
        told: list[dict[str, Any]] = call_in_fork(
            lambda: _through_session(docstrings, route), _MODULE_LIMIT_S
        )
    except ForkFailed as exc:
        wrong = {
            "docstring": docstrings[0].name,
            "number": 0,
            "source": "",
            "want": "an outcome",
            "got": str(exc),
        }
        return [{"run": 0, "compared": 0, "identical": 0, "mismatches": [wrong], "known": []}]
    return told


def _through_session(docstrings: list[Docstring], route: Any) -> list[dict[str, Any]]:
    from benchmarks.doctest_replay import replay
    from json_repl.session import Session

    told = []
    with Session(route=route) as session:
        for docstring in docstrings:
            told.append(asdict(replay(session, docstring)))
            session.restart()
    return told


def _sum(parts: list[list[dict[str, Any]]]) -> dict[str, Any]:
    told = [one for part in parts for one in part]
    counts = {name: sum(one[name] for one in told) for name in ("run", "compared", "identical")}
    return {
        **counts,
        **{name: [item for one in told for item in one[name]] for name in ("mismatches", "known")},
    }


def table(found: dict[str, Any]) -> str:
    """Render what was found, in Markdown."""
    lines = [
        f"{found['modules']} modules, {found['docstrings']} docstrings, {found['examples']} examples",
        f"not compared: {found['interactive_only']} where interactive mode prints more, "
        f"{found['skipped']} marked SKIP",
        "",
        "| route | examples run | compared | equal | equal to the letter |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, route in found["routes"].items():
        equal = route["compared"] - len(route["mismatches"])
        lines.append(f"| {name} | {route['run']} | {route['compared']} | {equal} | {route['identical']} |")
    lines += ["", "| docstrings left out, because | |", "|---|--:|"]
    lines += [f"| {reason} | {count} |" for reason, count in found["left_out"].items()]
    for name, route in found["routes"].items():
        lines += ["", *(f"Known difference on {name}: {why}." for why in route["known"])]
        for wrong in route["mismatches"]:
            lines += [
                "",
                f"MISMATCH on {name}: {wrong['docstring']}, example {wrong['number']}",
                wrong["source"],
            ]
            lines += ["expected:", wrong["want"], "got:", wrong["got"]]
    return "\n".join(lines)


def main() -> int:
    """Run all, or the named modules; returns 1 on any mismatch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("modules", nargs="*", help="only these modules; all without")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="only a few modules")
    parser.add_argument("--module", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.module:
        arguments.result.write_text(json.dumps(_run_module(arguments.module)))
        return 0
    found = measure(arguments.modules or (QUICK if arguments.quick else None))
    print(json.dumps(found) if arguments.json else table(found))
    return 0 if is_right(found) else 1


if __name__ == "__main__":
    sys.exit(main())
