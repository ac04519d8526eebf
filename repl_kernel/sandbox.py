"""The sandbox that a keeper and all below it live in: what bubblewrap is told.

session --posix_spawn--> bwrap --clone, pivot_root, seccomp--> keeper, PID 1 inside --fork--> workers
   |                                                             |
   +--- control socket, data sockets, pipes: inherited ----------+--- pidfd of the session

Inside there is a system to read, what Python and its libraries need, one work folder to write, and a /tmp and
a /dev/shm that end with it. Nothing of the home folder, no other process, no network.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from repl_kernel.errors import SandboxUnavailable, WorkerStartFailed
from repl_kernel.linux import above_standard
from repl_kernel.seccomp import filter_file
from repl_kernel.spawn import Launcher

_TMP_BYTES = 1 << 30
"""Of /tmp and of /dev/shm each: they hold memory of the machine."""

_TMP_SHARE = 4
"""Each is bounded by this part of the memory that the code may have, too: what they hold can't be killed."""

_SYSTEM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Links into /usr on most systems, folders on others; /usr itself is always there."""

_STORES = ("/nix/store", "/gnu/store")

_SETTINGS = (
    "alternatives", "ca-certificates.conf", "fonts", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d",
    "localtime", "locale.alias", "magic", "mime.types", "nsswitch.conf", "passwd", "pki/ca-trust/extracted",
    "pki/tls/certs", "protocols", "services", "ssl/certs", "ssl/openssl.cnf", "timezone",
)  # fmt: skip
"""Of /etc, by name: the worker of a session that root runs could read all the rest of it."""

_NETWORK_SETTINGS = ("gai.conf", "host.conf", "hosts", "resolv.conf")

_READ_ONLY_PROC = ("bus", "fs", "irq", "mtrr", "pressure", "scsi", "sys", "sysrq-trigger")
"""Of /proc: root may write there without any capability, `sys/kernel/core_pattern` for one."""

_HIDDEN_PROC = (
    "kallsyms", "kcore", "keys", "kmsg", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats",
    "pagetypeinfo", "sched_debug", "slabinfo", "timer_list", "vmallocinfo",
)  # fmt: skip
"""Of /proc: what tells of the machine's other processes."""

_WITHHELD_NAMES = frozenset({
    "DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "GPG_AGENT_INFO", "SSH_AUTH_SOCK", "TEMP", "TMP", "TMPDIR",
    "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR",
})  # fmt: skip
"""Variables that point to what isn't there."""

