"""Output of threads and tasks that outlive their execution, told apart from that of the running one.

    thread of execution 1 --print--> its stream --write--> is this its own execution? yes: the descriptor
                                                              no: late output, naming execution 1

The check costs every write, so it is installed only while an execution has left threads or tasks behind.
"""

from __future__ import annotations

import _thread
import io
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from repl_kernel.streams import OutputStream

_started_by: ContextVar[int | None] = ContextVar("started_by", default=None)
"""The execution whose flow of control this is; tasks inherit it, threads don't."""


class Background:
    """Knows which execution each thread and task belongs to, and routes what they write."""

    def __init__(self, streams: tuple[OutputStream, ...], send: Callable[[dict[str, Any]], None]) -> None:
        self._streams = streams
        self._send = send
        self._main_thread = _thread.get_native_id()
        self._seq_of_thread: dict[int, int] = {}
        self._seq = 0
        self.watches = False
        """Whether writes are being checked."""
        self._late: list[dict[str, Any]] = []

    def begin(self, seq: int) -> None:
        """An execution starts."""
        self._seq = seq
        _started_by.set(seq)

    def end(self, goes_on: bool) -> list[dict[str, Any]]:
        """It has ended, and threads or tasks go on or not; returns what the main thread wrote for
        earlier ones."""
        if goes_on:
            self._remember_threads()
            self._watch(True)
        elif self.watches:
            self._watch(False)
        late, self._late = self._late, []
        return late

    def _remember_threads(self) -> None:
        alive = {int(entry) for entry in os.listdir("/proc/self/task")} - {self._main_thread}
        self._seq_of_thread = {thread: self._seq_of_thread.get(thread, self._seq) for thread in alive}

    def _watch(self, on: bool) -> None:
        self.watches = on
        if not on:
            self._seq_of_thread.clear()
        for stream in self._streams:
            if on:
                stream.write = self._checked_write(stream)  # type: ignore[method-assign]  # an instance's own
            else:
                stream.__dict__.pop("write", None)

    def _checked_write(self, stream: OutputStream) -> Callable[[str], int]:
        def write(text: str) -> int:
            seq = self._seq_of_writer()
            if seq == self._seq or not isinstance(text, str):
                return io.TextIOWrapper.write(stream, text)
            self._write_late(stream, seq, text)
            return len(text)

        return write

    def _seq_of_writer(self) -> int:
        thread = _thread.get_native_id()
        if thread == self._main_thread:
            return _started_by.get() or self._seq
        return self._seq_of_thread.get(thread, self._seq)

    def _write_late(self, stream: OutputStream, seq: int, text: str) -> None:
        safe = text.encode("utf-8", "backslashreplace").decode()
        message = {"name": stream.output_name, "seq": seq, "text": safe}
        if _thread.get_native_id() == self._main_thread:
            self._late.append(message)  # it goes with the reply: an interrupt must not cut a frame in two
        else:
            self._send({"late": message})
