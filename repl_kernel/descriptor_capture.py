"""Captures descriptors 1 and 2 of this process, which must be ours, in files.

    print, C code, child programs --> descriptor --> unlinked file --read after (or while) the code
    runs--> collector

Files, because with a pipe the same process would have to write and drain at once, which deadlocks under the
GIL.
"""

from __future__ import annotations

import os
import threading

from repl_kernel.capture import OpenSpool, OutputCollector
from repl_kernel.executor import OnOutput
from repl_kernel.linux import punch_hole

_READ_BYTES = 256 << 10
_PUMP_S = 0.01
"""How often output is passed on while the code runs: sooner than the promised 50 ms."""

_KEPT_BYTES = 1 << 20
"""What was read may stay in the file up to here before its blocks are given back."""


class DescriptorCapture:
    """One descriptor, from now until `close`: everything written to it goes to a file."""

    def __init__(self, fd: int, open_spool: OpenSpool) -> None:
        self._fd = fd
        self._saved_fd = os.dup(fd)
        with open_spool() as spool:
            # A description of its own with O_APPEND: children write at the end, wherever we read.
            self._file_fd = os.open(f"/proc/self/fd/{spool.fileno()}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        os.dup2(self._file_fd, fd)
        self._offset = 0
        self._given_back = 0

    def has_more(self) -> bool:
        """Whether something was written, or cut off, since the last reading."""
        return os.fstat(self._file_fd).st_size != self._offset

    def read_into(self, collector: OutputCollector, on_output: OnOutput | None) -> int | None:
        """Read what was written since the last time.

        Returns how many bytes, or `None` where a program has cut the file: what it held then is lost.
        """
        size = os.fstat(self._file_fd).st_size
        was_cut = size < self._offset
        if was_cut:
            self._offset = self._given_back = 0
        start = self._offset
        while self._offset < size and (
            data := os.pread(self._file_fd, min(_READ_BYTES, size - self._offset), self._offset)
        ):
            self._offset += len(data)
            collector.feed(data, on_output)
        if self._offset - self._given_back > _KEPT_BYTES:
            punch_hole(self._file_fd, self._given_back, self._offset - self._given_back)
            self._given_back = self._offset
        return None if was_cut else self._offset - start

    def close(self) -> None:
        """Give the descriptor back its old meaning."""
        os.dup2(self._saved_fd, self._fd)
        os.close(self._saved_fd)
        os.close(self._file_fd)


class Pump:
    """Passes output on while the code runs, from a thread of its own."""

    def __init__(
        self,
        captures: tuple[DescriptorCapture, ...],
        collectors: tuple[OutputCollector, ...],
        on_output: OnOutput | None,
    ) -> None:
        self._pairs = tuple(zip(captures, collectors, strict=True))
        self._on_output = on_output
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="json-repl output", daemon=True)
        self._was_cut = False
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Start passing on."""
        self._thread.start()

    def stop(self) -> bool:
        """Stop; returns whether a program has cut the output. Raises what `on_output` raised."""
        self._is_over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._was_cut

    def _run(self) -> None:
        try:
            while not self._is_over.wait(_PUMP_S):
                for capture, collector in self._pairs:
                    self._was_cut |= capture.read_into(collector, self._on_output) is None
        except BaseException as exc:  # noqa: BLE001 - the callback's: it is raised where the execution ends
            self._failure = exc
