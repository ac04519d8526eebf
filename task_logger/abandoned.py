"""Other sessions' pending files: taking those of dead ones, and looking at all of them.

The lock of a pending file tells: whoever gets it knows that the session is dead, and alone settles the file.
"""

from __future__ import annotations

import os
import stat
from fcntl import LOCK_NB, LOCK_SH, flock

from task_logger.descriptors import LockDescriptor
from task_logger.pending import SAFE_FLAGS, Entry, content_of, entries_in

UNREADABLE_SUFFIX = ".unreadable"
"""Ends the name of a pending file that made no sense: it is kept, and named in a notice."""

_LOOKS = 100  # a live session's entry can be half written at the first look, not at that many


class AbandonedFile:
    """A pending file whose session is dead; as long as it is open, it is ours to settle."""

    def __init__(self, path: str, descriptor: LockDescriptor) -> None:
        self.path = path
        self._descriptor = descriptor
        self.entries = entries_in(content_of(descriptor.number))
        """What is in it, `None` where that makes no sense."""

    def remove(self) -> None:
        """Remove the file: each of its executions has its line. Raises `OSError`."""
        os.unlink(self.path)

    def put_aside(self) -> str:
        """Rename the file so that nobody settles it again; returns its new path. Raises `OSError`."""
        aside = self.path + UNREADABLE_SUFFIX
        os.rename(self.path, aside)
        return aside

    def close(self) -> None:
        """Let go of the file; idempotent."""
        self._descriptor.close()


def take_abandoned(path: str) -> AbandonedFile | None:
    """Lock a dead session's pending file; `None` where it lives, or the file is gone. Raises `OSError`."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        descriptor = LockDescriptor(os.open(path, os.O_RDWR | SAFE_FLAGS))
    except FileNotFoundError:
        return None
    try:
        if descriptor.try_lock() and descriptor.is_file_at(path):
            return AbandonedFile(path, descriptor)
    except BaseException:
        descriptor.close()
        raise
    descriptor.close()
    return None


def pending_names(folder: str) -> list[str]:
    """Return the names of the pending files in a folder, which need not exist. Raises `OSError`.

    What is no regular file is none of ours: neither writers nor readers look at it.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.endswith(UNREADABLE_SUFFIX) and entry.is_file(follow_symlinks=False)
            )
    except FileNotFoundError:
        return []


def look_at(path: str) -> tuple[list[Entry], bool]:
    """Read a pending file, changing nothing; returns its entries and whether its session is alive.

    Raises `OSError`; `FileNotFoundError` where it was settled meanwhile.
    """
    descriptor = os.open(path, os.O_RDONLY | SAFE_FLAGS)
    try:
        for _ in range(_LOOKS):
            alive = not _can_share(descriptor)
            entries = entries_in(content_of(descriptor)) or []
            if entries or not alive:
                break
            os.sched_yield()
        return entries, alive
    finally:
        os.close(descriptor)


def content_at(path: str) -> tuple[bytes, bool]:
    """Read a pending file as it is, changing nothing; returns its bytes and whether its session is alive.

    Raises `OSError`; `FileNotFoundError` where it was settled meanwhile.
    """
    descriptor = os.open(path, os.O_RDONLY | SAFE_FLAGS)
    try:
        alive = not _can_share(descriptor)
        return content_of(descriptor), alive
    finally:
        os.close(descriptor)


def _can_share(descriptor: int) -> bool:
    try:
        flock(descriptor, LOCK_SH | LOCK_NB)
    except BlockingIOError:
        return False
    return True
