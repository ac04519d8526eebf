"""`json-repl doctor`: what isolation holds on this machine, tried out, and how to get what is missing.

for each tier: a worker is started --> its probe --> holds | the layer that is missing, and its fix
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from repl_kernel.errors import IsolationUnavailable, WorkerStartFailed

if TYPE_CHECKING:
    from repl_kernel.probe import Attempt
    from repl_kernel.sandbox import Sandbox

_Tier = Literal["none", "process", "sandbox"]
_TIERS: tuple[_Tier, ...] = ("none", "process", "sandbox")


@dataclass(frozen=True, slots=True, kw_only=True)
class TierReport:
    """What was found of one tier; `layer`, `reason` and `fix` are `None` where it holds."""

    isolation: _Tier
    holds: bool
    attempts: tuple[Attempt, ...] = ()
    layer: str | None = None
    reason: str | None = None
    fix: str | None = None


def examine() -> list[TierReport]:
    """Try every tier of isolation on this machine."""
    with tempfile.TemporaryDirectory(prefix="json-repl-doctor-") as folder:
        return [_examine(isolation, folder) for isolation in _TIERS]


def _examine(isolation: _Tier, folder: str) -> TierReport:
    from repl_kernel.manager import WorkerExecutor
    from repl_kernel.sandbox import Sandbox

    tier: Literal["none", "process"] | Sandbox = (
        Sandbox(work_folder=folder) if isolation == "sandbox" else isolation
    )
    try:
        executor = WorkerExecutor(snapshots="off", isolation=tier)
    except IsolationUnavailable as exc:
        return TierReport(isolation=isolation, holds=False, layer=exc.layer, reason=exc.reason, fix=exc.fix)
    except WorkerStartFailed as exc:
        return TierReport(
            isolation=isolation, holds=False, layer="worker", reason=str(exc), fix="see what it wrote"
        )
    try:
        return TierReport(isolation=isolation, holds=True, attempts=executor.isolation_probe)
    finally:
        executor.close()


def run_doctor(*, as_json: bool) -> int:
    """Print what `examine` finds; returns 0, or 1 where there is no sandbox to be had."""
    reports = examine()
    if as_json:
        text = json.dumps({"python": sys.version.split()[0], "tiers": [asdict(each) for each in reports]})
        os.write(1, text.encode() + b"\n")
    else:
        _print(reports)
    return 0 if all(report.holds for report in reports) else 1


def _print(reports: list[TierReport]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for report in reports:
        name = f"isolation={report.isolation!r}"
        if not report.holds:
            console.print(f"[red]{name} is not available[/]")
            console.print(f"  missing: {escape(str(report.layer))}: {escape(str(report.reason))}")
            console.print(f"  to get it: {escape(str(report.fix))}")
            continue
        tried = f"; tried in vain: {len(report.attempts)}" if report.attempts else ""
        console.print(f"[green]{name} holds[/]{tried}")
        for attempt in report.attempts:
            console.print(f"  denied: {escape(attempt['name'])} ({escape(attempt['detail'])})")
