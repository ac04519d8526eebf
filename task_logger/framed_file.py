"""Encrypted files of any length, in frames of 1 MiB: artifacts, and output on its way to becoming one.

    bytes written, in order --> frames, each AES-256-GCM --> file:  start, frames (each 16 bytes more)
    position read           --> its frame --> decrypted, checked --> bytes

Each file has a key of its own, made from the 32 random bytes in its start. A frame's nonce is its number
and whether it is the last one, so that none can be cut off, left out, repeated or put elsewhere: the STREAM
construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015), which age uses as well. One frame is in memory.
"""

from __future__ import annotations

import io
import os
from typing import IO, TYPE_CHECKING, Any, cast

from task_logger.errors import DamagedArtifact
from task_logger.key_header import aes_gcm

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from task_logger.encryption import ArtifactCipher

FRAME_BYTES = 1 << 20
"""Plain bytes of every frame but the last."""

_MAGIC = b"task-log"
_START_BYTES = len(_MAGIC) + 32
_TAG_BYTES = 16
_STORED_FRAME_BYTES = FRAME_BYTES + _TAG_BYTES


def stored_bytes(plain_bytes: int) -> int:
    """Return how long the encrypted file of so many plain bytes is."""
    return _START_BYTES + plain_bytes + _TAG_BYTES * max(1, -(-plain_bytes // FRAME_BYTES))


class FramedFile(io.RawIOBase):
    """One encrypted file: written once, from its start on; once it is read from, it is complete.

    It owns the descriptor, from the first moment on. What can't be decrypted raises `DamagedArtifact`.
    """

    def __init__(
        self, descriptor: int, cipher: ArtifactCipher, *, is_new: bool, path: str = "", name: str = ""
    ) -> None:
        """Begin an encrypted file in an empty one, or open one (raises `DamagedArtifact`); `path` and `name`
        are for errors."""
        super().__init__()
        from cryptography.exceptions import InvalidTag

        self.cipher = cipher
        """Whose file this is."""
        self._invalid = InvalidTag
        self._descriptor = descriptor
        self._path, self._name = path, name
        self._position = 0
        self._frame: tuple[int, bytes] = (-1, b"")
        self._pending = bytearray()  # what isn't in the file yet
        self._is_complete = not is_new
        self._started = not is_new
        self._start = _MAGIC + os.urandom(32) if is_new else os.pread(descriptor, _START_BYTES, 0)
        stored = os.fstat(descriptor).st_size - _START_BYTES
        self._frames = 0 if is_new else max(1, -(-stored // _STORED_FRAME_BYTES))
        self._size = 0 if is_new else stored - _TAG_BYTES * self._frames
        if not is_new and (not self._start.startswith(_MAGIC) or self._size < 0):
            self.close()
            raise self._damaged("it is cut off, or no encrypted artifact")
        self._key: Any = aes_gcm(cipher.file_key(self._start))

    def fileno(self) -> int:
        """The descriptor of the encrypted file."""
        return self._descriptor

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """Until it is complete."""
        return not self._is_complete

    def seekable(self) -> bool:
        """For reading."""
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Take more bytes, or the first of them; returns how many. Raises `OSError`: then none were taken."""
        if self._is_complete:
            raise io.UnsupportedOperation("an encrypted file that was read from takes no more")
        given = memoryview(data).cast("B")
        if given and len(self._pending) == FRAME_BYTES:  # more follows: it isn't the last frame
            self._put_frame(is_last=False)
        taken = given[: FRAME_BYTES - len(self._pending)]
        self._pending += taken
        self._size += len(taken)
        return len(taken)

    def complete(self) -> None:
        """End the file with its last frame; it takes nothing more then. Raises `OSError`: try again."""
        if not self._is_complete:
            self._put_frame(is_last=True)
            self._is_complete = True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to where the next reading begins; completes the file."""
        self.complete()
        base = (0, self._position, self._size)[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Where the next reading begins, or writing goes on."""
        return self._position if self._is_complete else self._size

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read what fits, at most to the end of a frame; completes the file."""
        self.complete()
        if self._position >= self._size:
            if self._size == 0:
                self._opened(0)  # an empty file is checked too
            return 0
        number, at = divmod(self._position, FRAME_BYTES)
        view = memoryview(buffer).cast("B")
        piece = memoryview(self._opened(number))[at : at + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        """Close the file; idempotent. One that isn't complete can't be read by anyone."""
        if not self.closed:
            super().close()
            os.close(self._descriptor)

    def as_file(self) -> IO[bytes]:
        """This object, for those who want any file."""
        return cast("IO[bytes]", self)

    def _put_frame(self, *, is_last: bool) -> None:
        if not self._started:
            _write_all(self._descriptor, self._start, 0)
            self._started = True
        sealed = self._key.encrypt(_nonce(self._frames, is_last=is_last), bytes(self._pending), None)
        _write_all(self._descriptor, sealed, _START_BYTES + self._frames * _STORED_FRAME_BYTES)
        self._frames += 1
        self._pending.clear()

    def _opened(self, number: int) -> bytes:
        if self._frame[0] != number:
            stored = b""
            start = _START_BYTES + number * _STORED_FRAME_BYTES
            while len(stored) < _STORED_FRAME_BYTES and (
                piece := os.pread(self._descriptor, _STORED_FRAME_BYTES - len(stored), start + len(stored))
            ):
                stored += piece
            try:
                plain = self._key.decrypt(_nonce(number, is_last=number == self._frames - 1), stored, None)
            except (self._invalid, ValueError) as exc:
                raise self._damaged(
                    f"frame {number} of {self._frames} was altered, moved or cut off"
                ) from exc
            self._frame = (number, plain)
        return self._frame[1]

    def _damaged(self, reason: str) -> DamagedArtifact:
        return DamagedArtifact(self._path, self._name, reason)


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    rest = memoryview(data)
    while rest:
        written_bytes = os.pwrite(descriptor, rest, at)
        rest, at = rest[written_bytes:], at + written_bytes
