"""A worker's reply, or its death -> the outcome of the execution."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from repl_kernel.capture import OutputCollector
from repl_kernel.code_result import CodeResult
from repl_kernel.failure import condemned
from task_logger.record import (
    NO_CHANGES,
    Artifact,
    ExecutionError,
    ExecutionOutcome,
    Isolation,
    LateOutput,
    NamespaceChanges,
    Route,
    Status,
)

if TYPE_CHECKING:
    from repl_kernel.displays import DisplayCollector
    from repl_kernel.interruption import Interruption
    from repl_kernel.limits import Strike

FATAL_ERROR = "Fatal Python error: "
"""How the report of a worker that was killed by a fault begins."""

_ENTRY = '  File "<execution '
_OUR_FRAMES = (f'  File "{os.path.dirname(__file__)}{os.sep}', '  File "<string>", line 1 in <module>')
"""How the frames of this package, and of the line that starts a worker, begin in such a report."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended: signal or exit code (both `None` where nobody could tell), in words, and when."""

    signal: str | None
    exit_code: int | None
    words: str
    elapsed_ns: int


class Gathered:
    """What was gathered beside the result: output by stream, late output, texts that came in parts.

    `artifacts`, `lossy` and `notices` grow while the outcome is put together.
    """

    __slots__ = (
        "artifacts", "displays", "isolation", "late", "lossy", "notices", "parent", "parts", "route",
        "snapshot", "streams",
    )  # fmt: skip

    def __init__(
        self, route: Route, isolation: Isolation, streams: tuple[OutputCollector, OutputCollector]
    ) -> None:
        self.route: Route = route
        self.isolation: Isolation = isolation
        self.streams = streams
        self.late: tuple[LateOutput, ...] = ()
        self.parts: Mapping[str, OutputCollector] | None = None
        self.displays: DisplayCollector | None = None
        self.artifacts: list[Artifact] = []
        self.lossy: list[str] = []
        self.notices: list[str] = []
        self.parent: str | None = None
        self.snapshot: str | None = None


def outcome_from_reply(reply: Mapping[str, Any], gathered: Gathered) -> ExecutionOutcome:
    """Put the outcome of an execution that replied together."""
    error = ExecutionError(**reply["error"]) if reply["error"] is not None else None
    result: Mapping[str, object] | None = reply["result"]
    changes = NamespaceChanges(**reply["changes"]) if reply["changes"] is not None else NO_CHANGES
    if gathered.parts:
        texts = {name: _finish(part, gathered) for name, part in gathered.parts.items()}
        if "result" in texts:
            result = {**(result or {}), "text/plain": texts["result"]}
        if error is not None:
            error = replace(error, message=texts["error.message"], traceback=texts["error.traceback"])
    return assemble(CodeResult(reply["status"], reply["elapsed_ns"], result, error, changes), gathered)


def death_outcome(
    death: Death, interruption: Interruption, strike: Strike | None, state: str, gathered: Gathered
) -> ExecutionOutcome:
    """Put the outcome of an execution whose worker died together.

    `interruption` says why and how we had ended it, if we had, `strike` which limit was behind it; `state`
    says in words what is live now.
    """
    taken, reason = interruption.taken, interruption.reason
    status: Status = "crashed" if reason is None or reason == "limit" else reason
    steps = f" after {', '.join(taken)}" if taken else ""
    message = f"the worker {death.words}{steps}"
    error_type = {"timeout": "TimeLimitExceeded", "interrupted": "KeyboardInterrupt"}.get(
        status, "WorkerCrashed" if strike is None else strike.verdict
    )
    if strike is not None and status == "crashed":
        message = f"{strike.message}; {message}"
    elif strike is not None:
        gathered.notices.append(strike.message)
    text = f"{error_type}: {message}\n"
    error = ExecutionError(
        type=error_type, message=message, traceback=text, signal=death.signal, exit_code=death.exit_code
    )
    gathered.notices.append(f"{message}; {state}")
    outcome = assemble(CodeResult(status, death.elapsed_ns, None, error, NO_CHANGES), gathered)
    if FATAL_ERROR in outcome.stderr:
        return replace(outcome, stderr=_without_our_frames(outcome.stderr))
    return outcome


