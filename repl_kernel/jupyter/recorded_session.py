"""The messages of a kernel in this process, watched as they are sent.

kernel, display hook, streams --> RecordedSession.send --> tap (what belongs to which request)
                                          +--> what JSON can't hold made safe --> socket
requests --> RecordedSession.deserialize --> unsigned, replayed, oversize: counted, and refused
"""

from __future__ import annotations

import codecs
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import orjson
from jupyter_client.jsonutil import json_default
from jupyter_client.session import Session
from traitlets import Integer

from repl_kernel.jupyter.observation import OBSERVED

ORIGIN = "_json_repl_origin"
"""Key of a parent header, never sent: the request whose thread wrote, where it isn't the one that runs."""

MARKED_BYTES = "json-repl-marked-bytes"
"""The error handler that decodes a byte that isn't UTF-8 as two surrogates, which no other text begins with.

`bytes_of` gives the byte back; front ends get U+FFFD. It is registered here.
"""

_MARK = "\udfff"
_MARKED = re.compile("\udfff([\udc80-\udcff])")

_JSON_OPTIONS = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z
"""As jupyter_client packs."""


def _mark_bytes(exc: UnicodeError) -> tuple[str, int]:
    assert isinstance(exc, UnicodeDecodeError)
    return "".join(f"{_MARK}{chr(0xDC00 | byte)}" for byte in exc.object[exc.start : exc.end]), exc.end


codecs.register_error(MARKED_BYTES, _mark_bytes)


def bytes_of(text: str) -> bytes:
    """What was written: text that a program wrote as bytes has them back, lone surrogates are as Python's."""
    if _MARK not in text:
        return text.encode("utf-8", "surrogatepass")
    pieces = _MARKED.split(text)
    pairs = (
        piece.encode("utf-8", "surrogatepass") if at % 2 == 0 else bytes((ord(piece) & 0xFF,))
        for at, piece in enumerate(pieces)
    )
    return b"".join(pairs)


class MessageTap(Protocol):
    """What gets to see the messages; must not raise."""

    def take(
        self, msg_type: str, content: Mapping[str, Any], parent_id: str | None, origin: str | None
    ) -> None:
        """One that tells something of an execution; `origin` is as `ORIGIN`, `None` where it isn't set."""
        ...

    def replied(self, content: Mapping[str, Any], parent_id: str | None) -> None:
        """The reply to an execution is about to be sent."""
        ...


class RecordedSession(Session):
    """A Session whose messages a tap sees before they are sent."""

    max_message_bytes = Integer(
        256 << 20, config=True, help="A request that is longer, with its buffers, is refused and counted."
    )

    def __init__(self, **kwargs: Any) -> None:
        """Make a session without a tap."""
        super().__init__(**kwargs)
        self.tap: MessageTap | None = None
        self.origin_of_thread: Callable[[], str | None] = _no_origin
        self._refused: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._owner_pid = os.getpid()
        self.pack = _safe_packer(self.pack)

    def send(  # noqa: PLR0917  # the parent's signature
        self,
        stream: Any,
        msg_or_type: Any,
        content: Any = None,
        parent: Any = None,
        ident: Any = None,
        buffers: Any = None,
        track: bool = False,
        header: Any = None,
        metadata: Any = None,
    ) -> Any:
        """Show the message to the tap, then send it; see `jupyter_client.session.Session.send`."""
        if self.tap is not None:
            if isinstance(msg_or_type, str):
                self._show(self.tap, msg_or_type, content, parent)
            else:
                message = msg_or_type
                self._show(self.tap, message["msg_type"], message["content"], message["parent_header"])
        return super().send(stream, msg_or_type, content, parent, ident, buffers, track, header, metadata)

    def send_unseen(self, *args: Any, **kwargs: Any) -> Any:
        """Send a message past the tap; see `send`."""
        return super().send(*args, **kwargs)

    def is_owner(self) -> bool:
        """Whether this is the kernel's process, and no fork of it."""
        return os.getpid() == self._owner_pid

    def show_serialized(self, frames: list[bytes]) -> None:
        """Show the tap a message that a forked child of ours has sent."""
        if self.tap is not None:
            _, (_, header, parent, _, content, *_) = self.feed_identities(frames)
            self._show(self.tap, self.unpack(header)["msg_type"], self.unpack(content), self.unpack(parent))

    def _show(self, tap: MessageTap, msg_type: str, content: Any, parent: Any) -> None:
        if msg_type in OBSERVED:
            parent_header = (parent.get("header") or parent) if isinstance(parent, dict) else {}
            is_stream = msg_type == "stream"
            origin = parent_header.pop(ORIGIN, None) if is_stream else self.origin_of_thread()
            if self.is_owner():  # what forked children send arrives as a message of its own
                tap.take(msg_type, content, parent_header.get("msg_id"), origin)
        elif msg_type == "execute_reply" and self.is_owner():
            tap.replied(content, (parent or {}).get("header", {}).get("msg_id"))

    def deserialize(self, msg_list: Any, content: bool = True, copy: bool = True) -> Any:
        """Unpack a message; see `jupyter_client.session.Session.deserialize`.

        Raises ValueError for one that is refused: unsigned, wrongly signed, sent before, or oversize.
        """
        size_bytes = sum(map(len, msg_list))
        if size_bytes > self.max_message_bytes:
            self._count("oversize")
            raise ValueError(
                f"a message of {size_bytes} bytes is refused; at most {self.max_message_bytes} are allowed"
            )
        try:
            return super().deserialize(msg_list, content, copy)
        except Exception as exc:
            text = str(exc)
            self._count(next((name for start, name in _REFUSALS if text.startswith(start)), "malformed"))
            raise

    def _count(self, reason: str) -> None:
        with self._counting:
            self._refused[reason] += 1

    def take_refused(self) -> dict[str, int]:
        """How many messages were refused since the last call, by reason."""
        if not self._refused:
            return {}
        with self._counting:
            refused, self._refused = self._refused, Counter()
        return dict(refused)


_REFUSALS = (
    ("Unsigned Message", "unsigned"),
    ("Invalid Signature", "wrong_signature"),
    ("Duplicate Signature", "replayed"),
)


def _no_origin() -> None:
    return None


def _safe_packer(pack: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """A packer that escapes lone surrogates, which have no UTF-8: `pack` would fail or write garbage."""
    packs_json = getattr(pack, "__name__", "") in ("orjson_packer", "json_packer")

    def pack_safely(value: Any) -> bytes:
        if not packs_json:
            return pack(value)
        try:
            return orjson.dumps(value, default=json_default, option=_JSON_OPTIONS)
        except TypeError:  # surrogates; or NaN-free JSON that orjson refuses, which the packer repairs
            return pack(_without_surrogates(value))

    return pack_safely


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _MARKED.sub("\ufffd", value).encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {
            _without_surrogates(key) if isinstance(key, str) else key: _without_surrogates(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_without_surrogates(item) for item in value]
    return value
