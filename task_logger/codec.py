"""Records <-> the bytes of a line: the one place that knows field order, escapes, chain and versions.

A line is `body`, then `recovered` (only where needed), `n`, `prev` and `hash`, then LF:

    {"plan_id":…,…  ,"n":7,"prev":"<64 hex>"  ,"hash":"<64 hex>"}
    body            +-- what the hash covers is everything up to here

    request, outcome -> fields ----------------> orjson -> escapes -> body    almost always
                              +-> fitting.fit ->                              what JSON or a line cannot hold
    line -> orjson -> fields -> checks -> record
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from task_logger.errors import BadLine, EncryptedLine, InvalidField, LineTooLarge, UnsupportedSchema
from task_logger.fields import (
    JSON_OPTIONS,
    completed_fields,
    fields_of,
    outcome_from_fields,
    record_from_fields,
)
from task_logger.record import (
    MAX_TEXT_BYTES,
    Artifact,
    ExecutionOutcome,
    ExecutionRecord,
    ExecutionRequest,
    TaskIds,
)
from task_logger.schema import SCHEMA_VERSION, check_line

if TYPE_CHECKING:
    from task_logger.sealing import Sealer

FIRST_PREV = "0" * 64
"""`prev` of the first line of a log."""

_HASH_TAIL_BYTES = 75
"""Length of `,"hash":"<64 hex>"}`, which the hash does not cover."""

_PREV_TAIL_BYTES = 74
"""Length of `,"prev":"<64 hex>"`, which stands right before it."""

_NUMBER_TAIL_BYTES = 32
"""More than `,"n":<number>`, which stands before that, ever takes."""

_ENCRYPTED = b'{"schema":1,"enc":"A256GCM","key_id":"'
_KEY_ID_CHARS = 16
"""How an encrypted line begins, and how long the id is that follows."""

_SHORT_LINE_BYTES = 2048

MAX_EVENT_BYTES = 1 << 20
"""Longest event: a line of measurements, not a place for what they are about."""

_RAW_LINE_ENDS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
"""Line ends to `str.splitlines()` that orjson writes raw, always inside strings, and their escapes."""


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """A line's body, and the outcome as it holds it; artifacts with `content` are still to be stored."""

    body: bytes
    outcome: ExecutionOutcome


@dataclass(frozen=True, slots=True)
class ChainLink:
    """Where a valid line stands in its log's chain."""

    n: int
    prev: str
    hash: str


@dataclass(frozen=True, slots=True)
class UnreadablePiece:
    """Bytes between two line ends that are no valid line: offset in the file, length without the line end."""

    at: int
    bytes: int


def seal(
    body: bytes,
    n: int,
    prev: str,
    recovered: Sequence[UnreadablePiece] = (),
    sealer: Sealer | None = None,
) -> tuple[bytes, str]:
    """Complete a line: `body` is a JSON object without its last brace; returns it with LF, and its hash.

    With a `sealer` the body gets its keyed seal.
    """
    named = b""
    if recovered:
        pieces = ",".join(f'{{"at":{piece.at},"bytes":{piece.bytes}}}' for piece in recovered)
        named = b',"recovered":[%b]' % pieces.encode()
    if sealer is None:
        covered = b'%b%b,"n":%d,"prev":"%b"' % (body, named, n, prev.encode())
        digest = hashlib.sha256(covered).hexdigest()
    else:
        hasher = hashlib.sha256(body)  # once over the body, for both
        chain = b'%b,"n":%d,"prev":"%b"' % (named, n, prev.encode())
        chain = sealer.field(hasher.digest(), chain) + chain
        hasher.update(chain)
        covered, digest = body + chain, hasher.hexdigest()
    return b'%b,"hash":"%b"}\n' % (covered, digest.encode()), digest


