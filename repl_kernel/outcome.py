"""A worker's reply, or its death -> the outcome of the execution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repl_kernel.capture import OutputCollector
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


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended: signal or exit code (both `None` where nobody could tell), in words, and when."""

    signal: str | None
    exit_code: int | None
    words: str
    elapsed_ns: int


@dataclass(slots=True)
class Gathered:
    """What was gathered beside the reply: output by stream, texts that came in parts, late output, notices."""

    route: Route
    isolation: Isolation
    streams: tuple[OutputCollector, OutputCollector]
    notices: list[str]
    late: tuple[LateOutput, ...] = ()
    late_artifacts: tuple[Artifact, ...] = ()
    parts: Mapping[str, OutputCollector] | None = None


def outcome_from_reply(reply: Mapping[str, Any], gathered: Gathered) -> ExecutionOutcome:
    """Put the outcome of an execution that replied together."""
    error = ExecutionError(**reply["error"]) if reply["error"] is not None else None
    result: Mapping[str, object] | None = reply["result"]
    changes = NamespaceChanges(**reply["changes"]) if reply["changes"] is not None else NO_CHANGES
    artifacts: list[Artifact] = []
    lossy: list[str] = []
    if gathered.parts:
        texts = {name: _finish(part, gathered, artifacts, lossy) for name, part in gathered.parts.items()}
        if "result" in texts:
            result = {"text/plain": texts["result"]}
        if error is not None:
            error = replace(error, message=texts["error.message"], traceback=texts["error.traceback"])
    return assemble(reply["status"], reply["elapsed_ns"], error, result, changes, gathered, artifacts, lossy)


def death_outcome(death: Death, status: Status, taken: Sequence[str], gathered: Gathered) -> ExecutionOutcome:
    """Put the outcome of an execution whose worker died together: `taken` are the signals we had sent it."""
    steps = f" after {', '.join(taken)}" if taken else ""
    message = f"the worker {death.words}{steps}"
    error_type = {"timeout": "TimeLimitExceeded", "interrupted": "KeyboardInterrupt"}.get(status, "WorkerCrashed")
    text = f"{error_type}: {message}\n"
    error = ExecutionError(
        type=error_type, message=message, traceback=text, signal=death.signal, exit_code=death.exit_code
    )
    gathered.notices.append(f"{message}; its variables are lost, the next execution starts with an empty namespace")
    return assemble(status, death.elapsed_ns, error, None, NO_CHANGES, gathered, [], [])


def past_time_limit(outcome: ExecutionOutcome, time_limit_s: float) -> ExecutionOutcome:
    """The same as a `timeout`: it was ended by its time limit, or ran on past it."""
    message = f"the execution ran longer than its time limit of {time_limit_s:g} s"
    old = outcome.error
    where = old.traceback if old is not None else ""
    traceback = f"{where.rpartition('KeyboardInterrupt')[0]}TimeLimitExceeded: {message}\n"
    error = ExecutionError(
        type="TimeLimitExceeded", message=message, traceback=traceback, line=old.line if old is not None else None
    )
    stderr = outcome.stderr.removesuffix(where) + traceback
    return replace(outcome, status="timeout", error=error, stderr=stderr)


def assemble(
    status: Status,
    elapsed_ns: int,
    error: ExecutionError | None,
    result: Mapping[str, object] | None,
    changes: NamespaceChanges,
    gathered: Gathered,
    artifacts: list[Artifact],
    lossy: list[str],
) -> ExecutionOutcome:
    """Put an outcome together: stderr gets the traceback; what a line can't hold becomes an artifact and a notice."""
    stdout, stderr = gathered.streams
    if error is not None:
        stderr.feed(error.traceback.encode("utf-8", "surrogatepass"))
    return ExecutionOutcome(
        status=status,
        route=gathered.route,
        isolation=gathered.isolation,
        elapsed_ms=elapsed_ns / 1e6,
        stdout=_finish(stdout, gathered, artifacts, lossy) if stdout.size else "",
        stderr=_finish(stderr, gathered, artifacts, lossy) if stderr.size else "",
        result=result,
        error=error,
        changes=changes,
        artifacts=(*artifacts, *gathered.late_artifacts),
        lossy=tuple(lossy),
        late_output=gathered.late,
        notices=tuple(gathered.notices),
    )


def _finish(collector: OutputCollector, gathered: Gathered, artifacts: list[Artifact], lossy: list[str]) -> str:
    text, artifact, is_lossy = collector.finish()
    if is_lossy:
        lossy.append(collector.field)
    if artifact is not None:
        artifacts.append(artifact)
        reason = "holds bytes that are not text" if is_lossy else "is too long for the log line"
        gathered.notices.append(f"{collector.field} {reason}; all {artifact.bytes} bytes are artifact {artifact.sha256}")
    return text
