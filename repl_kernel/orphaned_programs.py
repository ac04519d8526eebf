"""Programs that executed code has started, and that outlive the worker whose children they were."""

from __future__ import annotations

import os

from repl_kernel.process_tree import descendants, read_stat

WORKER_NAME = "repl-worker"
SNAPSHOT_NAME = "repl-snapshot"
"""What our processes below the keeper are called, in `ps` too: that tells them from programs."""

_MAX_NAMED = 20


def orphaned_programs(dead_pid: int, live_pid: int) -> list[str]:
    """Name the programs whose parent was the worker `dead_pid`, or is its keeper by now: `pid (name)`.

    `live_pid` is another worker of the same keeper; it may not bear its name yet. The dead worker may still
    be about to die.
    """
    live = read_stat(live_pid)
    if live is None:
        return []
    stats = [read_stat(pid) for parent in (live.parent_pid, dead_pid) for pid in _children(parent)]
    orphans = [
        f"{stat.pid} ({stat.name})"
        for stat in stats
        if stat is not None
        and stat.state not in "ZX"
        and stat.pid != live_pid
        and stat.name not in (SNAPSHOT_NAME, WORKER_NAME)
    ]
    if len(orphans) > _MAX_NAMED:
        orphans[_MAX_NAMED:] = [f"and {len(orphans) - _MAX_NAMED} more"]
    return orphans


def _children(pid: int) -> list[int]:
    folder = f"/proc/{pid}/task"
    found: list[int] = []
    try:
        for task in os.listdir(folder):
            with open(f"{folder}/{task}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    except FileNotFoundError:  # the process has ended, or the system doesn't keep such lists
        found = [stat.pid for stat in descendants(pid) if stat.parent_pid == pid]
    except ProcessLookupError:
        pass  # it ended while we looked: its children are its keeper's
    return found
