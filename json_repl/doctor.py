"""`json-repl doctor`: what isolation holds on this machine, tried out, and how to get what is missing.

for each tier: a worker is started --> its probe --> holds | the layer that is missing, and its fix
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

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


def examine_limits() -> dict[str, object]:
    """What holds the limits of memory and processes here: `kernel` names those that a cgroup does.

    `watched` are those that the session has to look at; `fix` says what to do, `None` where nothing is to do.
    """
    from repl_kernel.cgroups import controllers, how_to_get

    named = {"memory": "memory_bytes", "pids": "processes"}
    found = {named[each.name]: f"cgroups v{each.version}" for each in controllers()}
    watched = [name for name in named.values() if name not in found]
    return {"kernel": found, "watched": watched, "fix": how_to_get() if watched else None}


def run_doctor(*, as_json: bool) -> int:
    """Print what `examine` finds; returns 0, or 1 where there is no sandbox to be had."""
    reports = examine()
    limits = examine_limits()
    if as_json:
        found = {"python": sys.version.split()[0], "tiers": [asdict(each) for each in reports]}
        text = json.dumps({**found, "limits": limits})
        os.write(1, text.encode() + b"\n")
    else:
        _print(reports)
        _print_limits(limits)
    return 0 if all(report.holds for report in reports) else 1


def _print_limits(limits: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for name, means in limits["kernel"].items():
        console.print(f"[green]limits: {name} is held by the kernel[/] ({means})")
    for name in limits["watched"]:
        console.print(
            f"[yellow]limits: {name} of all processes together is looked at every 0.1 s[/], "
            "not held by the kernel"
        )
    if limits["fix"] is not None:
        console.print(f"  to get that: {limits['fix']}", markup=False)


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
