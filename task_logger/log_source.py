"""Where a reader gets the bytes of a log from: its file, or the compressed one that took its place.

<n>.<name>.jsonl       as it is
<n>.<name>.jsonl.zst   decompressed on the way; counts only where the plain one isn't there
"""

from __future__ import annotations

import io
import os
import stat
from typing import IO

from task_logger.errors import LogNotFound, LogUnreadable

COMPRESSED_SUFFIX = ".zst"
"""Ends the name of a compressed log, behind that of the plain one."""

_TRIES = 10
"""A log can be compressed or brought back between a look and the opening, but not so often in a row."""

LOG_ENDINGS = (".jsonl", ".jsonl" + COMPRESSED_SUFFIX)


class SizedSource(io.RawIOBase):
    """Bytes of a log that aren't simply those of its file; read from start to end."""

    @property
    def size_bytes(self) -> int:
        """How many bytes can be read in all, as far as is known yet."""
        raise NotImplementedError


def open_source(path: str) -> IO[bytes]:
    """Open a log for reading; a FIFO or device must neither block nor be read.

    Raises `LogNotFound` and `LogUnreadable`.
    """
    for tries_left in range(_TRIES)[::-1]:
        there = existing_path(path)
        try:
            descriptor = os.open(there, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            break
        except FileNotFoundError as exc:
            if not tries_left or existing_path(path) == there:
                raise LogNotFound(path) from exc
        except (OSError, ValueError) as exc:
            reason = "it has no such name" if isinstance(exc, ValueError) else exc.strerror
            raise LogUnreadable(f"task log {path!r} can't be read: {reason}", path=path) from exc
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise LogUnreadable(f"{path!r} is no task log: it is no regular file", path=path)
    file = os.fdopen(descriptor, "rb", buffering=64 << 10)
    if not is_compressed(there):
        return file
    from task_logger.compressed_file import open_compressed

    return open_compressed(file)


def is_compressed(path: str) -> bool:
    """Whether this is the name of a compressed log."""
    return path.endswith(LOG_ENDINGS[1])


def plain_path(path: str) -> str:
    """Return the path that a log has while it isn't compressed."""
    return path.removesuffix(COMPRESSED_SUFFIX) if is_compressed(path) else path


def existing_path(path: str) -> str:
    """Return the path of the log's other form, plain or compressed, where that alone is there, else this."""
    other = plain_path(path) if is_compressed(path) else path + COMPRESSED_SUFFIX
    if other.endswith(LOG_ENDINGS) and not os.path.lexists(path) and os.path.lexists(other):
        return other
    return path


def is_forward_only(file: IO[bytes]) -> bool:
    """Whether its bytes can't be had from its descriptor."""
    return isinstance(getattr(file, "raw", None), SizedSource)


def size_of(file: IO[bytes]) -> int:
    """Return how many bytes can be read in all, as far as is known yet."""
    raw = getattr(file, "raw", None)
    return raw.size_bytes if isinstance(raw, SizedSource) else os.fstat(file.fileno()).st_size
