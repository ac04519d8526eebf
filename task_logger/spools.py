"""Where output goes that memory should not hold, while its log is encrypted: never to a disk as it is.

the plan's key can be had -> an encrypted file of the plan, which becomes the artifact as it is
it can't, or its disk is full -> one in the system's folder for temporary files, with a key in memory only
"""

from __future__ import annotations

import os
from typing import IO

from task_logger.artifacts import new_spool
from task_logger.encryption import ArtifactCipher, artifact_cipher
from task_logger.errors import TaskLogError
from task_logger.framed_file import FramedFile
from task_logger.key_header import DataKey
from task_logger.keys import KEY_BYTES, KeySource

_MEMORY = "/dev/shm"
_ROOM_BYTES = 1 << 30
"""What a program can write before it is read, by far; containers often have only 64 MiB there."""


class EncryptedSpools:
    """Opens the spools of one plan; any thread may."""

    def __init__(self, plan_folder: str, key: KeySource) -> None:
        self._plan_folder = plan_folder
        self._key = key
        self._cipher: ArtifactCipher | None = None

    def open(self) -> IO[bytes]:
        """Open an empty file without a name, to be written once and then read. Raises `OSError`."""
        try:
            if self._cipher is None:
                self._cipher = artifact_cipher(self._plan_folder, self._key, create=True)
            return new_spool(self._plan_folder, self._cipher)
        except TaskLogError:
            return open_ephemeral_spool()

    @staticmethod
    def open_capture() -> IO[bytes]:
        """Open an empty file without a name for what programs write themselves, which nobody can encrypt.

        It is in memory (/dev/shm), where that has room for bursts of output, else on the disk. Raises
        `OSError`.
        """
        import tempfile

        try:
            found = os.statvfs(_MEMORY)
            if found.f_bavail * found.f_frsize >= _ROOM_BYTES:
                return tempfile.TemporaryFile(dir=_MEMORY)
        except OSError:
            pass  # no such file system here, or none for us
        return tempfile.TemporaryFile()


def open_ephemeral_spool() -> IO[bytes]:
    """Open a temporary file whose key is nowhere but in this object. Raises `OSError`."""
    import tempfile

    data_key = DataKey(key_id=os.urandom(8).hex(), file_id="", secret=os.urandom(KEY_BYTES))
    with tempfile.TemporaryFile() as file:
        return FramedFile(os.dup(file.fileno()), ArtifactCipher(data_key), is_new=True).as_file()
