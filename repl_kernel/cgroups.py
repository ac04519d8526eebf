"""Control groups: what a worker and the programs it started use together, held by the kernel.

own group of this process --> <own>/json-repl-<who>-<n> --> the worker is moved in, and forks stay in

A group is made below this process's own, so that what holds for this process holds in there as well. The
session makes and removes them: the keeper is in none. What a session that was killed has left behind is
removed by the next one.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from repl_kernel.process_tree import read_stat

_PREFIX = "json-repl-"
_REMOVE_LIMIT_S = 0.2
"""How long the last of killed processes may take to leave."""

_FIX = (
    "json-repl has to run in a cgroup that it may write to: as root with cgroups v1, or with v2 in a "
    "delegated one, such as `systemd-run --user --scope -p Delegate=yes`"
)


@dataclass(frozen=True, slots=True)
class Controller:
    """Where groups of one controller can be made: `memory` or `pids`, of version 1 or 2."""

    name: str
    version: int
    folder: str


def controllers(names: tuple[str, ...] = ("memory", "pids"), proc: str = "/proc/self") -> list[Controller]:
    """Those of the controllers in whose hierarchy this process can make groups; the others are left out."""
    own = _own_groups(f"{proc}/cgroup")
    found: list[Controller] = []
    for kinds, root, point in _mounts(f"{proc}/mountinfo"):
        for name in names:
            path = own.get(name if kinds is not None else "")
            if path is None or (kinds is not None and name not in kinds):
                continue
            if root not in ("/", path) and not path.startswith(f"{root}/"):
                continue  # mounted from elsewhere: this process's own group can't be seen
            folder = os.path.normpath(f"{point}/{path if root == '/' else path[len(root) :]}")
            if kinds is None:
                found += _version_2(name, folder, point)
            elif _is_usable(folder) and _read(folder, "memory.use_hierarchy") != "0":
                found.append(Controller(name, 1, folder))
    return found


def how_to_get() -> str:
    """What to do where there is no controller."""
    return _FIX


_READ_BYTES = 1 << 16

_MOST_PIDS = 1 << 22
"""PID_MAX_LIMIT: the kernel refuses a larger limit, and has no more processes."""


class Group:
    """One group in each of some controllers' hierarchies; `enter` moves processes in, `close` removes it."""

    def __init__(self, usable: list[Controller]) -> None:
        """Make it, once the leftovers of dead sessions are removed; raises OSError, and nothing is left."""
        self._paths: dict[str, tuple[int, str]] = {}
        name = f"{_PREFIX}{_owner()}-{os.urandom(4).hex()}"
        try:
            for controller in usable:
                _sweep(controller.folder)
                path = f"{controller.folder}/{name}"
                if (controller.version, path) not in self._paths.values():
                    os.mkdir(path)
                self._paths[controller.name] = controller.version, path
        except OSError:
            self.close()
            raise

    @property
    def controllers(self) -> frozenset[str]:
        """Which of the controllers it has."""
        return frozenset(self._paths)

    def hold_memory(self, limit_bytes: int) -> None:
        """Have all of the group's processes together get no more memory; raises OSError."""
        version, path = self._paths["memory"]
        if version == 2:
            _write(path, "memory.max", limit_bytes)
            _write(path, "memory.swap.max", 0)
            return
        _write(path, "memory.limit_in_bytes", limit_bytes)
        if os.path.exists(f"{path}/memory.memsw.limit_in_bytes"):  # not where swap isn't counted
            _write(path, "memory.memsw.limit_in_bytes", limit_bytes)

    def hold_tasks(self, limit: int) -> None:
        """Let no process or thread be made beyond so many; raises OSError."""
        _write(self._paths["pids"][1], "pids.max", min(limit, _MOST_PIDS))

    def enter(self, pid: int) -> None:
        """Move a process in; raises OSError."""
        for _, path in set(self._paths.values()):
            _write(path, "cgroup.procs", pid)

    def memory_used(self) -> int | None:
        """What its processes, living and dead, hold together, caches of files too; `None`: not counted."""
        if "memory" not in self._paths:
            return None
        version, path = self._paths["memory"]
        text = _read(path, "memory.usage_in_bytes" if version == 1 else "memory.current")
        return int(text) if text.isdigit() else None

    def memory_peak(self) -> int | None:
        """The most that they have held together; `None`: this kernel doesn't tell."""
        version, path = self._paths["memory"]
        text = _read(path, "memory.max_usage_in_bytes" if version == 1 else "memory.peak")
        return int(text) if text.isdigit() else None

    def memory_kills(self) -> int:
        """How often the kernel killed one of its processes for want of memory."""
        if "memory" not in self._paths:
            return 0
        version, path = self._paths["memory"]
        return _counter(_read(path, "memory.oom_control" if version == 1 else "memory.events"), "oom_kill")

    def refused_tasks(self) -> int:
        """How many forks and threads were refused."""
        return _counter(_read(self._paths["pids"][1], "pids.events"), "max") if "pids" in self._paths else 0

    def pids(self) -> list[int]:
        """The processes that are in it."""
        _, path = next(iter(self._paths.values()))
        return [int(pid) for pid in _read(path, "cgroup.procs").split()]

    def close(self) -> None:
        """Remove it; what is still in there leaves it to the next session's start. Idempotent."""
        deadline = time.monotonic() + _REMOVE_LIMIT_S
        for _, path in set(self._paths.values()):
            while not _remove(path) and time.monotonic() < deadline:
                time.sleep(0.002)
        self._paths = {}


