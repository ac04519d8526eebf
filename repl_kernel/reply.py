"""The result of an execution -> the frames of its reply.

A short reply is one frame. Texts that are long, or that JSON can't hold, go ahead of it as parts:

    {"id", "part": "result", "base64": …} …   then   {"id", "status", …, "parts": ["result"]}
"""

from __future__ import annotations

import _thread
import base64
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from repl_kernel.code_result import CodeResult
from repl_kernel.framing import pack
from task_logger.record import MAX_TEXT_BYTES, NO_CHANGES

_PART_BYTES = 768 << 10
"""One MiB in base64."""

_LONGEST_DISPLAY_BYTES = 16 << 20
"""A quarter of the longest frame."""


def send_reply(
    message_id: int, result: CodeResult, late: Sequence[Any], mark: int | None, send: Callable[[bytes], None]
) -> None:
    """Send what came of an execution; `mark` is the newest process when it ended, if it left children."""
    message = {
        "id": message_id,
        "status": result.status,
        "elapsed_ns": result.elapsed_ns,
        "result": result.result,
        "error": result.error,
        "changes": None if result.changes is NO_CHANGES else result.changes,
        "late": late,
        "mark": mark,
        "copyable": not _thread._count(),
    }
    if not _is_long(result):
        try:
            return send(pack(message))
        except TypeError:  # orjson's: a text with lone surrogates
            pass
    message["parts"] = _send_parts(message_id, message, result, send)
    return send(pack(_encodable(message)))


def display_frames(message: dict[str, Any], number: int | None = None) -> list[bytes]:
    """The frames of a message about a display: one, or where it is long several, with pieces of its text.

    The session answers a `number`, once it has passed the message on.
    """
    try:
        data = orjson.dumps(message, default=repr, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # a text with lone surrogates
        data = orjson.dumps(_encodable(message), default=repr, option=orjson.OPT_NON_STR_KEYS)
    if len(data) <= _LONGEST_DISPLAY_BYTES:
        return [pack({"display": orjson.Fragment(data), "more": False, "number": number})]
    pieces = range(0, len(data), _PART_BYTES)
    return [
        pack(
            {
                "display": base64.b64encode(data[start : start + _PART_BYTES]).decode(),
                "more": start + _PART_BYTES < len(data),
                "number": number,
            }
        )
        for start in pieces
    ]


def _is_long(result: CodeResult) -> bool:
    if result.result is not None and len(str(result.result.get("text/plain", ""))) > MAX_TEXT_BYTES // 4:
        return True
    error = result.error
    return error is not None and len(error.message) + len(error.traceback) > MAX_TEXT_BYTES // 4


def _send_parts(
    message_id: int, message: dict[str, Any], result: CodeResult, send: Callable[[bytes], None]
) -> list[str]:
    """Send the texts of the result and the error as parts, take them out of the message, and return
    their names."""
    texts: dict[str, str] = {}
    if result.result is not None:
        texts["result"] = str(result.result["text/plain"])
        message["result"] = {}
    if result.error is not None:
        texts["error.message"], texts["error.traceback"] = result.error.message, result.error.traceback
        message["error"] = asdict(result.error) | {"message": "", "traceback": ""}
    for name, text in texts.items():
        for start in range(0, len(text), _PART_BYTES // 4):
            data = text[start : start + _PART_BYTES // 4].encode("utf-8", "surrogatepass")
            send(pack({"id": message_id, "part": name, "base64": base64.b64encode(data).decode()}))
    return list(texts)


def _encodable(value: Any) -> Any:
    """The same as orjson can hold it: lone surrogates escaped, in names too; what else it refuses is text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable_key(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_encodable(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return _encodable(asdict(value))
    return value


def _encodable_key(key: object) -> object:
    return key if key is None or isinstance(key, (bool, float)) else _encodable(str(key))
