"""How a running execution is made to stop: from asking politely to killing, in steps.

    0 s SIGINT --> 1 s SIGINT --> 2 s SIGTERM --> 3 s SIGKILL

The worker gets each step, and so do the programs that this execution started; those of earlier ones don't.
Where the session itself stood still meanwhile, the next step waits for its second all the same: the worker
may have stood still as well.
"""

from __future__ import annotations

import _thread
import os
import signal
import time
from typing import Literal

from repl_kernel.process_tree import descendants, namespace_pids, send_signal
from repl_kernel.worker_link import WorkerLink

Reason = Literal["interrupted", "timeout", "limit"]

_STEPS = (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)

_STEP_S = 1.0
"""How long the worker may take to heed a step before the next one is taken."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""The one that the kernel dates the starts of processes by, where there is one."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Interruption:
    """The interrupting of executions, one after the other: begun from any thread, continued by the one
    that waits."""

    def __init__(self) -> None:
        self.reason: Reason | None = None
        self.taken: list[str] = []
        self._lock = _thread.allocate_lock()
        self._link: WorkerLink | None = None
        self._started = 0.0
        self._stepped = 0.0
        self._patience_s = 0.0

    def arm(self, link: WorkerLink, patience_s: float = 0.0) -> None:
        """An execution starts; from now on, or once it has lasted `patience_s`, it can be interrupted."""
        if self.reason is not None:
            self.reason = None
            self.taken = []
        self._started = time.clock_gettime(_CLOCK)
        self._patience_s = patience_s
        self._link = link

    def disarm(self) -> None:
        """It has ended: no signal will be sent any more."""
        with self._lock:
            self._link = None

    def begin(self, reason: Reason) -> bool:
        """Take the first step, or the next one at once where the first was taken; false once it is
        too late."""
        with self._lock:
            if self._link is None or time.clock_gettime(_CLOCK) < self._started + self._patience_s:
                return False
            if self.reason is None:
                self.reason = reason
            self._step()  # asked again, the next one: whoever asks has waited long enough
            return True

    def go_on(self) -> None:
        """Take the step that is due, if one is."""
        if self.reason is None:
            return
        with self._lock:
            if time.monotonic() >= self._stepped + _STEP_S:
                self._step()

    def _step(self) -> None:
        if self._link is None or len(self.taken) >= len(_STEPS):
            return
        signal_number = _STEPS[len(self.taken)]
        self.taken.append(signal_number.name)
        programs = self._programs(self._link)
        # The worker first: `subprocess.run` then waits for its program, which gets the signal next.
        self._link.signal(signal_number)
        for pid in programs:
            send_signal(pid, signal_number)
        self._stepped = time.monotonic()

    def _programs(self, link: WorkerLink) -> list[int]:
        """The worker's descendants that this execution started, by their start time.

        That is kept in ticks of 10 ms; within the first one, the newest process id at the end of
        the execution
        before tells old from new.
        """
        started_ticks = int(self._started * _TICKS_PER_S)
        mark = link.children_mark
        depth = len(namespace_pids(link.pid)) - 1
        old: set[int] = set()
        new: list[int] = []
        for stat in descendants(link.pid):
            is_new = stat.start_ticks > started_ticks or (
                stat.start_ticks == started_ticks and (mark is None or _inner_pid(stat.pid, depth) > mark)
            )
            if is_new and stat.parent_pid not in old:
                new.append(stat.pid)
            else:
                old.add(stat.pid)
        return new


def _inner_pid(pid: int, depth: int) -> int:
    """A process's number where the worker counts: `depth` namespaces below ours; 0 where it has ended."""
    pids = namespace_pids(pid)
    return pids[depth] if 0 <= depth < len(pids) else 0
