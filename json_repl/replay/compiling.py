"""Whether recorded code compiles: what can be asked of it without running any of it."""

from __future__ import annotations
import __future__

import ast
from types import CodeType

from task_logger.record import ExecutionRecord

_FUTURE_FLAGS = sum({getattr(__future__, name).compiler_flag for name in __future__.all_feature_names})

_SYNTAX_ERRORS = (
    "SyntaxError",
    "IndentationError",
    "TabError",
    "ValueError",
    "MemoryError",
    "RecursionError",
)


def compile_error(record: ExecutionRecord, flags: dict[str, int]) -> Exception | None:
    """What compiling the code raises; `None` where it compiles, is no whole code, or was recorded as such.

    `flags` are what the code of each session is compiled with: a `from __future__ import` holds for the rest.
    """
    request, outcome = record.request, record.outcome
    if outcome.artifacts and any(artifact.field == "code" for artifact in outcome.artifacts):
        return None  # the line has only a part of it
    known = flags.get(request.session_id, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    try:
        compiled: CodeType = compile(request.code, "<code>", "exec", known, dont_inherit=True)
        flags[request.session_id] = known | compiled.co_flags & _FUTURE_FLAGS
    except (SyntaxError, ValueError, MemoryError, RecursionError) as exc:
        if outcome.error is not None and outcome.error.type in _SYNTAX_ERRORS:
            return None  # so it was recorded
        return exc
    return None
