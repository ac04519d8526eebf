"""`sys.stdout` and its siblings for one thread, in a process that belongs to somebody else.

    any thread --print--> ThreadRouter --+-- a thread that executes: its session's stream
                                         +-- any other: the host's own stream, as before

A router stands in `sys` only while executions run; references kept beyond that still reach the host's stream.
"""

from __future__ import annotations

import _thread
import sys
from typing import Any, Literal

StreamName = Literal["stdin", "stdout", "stderr"]


class ThreadRouter:
    """A stream that is a different one in every executing thread."""

    def __init__(self, name: StreamName) -> None:
        self._name = name
        self._host: Any = None
        self._of_thread: dict[int, list[Any]] = {}  # the innermost last: executed code may execute code
        self._lock = _thread.allocate_lock()

    def enter(self, stream: object) -> None:
        """This thread's executed code gets `stream`."""
        with self._lock:
            self._of_thread.setdefault(_thread.get_ident(), []).append(stream)
            current = getattr(sys, self._name)
            if current is not self:
                self._host = current
                setattr(sys, self._name, self)

    def leave(self) -> None:
        """This thread's execution has ended; a stream that it had put in place goes with it.

        Kept for the next execution, one that passes on to the old `sys.stdout` would pass on to itself.
        """
        with self._lock:
            thread = _thread.get_ident()
            streams = self._of_thread[thread]
            streams.pop()
            if not streams:
                del self._of_thread[thread]
            setattr(sys, self._name, self if self._of_thread else self._host)

    def _target(self) -> Any:
        streams = self._of_thread.get(_thread.get_ident())
        return streams[-1] if streams else self._host

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
        self.routers = tuple(ThreadRouter(name) for name in _NAMES)

    def enter(self, streams: tuple[object, ...]) -> None:
        """This thread's executed code gets these streams, in the order stdin, stdout, stderr."""
        for router, stream in zip(self.routers, streams, strict=True):
            router.enter(stream)

    def leave(self) -> None:
        """This thread's execution has ended."""
        for router in self.routers:
            router.leave()


_NAMES: tuple[StreamName, ...] = ("stdin", "stdout", "stderr")

ROUTERS = Routers()
"""One for the process, as `sys` is: two of them would route each other's output in circles."""
