"""What redaction costs a line that has nothing to hide, and how often it hides what is no secret.

    python -m benchmarks redaction

A line is looked at twice: as a request, before it runs, and as a record. False positives are counted in the
examples of every docstring of the standard library and of more-itertools, sources and expected output: texts
in which nobody put a secret.
"""

from __future__ import annotations

import ast
import base64
import doctest
import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.doctest_corpus import module_names
from benchmarks.table import markdown
from task_logger.codec import encode, encode_request
from task_logger.record import ExecutionOutcome, ExecutionRequest, NamespaceChanges, TaskIds
from task_logger.secret_search import Secrets
from task_logger.writer import new_session_id

QUICK = {"rounds": 5}
_CALLS = 1000
_MOST_PER_10000_LINES = 1.0


def _record(output_bytes: int) -> tuple[ExecutionRequest, ExecutionOutcome]:
    """A usual execution."""
    request = ExecutionRequest(
        code="total = sum(row.price for row in rows)\nprint(total)",
        session_id=new_session_id(),
        seq=17,
        task=TaskIds(plan_id="P-1", task_id="T-7", task_name="user login bug fix"),
        timestamp="2026-11-20T10:00:00.000Z",
        actor="python",
    )
    lines = "2026-11-20 10:00:00 INFO loaded 128 rows of prices in 0.014 s\n"
    outcome = ExecutionOutcome(
        status="ok",
        route="worker",
        isolation="process",
        elapsed_ms=0.042,
        stdout=(lines * (output_bytes // len(lines) + 1))[:output_bytes],
        changes=NamespaceChanges(added_vars=("total",), variables={"total": {"type": "float", "bytes": 24}}),
    )
    return request, outcome


def _secrets(count: int) -> Secrets:
    """An environment with so many secrets of 24 bytes in base64, each another one."""
    values = (base64.b64encode((b"%d" % number) * 24, b"-_")[:32].decode() for number in range(count))
    return Secrets({f"SERVICE_{number}_TOKEN": f"{number}Kq{value}" for number, value in enumerate(values)})


def _p50_us(call: Callable[[], object], rounds: int) -> float:
    took_us = []
    for _ in range(rounds):
        began_ns = time.perf_counter_ns()
        for _ in range(_CALLS):
            call()
        took_us.append((time.perf_counter_ns() - began_ns) / 1e3 / _CALLS)
    return round(min(took_us), 2)


def _measure_cost(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for output_bytes in (40, 64 << 10):
        request, outcome = _record(output_bytes)
        body, asked = encode(request, outcome).body, encode_request(request)
        for count in (0, 5, 20):
            secrets = _secrets(count)
            assert not secrets.may_be_in(body)
            calls = rounds if output_bytes < 1000 else max(1, rounds // 5)
            rows.append(
                {
                    "line_bytes": len(body),
                    "secrets": count,
                    "request_us": _p50_us(lambda: secrets.may_be_in(asked), calls),  # noqa: B023  # at once
                    "record_us": _p50_us(lambda: secrets.may_be_in(body), calls),  # noqa: B023
                }
            )
    return rows


def _examples() -> Iterator[tuple[str, str]]:
    """The name of each docstring with examples, and all their sources and output."""
    parser = doctest.DocTestParser()
    for name in module_names():
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            continue
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(Path(spec.origin).read_bytes())):
            if (
                not isinstance(node, ast.Constant)
                or not isinstance(node.value, str)
                or ">>>" not in node.value
            ):
                continue
            try:
                examples = parser.get_examples(node.value)
            except ValueError:
                continue
            yield f"{name}:{node.lineno}", "".join(one.source + one.want for one in examples)


def false_positives() -> dict[str, Any]:
    """Count the lines of the corpus, those the pre-filter lets through, and those with something hidden."""
    secrets = _secrets(20)
    lines, looked_at, hidden = 0, 0, []
    for name, text in _examples():
        lines += text.count("\n")
        looked_at += sum(secrets.may_be_in(line.encode("utf-8", "replace")) for line in text.split("\n"))
        hidden += [(name, place.name, text[place.start : place.end]) for place in secrets.find(text)]
    return {"lines": lines, "looked_at": looked_at, "hidden": hidden}


def measure(rounds: int = 30) -> dict[str, Any]:
    """Return the costs, and the false positives."""
    return {"cost": _measure_cost(rounds), "false_positives": false_positives()}


def table(found: Any) -> str:
    """Render both in Markdown."""
    header = ["bytes of the line", "secrets in the environment", "request µs", "record µs"]
    rows = [[row["line_bytes"], row["secrets"], row["request_us"], row["record_us"]] for row in found["cost"]]
    false = found["false_positives"]
    counts = [[f"{false['lines']:,}", false["looked_at"], len(false["hidden"])]]
    return markdown(header, rows) + "\n\n" + markdown(["doctest lines", "looked at closer", "hidden"], counts)


def bars(found: Any) -> list[tuple[str, float, float]]:
    """What is promised."""
    record_us = median(row["record_us"] for row in found["cost"] if row["line_bytes"] < 1000)
    false = found["false_positives"]
    rate = len(false["hidden"]) / false["lines"] * 10_000
    return [
        ("redaction, a line with nothing to hide, µs", record_us, 10.0),
        ("redaction, false positives in 10,000 doctest lines", round(rate, 3), _MOST_PER_10000_LINES),
    ]
