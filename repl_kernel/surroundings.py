"""What executed code finds around it in this process: its streams, and where their text goes.

HostSurroundings   the process is somebody else's: only the executing thread's sys.stdin, stdout, stderr
OwnSurroundings    the process is ours: those of all threads, and descriptors 1 and 2 with them
"""

from __future__ import annotations

import builtins
import io
import sys
from typing import Protocol

from repl_kernel.capture import OpenSpool, OutputCollector
from repl_kernel.descriptor_capture import DescriptorCapture, Pump
from repl_kernel.executor import OnInput, OnOutput
from repl_kernel.late import LateCollector
from repl_kernel.streams import InputStream, OutputStream, replace_input
from repl_kernel.thread_streams import ROUTERS
from task_logger.record import OutputName

Collectors = tuple[OutputCollector, OutputCollector]

_CUT_NOTICE = (
    "a program cut off what was written to a standard stream (as `echo x > /dev/stdout` does); "
    "that part is lost"
)


class Surroundings(Protocol):
    """The streams of executions in this process."""

    def begin(self, on_output: OnOutput | None, on_input: OnInput | None) -> None:
        """An execution starts in this thread."""
        ...

    def end(self, notices: list[str]) -> None:
        """It has ended: all its output is in the collectors; raises what `on_output` raised."""
        ...

    def begin_question(self) -> None:
        """Something is looked up in this thread, between executions: what it prints is no execution's."""
        ...

    def end_question(self) -> None:
        """It has ended."""
        ...

    def close(self) -> None:
        """Give back what was taken."""
        ...


class HostSurroundings:
    """Captures what the executing thread writes to `sys.stdout` and `sys.stderr`, and nothing else."""

    def __init__(self, collectors: Collectors) -> None:
        self._collectors = collectors
        self._sinks = (_Sink(collectors[0]), _Sink(collectors[1]))
        self._stdin = InputStream()
        self._streams = (self._stdin, _text_stream(self._sinks[0]), _text_stream(self._sinks[1]))

    def begin(self, on_output: OnOutput | None, on_input: OnInput | None) -> None:
        """See `Surroundings`."""
        for sink in self._sinks:
            sink.on_output = on_output
        self._stdin.ask = on_input
        ROUTERS.enter(self._streams)

    def end(self, notices: list[str]) -> None:
        """See `Surroundings`; a stream that the code put into `sys` was there for this execution only."""
        del notices
        ROUTERS.leave()
        for sink in self._sinks:
            if (failure := sink.failure) is not None:
                sink.failure = None
                raise failure

    def begin_question(self) -> None:
        """See `Surroundings`; what it prints is dropped."""
        self.begin(None, None)

    def end_question(self) -> None:
        """See `Surroundings`."""
        ROUTERS.leave()
        for collector in self._collectors:
            collector.begin()

    def close(self) -> None:
        """See `Surroundings`: nothing was taken beyond an execution."""


class OwnSurroundings:
    """Captures descriptors 1 and 2, whoever in this process, or started by it, writes to them."""

    def __init__(
        self, collectors: Collectors, late: LateCollector, open_file: OpenSpool, reads_early: bool
    ) -> None:
        self._reads_early = reads_early
        self._collectors = collectors
        self._late = late
        self._captures = (DescriptorCapture(1, open_file), DescriptorCapture(2, open_file))
        self._outputs = (OutputStream(1, "stdout", gathers=False), OutputStream(2, "stderr", gathers=False))
        self._stdin = InputStream()
        self._host = (sys.stdin, sys.stdout, sys.stderr)
        self._pump: Pump | None = None
        self._plain_input = replace_input(self._stdin)
        sys.stdin = sys.__stdin__ = self._stdin  # type: ignore[assignment,misc]
        sys.stdout = sys.__stdout__ = self._outputs[0]  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self._outputs[1]  # type: ignore[misc]

    def begin(self, on_output: OnOutput | None, on_input: OnInput | None) -> None:
        """See `Surroundings`; what was written since the last execution is late output."""
        self._stdin.ask = on_input
        for capture, name in zip(self._captures, _OUTPUT_NAMES, strict=True):
            if capture.has_more():
                capture.read_into(self._late.of(name, None), None)
        if on_output is not None or self._reads_early:
            self._pump = Pump(self._captures, self._collectors, on_output)
            self._pump.start()
        self._on_output = on_output

    def end(self, notices: list[str]) -> None:
        """See `Surroundings`."""
        pump, self._pump = self._pump, None
        was_cut = pump.stop() if pump is not None else False
        for capture, collector, stream in zip(self._captures, self._collectors, self._outputs, strict=True):
            written = stream.end_execution()
            read = capture.read_into(collector, self._on_output)
            was_cut |= read is None or collector.size < written
        if was_cut:
            notices.append(_CUT_NOTICE)

    def begin_question(self) -> None:
        """See `Surroundings`; what it prints is late output of the next execution, as that of threads is."""
        self._stdin.ask = None

    def end_question(self) -> None:
        """See `Surroundings`."""
        for stream in self._outputs:
            stream.end_execution()

    def close(self) -> None:
        """See `Surroundings`."""
        builtins.input = self._plain_input
        sys.stdin, sys.stdout, sys.stderr = self._host
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = self._host  # type: ignore[misc,assignment]
        for capture in self._captures:
            capture.close()


_OUTPUT_NAMES: tuple[OutputName, OutputName] = ("stdout", "stderr")


class _Sink(io.RawIOBase):
    """Passes what is written to a collector."""

    def __init__(self, collector: OutputCollector) -> None:
        self.on_output: OnOutput | None = None
        self.failure: Exception | None = None
        self._collector = collector

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # any buffer
        try:
            self._collector.feed(bytes(data), self.on_output)
        except Exception as exc:  # noqa: BLE001 - the callback's: not for the code that prints
            self.failure, self.on_output = exc, None
        return len(data)


class _ThreadStream(io.TextIOWrapper):
    """A text stream of executed code that can't be closed: the next execution needs it."""

    def close(self) -> None:
        self.flush()


def _text_stream(sink: _Sink) -> io.TextIOWrapper:
    return _ThreadStream(sink, encoding="utf-8", errors="surrogatepass", newline="\n", write_through=True)  # type: ignore[arg-type]  # raw on purpose: nothing is held back
