"""The fields of an event: which there are, and what their values may be."""

from __future__ import annotations

from collections.abc import Mapping

from task_logger.errors import InvalidField

EVENT_SCHEMA_VERSION = 1
"""Major version of the events that this package writes and reads."""

LEVELS = ("info", "warning", "error", "critical")
KINDS = ("event", "alert", "llm_request", "llm_response")

_TEXTS = ("name", "source", "message", "model", "error", "correlation_id", "session_id")
_COUNTS = ("latency_ms", "input_tokens", "output_tokens", "cost_usd")
_OBJECTS = ("dimensions", "tags")
_NEEDED = {
    "event": ("name",),
    "alert": ("level", "source", "message"),
    "llm_request": ("model", "correlation_id"),
    "llm_response": ("model", "correlation_id"),
}


def check_event(fields: Mapping[str, object]) -> None:
    """Raise `InvalidField` where the fields are not what the schema of an event allows."""
    kind = fields.get("kind")
    needed = _NEEDED.get(kind) if isinstance(kind, str) else None
    if needed is None:
        raise InvalidField("kind", f"one of {', '.join(KINDS)}", kind)
    for name in needed:
        if name not in fields:
            raise InvalidField(name, f"there in an event of kind {kind}", None)
    for name, value in fields.items():
        if name in _TEXTS:
            if not isinstance(value, str):
                raise InvalidField(name, "a text", value)
        elif name in _OBJECTS:
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise InvalidField(name, "a mapping from names to JSON values", value)
        elif name in _COUNTS:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e18:
                raise InvalidField(name, "a number, 0 or more", value)
        elif name == "level" and value not in LEVELS:
            raise InvalidField(name, f"one of {', '.join(LEVELS)}", value)
