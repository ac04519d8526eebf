"""A lock on a folder: for the moments in which names in it are given, or taken away, that others rely on.

    <plan>             a log is created; a compressed one takes the plain one's place, or the other way round
    <plan>/artifacts   an artifact that is there already is used again; one that nothing refers to is removed

Whoever holds it does a few system calls and lets go, so it is asked for again and again, for a bounded time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from time import monotonic, sleep

from task_logger.descriptors import LockDescriptor
from task_logger.errors import LogLocked
from task_logger.locking import holder_pid

WAIT_S = 5.0
"""Whoever holds the lock for longer is stopped."""

_NO_LOCKS = frozenset({errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""How file systems say that they have no such locks; NFS takes exclusive ones only on what can be written."""

_YIELDS = 20
_PAUSE_S = 0.001


@contextmanager
def folder_lock(folder: str, *, shared: bool = False, needed: bool = True) -> Iterator[None]:
    """Hold the lock of a folder that is there; `shared` ones don't exclude each other.

    Without `needed`, a file system that has no such locks gives none: whoever would take something away
    needs one, and can't there. Raises `LogLocked` after `WAIT_S`, and `OSError`.
    """
    descriptor = LockDescriptor(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        try:
            _take(descriptor.number, folder, LOCK_SH if shared else LOCK_EX)
        except OSError as exc:
            if needed or exc.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        descriptor.close()


def file_lock(descriptor: int, path: str) -> None:
    """Take the shared lock of an open file, which no append goes on under; raises as `folder_lock`."""
    _take(descriptor, path, LOCK_SH)


def _take(descriptor: int, path: str, operation: int) -> None:
    give_up_at_s = monotonic() + WAIT_S
    tries = 0
    while True:
        try:
            flock(descriptor, operation | LOCK_NB)
        except BlockingIOError:
            if monotonic() > give_up_at_s:
                raise LogLocked(path, waited_s=WAIT_S, holder_pid=holder_pid(os.fstat(descriptor))) from None
        else:
            return
        tries += 1
        if tries < _YIELDS:
            os.sched_yield()
        else:
            sleep(_PAUSE_S)
