"""The Linux calls that Python's standard library doesn't wrap."""

from __future__ import annotations

import _thread
import errno
import os
import struct

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_NAME = 15
_SIGEV_THREAD_ID = 4
_CLOCK_MONOTONIC = 1
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2


def _prctl(option: int, value: int) -> None:
    import ctypes  # 3 ms: not for processes that never get here

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), *(ctypes.c_ulong(0),) * 3) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def set_parent_death_signal(signal_number: int) -> None:
    """Have the kernel send this process a signal when the thread that made it ends; see prctl(2)."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def become_subreaper() -> None:
    """Become the parent of every orphan below this process; see prctl(2)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(is_dumpable: bool) -> None:
    """Let other processes of the same user look into this one, or not; forks inherit it, programs that it
    starts don't; see prctl(2)."""
    import _ctypes  # what the rest of `ctypes` is made of: 0.6 ms, where a server's start is a promise

    library = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # None is this program
    prctl = _ctypes.dlsym(library, "prctl")
    if _ctypes.call_function(prctl, (_PR_SET_DUMPABLE, int(is_dumpable), 0, 0, 0)) != 0:
        _prctl(_PR_SET_DUMPABLE, int(is_dumpable))  # again, for the reason


def forbid_new_privileges() -> None:
    """Let no program that this process starts gain privileges, for good; see prctl(2)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def volunteer_for_oom_killer(score: int = 1000) -> None:
    """Be the first to be killed where memory runs out, and so all that this process forks; see proc(5)."""
    try:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:  # text would load a codec
            file.write(b"%d" % score)
    except OSError:
        pass  # /proc is masked: then the kernel chooses by size, and that is the worker too


def set_process_name(name: str) -> None:
    """Name this process for `ps` and its like; at most 15 bytes are kept. See prctl(2)."""
    import ctypes

    text = ctypes.create_string_buffer(name.encode())
    _prctl(_PR_SET_NAME, ctypes.addressof(text))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give back a file's blocks in that range, its size unchanged; does nothing where the file system
    can't."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate(
        fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)
    )


def above_standard(fd: int) -> int:
    """The same file at a number of 3 or above: whoever has closed 0, 1 or 2 goes on to write there."""
    if fd > 2:
        return fd
    moved = above_standard(os.dup(fd))
    os.close(fd)
    return moved


class SignalTimer:
    """A timer that signals the thread that made it; unlike a thread it needs no turn of the interpreter."""

    def __init__(self, signal_number: int) -> None:
        """Make a timer that stands still; raises OSError where the system has none."""
        import ctypes

        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            create = self._libc.timer_create
        except AttributeError as exc:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from exc
        event = struct.pack("Qiii44x", 0, signal_number, _SIGEV_THREAD_ID, _thread.get_native_id())
        self._id = ctypes.c_void_p()
        if create(_CLOCK_MONOTONIC, event, ctypes.byref(self._id)) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def set(self, first_s: float, again_s: float) -> None:
        """Send the signal after the first time, then after the second again and again; 0 stops it."""
        times = struct.pack("4l", *divmod(int(again_s * 1e9), 10**9), *divmod(int(first_s * 1e9), 10**9))
        self._libc.timer_settime(self._id, 0, times, None)

    def close(self) -> None:
        """Give the timer back."""
        self._libc.timer_delete(self._id)
