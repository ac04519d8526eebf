"""What `task-log verify` does and prints: a log, a plan, or all plans of a root.

logs, and events -> verification of each -> what was found, and what no verification of it could find
pending files    -> what has no line yet
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from task_logger import display
from task_logger.errors import TaskLogError
from task_logger.findings import Finding
from task_logger.key_places import KEY_SETTING, header_path
from task_logger.line_checks import ArtifactCheck, LineChecks
from task_logger.log_view import dumps, echo
from task_logger.pending_check import check_pending
from task_logger.sealing import Sealer, sealer_from_environment
from task_logger.verification import Head, LogVerdict, verify_log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from task_logger.encryption import Cipher

_NO_KEY = "without a key: that the whole chain was made anew by someone who can write the file"
_NO_HEAD = "without a head of each log's last reply: that lines were cut off at its end"
_NO_LIST = "that a whole log was taken away, or put in another's place"


def show_verdicts(
    plans: Sequence[tuple[str, Sequence[str]]],
    *,
    head: Head | None = None,
    strict: bool = False,
    as_json: bool = False,
    whole_plans: bool = True,
) -> int:
    """Verify the logs of each plan folder, and print what was found; returns the exit code.

    `head` is of the only log. Without `whole_plans` only the pending files of the logs named are looked at.
    Raises `KeyRefused` for a key that can't be used.
    """
    view = _View(sealer_from_environment(), head, strict=strict, as_json=as_json)
    for folder, logs in plans:
        artifacts = ArtifactCheck(folder)
        for log in logs:
            view.log(log, artifacts)
        for name in [None] if whole_plans else [os.path.basename(log).removesuffix(".zst") for log in logs]:
            view.pending(folder, name)
    view.end()
    return 1 if view.is_no else 0


class _View:
    def __init__(self, sealer: Sealer | None, head: Head | None, *, strict: bool, as_json: bool) -> None:
        self.is_no = False
        self._sealer, self._head = sealer, head
        self._strict, self._as_json = strict, as_json
        self._limits: set[str] = set()

    def log(self, path: str, artifacts: ArtifactCheck) -> None:
        """Verify one log, and print the verdict."""
        try:
            checks = LineChecks(
                path,
                sealer=self._sealer,
                cipher=_cipher_of(path),
                has_key=bool(os.environ.get(KEY_SETTING)),
                artifacts=artifacts,
            )
            verdict = verify_log(path, head=self._head, checks=checks)
        except TaskLogError as exc:
            self.is_no = True
            self._failed(path, exc)
            return
        is_yes = verdict.is_yes(strict=self._strict)
        self.is_no |= not is_yes
        limits = _limits_of(verdict)
        self._limits.update(limits)
        if self._as_json:
            echo(dumps(_as_json(verdict, limits, is_yes=is_yes)))
            return
        echo(f"{'yes' if is_yes else 'NO '}  {display.printable(path)}: {_in_short(verdict)}")
        self._print(verdict.findings)
        more = sum(verdict.counts.values()) - len(verdict.findings)
        if more:
            echo(f"     … and {more:,} more")

    def pending(self, plan_folder: str, log_name: str | None) -> None:
        """Look at pending files, and print what they say."""
        try:
            found = check_pending(plan_folder, _cipher_of, log_name)
        except TaskLogError as exc:
            self.is_no = True
            self._failed(plan_folder, exc)
            return
        levels = {finding.level for finding in found}
        self.is_no |= "problem" in levels or (self._strict and "unproven" in levels)
        if self._as_json:
            for finding in found:
                echo(dumps(asdict(finding)))
        else:
            self._print(found)

    def end(self) -> None:
        """Say what this could not have found."""
        if not self._as_json and self._limits:
            echo("What this can't show:")
            for limit in sorted(self._limits):
                echo(f"  - {limit}")

    def _print(self, findings: Sequence[Finding]) -> None:
        for one in findings:
            echo(f"     {one.level}: {display.printable(_text(one))}")

    def _failed(self, path: str, exc: TaskLogError) -> None:
        if self._as_json:
            echo(dumps({"path": path, "ok": False, "error": str(exc)}))
        else:
            echo(f"NO   {display.printable(path)}: can't be verified")
        print(f"task-log: {display.printable(str(exc))}", file=sys.stderr)


def _cipher_of(path: str) -> Cipher | None:
    if not os.environ.get(KEY_SETTING) or not os.path.lexists(header_path(path)):
        return None
    from task_logger.encryption import cipher_to_read

    return cipher_to_read(path)


def _limits_of(verdict: LogVerdict) -> list[str]:
    limits = [_NO_LIST]
    if not verdict.keyed:
        limits.append(_NO_KEY)
    if verdict.head is not None and verdict.complete_to < verdict.head[0]:
        limits.append(_NO_HEAD)
    return limits


def _in_short(verdict: LogVerdict) -> str:
    lines = f"{verdict.lines:,} {'line' if verdict.lines == 1 else 'lines'}, {verdict.bytes:,} bytes"
    keyed = f", each checked with a key ({', '.join(verdict.keyed)})" if verdict.keyed else ""
    complete = f", complete up to line {verdict.complete_to}" if verdict.complete_to else ""
    head = f"; head {verdict.head[0]}:{verdict.head[1]}" if verdict.head else ""
    return lines + keyed + complete + head


def _text(finding: Finding) -> str:
    where = f"line {finding.line} at byte {finding.at}: " if finding.line else ""
    path = f"{finding.path}: " if not finding.line and finding.kind.startswith(("pending", "log_")) else ""
    return f"{finding.kind}: {path}{where}{finding.reason}"


def _as_json(verdict: LogVerdict, limits: list[str], *, is_yes: bool) -> dict[str, object]:
    head = None if verdict.head is None else {"n": verdict.head[0], "hash": verdict.head[1]}
    return {
        "path": verdict.path,
        "ok": is_yes,
        "lines": verdict.lines,
        "bytes": verdict.bytes,
        "head": head,
        "complete_to": verdict.complete_to,
        "unsynced_tail_possible": verdict.head is None or verdict.complete_to < verdict.head[0],
        "keyed": list(verdict.keyed),
        "counts": dict(verdict.counts),
        "findings": [asdict(finding) for finding in verdict.findings],
        "cannot_show": limits,
    }
