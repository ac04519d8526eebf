"""The end of a task log, read backwards, only as far as needed.

bytes of the file -> pieces between line ends, last first -> the last valid line, and the pieces behind it
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from task_logger.codec import ChainLink, UnreadablePiece, read_link, stored_key_id
from task_logger.errors import LogPathRefused

MAX_LINE_BYTES = 16 << 20
"""No line is longer; what is longer can only be unreadable, and isn't held in memory."""

MAX_UNREADABLE_PIECES = 10_000
"""More pieces than this behind the last valid line would not fit a line that has to name them."""

MAX_UNREADABLE_BYTES = 1 << 30
"""More bytes than this behind the last valid line are no crash's remains; reading on would hold the lock."""

_FIRST_READ_BYTES = 4 << 10  # most lines are shorter; reads above 128 KiB cost an mmap each
_MOST_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTail:
    """Where a log ends.

    `link` is the chain link of the last valid line, `None` where there is none. `unreadable` are the pieces
    behind it, in the file's order. `ends_in_lf` is true for an empty file too. `key_id` is `None` where the
    last line is plain, or there is none.
    """

    link: ChainLink | None
    unreadable: tuple[UnreadablePiece, ...]
    ends_in_lf: bool
    key_id: str | None = None


def read_tail(descriptor: int, size_bytes: int, path: str) -> LogTail:
    """Find the last valid line of the first `size_bytes` of a log.

    A last piece without LF whose hash verifies is a valid line. Raises `LogPathRefused` where so much is
    unreadable that this is no task log.
    """
    if size_bytes == 0:
        return LogTail(link=None, unreadable=(), ends_in_lf=True)
    unreadable: list[UnreadablePiece] = []
    link, key_id = None, None
    for at, length, content in pieces_backwards(descriptor, size_bytes):
        link = read_link(content) if content is not None else None
        if link is not None:
            key_id = stored_key_id(content or b"")
            break
        unreadable.append(UnreadablePiece(at, length))
        if len(unreadable) > MAX_UNREADABLE_PIECES or size_bytes - at > MAX_UNREADABLE_BYTES:
            raise LogPathRefused(path, "too much of its end is unreadable: it is no task log")
    unreadable.reverse()
    ends_in_lf = read_exactly(descriptor, 1, size_bytes - 1) == b"\n"
    return LogTail(link=link, unreadable=tuple(unreadable), ends_in_lf=ends_in_lf, key_id=key_id)


def pieces_backwards(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield offset, length and content of each piece between line ends, the last first, all without LF.

    The content is `None` where the piece is too long for any line.
    """
    parts: list[bytes] = []  # of the piece being gathered, the last first
    gathered_bytes = 0
    chunk_end, chunk_bytes = size_bytes, _FIRST_READ_BYTES
    while chunk_end > 0:
        start = max(0, chunk_end - chunk_bytes)
        data = read_exactly(descriptor, chunk_end - start, start)
        upto = len(data)
        if chunk_end == size_bytes and data.endswith(b"\n"):
            upto -= 1
        while (line_end := data.rfind(b"\n", 0, upto)) >= 0:
            parts.append(data[line_end + 1 : upto])
            gathered_bytes += upto - line_end - 1
            yield start + line_end + 1, gathered_bytes, _joined(parts, gathered_bytes)
            parts, gathered_bytes, upto = [], 0, line_end
        gathered_bytes += upto
        if gathered_bytes <= MAX_LINE_BYTES:
            parts.append(data[:upto])
        else:
            parts = []
        chunk_end, chunk_bytes = start, min(chunk_bytes * 4, _MOST_READ_BYTES)
    if size_bytes:
        yield 0, gathered_bytes, _joined(parts, gathered_bytes)


def _joined(parts: list[bytes], gathered_bytes: int) -> bytes | None:
    if gathered_bytes > MAX_LINE_BYTES:
        return None
    return parts[0] if len(parts) == 1 else b"".join(reversed(parts))


def read_exactly(descriptor: int, count_bytes: int, at: int) -> bytes:
    """Read `count_bytes` at an offset; raises `OSError` where the file ends before."""
    data = os.pread(descriptor, count_bytes, at)
    if len(data) == count_bytes:
        return data
    parts = [data]
    missing = count_bytes - len(data)
    while missing:
        data = os.pread(descriptor, missing, at + count_bytes - missing)
        if not data:
            raise OSError("the file became shorter while it was read")
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)
