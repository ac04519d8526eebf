"""Looks at what an execution uses, while it runs, where no kernel does: CPU time, output, the work folder.

Exchange --every 0.1 s--> LimitWatch.look --> Strike --> the interruption begins, for that reason
         --output-------> LimitWatch.meter (counts, and keeps no more than is allowed) --> Strike
"""

from __future__ import annotations

import os
import signal
import time

from repl_kernel.enclosure import Enclosure
from repl_kernel.limits import Strike
from repl_kernel.orphaned_programs import SNAPSHOT_NAME, WORKER_NAME
from repl_kernel.output_meter import OutputMeter
from repl_kernel.process_tree import ProcessStat, descendants, read_stat, send_signal
from repl_kernel.work_folder_size import WorkFolderSize
from repl_kernel.worker_link import WorkerLink
from task_logger.record import ExecutionOutcome

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_PATIENCE = 20.0
"""After a look that cost much, the next one comes so many times as long later."""

_OF_PROGRAMS = ("processes", "memory_bytes")
"""Limits that the programs that were started are killed for."""

_END_WAIT_S, _END_NAP_S = 2.0, 0.001
"""How long the end of what was killed is waited for: it takes a turn on a processor."""

_STOP_ROUNDS = 50
"""Forks of what is not stopped yet are looked for so often; each round leaves fewer that could."""


class LimitWatch:
    """Watches the executions of one worker link after the other; not thread-safe."""

    def __init__(self, enclosure: Enclosure, *, alone: bool = True) -> None:
        """`alone`: no other watch looks at the same keeper's processes, as those of candidates do."""
        self.enclosure = enclosure
        limits = enclosure.limits
        self.strike: Strike | None = None
        """The limit that the execution has reached, `None` while it has reached none."""
        has_output_limit = limits.output_bytes is not None or limits.session_output_bytes is not None
        self.meter = OutputMeter(limits, enclosure.total) if has_output_limit else None
        self._last_tasks = 0
        self._memory_allowed: float = limits.memory_bytes or 0
        """The limit, or more where an execution that reached it has left more behind."""
        self._alone = alone
        self._folder = (
            WorkFolderSize(enclosure.work_folder, limits)
            if enclosure.work_folder is not None
            and (limits.work_folder_bytes is not None or limits.work_folder_files is not None)
            else None
        )
        counts_tasks = limits.processes is not None and not enclosure.counts_tasks
        self._reads_tree = limits.cpu_s is not None or counts_tasks
        self._counts_tasks = counts_tasks
        self._has_looks = self._reads_tree or limits.memory_bytes is not None or self._folder is not None

    def begin(self, link: WorkerLink) -> None:
        """An execution starts."""
        self.strike = None
        self._link = link
        if self.meter is not None and self.meter.written_bytes:
            self.meter.begin()
        self._cpu_before: float | None = None
        self._measure_at_s = 0.0
        self._is_first_look = True
        if self.enclosure.dead_tasks:
            self._allow_for_the_dead()
        if self._folder is not None:
            self._folder.begin()

    def look(self, link: WorkerLink) -> bool:
        """Whether a limit has been reached, for the first time in this execution."""
        if self.strike is not None or not self._has_looks:
            return False
        if self._is_first_look:
            self._is_first_look = False
            self.enclosure.forget_deaths()
        stats = self._processes(link) if self._reads_tree else []
        self.strike = self._cpu(stats) or self._tasks(link, stats) or self._memory(link, stats)
        if self.strike is None and self._folder is not None:
            self.strike = self._folder.look()
        return self.strike is not None

    def is_over(self) -> bool:
        """Whether output has reached a limit, for the first time in this execution."""
        if self.meter is None or self.meter.strike is None or self.strike is not None:
            return False
        self.strike = self.meter.strike
        return True

    def strike_of(self, outcome: ExecutionOutcome) -> Strike | None:
        """The limit that is behind how an execution ended."""
        strike = self._own_strike()
        if strike is None and outcome.status == "error":
            strike = self.enclosure.strike_of_error(outcome.error)
        if strike is not None and strike.name in _OF_PROGRAMS:
            # They may be what made so many, and still do; one may come of a fork that the interrupt met.
            _await_end(self._kill_programs(self._link), self._link.pid)
            self._allow_for_the_dead()
        if strike is not None and strike.name == "memory_bytes":
            # What it took until the interrupt came is there still, and not the next execution's fault.
            held = _held_together(self._link, self._processes(self._link))
            self._memory_allowed = _allowed(strike.limit, held)
        return strike

    def strike_of_death(self, signal_name: str | None) -> Strike | None:
        """The limit that is behind the death of an execution's worker."""
        self._memory_allowed = self.enclosure.limits.memory_bytes or 0
        return self._own_strike() or self.enclosure.strike_of_death(signal_name)

    def _own_strike(self) -> Strike | None:
        if self.meter is not None and self.meter.strike is not None:
            return self.meter.strike  # with all that came after it
        return self.strike

    def _processes(self, link: WorkerLink) -> list[ProcessStat]:
        """The worker, the programs below it, and those that lost their parent: the keeper's children.

        Programs that have ended are among them until somebody waits for them: then their parent has their
        CPU time. The worker is read last: it has that of a program which it waits for meanwhile.
        """
        worker = read_stat(link.pid)
        if worker is None:
            return []
        if not self._alone:
            programs = descendants(link.pid, zombies=True)
            return [read_stat(link.pid) or worker, *programs]
        family = descendants(worker.parent_pid, zombies=True)
        others = {each.pid for each in family if _is_ours(each, worker)}
        found = [read_stat(link.pid) or worker]
        for each in family:
            if each.pid in others or each.parent_pid in others:
                others.add(each.pid)
            elif each.pid != worker.pid:
                found.append(each)
        return found

    def _cpu(self, stats: list[ProcessStat]) -> Strike | None:
        limit = self.enclosure.limits.cpu_s
        if limit is None or not stats:
            return None
        now = _cpu_s(stats)
        before = self._cpu_before
        if before is not None and not before <= now < before + limit:
            # A program that was waited for between two of the readings may be in both, or in none: once more.
            now = _cpu_s(self._processes(self._link))
        if self._cpu_before is None or now < self._cpu_before:  # less: a program took its count along
            self._cpu_before = now
        used = now - self._cpu_before
        return Strike(name="cpu_s", limit=limit, used=used) if used >= limit else None

    def _tasks(self, link: WorkerLink, stats: list[ProcessStat]) -> Strike | None:
        limit = self.enclosure.limits.processes
        if limit is None or not self._counts_tasks:
            return None
        used = sum(stat.threads for stat in stats if stat.state not in "ZX") - 1
        last, self._last_tasks = self._last_tasks, used
        if used <= max(limit, last):  # they may be of the execution before
            return None
        self._kill_programs(link)
        return Strike(name="processes", limit=limit, used=used)

    def _kill_programs(self, link: WorkerLink) -> set[int]:
        """Kill what was started, all of it: stop it first, the worker too, else what is left goes on forking.

        The worker goes on with an interrupt: it may be in the middle of a loop of forks. Returns what was
        killed.
        """
        self.enclosure.let_none_start()
        link.signal(signal.SIGSTOP)
        found: set[int] = set()
        quiet_rounds = 0
        for _ in range(_STOP_ROUNDS):
            stats = self._processes(link)
            new = {stat.pid for stat in stats[1:]} - found
            for pid in new:
                send_signal(pid, signal.SIGSTOP)
            found |= new
            # A process that isn't stopped yet may have forked while we looked.
            is_quiet = not new and all(stat.state in "TtZX" for stat in stats)
            quiet_rounds = quiet_rounds + 1 if is_quiet else 0
            if quiet_rounds == 2:
                break
        for pid in found:
            send_signal(pid, signal.SIGKILL)
        link.signal(signal.SIGINT)
        link.signal(signal.SIGCONT)
        self.enclosure.let_start_again()
        return found

    def _allow_for_the_dead(self) -> None:
        """For the kernel, programs that nobody waited for are processes: they leave no room for copies."""
        if self.enclosure.counts_tasks:
            programs = descendants(self._link.pid, zombies=True)
            self.enclosure.allow_for_the_dead(sum(stat.state in "ZX" for stat in programs))

    def _memory(self, link: WorkerLink, stats: list[ProcessStat]) -> Strike | None:
        """What the processes have together; what a quick count can't tell from copies is measured."""
        limit = self.enclosure.limits.memory_bytes
        if limit is None or time.monotonic() < self._measure_at_s:
            return None
        began_s = time.monotonic()
        group = self.enclosure.group
        about = group.memory_used() if group is not None else None
        if about is None:
            stats = stats or self._processes(link)
            about = sum(stat.resident_pages for stat in stats) * _PAGE_BYTES
        used = _held_together(link, stats or self._processes(link)) if about > limit else 0
        self._measure_at_s = began_s + _PATIENCE * (time.monotonic() - began_s)
        if used <= self._memory_allowed:  # what runs may be what makes it less
            self._memory_allowed = min(self._memory_allowed, _allowed(limit, used))
            return None
        self._kill_programs(link)  # as the kernel would: it is they that have what the worker may not have
        return Strike(name="memory_bytes", limit=limit, used=used)


