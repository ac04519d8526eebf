"""Collects what one execution writes to one stream, in bounded memory.

bytes --> OutputCollector --+-- up to 1 MiB: in memory --> text of the line
                            +-- more: a spool file --> artifact; its ends --> text of the line
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, cast

from task_logger.record import (
    KEPT_TEXT_BYTES,
    LOSSY_ERRORS,
    MAX_TEXT_BYTES,
    Artifact,
    OutputName,
    decode_output,
    elide,
)

if TYPE_CHECKING:
    from repl_kernel.executor import OnOutput
    from repl_kernel.output_meter import OutputMeter

OpenSpool = Callable[[], IO[bytes]]
"""Opens an empty unlinked file for output that memory should not hold."""

_STREAM_CHUNK_CHARACTERS = 16 << 10
"""At most four bytes each in UTF-8: no chunk exceeds 64 KiB."""


def open_temporary_spool() -> IO[bytes]:
    """An unlinked file in the system's folder for temporary files."""
    import tempfile

    return tempfile.TemporaryFile()


class OutputCollector:
    """The output of one stream of one execution after the other."""

    __slots__ = (
        "_decoder", "_first", "_hash", "_last", "_open_spool", "_parts", "_spool", "failure", "field",
        "meter", "size",
    )  # fmt: skip

    def __init__(self, field: str, open_spool: OpenSpool, meter: OutputMeter | None = None) -> None:
        self.field = field
        self.meter = meter
        """Counts what the code writes, and says how much of it is kept; `None`: all of it."""
        self._open_spool = open_spool
        self._decoder = codecs.getincrementaldecoder("utf-8")(LOSSY_ERRORS)
        self._reset()

    def _reset(self) -> None:
        self.size = 0
        self._parts: list[bytes] = []
        self._spool: IO[bytes] | None = None
        self.failure: str | None = None
        """Why output between the ends is lost, `None` where none is: its disk could not take it."""

    def begin(self) -> None:
        """Forget what came before."""
        if self.size:
            self._decoder.reset()
            if self._spool is not None:
                self._spool.close()
            self._reset()

    def take(self, data: bytes, on_output: OnOutput | None = None) -> None:
        """Take in what code has written, as far as its limits go."""
        if self.meter is None:
            self.feed(data, on_output)
        elif kept := self.meter.admit(data):
            self.feed(kept, on_output)

    def feed(self, data: bytes, on_output: OnOutput | None = None) -> None:
        """Take in what was written, and pass it on as text."""
        self.size += len(data)
        if self._spool is not None:
            self._write_spool(data)
        else:
            self._parts.append(data)
            if self.size > MAX_TEXT_BYTES:
                self._start_spool()
        if on_output is not None:
            self._pass_on(self._decoder.decode(data), on_output)

    def finish(self, on_output: OnOutput | None = None) -> tuple[str, Artifact | None, bool]:
        """End the execution: its text for the line, the artifact that holds all of it, whether it is lossy.

        The artifact is `None` where the text is all there is.
        """
        if on_output is not None and (rest := self._decoder.decode(b"", final=True)):
            self._pass_on(rest, on_output)
        if not self.size:
            return "", None, False
        if self._spool is not None:
            spool, self._spool = self._spool, None  # whoever has the artifact closes it
            spool.flush()
            text, lossy = elide(self._first, self._last, total_bytes=self.size)
            if self.failure is not None:
                spool.close()
                return text, None, lossy
            return text, self._artifact(self._hash.hexdigest(), spool), lossy
        data = b"".join(self._parts)
        text, lossy = decode_output(data)
        if not lossy:
            return text, None, False
        import hashlib

        return text, self._artifact(hashlib.sha256(data).hexdigest(), data), True

    def _artifact(self, sha256: str, content: bytes | IO[bytes]) -> Artifact:
        mime = "text/plain"
        return Artifact(field=self.field, sha256=sha256, bytes=self.size, mime=mime, content=content)

    def _start_spool(self) -> None:
        data = b"".join(self._parts)
        self._parts.clear()
        self._first, self._last = data[:KEPT_TEXT_BYTES], b""
        import hashlib

        self._hash = hashlib.sha256()
        try:
            self._spool = self._open_spool()
        except OSError as exc:
            self.failure = exc.strerror or str(exc)
            self._spool = io.BytesIO()
        self._write_spool(data)

    def _write_spool(self, data: bytes) -> None:
        assert self._spool is not None
        if self.failure is None:
            try:
                _write_all(self._spool, data)
                self._hash.update(data)
            except OSError as exc:  # it must cost neither the worker nor the rest of the execution
                self.failure = exc.strerror or str(exc)
        self._last = (
            (self._last + data)[-KEPT_TEXT_BYTES:] if len(data) < KEPT_TEXT_BYTES else data[-KEPT_TEXT_BYTES:]
        )

    def _pass_on(self, text: str, on_output: OnOutput) -> None:
        for start in range(0, len(text), _STREAM_CHUNK_CHARACTERS):
            on_output(cast(OutputName, self.field), text[start : start + _STREAM_CHUNK_CHARACTERS])


def _write_all(file: IO[bytes], data: bytes) -> None:
    """Write what a file without a buffer may take in pieces: a full disk first takes a part."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
