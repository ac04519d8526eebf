"""`sys.stdout`, `sys.stderr` and `sys.stdin` as executed code sees them where we own the process.

    print --> OutputStream --> _Descriptor --os.write--> descriptor 1 or 2 --> whoever captures it

Every write reaches the descriptor at once, so that it mixes in order with what C code and child programs
write there. Past the first MiB of an execution, writes are gathered into blocks: five times the throughput.
"""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
from collections.abc import Callable

from task_logger.record import OutputName

FLUSH_SIGNAL = signal.SIGRTMIN + 9
"""Asks a worker to write out what its streams gather; sent only once an execution has written a lot."""

_UNBUFFERED_BYTES = 1 << 20
"""Output of one execution that is written through before blocks are gathered."""


class _Descriptor(io.RawIOBase):
    """A descriptor to which everything is written whole, whatever signals arrive meanwhile."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.written_bytes = 0
        self.gather_from_bytes = _UNBUFFERED_BYTES
        self.on_much: Callable[[], object] | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return False

    @property
    def name(self) -> str:
        return f"<descriptor {self._fd}>"

    def write(self, data: bytes) -> int:  # type: ignore[override]  # any buffer
        size = os.write(self._fd, data)
        if size < len(data):
            view = memoryview(data)
            while size < len(data):
                size += os.write(self._fd, view[size:])
        self.written_bytes += size
        if self.written_bytes > self.gather_from_bytes and self.on_much is not None:
            on_much, self.on_much = self.on_much, None
            on_much()
        return size


class OutputStream(io.TextIOWrapper):
    """A text stream on descriptor 1 or 2; lone surrogates pass as the three bytes Python gives them."""

    def __init__(self, fd: int, name: OutputName, *, gathers: bool = True) -> None:
        self._descriptor = _Descriptor(fd)
        self._descriptor.on_much = self._gather_blocks if gathers else None
        self._gathers = False
        self.output_name: OutputName = name
        super().__init__(
            self._descriptor,  # raw on purpose: nothing is held back
            encoding="utf-8",
            errors="surrogatepass",
            newline="\n",
            write_through=True,
        )

    @property
    def name(self) -> str:
        return f"<{self.output_name}>"

    @property
    def has_written(self) -> bool:
        """Whether anything was written since the last `end_execution`."""
        return self._descriptor.written_bytes > 0

    def _gather_blocks(self) -> None:
        self._gathers = True
        self.reconfigure(write_through=False)

    def flush_on_time(self) -> None:
        """Write out what is gathered; where nothing was, write through again until there is much to write."""
        descriptor = self._descriptor
        before = descriptor.written_bytes
        self.flush()
        if self._gathers and descriptor.written_bytes == before:
            self._gathers = False
            self.reconfigure(write_through=True)
            descriptor.gather_from_bytes = before + _UNBUFFERED_BYTES
            descriptor.on_much = self._gather_blocks

    def close(self) -> None:
        """Flush only: the next execution needs the stream."""
        self.flush()

    def end_execution(self) -> int:
        """Write out what is gathered, and write through again; returns how many bytes the execution wrote."""
        descriptor = self._descriptor
        written = descriptor.written_bytes
        if written:
            if self._gathers:
                self._gathers = False
                self.reconfigure(write_through=True)
                descriptor.on_much = self._gather_blocks
                written = descriptor.written_bytes
            descriptor.written_bytes = 0
            descriptor.gather_from_bytes = _UNBUFFERED_BYTES
        return written


class InputStream(io.TextIOBase):
    """`sys.stdin` of executed code: asks the caller where the request allows it, else raises `EOFError`."""

    def __init__(self) -> None:
        self.ask: Callable[[str, bool], str] | None = None

    @property
    def name(self) -> str:
        return "<stdin>"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        """Do nothing: `quit()` closes it, and the next execution needs it."""

    def ask_line(self, prompt: str, is_password: bool = False) -> str:
        """One line from the caller, without its end; raises `EOFError` where input is not allowed."""
        if self.ask is None:
            raise EOFError(
                "this execution may not ask for input; pass allow_input (or on_input) with the request"
            )
        return self.ask(prompt, is_password)

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        line = self.ask_line("") + "\n"
        return line if size is None or size < 0 else line[:size]

    def read(self, size: int | None = -1) -> str:
        return self.readline(size)

    def __next__(self) -> str:  # type: ignore[override]  # text streams give text, whatever the stubs say
        return self.readline()


def replace_input(stdin: InputStream) -> Callable[..., str]:
    """Have the built-in `input()` ask through `stdin`, while that is `sys.stdin`; returns the old `input`."""
    plain_input = builtins.input

    def ask_input(prompt: object = "", /) -> str:
        current: object = sys.stdin
        if current is stdin:
            return stdin.ask_line(str(prompt))
        return str(plain_input(prompt))

    ask_input.__name__ = ask_input.__qualname__ = "input"
    ask_input.__doc__ = plain_input.__doc__
    builtins.input = ask_input
    return plain_input
