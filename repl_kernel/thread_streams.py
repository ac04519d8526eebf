"""`sys.stdout` and its siblings for one thread, in a process that belongs to somebody else.

    any thread --print--> ThreadRouter --+-- a thread that executes: its session's stream
                                         +-- any other: the host's own stream, as before

Routers stand in `sys` only while executions run; references kept beyond that still reach the host's streams.
"""

from __future__ import annotations

import _thread
import sys
from typing import Any

Streams = tuple[object, object, object]
"""What executed code gets as stdin, stdout, stderr."""


class ThreadRouter:
    """A stream that is a different one in every executing thread."""

    def __init__(self, routers: Routers, index: int) -> None:
        self._routers = routers
        self._index = index

    def _target(self) -> Any:
        return self._routers.of_this_thread()[self._index]

    def write(self, text: str) -> int:
        """As the stream's own."""
        written: int = self._target().write(text)
        return written

    def flush(self) -> None:
        """As the stream's own."""
        self._target().flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target(), name)

    def __iter__(self) -> Any:
        return iter(self._target())

    def __next__(self) -> Any:
        return next(self._target())


class Routers:
    """The three routers of this process."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._of_thread: dict[int, list[Streams]] = {}  # the innermost last: executed code may execute code
        self._stdin, self._stdout, self._stderr = (ThreadRouter(self, index) for index in range(3))
        self._host: Streams = (None, None, None)

    def enter(self, streams: Streams) -> None:
        """This thread's executed code gets these streams."""
        thread = _thread.get_ident()
        with self._lock:
            if not self._of_thread:
                self._host = (sys.stdin, sys.stdout, sys.stderr)
            if thread in self._of_thread:
                self._of_thread[thread].append(streams)
            else:
                self._of_thread[thread] = [streams]
            self._stand_in()

    def leave(self) -> None:
        """This thread's execution has ended; a stream that it had put in place goes with it.

        Kept for the next execution, one that passes on to the old `sys.stdout` would pass on to itself.
        """
        thread = _thread.get_ident()
        with self._lock:
            streams = self._of_thread[thread]
            streams.pop()
            if not streams:
                del self._of_thread[thread]
            if self._of_thread:
                self._stand_in()
            else:
                sys.stdin, sys.stdout, sys.stderr = self._host

    def of_this_thread(self) -> Streams:
        """The streams of this thread's execution, the host's where it runs none."""
        streams = self._of_thread.get(_thread.get_ident())
        return streams[-1] if streams else self._host

    def _stand_in(self) -> None:
        sys.stdin, sys.stdout, sys.stderr = self._stdin, self._stdout, self._stderr


ROUTERS = Routers()
"""One for the process, as `sys` is: two of them would route each other's output in circles."""
