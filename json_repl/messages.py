"""JSON-RPC 2.0 messages, one a line: parse and render, no I/O.

line -> parse() -> Request        one typed value for each method's params
                -> Rejected       what to reply to a line that is no request, or a wrong one
result, error, notification -> render_*() -> line, LF included, and no other line end of any kind inside
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import orjson

from json_repl.params import ONE_SESSION_METHODS, PARAMS_PARSERS, BadParams, Params

RequestId: TypeAlias = str | int | None

NOT_JSON = -32700
NOT_A_REQUEST = -32600
NO_SUCH_METHOD = -32601
BAD_PARAMS = -32602
INTERNAL_ERROR = -32603
BUSY = -32000
SESSION_CLOSED = -32001

MAX_EXACT_FLOAT = 2.0**63
"""The parser makes floats of integers past 64 bits; from here on a float may have been one."""


class Request(NamedTuple):
    """A request that can be acted on; a notification is one with `wants_reply` false.

    `session_id` of `None` means the session that the process began with.
    """

    method: str
    params: Params
    id: RequestId
    wants_reply: bool
    session_id: str | None = None


class Rejected(NamedTuple):
    """What to reply to a line that can't be acted on; nothing, if `wants_reply` is false."""

    code: int
    message: str
    id: RequestId = None
    wants_reply: bool = True


class _Refusal(Exception):
    """Carries what is wrong from a check to `parse`; never leaves this module."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def parse(line: bytes) -> Request | Rejected:
    """Turn one line into a request, or into the reply that says why it is none.

    A reply carries the request's id wherever one can be made out, else null, as JSON-RPC says.
    """
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        return _reject_unparsed(line, exc)
    if not isinstance(message, dict):
        kind = (
            "batches are not supported: send one request a line"
            if isinstance(message, list)
            else "not an object"
        )
        return Rejected(code=NOT_A_REQUEST, message=f"not a request: {kind}")
    request_id = message.get("id")
    wants_reply = "id" in message
    if not _is_id(request_id):
        return Rejected(
            code=NOT_A_REQUEST, message="not a request: id must be a string, a 64-bit integer or null"
        )
    try:
        message = _checked_content(line, message)
        method = _checked_method(message)
    except _Refusal as refusal:
        # What is no valid request is no valid notification either: it gets its one reply even without an id.
        return Rejected(code=refusal.code, message=refusal.message, id=request_id)
    try:
        session_id, params = _parse_params(method, message)
    except _Refusal as refusal:
        return Rejected(code=refusal.code, message=refusal.message, id=request_id, wants_reply=wants_reply)
    return Request(method, params, request_id, wants_reply, session_id)


def render_result(request_id: RequestId, result: object) -> bytes:
    """Render the reply to a request that was carried out; what isn't Unicode in it (a path) is escaped."""
    reply = {"jsonrpc": "2.0", "id": request_id, "result": result}
    try:
        return render(reply)
    except TypeError:
        return render({**reply, "result": _all_well_formed(result)})


def render_error(
    request_id: RequestId, code: int, message: str, data: Mapping[str, object] | None = None
) -> bytes:
    """Render the reply to a request that was not; `data` are facts for programs, `None` without any."""
    error: dict[str, object] = {"code": code, "message": well_formed(message)}
    if data is not None:
        error["data"] = data
    return render({"jsonrpc": "2.0", "id": request_id, "error": error})


def render_notification(method: str, params: Mapping[str, object]) -> bytes:
    """Render a message that gets no reply."""
    return render({"jsonrpc": "2.0", "method": method, "params": params})


