"""File descriptors that hold locks: closed in every forked child.

A `flock` belongs to the open file, which a forked child shares. A child that outlives its parent would keep
its lock, and every other writer would wait for a process that knows nothing of the log. Programs
that are *started* don't get these descriptors (close-on-exec); for plain forks this module closes them.
"""

from __future__ import annotations

import fcntl
import os
from weakref import WeakSet

from task_logger.errors import LogClosed

CLOSED = -1


class LockDescriptor:
    """Owns one descriptor; `number` is -1 once it is closed."""

    __slots__ = ("__weakref__", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        _open_here.add(self)

    def close(self) -> None:
        """Close it, which lets go of its lock; idempotent."""
        number, self.number = self.number, CLOSED
        if number != CLOSED:
            os.close(number)

    def try_lock(self) -> bool:
        """Take the exclusive lock without waiting; false where another open file holds it."""
        try:
            fcntl.flock(self.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def is_file_at(self, path: str) -> bool:
        """Whether the path is still this file; false where nothing or another file is there."""
        if self.number == CLOSED:
            raise LogClosed(path)
        try:
            there = os.lstat(path)
        except FileNotFoundError:
            return False
        here = os.fstat(self.number)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def __del__(self) -> None:
        self.close()


# The one mutable thing of this package at module level, and its one act at import: forks concern all of a
# process, and whoever forks (the user's code, multiprocessing) can't know which logs are open.
_open_here: WeakSet[LockDescriptor] = WeakSet()


def _close_in_child() -> None:
    for descriptor in list(_open_here):
        descriptor.close()
    _open_here.clear()


os.register_at_fork(after_in_child=_close_in_child)
