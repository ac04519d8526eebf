"""What was too large for a line, kept by its content: <plan>/artifacts/<2 digits>/<64 digits of its SHA-256>.

    bytes, or an open file -> an unnamed file in the same folder -> linked to its name: whole, or not there
    a spool of ours        -> linked as it is, nothing copied

A name is only ever given to a whole file, so no reader sees a part of one, whoever dies. What is stored is
found again by its content: the same bytes are kept once.

With a cipher, the file is encrypted in frames (`framed_file`), and the digits are an HMAC of the content, so
that its name tells nothing to those without the key. A spool is encrypted from its first byte on.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import IO, TYPE_CHECKING, cast

from task_logger.errors import ArtifactNotStored, DamagedArtifact, LogLocked, MissingArtifact
from task_logger.record import Artifact

if TYPE_CHECKING:
    from task_logger.encryption import ArtifactCipher
    from task_logger.framed_file import FramedFile

_COPY_BYTES = 1 << 20
_NO_UNNAMED_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})
"""How file systems and kernels say that they don't have O_TMPFILE."""

_CANNOT_LINK = frozenset({errno.ENOENT, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""How they say that an unnamed file can't get a name: it had one before, or there is no /proc."""

_temporary_numbers = count()  # unique within the process, which is all a temporary name needs besides the pid


def artifact_path(plan_folder: str, sha256: str, cipher: ArtifactCipher | None = None) -> str:
    """Return where an artifact is kept, with a cipher where its encrypted form is."""
    name = sha256 if cipher is None else cipher.name(sha256)
    return f"{plan_folder}/artifacts/{name[:2]}/{name}"


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and not text.strip("0123456789abcdef")


def put(
    plan_folder: str, artifact: Artifact, *, fsync: bool = False, cipher: ArtifactCipher | None = None
) -> Artifact:
    """Store an artifact's content, whole or not at all; returns it without content.

    With a cipher it is encrypted. Content that is an open file stays open, its position changed. A file made
    by `new_spool` becomes the artifact itself: nobody may write to it afterwards. Raises
    `ArtifactNotStored`, and `DamagedArtifact` where the content isn't what its SHA-256 and length say;
    nothing is stored then.
    """
    path = artifact_path(plan_folder, artifact.sha256, cipher)
    if not _is_sha256(artifact.sha256) or artifact.content is None:
        raise ArtifactNotStored(path, artifact.sha256, "it has no content, or no SHA-256 for a name")
    try:
        if not _is_used_again(plan_folder, path, _stored_bytes(artifact, cipher)):
            _make_folder(os.path.dirname(path))
            if not _link_spool(path, artifact, fsync, cipher):
                _copy(path, artifact, fsync, cipher)
            if fsync:
                _sync_folders(plan_folder, path)
    except LogLocked as exc:
        raise ArtifactNotStored(path, artifact.sha256, exc.reason) from exc
    except OSError as exc:
        raise ArtifactNotStored(path, artifact.sha256, exc.strerror or str(exc)) from exc
    return replace(artifact, content=None)


def get(plan_folder: str, sha256: str, cipher: ArtifactCipher | None = None) -> IO[bytes]:
    """Open a stored artifact for reading, after checking all of its bytes.

    A plan may hold it encrypted; a cipher of `None` is then that of the environment's key. Raises
    `MissingArtifact`, `DamagedArtifact`, `KeyRefused`, and `OSError` where it is there but can't be read.
    """
    path = artifact_path(plan_folder, sha256)
    if not _is_sha256(sha256):
        raise MissingArtifact(path, sha256)
    if not os.path.lexists(path) and (cipher is not None or os.path.lexists(f"{plan_folder}/keys/plan.key")):
        if cipher is None:
            from task_logger.encryption import artifact_cipher

            cipher = artifact_cipher(plan_folder)
        path = artifact_path(plan_folder, sha256, cipher)
    else:
        cipher = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise MissingArtifact(path, sha256) from exc
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise DamagedArtifact(path, sha256, "it is a symbolic link") from exc
        raise
    file = os.fdopen(descriptor, "rb") if cipher is None else _decrypted(descriptor, cipher, path, sha256)
    try:
        reason = _damage(file, sha256)
        if reason is None:
            file.seek(0)
    except BaseException:
        file.close()
        raise
    if reason is not None:
        file.close()
        raise DamagedArtifact(path, sha256, reason)
    return file


def _decrypted(descriptor: int, cipher: ArtifactCipher, path: str, sha256: str) -> IO[bytes]:
    from task_logger.framed_file import FramedFile

    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedArtifact(path, sha256, "it is no regular file")
    return FramedFile(descriptor, cipher, is_new=False, path=path, name=sha256).as_file()


def _damage(file: IO[bytes], sha256: str) -> str | None:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return "it is no regular file"
    digest = hashlib.sha256()
    for piece in _pieces(file):
        digest.update(piece)
    return None if digest.hexdigest() == sha256 else "its bytes have another SHA-256"


def new_spool(plan_folder: str, cipher: ArtifactCipher | None = None) -> IO[bytes]:
    """Open an unnamed file that `put` can keep without a copy; it vanishes where nobody does.

    With a cipher it is encrypted, can be written only once, and then read. Raises `ArtifactNotStored`.
    """
    folder = f"{plan_folder}/artifacts"
    try:
        _make_folder(folder)
        descriptor, temporary = open_unnamed(folder)
        if temporary is not None:
            os.unlink(temporary)
    except OSError as exc:
        raise ArtifactNotStored(folder, "of an output", exc.strerror or str(exc)) from exc
    return os.fdopen(descriptor, "w+b", buffering=0) if cipher is None else _new_framed(descriptor, cipher)


def _new_framed(descriptor: int, cipher: ArtifactCipher) -> IO[bytes]:
    from task_logger.framed_file import FramedFile

    return FramedFile(descriptor, cipher, is_new=True).as_file()


def _stored_bytes(artifact: Artifact, cipher: ArtifactCipher | None) -> int:
    if cipher is None:
        return artifact.bytes
    from task_logger.framed_file import stored_bytes

    return stored_bytes(artifact.bytes)


def _is_stored(path: str, size_bytes: int) -> bool:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size_bytes


def _is_used_again(plan_folder: str, path: str, size_bytes: int) -> bool:
    """Whether it is stored already; then it is young again, which keeps it from those who remove old ones."""
    if not _is_stored(path, size_bytes):
        return False
    from task_logger.folder_lock import folder_lock  # costs start-up time

    with folder_lock(f"{plan_folder}/artifacts", shared=True, needed=False):
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
    return True


def _link_spool(path: str, artifact: Artifact, fsync: bool, cipher: ArtifactCipher | None) -> bool:
    """Give an unnamed file of this file system its name; returns false where it is none or can't have one."""
    content = artifact.content
    if content is None or isinstance(content, bytes) or not _is_spool_of(content, cipher):
        return False
    if cipher is None:
        content.flush()
    else:
        cast("FramedFile", content).complete()
    status = os.fstat(content.fileno())
    folder_device = os.stat(os.path.dirname(path)).st_dev
    if status.st_nlink or not stat.S_ISREG(status.st_mode) or status.st_dev != folder_device:
        return False
    expected_bytes = _stored_bytes(artifact, cipher)
    if status.st_size != expected_bytes:
        raise DamagedArtifact(
            path, artifact.sha256, f"its content has {status.st_size} bytes, not {expected_bytes}"
        )
    try:
        _link(content.fileno(), path, fsync)
    except OSError as exc:
        if exc.errno in _CANNOT_LINK:
            return False
        raise
    return True


def _is_spool_of(content: IO[bytes], cipher: ArtifactCipher | None) -> bool:
    own: ArtifactCipher | None = getattr(content, "cipher", None)
    return own is cipher or (own is not None and cipher is not None and own.key_id == cipher.key_id)


def _copy(path: str, artifact: Artifact, fsync: bool, cipher: ArtifactCipher | None) -> None:
    descriptor, temporary = open_unnamed(os.path.dirname(path))
    try:
        _write_checked(descriptor, path, artifact, cipher)
        if temporary is None:
            _link(descriptor, path, fsync)
            return
        if fsync:
            os.fsync(descriptor)
        os.rename(temporary, path)
        temporary = None
    finally:
        os.close(descriptor)
        if temporary is not None:
            os.unlink(temporary)


def _write_checked(descriptor: int, path: str, artifact: Artifact, cipher: ArtifactCipher | None) -> None:
    digest, size_bytes = hashlib.sha256(), 0
    content = artifact.content
    assert content is not None
    framed = None if cipher is None else cast("FramedFile", _new_framed(os.dup(descriptor), cipher))
    try:
        for piece in (content,) if isinstance(content, bytes) else _pieces(content):
            digest.update(piece)
            size_bytes += len(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest) if framed is None else framed.write(rest) :]
        if framed is not None:
            framed.complete()
    finally:
        if framed is not None:
            framed.close()
    if digest.hexdigest() != artifact.sha256 or size_bytes != artifact.bytes:
        raise DamagedArtifact(
            path, artifact.sha256, f"its content of {size_bytes} bytes has another SHA-256 or length"
        )


def _pieces(file: IO[bytes]) -> Iterator[memoryview]:
    file.seek(0)
    buffer = memoryview(bytearray(_COPY_BYTES))
    while count_bytes := file.readinto(buffer):  # type: ignore[attr-defined]  # binary files have it, IO doesn't say
        yield buffer[:count_bytes]


def open_unnamed(folder: str) -> tuple[int, str | None]:
    """Open a new file without a name; where there are none, one with the temporary name that is returned.

    Raises `OSError`.
    """
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), None
        except OSError as exc:
            if exc.errno not in _NO_UNNAMED_FILES:
                raise
    temporary = f"{folder}/.{os.getpid()}.{next(_temporary_numbers)}.tmp"
    return os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600), temporary


