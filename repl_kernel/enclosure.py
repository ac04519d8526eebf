"""What holds the limits of one namespace: the kernel where it can, else the session's own look at it.

limits --> settings for each worker (see `worker_limits`)    what one process may have
       --> a cgroup that the workers are put in              what all of their processes have together
       --> `LimitWatch`, while code runs                     what no kernel holds here

Frozen copies share most of their memory with the worker, and count as processes for the kernel: they are
allowed for on top of what the code may have.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from repl_kernel.cgroups import Group, controllers
from repl_kernel.errors import LimitUnavailable
from repl_kernel.limits import Limits, Strike
from repl_kernel.output_meter import OutputTotal

if TYPE_CHECKING:
    from repl_kernel.worker_link import WorkerLink
    from task_logger.record import ExecutionError

_OWN_TASKS = 16
"""Processes of ours that come and go beside the worker: copies that are being made, that the books don't have
yet (they are taken in every 8th execution), or that end."""

_MOST_OWN_TASKS = 80
"""All of ours in a sandbox, where RLIMIT_NPROC counts them too: copies, keeper, bubblewrap.

It only bounds how many there can be until the next look."""

_REFUSED = ("[Errno 11] ", "can't start new thread")
"""What Python says then; of others the kernel's count of refusals tells it."""

_FOR_WORKERS = ("memory_bytes", "open_files", "file_size_bytes")


class Enclosure:
    """The limits of one namespace, and the group that its workers are in; not thread-safe."""

    def __init__(
        self, limits: Limits, *, copies: bool, sandboxed: bool, work_folder: str | None = None
    ) -> None:
        """Make the group, where one is of use and can be had; `copies`: whether states are kept.

        Raises `LimitUnavailable`.
        """
        self.limits = limits
        self.total = OutputTotal()
        self.work_folder = work_folder
        self._copies = copies
        self._sandboxed = sandboxed
        self._tasks = self._shut_tasks = -1
        self.dead_tasks = 0
        """Programs that were killed here, and that the code hasn't waited for."""
        self._seen_kills = self._seen_refusals = 0
        self.group = self._make_group()

    def again(self) -> Enclosure:
        """The same limits for another namespace: a branch."""
        return Enclosure(
            self.limits, copies=self._copies, sandboxed=self._sandboxed, work_folder=self.work_folder
        )

    def _make_group(self) -> Group | None:
        limits = self.limits
        names: tuple[str, ...] = ("memory",) if limits.memory_bytes is not None else ()
        names += ("pids",) if limits.processes is not None else ()
        if not names or not (usable := controllers(names)):
            return None
        try:
            group = Group(usable)
        except OSError:
            return None  # as if there were none: what it would have held is looked at instead
        try:
            if limits.memory_bytes is not None and "memory" in group.controllers:
                group.hold_memory(int(limits.memory_bytes) * (2 if self._copies else 1))
        except OSError as exc:
            group.close()
            raise LimitUnavailable("memory_bytes", f"its cgroup refuses: {exc.strerror}", "try more") from exc
        return group

    @property
    def worker_settings(self) -> dict[str, int]:
        """What a new worker is told to hold for itself and its descendants; empty: nothing."""
        limits = self.limits
        found = {name: int(value) for name in _FOR_WORKERS if (value := getattr(limits, name)) is not None}
        if limits.processes is not None and self._sandboxed and os.getuid() and not self.counts_tasks:
            found["processes"] = int(limits.processes)
            found["max_tasks"] = int(limits.processes) + _MOST_OWN_TASKS
        return found

    @property
    def counts_tasks(self) -> bool:
        """Whether it is a cgroup that refuses processes and threads beyond their limit."""
        return self.group is not None and "pids" in self.group.controllers

    def enter(self, link: WorkerLink) -> None:
        """Put a worker in, before any code runs in it; raises `LimitUnavailable`."""
        if self.group is None:
            return
        try:
            self.make_room(0)
            self.group.enter(link.pid)
        except OSError as exc:
            raise LimitUnavailable(
                "processes" if self.counts_tasks else "memory_bytes",
                f"the worker can't be put into its cgroup: {exc.strerror}",
                "see that nobody else removes its folder",
            ) from exc

    def make_room(self, copies: int, workers: int = 1) -> None:
        """Allow for so many copies, and workers that run at once."""
        if not self.counts_tasks or self.group is None or self.limits.processes is None:
            return
        tasks = int(self.limits.processes) + workers + copies + self.dead_tasks + _OWN_TASKS
        if tasks != self._tasks:
            self._tasks = tasks
            self.group.hold_tasks(tasks)

    def allow_for_the_dead(self, count: int) -> None:
        """Programs that were killed, and that the code hasn't waited for, take no room from any other."""
        before, self.dead_tasks = self.dead_tasks, count
        if self._tasks >= 0 and self.group is not None:
            self._tasks += count - before
            self.group.hold_tasks(self._tasks)

    def let_start_again(self) -> None:
        """After `let_none_start`: as before."""
        if self._shut_tasks >= 0 and self.group is not None:
            self._tasks, self._shut_tasks = self._shut_tasks, -1
            self.group.hold_tasks(self._tasks)

    def let_none_start(self) -> None:
        """From now on nothing in the group can fork: what kills it then finds all of it."""
        if self.counts_tasks and self.group is not None:
            self._shut_tasks, self._tasks = self._tasks, -1
            self.group.hold_tasks(0)

    def forget_deaths(self) -> None:
        """What the kernel has killed until now is none of what comes."""
        if self.group is not None:
            self._seen_kills = self.group.memory_kills()

    def strike_of_death(self, signal_name: str | None) -> Strike | None:
        """The limit for which the kernel has killed a worker that died of this signal, `None` without one."""
        limit = self.limits.memory_bytes
        if self.group is None or limit is None or signal_name != "SIGKILL":
            return None
        kills, self._seen_kills = self._seen_kills, self.group.memory_kills()
        if self._seen_kills <= kills:
            return None
        return Strike(name="memory_bytes", limit=limit, used=self.group.memory_peak())

    def strike_of_error(self, error: ExecutionError | None) -> Strike | None:
        """The limit that is behind an error of the code's: the kernel has refused a process or a thread."""
        limit = self.limits.processes
        if self.group is None or limit is None or error is None:
            return None
        if not error.message.startswith(_REFUSED):
            return None
        refusals, self._seen_refusals = self._seen_refusals, self.group.refused_tasks()
        if self._seen_refusals <= refusals:
            return None
        return Strike(name="processes", limit=limit, used=limit)

    def close(self) -> None:
        """Remove the group: whoever was in there has ended."""
        if self.group is not None:
            self.group.close()