def _allowed(limit_bytes: float, held_bytes: float) -> float:
    """The limit; or what is held, and a sixteenth of the limit more, which code needs to run at all."""
    return max(limit_bytes, held_bytes + limit_bytes / 16)


def _cpu_s(stats: list[ProcessStat]) -> float:
    return sum(stat.cpu_ticks for stat in stats) / _TICKS_PER_S


def _is_ours(stat: ProcessStat, worker: ProcessStat) -> bool:
    """Whether a process is a copy, or another namespace's worker; a user's fork has the name at most."""
    is_named_so = stat.name in (SNAPSHOT_NAME, WORKER_NAME) and stat.session_id == stat.pid
    return stat.parent_pid == worker.parent_pid and stat.pid != worker.pid and is_named_so


def _await_end(pids: set[int], worker_pid: int) -> None:
    """Wait until what was killed has ended: until then it takes room. The worker's children, nobody reaps."""
    deadline = time.monotonic() + _END_WAIT_S
    while time.monotonic() < deadline and any(
        (stat := read_stat(pid)) is not None and (stat.state not in "ZX" or stat.parent_pid != worker_pid)
        for pid in pids
    ):
        time.sleep(_END_NAP_S)


def _held_together(link: WorkerLink, stats: list[ProcessStat]) -> int:
    """What the worker and the programs it started have of memory, in bytes."""
    return sum(_held_bytes(stat.pid, is_worker=stat.pid == link.pid) for stat in stats)


def _held_bytes(pid: int, *, is_worker: bool) -> int:
    """What a process has of memory; of a program only what no other process shares: a fork has the rest."""
    names = (b"Anonymous", b"Pss_Shmem") if is_worker else (b"Private_Clean", b"Private_Dirty")
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return sum(int(line.split()[1]) << 10 for line in file if line.partition(b":")[0] in names)
    except (OSError, ValueError):
        return 0  # it has ended, or isn't ours to look at