def read_link(line: bytes) -> ChainLink | None:
    """Return the chain fields of a line without its LF, `None` where it is not whole with the right hash."""
    covered, tail = line[:-_HASH_TAIL_BYTES], line[-_HASH_TAIL_BYTES:]
    if not (tail.startswith(b',"hash":"') and tail.endswith(b'"}') and covered.startswith(b"{")):
        return None
    digest = hashlib.sha256(covered).hexdigest()
    prev_part = covered[-_PREV_TAIL_BYTES:]
    number = covered[-_PREV_TAIL_BYTES - _NUMBER_TAIL_BYTES : -_PREV_TAIL_BYTES].rpartition(b',"n":')[2]
    if tail[9:-2] != digest.encode() or not prev_part.startswith(b',"prev":"') or not number.isdigit():
        return None
    return ChainLink(int(number), prev_part[9:-1].decode("ascii", "replace"), digest)


def stored_key_id(line: bytes) -> str | None:
    """Return the id of an encrypted line's data key: `None` for a plain line, empty for another version's."""
    if line.startswith(_ENCRYPTED):
        key_id = line[len(_ENCRYPTED) : len(_ENCRYPTED) + _KEY_ID_CHARS]
        ends = line[len(_ENCRYPTED) + _KEY_ID_CHARS :][:1] == b'"'
        return key_id.decode("ascii", "replace") if ends else ""
    return "" if line.startswith((b'{"enc"', b'{"schema":1,"enc"')) else None


def encode(
    request: ExecutionRequest, outcome: ExecutionOutcome, *, max_body_bytes: int | None = None
) -> EncodedRecord:
    """Make a line's body: the JSON object of an execution without its closing brace.

    `max_body_bytes` of `None` is what a plain line may have.
    Returns the outcome itself where the line holds it as it is. Raises `LineTooLarge` where an outcome
    names more artifacts than a line can hold.
    """
    fields = fields_of(request, outcome)
    # orjson writes NaN as null: a null more than the fields hold can mean that some value is not what it was.
    error = outcome.error
    nulls = (outcome.result is None) + (error is None) + (request.actor is None) + (outcome.snapshot is None)
    if error is not None:
        nulls += (error.line is None) + (error.signal is None) + (error.exit_code is None)
    try:
        data = orjson.dumps(fields, option=JSON_OPTIONS)
    except TypeError:
        return _encode_fitted(fields, outcome, max_body_bytes)
    # Counting is the cheaper check for a short line only; both leave the usual one alone.
    suspicious = len(data) > _SHORT_LINE_BYTES or data.count(b"null") != nulls
    if len(data) > MAX_TEXT_BYTES or (suspicious and _may_hold_nan(request, outcome)):
        return _encode_fitted(fields, outcome, max_body_bytes)
    return EncodedRecord(_escaped(data)[:-1], outcome)


def _may_hold_nan(request: ExecutionRequest, outcome: ExecutionOutcome) -> bool:
    """Whether there are nulls in what can hold floats, rather than the word in a text."""
    parts: list[object] = [request.tags, outcome.changes.variables]
    for bundle in outcome.displays:
        parts += [part for part in bundle.values() if not isinstance(part, str)]
    if outcome.result is not None:
        parts += [part for part in outcome.result.values() if not isinstance(part, str)]
    return b"null" in orjson.dumps(parts, option=JSON_OPTIONS)


def _encode_fitted(
    fields: Mapping[str, object], outcome: ExecutionOutcome, max_body_bytes: int | None
) -> EncodedRecord:
    from task_logger.fitting import fit  # most sessions never come here

    fitted = fit(fields, max_body_bytes)
    as_held = outcome_from_fields(fitted.fields)
    as_held = replace(as_held, artifacts=outcome.artifacts + fitted.artifacts, notices=outcome.notices)
    return EncodedRecord(_escaped(orjson.dumps(fitted.fields, option=JSON_OPTIONS))[:-1], as_held)


def _escaped(data: bytes) -> bytes:
    if data.isascii():  # each search costs as much as writing the JSON did
        return data
    for raw, escape in _RAW_LINE_ENDS:
        if raw in data:
            data = data.replace(raw, escape)
    return data


def encode_event(fields: Mapping[str, object]) -> bytes:
    """Make the body of an event's line, which must be short. Raises `LineTooLarge`."""
    try:
        data = orjson.dumps(fields, option=JSON_OPTIONS)
    except TypeError:
        data = b""
    if not data or b"null" in data:  # orjson writes NaN as null too
        from task_logger.fitting import as_json, without_surrogates

        data = orjson.dumps(without_surrogates(as_json(fields)))
    if len(data) > MAX_EVENT_BYTES:
        raise LineTooLarge(
            f"an event of {len(data)} bytes is longer than {MAX_EVENT_BYTES}; keep what is large in a file"
        )
    return _escaped(data)[:-1]


