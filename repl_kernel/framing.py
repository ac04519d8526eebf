"""Messages on the socket between a session and its worker: four bytes of length, big-endian, then JSON.

    sender:    message --pack--> bytes --> socket
    receiver:  socket --> FrameReader.feed --> FrameReader.take --> message

The announced size is checked before anything is allocated for it.
"""

from __future__ import annotations

from typing import Any

import orjson

from repl_kernel.errors import BadMessage, FrameTooLarge

PROTOCOL_VERSION = 1

MAX_FRAME_BYTES = 64 << 20
"""The largest message either side accepts: all the unread input a front end may hold, as one request."""

RECEIVE_BYTES = 64 << 10
"""How much to read at once: larger buffers are mapped and unmapped at every call, for 10 us more."""

_HEADER_BYTES = 4


def pack(message: dict[str, Any], max_frame_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """Turn a message into a frame; raises `FrameTooLarge`, and orjson's error for what JSON can't hold."""
    body = orjson.dumps(message)
    if len(body) > max_frame_bytes:
        raise FrameTooLarge(len(body), max_frame_bytes)
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


def unpack(body: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Turn the body of a frame into a message; raises `BadMessage` where it is not a JSON object."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise BadMessage(f"a frame of {len(body)} bytes is not JSON: {exc}") from exc
    if type(message) is not dict:
        raise BadMessage(f"a frame holds a JSON {type(message).__name__}, not an object")
    return message


class FrameReader:
    """Collects bytes until they are whole frames; never holds more than one frame and one read beyond it."""

    __slots__ = ("_buffer", "_max_frame_bytes")

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_frame_bytes = max_frame_bytes

    @property
    def is_empty(self) -> bool:
        """Whether no byte of a further frame has come."""
        return not self._buffer

    def feed(self, data: bytes) -> dict[str, Any] | None:
        """Take in what was read, and return the first whole message, `None` while there is none.

        Raises `FrameTooLarge` or `BadMessage`; the frame at fault is gone, and the connection is of
        no more use
        after the former.
        """
        if not self._buffer and len(data) >= _HEADER_BYTES:
            end = _HEADER_BYTES + int.from_bytes(data[:_HEADER_BYTES], "big")
            if len(data) == end:  # the common case: one read is one frame, nothing to copy
                return unpack(data[_HEADER_BYTES:])
        self._buffer += data
        return self.take()

    def take(self) -> dict[str, Any] | None:
        """Return the next whole message that was already read, `None` where there is none; raises
        as `feed`."""
        buffer = self._buffer
        if len(buffer) < _HEADER_BYTES:
            return None
        size = int.from_bytes(buffer[:_HEADER_BYTES], "big")
        if size > self._max_frame_bytes:
            buffer.clear()
            raise FrameTooLarge(size, self._max_frame_bytes)
        end = _HEADER_BYTES + size
        if len(buffer) < end:
            return None
        body = bytes(memoryview(buffer)[_HEADER_BYTES:end])
        del buffer[:end]
        return unpack(body)
