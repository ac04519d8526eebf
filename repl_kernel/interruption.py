"""How a running execution is made to stop: from asking politely to killing, in steps.

    0 s SIGINT --> 1 s SIGINT --> 2 s SIGTERM --> 3 s SIGKILL

The worker gets each step, and so do the programs that this execution started; those of earlier ones don't.
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

_STEPS = ((0.0, signal.SIGINT), (1.0, signal.SIGINT), (2.0, signal.SIGTERM), (3.0, signal.SIGKILL))
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
        self._began = 0.0
        self._patience_s = 0.0

    def arm(self, link: WorkerLink, patience_s: float = 0.0) -> None:
        """An execution starts; from now on, or once it has lasted `patience_s`, it can be interrupted."""
        if self.reason is not None:
            self.reason = None
            self.taken = []
        self._started = time.monotonic()
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
            if self._link is None or time.monotonic() < self._started + self._patience_s:
                return False
            if self.reason is None:
                self.reason = reason
                self._began = time.monotonic()
            else:  # asked again: whoever asks has waited long enough
                self._began = time.monotonic() - _STEPS[min(len(self.taken), len(_STEPS) - 1)][0]
            self._step()
            return True

    def go_on(self) -> float | None:
        """Take the step that is due; returns the seconds to the next one, `None` where none will come."""
        if self.reason is None:
            return None
        with self._lock:
            if self._link is not None and len(self.taken) < len(_STEPS) and self._due_in() <= 0:
                self._step()
            return self._due_in() if len(self.taken) < len(_STEPS) else None

    def _due_in(self) -> float:
        return self._began + _STEPS[len(self.taken)][0] - time.monotonic()

    def _step(self) -> None:
        if self._link is None or len(self.taken) >= len(_STEPS):
            return
        signal_number = _STEPS[len(self.taken)][1]
        self.taken.append(signal_number.name)
        programs = self._programs(self._link)
        # The worker first: `subprocess.run` then waits for its program, which gets the signal next.
        self._link.signal(signal_number)
        for pid in programs:
            send_signal(pid, signal_number)

    def _programs(self, link: WorkerLink) -> list[int]:
        """The worker's descendants that this execution started, by their start time.

        That is kept in ticks of 10 ms; within the first one, the newest process id at the end of
        the execution
        before tells old from new.
        """
        age_s = time.monotonic() - self._started
        started_ticks = int((time.clock_gettime(time.CLOCK_BOOTTIME) - age_s) * _TICKS_PER_S)
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
