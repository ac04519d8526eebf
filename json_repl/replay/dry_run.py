"""The dry run: what needs no execution. Nothing of the recording runs, and so nothing is said to match.

line -> schema, chain (the reader's) -> compiles? -> what a plan needs of it -> plan -> READY | DIFF | SKIP
"""

from __future__ import annotations

import ast
import os
import time
import warnings
from collections.abc import Mapping

from json_repl.replay.comparison import Difference
from json_repl.replay.compiling import compile_error
from json_repl.replay.plan import make_plan, misplaced, why_skipped
from json_repl.replay.recording import Fault, RecordedLine, Recording, chosen_session, read_recording
from json_repl.replay.report import Report, StepReport, Verdict, step_report
from json_repl.replay.secrets import ReplaySecrets
from json_repl.replay.shells import ran_in_ipython
from task_logger.record import ExecutionOutcome, ExecutionRecord, ExecutionRequest, TaskIds

_KEPT_CODE_CHARACTERS = 200
"""How much of each line's code a report on a long recording holds."""

_NO_TASK = TaskIds(plan_id="", task_id="", task_name="")

_NO_TAGS: Mapping[str, object] = {}


def dry_run(
    path: str | os.PathLike[str],
    session_id: str | None = None,
    *,
    first_line: int | None = None,
    last_line: int | None = None,
) -> Report:
    """Check a recording without running any of it. Raises what `read_recording` does."""
    began = time.monotonic()
    path = os.fspath(path)
    lines: list[RecordedLine] = []
    faults: list[Fault] = []
    broken: dict[int, Difference] = {}
    skips: dict[int, str] = {}
    flags: dict[str, int] = {}
    secrets: ReplaySecrets | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the recorded code, which this process has no part in
        for item in read_recording(path):
            if isinstance(item, Fault):
                faults.append(item)
                continue
            difference = _compiles(item.record, flags)
            if difference is not None:
                broken[item.number] = difference
            skip = why_skipped(item.record)
            if skip is None and "⟨" in item.record.request.code:
                secrets = secrets or ReplaySecrets(Recording(path=path, lines=(), faults=()), os.environ)
                skip = secrets.why_not_whole(item.record.request.code)
            if skip is not None:
                skips[item.number] = skip
            lines.append(RecordedLine(number=item.number, record=_slim(item.record)))
    wanted = None if session_id is None else chosen_session(path, lines, session_id)
    plan = make_plan(lines, more_skips=skips)
    steps: list[StepReport] = []
    for step in plan.steps:
        number, record = step.line.number, step.line.record
        if wanted not in (None, step.session_id) or not (first_line or 1) <= number <= (last_line or number):
            continue
        differences = misplaced(step)
        if step.skip is None and number in broken:
            differences += (broken[number],)
        verdict: Verdict = "DIFF" if differences else "SKIP" if step.skip is not None else "READY"
        steps.append(step_report(number, record, verdict, reason=step.skip, differences=differences))
    return Report(
        path=path,
        mode="dry-run",
        isolation=None,
        steps=tuple(sorted(steps, key=lambda step: step.number)),
        faults=tuple(sorted((*faults, *plan.faults), key=lambda fault: fault.number)),
        took_s=time.monotonic() - began,
    )


def _compiles(record: ExecutionRecord, flags: dict[str, int]) -> Difference | None:
    """What is wrong where the code is no Python although it ran; `flags` as for `compile_error`."""
    code, error = record.request.code, compile_error(record, flags)
    if error is None or (ran_in_ipython(record) and _compiles_in_ipython(code)):
        return None
    line, column = (getattr(error, name, None) or 1 for name in ("lineno", "offset"))
    text = f"{type(error).__name__}: {getattr(error, 'msg', None) or error}"
    return Difference(field="code", line=line, column=column, recorded=code, replayed=text, is_random=False)


def _compiles_in_ipython(code: str) -> bool:
    """Whether it is Python once IPython has made calls of its magics; they aren't called."""
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        python = TransformerManager().transform_cell(code)  # type: ignore[no-untyped-call]  # IPython's
        compile(python, "<code>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def _slim(record: ExecutionRecord) -> ExecutionRecord:
    """What a plan and a report need of a record: a long recording fits into memory so."""
    request, outcome = record.request, record.outcome
    return ExecutionRecord(
        request=ExecutionRequest(
            code=request.code[:_KEPT_CODE_CHARACTERS],
            session_id=request.session_id,
            seq=request.seq,
            task=_NO_TASK,
            timestamp=request.timestamp,
            tags=_NO_TAGS,
            actor=request.actor,
        ),
        outcome=ExecutionOutcome(
            status=outcome.status,
            route=outcome.route,
            isolation=outcome.isolation,
            elapsed_ms=outcome.elapsed_ms,
            parent=outcome.parent,
            rolled_back=outcome.rolled_back,
        ),
        extra=_NO_TAGS,
    )
