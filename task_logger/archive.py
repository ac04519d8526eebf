"""The archive that an export writes: a tar, compressed with zstd, that any `tar --zstd` unpacks.

name, size --> header --> bytes as they come --> padding --> zstd --> file without a name
close --> end of the tar, synced --> linked to its name: whole, or not there, whoever is killed
"""

from __future__ import annotations

import errno
import hashlib
import os
import tarfile
from types import TracebackType
from typing import TYPE_CHECKING, Any

from task_logger.artifacts import open_unnamed
from task_logger.errors import TaskLogError
from task_logger.log_source import SizedSource

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK_BYTES = 512
_COPY_BYTES = 1 << 20
_LEVEL = 3  # about as quick as the verification is


class Archive:
    """One archive being written; used in `with`, which removes what is not `published`.

    What can't be written raises `TaskLogError`: the reader of a log would take an `OSError` for its own.
    """

    def __init__(self, path: str) -> None:
        """To be at `path`, where nothing may be. Raises `OSError`."""
        import zstandard

        self.path = path
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        folder = os.path.dirname(os.path.abspath(path))
        if not path or not os.path.isdir(folder):  # else the error would name the temporary file
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder if path else "")
        descriptor, self._temporary = open_unnamed(folder)
        self._file = os.fdopen(descriptor, "wb")
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        self._out: Any = compressor.stream_writer(self._file, closefd=False)

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:
            pass  # what is still buffered doesn't fit either, and nobody wants it
        if self._temporary is not None:
            os.unlink(self._temporary)

    def begin(self, name: str, size_bytes: int, *, modified_s: float) -> None:
        """Begin a file of that length; all of its bytes are to be written before the next one."""
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = size_bytes, int(modified_s), 0o600
        self.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def write(self, data: bytes | memoryview) -> None:
        """Write some of its bytes."""
        try:
            self._out.write(data)
        except OSError as exc:
            raise unwritable(self.path, exc) from exc

    def end(self, size_bytes: int) -> None:
        """End the file."""
        self.write(bytes(-size_bytes % _BLOCK_BYTES))

    def publish(self) -> int:
        """End the archive, and give it its name; returns its length. Raises `FileExistsError`."""
        self.write(bytes(2 * _BLOCK_BYTES))
        try:
            self._out.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            size_bytes = os.fstat(self._file.fileno()).st_size
            self._link()
        except FileExistsError:
            raise
        except OSError as exc:
            raise unwritable(self.path, exc) from exc
        return size_bytes

    def _link(self) -> None:
        if self._temporary is not None:
            os.link(self._temporary, self.path)
            return
        folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_PATH | os.O_DIRECTORY)
        try:
            # Only with a dir_fd does os.link call linkat, which follows the link in /proc.
            name = os.path.basename(self.path)
            os.link(f"/proc/self/fd/{self._file.fileno()}", name, dst_dir_fd=folder)
        finally:
            os.close(folder)


def unwritable(path: str, exc: OSError) -> TaskLogError:
    """Say that the archive at `path` can't be written; raise the result `from exc`."""
    return TaskLogError(
        f"the archive {path!r} can't be written: {exc.strerror or exc}; there is none now", path=path
    )


class CopiedFile(SizedSource):
    """The first bytes of an open file, which go into an archive as they are read; each is read once.

    The descriptor stays open, also when a reader that got this closes it.
    """

    def __init__(self, descriptor: int, size_bytes: int, archive: Archive) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._size_bytes = size_bytes
        self._archive = archive
        self._at = 0
        self._digest = hashlib.sha256()

    @property
    def size_bytes(self) -> int:
        """How many bytes go into the archive."""
        return self._size_bytes

    def fileno(self) -> int:
        """That of the file."""
        return self._descriptor

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """Only to where it is: those who buffer ask."""
        return True

    def tell(self) -> int:
        """How much was read."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Stay where it is; raises `OSError` for anywhere else."""
        if (offset if whence == os.SEEK_SET else self._at + offset) != self._at or whence == os.SEEK_END:
            raise OSError(errno.ESPIPE, "what is copied is read once")
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read what comes next, and copy it. Raises `OSError` where the file became shorter."""
        view = memoryview(buffer).cast("B")
        data = os.pread(self._descriptor, min(len(view), self._size_bytes - self._at), self._at)
        if not data and self._at < self._size_bytes:
            raise OSError(errno.EIO, "it became shorter while it was read")
        self._digest.update(data)
        self._archive.write(data)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def finish(self) -> str:
        """Copy what wasn't read; returns the SHA-256 of all of it, in hex."""
        buffer = bytearray(_COPY_BYTES)
        while self.readinto(buffer):
            pass
        return self._digest.hexdigest()