def _own_groups(path: str) -> dict[str, str]:
    """The groups of this process: by controller those of version 1, and that of version 2 by ''."""
    found: dict[str, str] = {}
    for line in _read("", path).splitlines():
        _, kinds, group = line.split(":", 2)
        for kind in kinds.split(","):
            found[kind] = group
    return found


def _mounts(path: str) -> list[tuple[frozenset[str] | None, str, str]]:
    """Of each hierarchy: its controllers (`None`: version 2), what of it is mounted, and where."""
    found: list[tuple[frozenset[str] | None, str, str]] = []
    for line in _read("", path).splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.partition(" ")
        root, point = mount.split()[3:5]
        if kind == "cgroup":
            found.append((frozenset(options.split()[-1].split(",")), root, point))
        elif kind == "cgroup2":
            found.append((None, root, point))
    return found


def _version_2(name: str, own: str, top: str) -> list[Controller]:
    """In version 2 no group with processes has groups with limits below: one is made beside our own.

    Only where our own sets no limits, which those beside it would not be bound by.
    """
    for folder in (own, os.path.dirname(own)):
        if folder == own or (
            own != top and _read(own, f"{name}.max") == "max" and _is_writable(f"{folder}/cgroup.procs")
        ):
            offered = _read(folder, "cgroup.subtree_control").split()
            if name in offered and _is_usable(folder):
                return [Controller(name, 2, folder)]
    return []


def _is_usable(folder: str) -> bool:
    """Whether groups can be made there: tried out, since no mode tells of a mount that is read-only."""
    path = f"{folder}/{_PREFIX}{_owner()}-0"
    try:
        os.mkdir(path)
    except FileExistsError:
        return True  # another thread of this process tries as well
    except OSError:
        return False
    try:
        return _is_writable(f"{path}/cgroup.procs")
    finally:
        _remove(path)


def _is_writable(path: str) -> bool:
    return os.access(path, os.W_OK)


def _owner() -> str:
    """This process, as long as it lives: its pid namespace, its number there, its start."""
    stat = read_stat(os.getpid())
    return f"{_namespace()}-{os.getpid()}-{stat.start_ticks if stat is not None else 0}"


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid").partition("[")[2].rstrip("]")


def _sweep(folder: str) -> None:
    """Remove the groups of sessions that are dead; those of other pid namespaces can't be told."""
    ours = f"{_PREFIX}{_namespace()}-"
    for name in os.listdir(folder):
        if name.startswith(ours):
            pid, start_ticks, _ = name[len(ours) :].split("-")
            stat = read_stat(int(pid))
            if stat is None or stat.start_ticks != int(start_ticks):
                _remove(f"{folder}/{name}")


def _remove(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # somebody is still in there
    return True


# Neither by open(): a session that nobody closed ends with the interpreter, which has no built-ins left then.
def _read(folder: str, name: str) -> str:
    data = b""
    try:
        fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            while piece := os.read(fd, _READ_BYTES):
                data += piece
        finally:
            os.close(fd)
    except OSError:
        return ""  # this kernel doesn't have it
    return data.decode("utf-8", "replace").strip()


def _write(folder: str, name: str, value: int) -> None:
    fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode("ascii"))
    finally:
        os.close(fd)


def _counter(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