_USERNS_FIX = (
    "allow them: sysctl user.max_user_namespaces=15000, kernel.unprivileged_userns_clone=1 and "
    "kernel.apparmor_restrict_unprivileged_userns=0, as far as this system has them; a container must be "
    "started so that it may create namespaces"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One sandbox: its work folder, which must exist, and whether it shares the machine's network.

    `tmp_bytes` is what /tmp and /dev/shm may hold, each.
    """

    work_folder: str
    network: bool = False
    tmp_bytes: int = _TMP_BYTES

    def within(self, memory_bytes: float | None) -> Sandbox:
        """The same, with a /tmp and a /dev/shm that leave most of so much memory to the code."""
        if memory_bytes is None:
            return self
        return replace(self, tmp_bytes=min(self.tmp_bytes, int(memory_bytes / _TMP_SHARE)))

    def launcher(self) -> Launcher:
        """The program that starts a command in this sandbox; the caller closes its descriptors.

        Raises `SandboxUnavailable` where it, or what it needs, is missing.
        """
        program = _find_bwrap()
        work_folder = os.path.realpath(self.work_folder)
        if not os.path.isdir(work_folder):
            raise SandboxUnavailable(
                "work folder", f"{self.work_folder} is not a folder", "make it, or name another one"
            )
        seccomp_fd = above_standard(filter_file())
        namespaces = ["--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        if not self.network:
            namespaces.append("--unshare-net")
        command = [
            program, *namespaces, "--unshare-cgroup-try", "--hostname", "sandbox",
            "--as-pid-1", "--new-session", "--cap-drop", "ALL", "--seccomp", str(seccomp_fd),
            *_system(self.network), *_kernel_folders(self.tmp_bytes), *_binds(work_folder),
            "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", work_folder, "--",
        ]  # fmt: skip
        return Launcher(command, (seccomp_fd,))

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What of an environment makes sense inside; the home folder is the work folder."""
        kept = {name: value for name, value in environment.items() if name not in _WITHHELD_NAMES}
        return kept | {"HOME": os.path.realpath(self.work_folder)}


def explained(failure: WorkerStartFailed) -> WorkerStartFailed:
    """The failure of a start in a sandbox, with the layer that is to blame."""
    if isinstance(failure, SandboxUnavailable):
        return failure
    lines = failure.stderr_tail.splitlines() or [str(failure)]
    said = next((line for line in lines if line.startswith("bwrap: ")), "")
    if not said:
        return SandboxUnavailable(
            "file system",
            f"Python does not start inside: {lines[-1]}",
            "see what it needs outside of its prefix",
        )
    if "namespace" in said or "uid map" in said or "max_user" in said:
        return SandboxUnavailable("user namespaces", f"the system refuses them ({said})", _USERNS_FIX)
    if "nknown option" in said:
        return SandboxUnavailable("bubblewrap", f"it is too old ({said})", "install bubblewrap 0.8 or newer")
    return SandboxUnavailable(
        "bubblewrap", f"it can't build the sandbox ({said})", "in a container, start that with /proc unmasked"
    )


def _find_bwrap() -> str:
    for folder in os.get_exec_path():
        path = os.path.join(folder, "bwrap")
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise SandboxUnavailable(
        "bubblewrap", "the program bwrap is not on PATH", "install it (apt install bubblewrap)"
    )


def _system(has_network: bool) -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for folder in _SYSTEM_FOLDERS:
        if os.path.islink(folder):
            yield from ("--symlink", os.readlink(folder), folder)
        else:
            yield from ("--ro-bind-try", folder, folder)
    for folder in _STORES:
        yield from ("--ro-bind-try", folder, folder)
    for name in (*_SETTINGS, *(_NETWORK_SETTINGS if has_network else ())):
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")


def _kernel_folders(tmp_bytes: int) -> Iterator[str]:
    yield from ("--proc", "/proc")
    for name in _READ_ONLY_PROC:
        if os.path.exists(f"/proc/{name}"):
            yield from ("--ro-bind", f"/proc/{name}", f"/proc/{name}")
    for name in _HIDDEN_PROC:
        if os.path.exists(f"/proc/{name}"):
            yield from ("--ro-bind", "/dev/null", f"/proc/{name}")
    yield from ("--dev", "/dev")
    for folder in ("/dev/shm", "/tmp"):
        yield from ("--perms", "1777", "--size", str(tmp_bytes), "--tmpfs", folder)


def _binds(work_folder: str) -> Iterator[str]:
    """Parents before what is below them: the nearest one counts."""
    options = dict.fromkeys(_python_folders(), "--ro-bind")
    options[work_folder] = "--bind"
    for folder in sorted(options, key=len):
        yield from (options[folder], folder, folder)


def _python_folders() -> Iterator[str]:
    """The folders of the interpreter, of its libraries, and of ours."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folders = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    folders += [os.path.dirname(path) for path in _links(sys.executable)]
    folders += [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    folders += [os.path.join(root, name) for name in ("json_repl", "repl_kernel", "task_logger")]
    for folder in folders:
        for path in {os.path.abspath(folder), os.path.realpath(folder)}:
            if os.path.isdir(path) and not f"{path}/".startswith(("/usr/", *_system_prefixes())):
                yield path


def _links(path: str) -> Iterator[str]:
    """A path, and what it leads to, link by link."""
    while True:
        yield path
        if not os.path.islink(path):
            return
        path = os.path.join(os.path.dirname(path), os.readlink(path))


def _system_prefixes() -> tuple[str, ...]:
    return tuple(f"{folder}/" for folder in (*_SYSTEM_FOLDERS, *_STORES))
