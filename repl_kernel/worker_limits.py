"""The limits that the worker's kernel holds for each process: set before any code runs, and inherited.

memory_bytes     RLIMIT_DATA     MemoryError
open_files       RLIMIT_NOFILE   OSError, EMFILE      --> the verdict, where the code doesn't catch it
file_size_bytes  RLIMIT_FSIZE    OSError, EFBIG

RLIMIT_DATA counts what a process may write to and shares with nobody, `mmap` included. RLIMIT_AS would count
address space that libraries only reserve, too: numpy takes several times of what it uses.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Mapping

from repl_kernel.failure import condemned
from repl_kernel.limits import Strike
from task_logger.record import ExecutionError

_RESERVED_FILES = 16
"""Between what code may open and what the system allows the process: for our sockets while it is copied."""

_ENDLESS = (1 << 62) - 1
_LARGE_STACK_BYTES = 8 << 20
"""What a thread's stack takes at most, unless somebody asks for more."""

_RESERVED_BYTES = 32 << 20
"""Between what code may allocate and what the system allows: for telling what came of it, once it is full."""


class WorkerLimits:
    """The limits of this process and its descendants; there are none until `hold`."""

    def __init__(self) -> None:
        self._limits: Mapping[str, int] = {}
        self._max_files: int | None = None
        self._data: tuple[tuple[int, int], tuple[int, int]] | None = None
        """RLIMIT_DATA tight and wide: ready made, since there may be no memory to make it with."""
        self._is_wide = False

    def hold(self, limits: Mapping[str, int]) -> None:
        """Set them for good, by their names in `Limits`; `max_tasks` is what the user may have in all.

        Raises OSError or ValueError where the system refuses.
        """
        self._limits = limits
        if "file_size_bytes" in limits:
            # An import would put the part of its bytecode that may be written where every later one finds it:
            # before 3.12.8 and 3.13.1, Python takes it for whole.
            sys.dont_write_bytecode = True
            _lower(resource.RLIMIT_FSIZE, limits["file_size_bytes"], limits["file_size_bytes"])
        if "memory_bytes" in limits:
            _lower(resource.RLIMIT_DATA, limits["memory_bytes"], limits["memory_bytes"] + _RESERVED_BYTES)
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            self._data = (soft, hard), (hard, hard)
        if "max_tasks" in limits:
            _lower(resource.RLIMIT_NPROC, limits["max_tasks"], limits["max_tasks"])
        if "open_files" in limits:
            self._max_files = limits["open_files"] + len(os.listdir("/proc/self/fd")) - 1  # that of the list
            _lower(resource.RLIMIT_NOFILE, self._max_files, self._max_files + _RESERVED_FILES)

    def begin_code(self) -> None:
        """The user's code runs from now on."""
        if self._is_wide and self._data is not None:
            self._is_wide = False
            resource.setrlimit(resource.RLIMIT_DATA, self._data[0])

    def spare_memory(self) -> None:
        """It has ended, perhaps for want of memory: what is left to do may need some."""
        if self._data is not None:
            self._is_wide = True
            resource.setrlimit(resource.RLIMIT_DATA, self._data[1])

    def spare_files(self, is_needed: bool) -> None:
        """Let this process open some files more, for a while; does nothing where they aren't limited."""
        if self._max_files is not None:
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            soft = hard if is_needed else min(self._max_files, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def judge(self, exc: BaseException, error: ExecutionError) -> ExecutionError:
        """The error of an execution, with the verdict where a limit is behind it; the traceback stays."""
        try:
            strike = self._strike(exc)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - one that hides what it is: then no limit is behind it
            strike = None
        return error if strike is None else condemned(error, strike)

    def _strike(self, exc: BaseException) -> Strike | None:
        is_out_of_memory = isinstance(exc, MemoryError) or (
            _is_refused_thread(exc) and self._has_no_room_for_a_stack()
        )
        if is_out_of_memory:
            return self._of("memory_bytes", _data_bytes())
        if _is_refused_fork(exc) and "max_tasks" in self._limits and _tasks() >= self._limits["processes"]:
            return self._of("processes", None)
        if isinstance(exc, OSError):
            if exc.errno == errno.EMFILE:
                return self._of("open_files", None)
            if exc.errno == errno.EFBIG:
                return self._of("file_size_bytes", None)
            if exc.errno == errno.ENOMEM:
                return self._of("memory_bytes", _data_bytes())
        return None

    def _has_no_room_for_a_stack(self) -> bool:
        stack_bytes = min(resource.getrlimit(resource.RLIMIT_STACK)[0] & _ENDLESS, _LARGE_STACK_BYTES)
        return (_data_bytes() or 0) + stack_bytes > self._limits.get("memory_bytes", _ENDLESS)

    def _of(self, name: str, used: int | None) -> Strike | None:
        if name not in self._limits:
            return None
        return Strike(name=name, limit=self._limits[name], used=self._limits[name] if used is None else used)


def _is_refused_fork(exc: BaseException) -> bool:
    if isinstance(exc, BlockingIOError):
        return exc.errno == errno.EAGAIN
    return _is_refused_thread(exc)


def _is_refused_thread(exc: BaseException) -> bool:
    return type(exc) is RuntimeError and str(exc) == "can't start new thread"


def _tasks() -> int:
    """How many processes and threads this sandbox has."""
    count = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                count += len(os.listdir(f"/proc/{entry}/task"))
            except OSError:
                pass  # it has ended meanwhile
    return count


def _lower(kind: int, soft: int, hard: int) -> None:
    """Set a limit of this process; one that is tighter already stays."""
    old_soft, old_hard = (_finite(old) for old in resource.getrlimit(kind))
    hard = min(hard, old_hard)
    resource.setrlimit(kind, (min(soft, hard, old_soft), hard))


def _finite(limit: int) -> int:
    return (1 << 62) if limit == resource.RLIM_INFINITY else limit


def _data_bytes() -> int | None:
    """What this process has of what RLIMIT_DATA counts."""
    try:
        with open("/proc/self/status", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
        return int(fields[b"VmData"].split()[0]) << 10
    except (OSError, MemoryError, KeyError, ValueError):
        return None