def _without_our_frames(stderr: str) -> str:
    """What `faulthandler` wrote when the worker died, without the frames that are not the user's."""
    before, mark, report = stderr.partition(FATAL_ERROR)
    lines = [line for line in report.split("\n") if not line.startswith(_OUR_FRAMES)]
    entry = max((at for at, line in enumerate(lines) if line.startswith(_ENTRY)), default=len(lines))
    # What called the user's code, where a shell did, comes behind it.
    lines = [line for at, line in enumerate(lines) if at <= entry or not line.startswith('  File "')]
    return before + mark + "\n".join(lines)


def past_time_limit(outcome: ExecutionOutcome, time_limit_s: float) -> ExecutionOutcome:
    """The same as a `timeout`: it was ended by its time limit, or ran on past it."""
    message = f"the execution ran longer than its time limit of {time_limit_s:g} s"
    old = outcome.error
    where = old.traceback if old is not None else ""
    traceback = f"{where.rpartition('KeyboardInterrupt')[0]}TimeLimitExceeded: {message}\n"
    error = ExecutionError(
        type="TimeLimitExceeded",
        message=message,
        traceback=traceback,
        line=old.line if old is not None else None,
    )
    stderr = outcome.stderr.removesuffix(where) + traceback
    return replace(outcome, status="timeout", error=error, stderr=stderr)


def past_limit(outcome: ExecutionOutcome, strike: Strike) -> ExecutionOutcome:
    """The same as an `error`, with the verdict: it was ended by a limit, or ended by itself beyond it."""
    old = outcome.error
    where = old.traceback if old is not None else ""
    if old is not None and outcome.status == "error":
        error = condemned(old, strike)
    else:
        traceback = f"{where.rpartition('KeyboardInterrupt')[0]}{strike.verdict}: {strike.message}\n"
        line = old.line if old is not None else None
        error = ExecutionError(type=strike.verdict, message=strike.message, traceback=traceback, line=line)
    stderr = outcome.stderr.removesuffix(where) + error.traceback
    return replace(outcome, status="error", error=error, stderr=stderr)


def assemble(result: CodeResult, gathered: Gathered) -> ExecutionOutcome:
    """Put an outcome together.

    stderr gets the traceback; what a line can't hold becomes an artifact, and a notice.
    """
    stdout, stderr = gathered.streams
    if result.error is not None:
        stderr.feed(result.error.traceback.encode("utf-8", "surrogatepass"))
    displays = gathered.displays
    shown = () if displays is None else displays.finish(gathered.artifacts, gathered.notices)
    return ExecutionOutcome(
        status=result.status,
        route=gathered.route,
        isolation=gathered.isolation,
        elapsed_ms=result.elapsed_ns / 1e6,
        stdout=_finish(stdout, gathered) if stdout.size else "",
        stderr=_finish(stderr, gathered) if stderr.size else "",
        result=result.result if displays is None or displays.result is None else displays.result,
        error=result.error,
        displays=shown,
        changes=result.changes,
        artifacts=tuple(gathered.artifacts),
        lossy=tuple(gathered.lossy),
        late_output=gathered.late,
        notices=tuple(gathered.notices),
        parent=gathered.parent,
        snapshot=gathered.snapshot,
    )


def _finish(collector: OutputCollector, gathered: Gathered) -> str:
    text, artifact, is_lossy = collector.finish()
    if collector.failure is not None:
        gathered.notices.append(
            f"{collector.field}: only its ends were kept, the rest is lost: {collector.failure}"
        )
    if is_lossy:
        gathered.lossy.append(collector.field)
    if artifact is not None:
        gathered.artifacts.append(artifact)
        reason = "holds bytes that are not text" if is_lossy else "is too long for the log line"
        gathered.notices.append(
            f"{collector.field} {reason}; all {artifact.bytes} bytes are artifact {artifact.sha256}"
        )
    return text
