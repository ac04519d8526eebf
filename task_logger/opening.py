"""Opening and creating the files and folders of a task log, safely.

    path -> looked at without following links -> opened so that nothing can block -> looked at again

What is refused is refused before anything is created.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from task_logger.descriptors import LockDescriptor
from task_logger.errors import LogPathRefused, log_error

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_KINDS = (
    (stat.S_ISLNK, "it is a symbolic link"),
    (stat.S_ISDIR, "it is a directory"),
    (stat.S_ISFIFO, "it is a FIFO"),
    (stat.S_ISSOCK, "it is a socket"),
    (stat.S_ISCHR, "it is a device"),
    (stat.S_ISBLK, "it is a device"),
)


sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
"""Put a file's bytes on the disk; macOS has no `fdatasync`."""


def check_path(path: str) -> None:
    """Refuse a path that can't name a task log, whatever is there; raises `LogPathRefused`."""
    if "\0" in path:
        raise LogPathRefused(path, "its name contains a NUL character")
    if ".." in path.split("/"):
        raise LogPathRefused(path, "it contains '..'")
    if not path.startswith("/"):
        raise LogPathRefused(path, "it isn't an absolute path")


def open_log(path: str, *, fsync: bool) -> LockDescriptor:
    """Open a task log for appending, created (mode 0600) where nothing is there.

    With `fsync`, a new file's folder is synced too: else the name could be lost with the power. Raises
    `LogPathRefused` where something else is there, and `LogUnavailable` where the system can't do it now.
    """
    check_path(path)
    try:
        for _ in range(8):  # each round lost is another process that created or removed the file meanwhile
            status = _look(path)
            if status is not None:
                _refuse_what_is_no_log(path, status)
            number = _open(path, new=False) if status is not None else _create(path, fsync=fsync)
            if number is not None:
                return _checked(path, LockDescriptor(number), new=status is None, fsync=fsync)
    except OSError as exc:
        raise log_error(path, exc) from exc
    raise LogPathRefused(path, "other processes keep creating and removing it")


def _look(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _create(path: str, *, fsync: bool) -> int | None:
    """Create a log; where a compressed one of that name is, bring that back, and return `None`."""
    from task_logger.folder_lock import folder_lock

    try:
        with folder_lock(os.path.dirname(path), needed=False):
            if not os.path.lexists(f"{path}.zst"):
                return _open(path, new=True)
    except FileNotFoundError:
        raise LogPathRefused(path, f"there is no folder {os.path.dirname(path)!r}") from None
    from task_logger.compression import restore_log

    restore_log(path, fsync=fsync)
    return None


def _open(path: str, *, new: bool) -> int | None:
    try:
        if new:
            return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        return os.open(path, _FLAGS)
    except FileExistsError:
        return None
    except FileNotFoundError:
        if new:
            raise LogPathRefused(path, f"there is no folder {os.path.dirname(path)!r}") from None
        return None


def _checked(path: str, descriptor: LockDescriptor, *, new: bool, fsync: bool) -> LockDescriptor:
    try:
        status = os.fstat(descriptor.number)
        if new:
            if stat.S_IMODE(status.st_mode) != 0o600:
                os.fchmod(descriptor.number, 0o600)  # the umask took away even the owner's bits
            if fsync:
                os.fsync(descriptor.number)
                sync_folder(os.path.dirname(path))
        else:
            _refuse_what_is_no_log(path, status)
    except BaseException:
        descriptor.close()
        raise
    return descriptor


def _refuse_what_is_no_log(path: str, status: os.stat_result) -> None:
    for is_kind, reason in _KINDS:
        if is_kind(status.st_mode):
            raise LogPathRefused(path, reason)
    if status.st_uid != os.geteuid():
        raise LogPathRefused(path, f"it belongs to user {status.st_uid}, and we are user {os.geteuid()}")
    if not status.st_mode & stat.S_IWUSR:  # root could write all the same, against the owner's word
        raise LogPathRefused(path, f"its mode {stat.S_IMODE(status.st_mode):04o} lets nobody write it")


def make_folder(path: str, *, fsync: bool) -> None:
    """Make sure of a folder of our own, created (mode 0700) with its parents where it is missing.

    Raises `LogPathRefused` where it can't be one, and `LogUnavailable` where the system can't do it now.
    """
    try:
        status = _look(path)
        if status is None:
            parent = os.path.dirname(path)
            if not os.path.isdir(parent):
                make_folder(parent, fsync=fsync)
            _create_folder(path, fsync=fsync)
            status = os.lstat(path)
    except OSError as exc:
        raise log_error(path, exc) from exc
    if stat.S_ISLNK(status.st_mode):
        raise LogPathRefused(path, "it is a symbolic link, not a folder")
    if not stat.S_ISDIR(status.st_mode):
        raise LogPathRefused(path, "it is there, and is no folder")
    if status.st_uid != os.geteuid():
        raise LogPathRefused(path, f"it belongs to user {status.st_uid}, and we are user {os.geteuid()}")


def _create_folder(path: str, *, fsync: bool) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    if stat.S_IMODE(os.lstat(path).st_mode) != 0o700:
        os.chmod(path, 0o700)
    if fsync:
        sync_folder(os.path.dirname(path))


def sync_folder(path: str) -> None:
    """Make the names in a folder survive a loss of power; raises `OSError`."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)
