"""The bounded wait for a log's lock.

    taken at once (the common case) -> blocked in flock, in a helper thread -> given up after the bound

The system's queue is fair where sleeping and asking again is not: with 64 writers the unluckiest of a hundred
would wait tens of milliseconds. But `flock` knows no bound, so a thread waits in it, on a descriptor of its
own: a wait that is given up can then take its time, and lets go of the lock as soon as it has it.
"""

from __future__ import annotations

import fcntl
import os
from _thread import allocate_lock, start_new_thread

from task_logger.descriptors import LockDescriptor


class LockWait:
    """One wait for the lock of an open file; it owns `descriptor` until `wait` returned true."""

    __slots__ = ("_abandoned", "_arrived", "_decision", "_error", "_finished", "descriptor")

    def __init__(self, descriptor: LockDescriptor) -> None:
        self.descriptor = descriptor
        self._arrived = allocate_lock()  # held until the thread has the lock
        self._decision = allocate_lock()  # whoever holds it decides between arrived and given up
        self._finished = False
        self._abandoned = False
        self._error: OSError | None = None

    def wait(self, bound_s: float) -> bool:
        """Wait for the lock; true once `descriptor` holds it.

        On false, and on an error, the descriptor must not be used any more: it closes when its lock arrives.
        """
        self._arrived.acquire()
        start_new_thread(self._block, ())
        in_time = False
        try:
            in_time = self._arrived.acquire(timeout=bound_s)
        finally:  # an interrupt of the caller must not leave a lock behind either
            if not in_time:
                in_time = self._give_up()
        if self._error is not None:
            self.descriptor.close()
            raise self._error
        return in_time

    def _give_up(self) -> bool:
        with self._decision:
            self._abandoned = not self._finished
        return self._finished

    def _block(self) -> None:
        try:
            fcntl.flock(self.descriptor.number, fcntl.LOCK_EX)
        except OSError as exc:
            self._error = exc
        with self._decision:
            self._finished = True
            if self._abandoned:
                self.descriptor.close()
        self._arrived.release()


def holder_pid(status: os.stat_result) -> int | None:
    """The process that holds the flock of a file, from `/proc/locks`; `None` where that doesn't say."""
    name = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as locks:  # pathlib costs start-up time
            for line in locks:
                parts = line.split()
                if parts[1] == "FLOCK" and parts[5] == name and int(parts[4]) > 0:
                    return int(parts[4])
    except (OSError, ValueError, IndexError):
        return None  # not Linux, or hidden: the error then names no one
    return None
