"""The Linux calls that Python's standard library doesn't wrap."""

from __future__ import annotations

import os

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2


def _prctl(option: int, value: int) -> None:
    import ctypes  # 3 ms: not for processes that never get here

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), *(ctypes.c_ulong(0),) * 3) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def set_parent_death_signal(signal_number: int) -> None:
    """Have the kernel send this process a signal when the thread that made it ends; see prctl(2)."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def become_subreaper() -> None:
    """Become the parent of every orphan below this process; see prctl(2)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def forbid_new_privileges() -> None:
    """Let no program that this process starts gain privileges, for good; see prctl(2)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give back a file's blocks in that range, its size unchanged; does nothing where the file system
    can't."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate(
        fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)
    )
