"""Who descends from a process, read from /proc."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One line of /proc/PID/stat; `start_ticks` is the start in clock ticks since boot.

    `cpu_ticks` is the CPU time of the process and of the children that it reaped, `threads` counts its
    threads, and `resident_pages` what it has of memory, shared or not.
    """

    pid: int
    parent_pid: int
    state: str
    start_ticks: int
    name: str
    session_id: int
    cpu_ticks: int
    threads: int
    resident_pages: int


def read_stat(pid: int) -> ProcessStat | None:
    """The process's line, or `None` where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = data.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    return ProcessStat(
        pid,
        int(fields[1]),
        fields[0].decode(),
        int(fields[19]),
        name.decode("utf-8", "replace"),
        int(fields[3]),
        sum(map(int, fields[11:15])),
        int(fields[17]),
        int(fields[21]),
    )


def descendants(ancestor_pid: int, *, zombies: bool = False) -> list[ProcessStat]:
    """Every living descendant, parents before their children; `zombies` are among them where asked for."""
    children: dict[int, list[ProcessStat]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := read_stat(int(entry))) is not None:
            children.setdefault(stat.parent_pid, []).append(stat)
    found: list[ProcessStat] = []
    generation = children.get(ancestor_pid, [])
    while generation:
        found += (stat for stat in generation if zombies or stat.state not in "ZX")
        generation = [child for stat in generation for child in children.get(stat.pid, [])]
    return found


def send_signal(pid: int, signal_number: int) -> bool:
    """Send a signal; false where the process is gone or isn't ours to signal."""
    try:
        os.kill(pid, signal_number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_descendants(ancestor_pid: int) -> int:
    """Kill every descendant once, and return how many there were; those forked meanwhile need another
    call."""
    found = descendants(ancestor_pid)
    for stat in found:
        send_signal(stat.pid, signal.SIGKILL)
    return len(found)


def pid_of(pidfd: int) -> int:
    """The number of a pidfd's process in this process's pid namespace; −1 where it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        fields = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
    pid = int(fields[b"Pid"])
    return pid if pid > 0 else -1  # never 0: that would have all of the machine as its descendants


def namespace_pids(pid: int) -> list[int]:
    """A process's numbers in its pid namespaces, the outermost first; empty where it has ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            status = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(number) for number in status.partition(b"\nNSpid:")[2].partition(b"\n")[0].split()]


def last_pid() -> int:
    """The id given to the newest process of this pid namespace (last field of /proc/loadavg)."""
    with open("/proc/loadavg", "rb") as file:
        return int(file.read().split()[-1])