def complete(
    mapping: Mapping[str, object],
    *,
    task: TaskIds,
    session_id: str,
    seq: int,
    timestamp: str,
    store: Callable[[Artifact], object] | None = None,
    max_body_bytes: int | None = None,
) -> bytes:
    """Make a line's body of another program's fields, filling in the required ones it leaves out.

    Unknown fields are kept. `max_body_bytes` of `None` is what a plain line may have. `store` takes the
    artifacts of what does not fit the line. Raises `InvalidField` for a field that the schema does not allow,
    and `LineTooLarge` where there is no `store` to take the rest.
    """
    from task_logger.fitting import fit

    fields = completed_fields(mapping, task=task, session_id=session_id, seq=seq, timestamp=timestamp)
    fitted = fit(fields, max_body_bytes)
    if fitted.artifacts and store is None:
        names = ", ".join(artifact.field for artifact in fitted.artifacts)
        raise LineTooLarge(f"the line cannot hold all of {names}, and there is nowhere to store the rest")
    for artifact in fitted.artifacts:
        assert store is not None
        store(artifact)
    return _escaped(orjson.dumps(fitted.fields, option=JSON_OPTIONS))[:-1]


def decode(line: bytes, path: str = "") -> ExecutionRecord:
    """Read a line, with or without LF, of the log at `path`; fields unknown to this version go to `extra`.

    Raises `BadLine` for what is no line, `UnsupportedSchema` for one of another major version, and
    `EncryptedLine`. The hash is not checked here: `read_link` does.
    """
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        raise BadLine(path, f"it is not JSON ({exc})") from exc
    if not isinstance(fields, dict):
        raise BadLine(path, "it is JSON, but no object")
    if "enc" in fields and stored_key_id(line) is not None:  # else it is a field of a program's own
        raise EncryptedLine(path)
    version = fields.get("schema")
    if isinstance(version, int) and not isinstance(version, bool) and version != SCHEMA_VERSION:
        raise UnsupportedSchema(path, version, SCHEMA_VERSION)
    try:
        check_line(fields)
    except InvalidField as exc:
        raise BadLine(path, str(exc)) from exc
    return record_from_fields(fields, path)


def encode_request(request: ExecutionRequest) -> bytes:
    """Write a request as one line of JSON without LF; `decode_request` gives back whatever its code holds."""
    task = request.task
    fields = {
        "plan_id": task.plan_id,
        "task_id": task.task_id,
        "task_name": task.task_name,
        "session_id": request.session_id,
        "seq": request.seq,
        "timestamp": request.timestamp,
        "code": request.code,
        "tags": request.tags,
        "time_limit_s": request.time_limit_s,
        "allow_input": request.allow_input,
        "actor": request.actor,
    }
    try:
        data = orjson.dumps(fields, option=JSON_OPTIONS)
    except TypeError:
        data = b""
    if not data or (request.tags and b"null" in orjson.dumps(request.tags)):
        from task_logger.fitting import as_json, python_json

        return python_json({**fields, "tags": as_json(request.tags)}).encode()
    return data


def decode_request(data: bytes) -> ExecutionRequest:
    """Read what `encode_request` wrote; raises `BadLine` for anything else."""
    try:
        fields = _loads_with_surrogates(data)
        task = TaskIds(
            plan_id=fields.pop("plan_id"), task_id=fields.pop("task_id"), task_name=fields.pop("task_name")
        )
        return ExecutionRequest(task=task, **fields)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BadLine("", f"it is not a pending request ({exc})") from exc


def _loads_with_surrogates(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        import json

        return json.loads(data)


def timestamp(now_ns: int) -> str:
    """Return nanoseconds since the epoch as UTC, ISO 8601 with milliseconds and `Z`."""
    second, rest_ns = divmod(now_ns, 1_000_000_000)
    return f"{_second_text(second)}.{rest_ns // 1_000_000:03d}Z"


@lru_cache(maxsize=1)
def _second_text(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
