"""The fields of a line: which there are, in which order, and what their values may be.

The checks are those of the JSON schema of a line, in plain Python: a schema library takes longer than all
the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from task_logger.errors import InvalidField

SCHEMA_VERSION = 1
"""Major version of the lines that this package writes and reads."""

# Texts and not compiled patterns: `re` compiles them at their first use, which most sessions never come to.
_HEX_64 = r"[0-9a-f]{64}\Z"
_TIMESTAMP = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z\Z"
_UUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_MOST = (1 << 64) - 1
"""Larger whole numbers become objects in a line, or floats in those who read it."""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _MOST


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_MOST // 2 <= value <= _MOST


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and (
        not value or all(isinstance(item, str) for item in value)  # most are empty, and lines are many
    )


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, (list, tuple)) and (not value or all(map(_is_object, value)))


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping) and (not value or all(isinstance(key, str) for key in value))


def _is_error(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(value.get(part), str) for part in ("type", "message", "traceback"))
        and all(value.get(part) is None or _is_integer(value[part]) for part in ("line", "exit_code"))
        and isinstance(value.get("signal"), (str, type(None)))
    )


def _is_artifact_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(item, Mapping)
        and all(isinstance(item.get(part), str) for part in ("field", "sha256", "mime"))
        and _is_integer(item.get("bytes"))
        for item in value
    )


def _is_variables(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(item, Mapping) and "type" in item for name, item in value.items()
    )


def _matches(pattern: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and re.match(pattern, value) is not None


def _one_of(*values: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and value in values


def _optional(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


_TEXT = (_is_text, "a text")
_NAMES = (_is_list_of_texts, "a list of names")
_OBJECTS = (_is_list_of_objects, "a list of objects")
_OPTIONAL_TEXT = (_optional(_is_text), "a text or null")

REQUIRED: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "plan_id": _TEXT,
    "task_id": _TEXT,
    "timestamp": (_matches(_TIMESTAMP), "a UTC time such as 2026-01-31T23:59:59.999Z"),
    "elapsed_ms": (_is_number, "a number of milliseconds, 0 or more"),
    "code": _TEXT,
    "stdout": _TEXT,
    "stderr": _TEXT,
    "success": (lambda value: isinstance(value, bool), "true or false"),
    "added_vars": _NAMES,
    "added_imports": _NAMES,
    "schema": (lambda value: _is_integer(value) and value == SCHEMA_VERSION, f"{SCHEMA_VERSION}"),
    "session_id": (_matches(_UUID), "a UUID"),
    "seq": (_is_count, "a whole number, 1 or more"),
    "route": (_one_of("local", "worker", "jupyter", "ray"), "one of local, worker, jupyter, ray"),
    "task_name": _TEXT,
    "status": (
        _one_of("ok", "error", "timeout", "interrupted", "crashed", "unknown"),
        "one of ok, error, timeout, interrupted, crashed, unknown",
    ),
    "result": (_optional(_is_object), "an object (a MIME bundle) or null"),
    "error": (_optional(_is_error), "null, or an object with the texts type, message and traceback"),
    "changed_vars": _NAMES,
    "removed_vars": _NAMES,
    "variables": (_is_variables, "an object with an object for each name that has at least a type"),
    "artifacts": (_is_artifact_list, "a list of objects with field, sha256, bytes and mime"),
    "tags": (_is_object, "an object"),
    "isolation": (
        _one_of("none", "process", "sandbox", "external"),
        "one of none, process, sandbox, external",
    ),
    "diff_complete": (lambda value: isinstance(value, bool), "true or false"),
}
"""Every line has these (and its chain); in the order of a line."""

OPTIONAL: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "snapshot": _OPTIONAL_TEXT,
    "actor": _OPTIONAL_TEXT,
    "parent": _OPTIONAL_TEXT,
    "displays": _OBJECTS,
    "cpu_ms": (_optional(_is_number), "a number of milliseconds or null"),
    "peak_rss_bytes": (_optional(_is_integer), "a whole number of bytes or null"),
    "lossy": (_is_list_of_texts, "a list of field names"),
    "late_output": _OBJECTS,
    "rolled_back": (lambda value: isinstance(value, bool), "true or false"),
}

CHAIN: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "n": (_is_count, "a whole number, 1 or more"),
    "prev": (_matches(_HEX_64), "64 hexadecimal digits"),
    "hash": (_matches(_HEX_64), "64 hexadecimal digits"),
}
"""Every line ends with these; only the log itself writes them."""

CHAIN_FIELDS = frozenset({"recovered", "seal", *CHAIN})

_MISSING = object()


def check_field(name: str, value: object) -> None:
    """Raise `InvalidField` where a field known to the schema has a value that it does not allow."""
    rule = REQUIRED.get(name) or OPTIONAL.get(name) or CHAIN.get(name)
    if rule is not None and not rule[0](value):
        raise InvalidField(name, rule[1], value)


def check_line(fields: Mapping[str, object]) -> None:
    """Raise `InvalidField` where a required field is missing or a known one is not what the schema allows."""
    for table in (REQUIRED, CHAIN):
        for name, (check, expected) in table.items():
            value = fields.get(name, _MISSING)
            if value is _MISSING or not check(value):
                raise InvalidField(name, expected, "missing" if value is _MISSING else value)
    for name, (check, expected) in OPTIONAL.items():
        if name in fields and not check(fields[name]):
            raise InvalidField(name, expected, fields[name])
