"""The record: what happened, kept. One JSON line per execution, chained, in one file per task."""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` costs start-up time
if TYPE_CHECKING:
    from task_logger.events import alert, event, llm_request, llm_response, model_call
    from task_logger.task import normalize_task_name, run_in_thread, task_context
    from task_logger.writer import EnhancedTaskLogger, TaskLogger

__all__ = [
    "EnhancedTaskLogger",
    "TaskLogger",
    "alert",
    "event",
    "llm_request",
    "llm_response",
    "model_call",
    "normalize_task_name",
    "run_in_thread",
    "task_context",
]

_HOMES = {
    "EnhancedTaskLogger": "writer",
    "TaskLogger": "writer",
    **dict.fromkeys(("alert", "event", "llm_request", "llm_response", "model_call"), "events"),
    "normalize_task_name": "task",
    "run_in_thread": "task",
    "task_context": "task",
}


def __getattr__(name: str) -> object:
    # Imported when asked for: importing any module of this package must not import all of it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"task_logger.{_HOMES[name]}"), name)
