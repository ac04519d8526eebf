"""A compressed log as a reader sees it: the bytes of the plain one, from its start on, a piece at a time.

file --> zstd frames --> decompressed, 128 KiB in memory --> lines

Going back means to begin anew. What can't be decompressed raises `OSError`, as a bad disk does.
"""

from __future__ import annotations

import errno
import io
import os
from typing import IO, TYPE_CHECKING, cast

from task_logger.log_source import SizedSource

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER_BYTES = 128 << 10
_HEADER_BYTES = 18  # the longest that a frame has (RFC 8878, 3.1.1.1)


def open_compressed(source: IO[bytes]) -> IO[bytes]:
    """Return the plain bytes of an open compressed file, which is closed together with it."""
    return cast("IO[bytes]", io.BufferedReader(_Decompressed(source), _BUFFER_BYTES))


class _Decompressed(SizedSource):
    def __init__(self, source: IO[bytes]) -> None:
        super().__init__()
        import zstandard

        self._source = source
        self._decompressor = zstandard.ZstdDecompressor()
        self._error: type[Exception] = zstandard.ZstdError
        self._at = 0
        header = source.read(_HEADER_BYTES)
        source.seek(0)
        try:
            size = zstandard.get_frame_parameters(header).content_size
        except zstandard.ZstdError:
            size = 1  # not empty for those who look at the size: reading says what is wrong
        self._first_frame_bytes = 0 if size == zstandard.CONTENTSIZE_UNKNOWN else size
        self._stream = self._begin()

    def _begin(self) -> IO[bytes]:
        return cast(
            "IO[bytes]",
            self._decompressor.stream_reader(self._source, read_across_frames=True, closefd=False),
        )

    @property
    def size_bytes(self) -> int:
        return max(self._at, self._first_frame_bytes)

    def fileno(self) -> int:
        return self._source.fileno()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._stream.read(len(view))
        except self._error as exc:
            raise OSError(errno.EIO, f"it is compressed, and damaged behind byte {self._at} ({exc})") from exc
        if not data and self._at < self._first_frame_bytes:
            raise OSError(errno.EIO, f"it is compressed, and cut off behind byte {self._at}")
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence != os.SEEK_SET:
            offset += self._at if whence == os.SEEK_CUR else self._end()
        if offset < self._at:
            self._source.seek(0)
            self._stream = self._begin()
            self._at = 0
        buffer = bytearray(_BUFFER_BYTES)
        while self._at < offset and self.readinto(memoryview(buffer)[: offset - self._at]):
            pass
        return self._at

    def _end(self) -> int:
        buffer = bytearray(_BUFFER_BYTES)
        while self.readinto(buffer):
            pass
        return self._at

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()
