"""Jupyter's messages as they go over its sockets: put together, signed, checked, taken apart; no I/O.

content --> MessageCodec.pack --> frames: b"<IDS|MSG>", signature, header, parent, metadata, content
frames --> MessageCodec.unpack --> Message, or BadMessage where the signature or a part is wrong

See https://jupyter-client.readthedocs.io/en/stable/messaging.html#the-wire-protocol.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from repl_kernel.errors import BadMessage

_DELIMITER = b"<IDS|MSG>"
_PROTOCOL_VERSION = "5.4"
_REMEMBERED_SIGNATURES = 1 << 16
"""Messages that come a second time are refused; so many of them are told apart from new ones."""

MAX_MESSAGE_BYTES = 1 << 30
"""A longer message is refused by the socket: it would not be output that anybody reads."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `parent_id` is empty where it answers none. `date` is its sender's, as it wrote it;
    `subshell` names the one that the request was for, `None` the main shell."""

    type: str
    id: str
    session: str
    date: str
    parent_id: str
    parent_type: str
    parent_session: str
    subshell: str | None
    content: Mapping[str, Any]


class MessageCodec:
    """Packs and unpacks the messages of one connection; not for several threads at once."""

    def __init__(self, key: bytes, signature_scheme: str, session: str) -> None:
        """`session` is our name in the headers; an empty `key` means that nothing is signed.

        Raises `ValueError` for a signature scheme that there isn't.
        """
        kind, _, digest = signature_scheme.partition("-")
        if kind != "hmac" or digest not in hashlib.algorithms_available or digest.startswith("shake"):
            raise ValueError(f"there is no signature scheme {signature_scheme!r}")
        self._hmac = hmac.new(key, digestmod=digest) if key else None
        self._session = session
        self._count = 0
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def pack(
        self, message_type: str, content: Mapping[str, Any], parent: bytes = b"{}"
    ) -> tuple[list[bytes], str]:
        """The frames of a new message, and its id; `parent` is the header of what it answers."""
        self._count += 1
        message_id = f"{self._session}_{self._count}"
        header = {
            "msg_id": message_id,
            "session": self._session,
            "username": "json-repl",
            "date": datetime.now(UTC).isoformat(),
            "msg_type": message_type,
            "version": _PROTOCOL_VERSION,
        }
        parts = [_dump(header), parent, b"{}", _dump(content)]
        return [_DELIMITER, self._sign(parts), *parts], message_id

    def unpack(self, frames: Sequence[bytes]) -> tuple[Message, bytes]:
        """The message that the frames are, and its header's bytes; raises `BadMessage`."""
        try:
            start = list(frames[:8]).index(_DELIMITER) + 1
            signature, *parts = frames[start : start + 5]
            header_bytes, parent_bytes, _, content_bytes = parts
        except ValueError as exc:
            raise BadMessage("frames came that are no message of Jupyter's") from exc
        self._check(signature, parts)
        header, parent, content = _load(header_bytes), _load(parent_bytes), _load(content_bytes)
        message = Message(
            type=str(header.get("msg_type", "")),
            id=str(header.get("msg_id", "")),
            session=str(header.get("session", "")),
            date=str(header.get("date", "")),
            parent_id=str(parent.get("msg_id", "")),
            parent_type=str(parent.get("msg_type", "")),
            parent_session=str(parent.get("session", "")),
            subshell=str(subshell) if (subshell := parent.get("subshell_id")) is not None else None,
            content=content,
        )
        return message, header_bytes

    def _check(self, signature: bytes, parts: Sequence[bytes]) -> None:
        if self._hmac is None:
            return
        if not hmac.compare_digest(signature, self._sign(parts)):
            raise BadMessage("a message has a wrong signature", "signature")
        if signature in self._seen:
            raise BadMessage("a message came a second time", "signature")
        self._seen[signature] = None
        if len(self._seen) > _REMEMBERED_SIGNATURES:
            self._seen.popitem(last=False)

    def _sign(self, parts: Sequence[bytes]) -> bytes:
        if self._hmac is None:
            return b""
        mac = self._hmac.copy()
        for part in parts:
            mac.update(part)
        return mac.hexdigest().encode()


def _dump(value: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a text with lone surrogates: JSON's escapes hold them
        return json.dumps(value).encode()


def _load(data: bytes) -> dict[str, Any]:
    """A part's JSON object; what isn't UTF-8 in it becomes lone surrogates, as the kernel had them."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(data.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as exc:
            raise BadMessage("a part of a message is not JSON") from exc
    if not isinstance(value, dict):
        raise BadMessage("a part of a message is no JSON object")
    return value
