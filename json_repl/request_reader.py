"""The thread that reads requests: it acts on what can't wait, and queues the rest in order, within bounds.

descriptor -> LineSplitter -> messages.parse -+-> take_urgent(): acted on at once, in this thread
                                              +-> queue -> next(), in the main thread
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from _queue import Empty, SimpleQueue  # without the Python half of `queue`, which start-up would pay for
from collections.abc import Callable, Collection
from threading import Thread

from json_repl import messages
from json_repl.lines import READ_BYTES, LineSplitter, OversizeLine
from json_repl.messages import Rejected, Request

MAX_UNREAD_BYTES = 64 * 10**6
"""Requests that wait; past this nothing more is read until some are done."""

LEAVE_BOUND_S = 3.0
"""What threads and exit handlers that executed code left behind may take once all is done."""

_ROOM, _END, _DONE = b"r", b"e", b"d"


class RequestReader:
    """Reads one client's requests in a thread of its own; owns no descriptor but its wake-up pipe.

    `take_urgent` runs in that thread; it returns false for what is to be queued. `see_out` runs there too,
    once `end()` was called: it gets a function that waits so many seconds and says whether all is done.
    """

    def __init__(
        self,
        input_fd: int,
        *,
        take_urgent: Callable[[Request], bool],
        see_out: Callable[[Callable[[float], bool]], None],
        blocked_signals: Collection[signal.Signals],
    ) -> None:
        self.has_ended = False
        self._input_fd = input_fd
        self._take_urgent = take_urgent
        self._see_out = see_out
        self._blocked_signals = blocked_signals
        self._lines = LineSplitter()
        self._queue: SimpleQueue[tuple[Request | Rejected | None, int]] = SimpleQueue()
        # Each counter has one writing thread; the other only compares. So no lock.
        self._queued_bytes = self._taken_bytes = 0
        self._waits_for_room = False
        self._wake_read_fd, self._wake_write_fd = os.pipe()
        os.set_blocking(self._wake_write_fd, False)
        self._wake_poll, self._poll = select.poll(), select.poll()
        self._wake_poll.register(self._wake_read_fd, select.POLLIN)
        self._poll.register(self._wake_read_fd, select.POLLIN)
        self._poll.register(input_fd, select.POLLIN)

    @property
    def wake_fd(self) -> int:
        """Where the number of a signal to end that has come can be written, as `end()` does: one byte."""
        return self._wake_write_fd

    def start(self) -> None:
        """Begin to read."""
        Thread(target=self._run, name="json-repl-reader", daemon=True).start()

    def next(self) -> Request | Rejected | None:
        """Wait for the next request in order; `None` when there will be no more."""
        request, size = self._queue.get()
        self._taken_bytes += size
        if self._waits_for_room and self._has_room():
            self._wake(_ROOM)
        return request

    def next_at_once(self) -> Request | Rejected | None:
        """The next request that is there already; `None` where none is."""
        try:
            return self._queue.get_nowait()[0]
        except Empty:
            return None

    def end(self) -> None:
        """Read no more: `next()` returns what is there, then `None`. Safe in a signal handler."""
        self._wake(_END)

    def leave(self) -> None:
        """All is done: end the process a moment later, if executed code's threads or handlers don't."""
        self._wake(_DONE)

    def _run(self) -> None:
        # Signals must find the main thread, or they wouldn't break its blocking calls.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked_signals)
        while not self.has_ended:
            woken = self._read_some()
            if _DONE in woken:
                return _leave()
            if self._means_end(woken):
                self.has_ended = True
                self._put(None, 0)
                return self._see_out_and_leave()
        self._put(None, 0)
        while True:
            woken = self._woken_within(3600)
            if _DONE in woken:
                return _leave()
            if self._means_end(woken):
                return self._see_out_and_leave()

    def _means_end(self, woken: bytes) -> bool:
        return _END in woken or any(number in woken for number in self._blocked_signals)

    def _read_some(self) -> bytes:
        """Wait for input and take it; returns why we were woken instead, if we were."""
        self._waits_for_room = True  # first, so that room made from here on wakes us
        self._waits_for_room = not self._has_room()
        ready = {fd for fd, _ in (self._wake_poll if self._waits_for_room else self._poll).poll()}
        if self._wake_read_fd in ready:
            return os.read(self._wake_read_fd, 4096)
        try:
            data = os.read(self._input_fd, READ_BYTES)
        except OSError:
            data = b""  # the client is gone, as it is at the end of input
        for line in self._lines.feed(data):
            self._take(line)
        if not data:
            self._take(self._lines.finish())
            self.has_ended = True
        return b""

    def _take(self, line: bytes | OversizeLine) -> None:
        if isinstance(line, OversizeLine):
            text = f"not a request: a line of over {line.bytes - 1} bytes; all of it is skipped"
            self._put(Rejected(code=messages.NOT_A_REQUEST, message=text), 0)
        elif line.strip():
            request = messages.parse(line)
            if isinstance(request, Rejected) or not self._take_urgent(request):
                self._put(request, len(line))

    def _put(self, request: Request | Rejected | None, size: int) -> None:
        self._queued_bytes += size
        self._queue.put((request, size))

    def _has_room(self) -> bool:
        return self._queued_bytes - self._taken_bytes < MAX_UNREAD_BYTES

    def _see_out_and_leave(self) -> None:
        self._see_out(lambda wait_s: _DONE in self._woken_within(wait_s))
        _leave()

    def _woken_within(self, wait_s: float) -> bytes:
        """Reasons to wake up that came within this time."""
        return os.read(self._wake_read_fd, 4096) if self._wake_poll.poll(wait_s * 1000) else b""

    def _wake(self, reason: bytes) -> None:
        with contextlib.suppress(BlockingIOError):  # full of reasons to wake up
            os.write(self._wake_write_fd, reason)


def _leave() -> None:
    time.sleep(LEAVE_BOUND_S)
    os._exit(0)
