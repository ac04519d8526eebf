"""`sys.stdout` and `sys.stderr` of a kernel that is recorded: whose output is it, and all of it in time.

print in a thread of an ended cell -> parent header with ORIGIN -> shown by the running cell, recorded as late
descriptor 1 or 2 <- C code, programs -> pipe -> drained before the cell's reply, cut at whole characters
"""

from __future__ import annotations

import array
import codecs
import fcntl
import os
import select
import sys
import termios
import threading
from typing import Any

from ipykernel.iostream import OutStream
from ipykernel.thread import BaseThread

from repl_kernel.jupyter.recorded_session import MARKED_BYTES, ORIGIN

_READ_BYTES = 64 << 10


class ThreadOrigins:
    """Which cell each thread was started in; `None` for those of the kernel itself."""

    def __init__(self) -> None:
        self._of: dict[threading.Thread, str | None] = {}

    def note(self, origin: str | None) -> None:
        """A cell has ended: threads that weren't there before are its own."""
        known = self._of
        self._of = {
            thread: known.get(thread, None if isinstance(thread, BaseThread) else origin)
            for thread in threading.enumerate()
        }

    def of_current(self) -> str | None:
        """The cell whose thread this is, once that has ended; `None` for others."""
        return self._of.get(threading.current_thread())


ORIGINS = ThreadOrigins()
"""There is one set of threads in a process; streams are made by ipykernel, which can't be handed anything."""


class RecordedOutStream(OutStream):
    """A kernel's output stream that knows whose output it sends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See `ipykernel.iostream.OutStream`."""
        self._pipe_turn = threading.Lock()  # who has it may read the pipe
        self._pipe_decoder = codecs.getincrementaldecoder("utf-8")(MARKED_BYTES)
        super().__init__(*args, **kwargs)

    @property
    def parent_header(self) -> Any:
        """The request that output belongs to; threads of earlier cells are named with `ORIGIN`."""
        try:
            return self._parent_header.get()
        except LookupError:
            parent = self._parent_header_global
            origin = ORIGINS.of_current()
            return {**parent, ORIGIN: origin} if origin is not None and parent else parent

    @parent_header.setter
    def parent_header(self, value: Any) -> None:
        self._parent_header.set(value)
        self._parent_header_global = value

    def _watch_pipe_fd(self) -> None:
        """Pass on what is written to the descriptor, until the stream is closed (in a thread of its own)."""
        if self._fid is None:
            return
        try:
            waiting = select.poll()
            waiting.register(self._fid, select.POLLIN)
            while True:
                waiting.poll()
                if not self._should_watch:
                    return
                self.drain()
        except Exception:  # noqa: BLE001  # close() shows it
            self._exc = sys.exc_info()

    def drain(self) -> None:
        """Take over what was written to the descriptor until now; does nothing where that isn't watched."""
        if self._fid is None or not self._should_watch or os.getpid() != self._master_pid:
            return
        while _readable_bytes(self._fid):
            with self._pipe_turn:
                if not _readable_bytes(self._fid):
                    return
                data = os.read(self._fid, _READ_BYTES)
                text = self._pipe_decoder.decode(data)
                if text:
                    self.write(text)
            os.write(self._original_stdstream_copy, data)


def _readable_bytes(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
