"""Lines through descriptors: cut from what is read, written whole by one thread at a time.

bytes as they come -> LineSplitter -> whole lines, or OversizeLine in place of one
whole lines, from any thread -> LineWriter -> descriptor; gives up on a reader that is gone or told to
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from threading import Lock
from typing import NamedTuple

READ_BYTES = 64 << 10
"""One read: a larger buffer costs more to allocate than the calls it saves."""

MAX_LINE_BYTES = 64 << 20

WRITE_BYTES = 4096
"""PIPE_BUF: what a pipe that polls as writable takes without blocking, so that no stalled reader holds us."""

STALL_CHECK_MS = 50


class OversizeLine(NamedTuple):
    """Stands for a line that was longer than allowed and is not kept; `bytes` of it were seen so far."""

    bytes: int


class LineSplitter:
    """Cuts a stream at LF; holds at most one unfinished line, of `max_line_bytes`."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | OversizeLine]:
        """Take what was read; yields each line that it completes, without its LF."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            if self._skipping:
                self._skipping = False
                continue
            line = b"".join((*self._pieces, end)) if self._pieces else end
            self._pieces, self._held_bytes = [], 0
            yield line if len(line) <= self._max_line_bytes else OversizeLine(bytes=len(line))
        if not rest or self._skipping:
            return
        self._pieces.append(rest)
        self._held_bytes += len(rest)
        if self._held_bytes > self._max_line_bytes:
            yield OversizeLine(bytes=self._held_bytes)
            self._pieces, self._held_bytes, self._skipping = [], 0, True

    def finish(self) -> bytes:
        """End of input: returns the last line if it lacks its LF, else nothing."""
        line, self._pieces = b"".join(self._pieces), []
        return line


class LineWriter:
    """Writes whole lines to a descriptor, from any thread; lines never interleave.

    A line that had to be left half written is completed before the next one. `is_gone` says that nobody
    reads any more, or that `stop_at()` has passed; lines are dropped from then on. Owns no descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        self.is_gone = False
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._lock = Lock()
        self._rest = memoryview(b"")
        self._stop_at = float("inf")

    def stop_at(self, moment: float) -> None:
        """Wait for a stalled reader until this moment of the monotonic clock, and no longer."""
        self._stop_at = moment

    def write(self, line: bytes, give_up: Callable[[], bool] | None = None) -> bool:
        """Write a line; returns whether it was begun.

        Waits while the reader is stalled, unless `give_up` says that this line can be missed.
        """
        with self._lock:
            if self._rest and not self._drain(give_up):
                return False
            if self.is_gone or not self._wait(give_up):
                return False
            self._rest = memoryview(line)
            self._drain(give_up)
            return True

    def _drain(self, give_up: Callable[[], bool] | None) -> bool:
        """Write what is left of the line that was begun; returns whether nothing is left."""
        try:
            while self._rest and self._wait(give_up):
                self._rest = self._rest[os.write(self._descriptor, self._rest[:WRITE_BYTES]) :]
        except OSError:
            # EPIPE as a rule; whatever it is, nobody gets to read this any more, and the log has it all.
            self.is_gone = True
        return not self._rest and not self.is_gone

    def _wait(self, give_up: Callable[[], bool] | None) -> bool:
        """Wait until the descriptor takes bytes; returns false where that is given up."""
        if self._poll.poll(0):
            return True
        while True:
            if time.monotonic() >= self._stop_at:
                self.is_gone = True
                return False
            if give_up is not None and give_up():
                return False
            if self._poll.poll(STALL_CHECK_MS):
                return True