def _link(descriptor: int, path: str, fsync: bool) -> None:
    os.fchmod(descriptor, 0o600)  # whatever the umask was
    os.utime(descriptor)  # it may have been written long ago, and only young ones are safe without a line
    if fsync:
        os.fsync(descriptor)
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Only with a dir_fd does os.link call linkat, which follows the link in /proc.
        os.link(f"/proc/self/fd/{descriptor}", os.path.basename(path), dst_dir_fd=folder)
    except FileExistsError:
        if not _is_stored(path, os.fstat(descriptor).st_size):
            _replace_damaged(descriptor, path)
    finally:
        os.close(folder)


def _replace_damaged(descriptor: int, path: str) -> None:
    """Put a whole artifact where something else has its name: a file cut short by another program."""
    folder = os.path.dirname(path)
    temporary = f"{folder}/.{os.getpid()}.{next(_temporary_numbers)}.tmp"
    _link(descriptor, temporary, fsync=False)
    os.rename(temporary, path)


def _make_folder(folder: str) -> None:
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    if parent != folder:
        _make_folder(parent)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise
    else:
        os.chmod(folder, 0o700)  # whatever the umask was


def _sync_folders(plan_folder: str, path: str) -> None:
    for folder in (os.path.dirname(path), f"{plan_folder}/artifacts", plan_folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