def render_request(request_id: RequestId, method: str, params: Mapping[str, object]) -> bytes:
    """Render a request, as clients send it; raises `TypeError` for what JSON can't hold."""
    return render({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def render(message: Mapping[str, object]) -> bytes:
    """Render any message as one line, LF included."""
    line = orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)
    # Legal in JSON, but line ends to str.splitlines() and to Node's readline. They only occur in strings.
    if b"\xe2\x80\xa8" in line or b"\xe2\x80\xa9" in line or b"\xc2\x85" in line:
        line = line.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
        line = line.replace(b"\xc2\x85", b"\\u0085")
    return line


def well_formed(text: str) -> str:
    """The text, with what isn't Unicode in it escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _all_well_formed(value: object) -> object:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, Mapping):
        return {name: _all_well_formed(item) for name, item in value.items()}
    return [_all_well_formed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_id(value: object) -> bool:
    return value is None or (isinstance(value, str | int) and not isinstance(value, bool))


def _reject_unparsed(line: bytes, exc: orjson.JSONDecodeError) -> Rejected:
    """Say what is wrong with a line that the parser refused."""
    try:
        line.decode()
    except UnicodeDecodeError as bad:
        return Rejected(code=NOT_JSON, message=f"not JSON: byte {bad.start + 1} of the line is not UTF-8")
    if _has_two_values(line):
        return Rejected(
            code=NOT_A_REQUEST, message="not a request: several JSON values on one line; send one a line"
        )
    reason = exc.msg
    if "surrogate" in reason:
        reason = "an escape such as \\ud800 is half a character; in Python code, write \\\\ud800"
    return Rejected(code=NOT_JSON, message=f"not JSON: {reason} (character {exc.pos + 1} of the line)")


def _has_two_values(line: bytes) -> bool:
    text = line.decode().strip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
        orjson.loads(text[:end])
        rest = text[end:].lstrip()
        return bool(rest) and json.JSONDecoder().raw_decode(rest)[1] > 0
    except (ValueError, RecursionError):
        return False


def _checked_content(line: bytes, message: dict[str, Any]) -> dict[str, Any]:
    """Refuse what the parser silently drops or changes: names given twice, and integers made floats."""
    strings, has_large_float = _count_strings(message)
    quotes = line.count(b'"')
    if b"\\" in line:
        quotes = line.replace(b"\\\\", b"").replace(b'\\"', b"").count(b'"')
    if quotes != 2 * strings:
        raise _Refusal(NOT_A_REQUEST, "not a request: an object gives the same name twice")
    if not has_large_float:
        return message
    try:
        exact: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise _Refusal(NOT_A_REQUEST, f"not a request: a number that can't be read exactly: {exc}") from exc
    return exact


def _count_strings(message: dict[str, Any]) -> tuple[int, bool]:
    """Count names and strings at every depth; says also whether a float may have been an integer."""
    count, has_large_float = 0, False
    pending: list[Any] = [message]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            count += len(value)
            value = value.values()
        for item in value:
            kind = type(item)
            if kind is str:
                count += 1
            elif kind is dict or kind is list:
                pending.append(item)
            elif kind is float and abs(item) >= MAX_EXACT_FLOAT:
                has_large_float = True
    return count, has_large_float


def _checked_method(message: Mapping[str, Any]) -> str:
    if message.get("jsonrpc") != "2.0":
        raise _Refusal(NOT_A_REQUEST, 'not a request: jsonrpc must be "2.0"')
    method = message.get("method")
    if not isinstance(method, str):
        raise _Refusal(NOT_A_REQUEST, "not a request: method must be a string")
    return method


def _parse_params(method: str, message: Mapping[str, Any]) -> tuple[str | None, Params]:
    """The session that is meant, `None` for the process's first one, and the method's own params."""
    parser = PARAMS_PARSERS.get(method)
    if parser is None:
        raise _Refusal(
            NO_SUCH_METHOD, f"no such method: {method[:100]!r}; there are {', '.join(PARAMS_PARSERS)}"
        )
    given = message.get("params", {})
    if not isinstance(given, dict):
        raise _Refusal(BAD_PARAMS, "params must be an object (by name, not by position)")
    session_id = None
    if "session_id" in given and method in ONE_SESSION_METHODS:
        session_id, given = given["session_id"], {**given}
        del given["session_id"]
        if not isinstance(session_id, str):
            raise _Refusal(BAD_PARAMS, "session_id must be a string; leave it out for the first session")
    try:
        return session_id, parser(given)
    except BadParams as exc:
        raise _Refusal(BAD_PARAMS, str(exc)) from exc
